"""A process that runs one contender, and is measured from within."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from . import _contenders
from ._work import Job


@dataclass(frozen=True, slots=True)
class Measured:
    """One run.

    Parameters
    ----------
    wall, cpu : float
        Seconds; of all threads of the process.
    peak : int
        Bytes that the process grew by while it ran, at most.
    sum : float
        Of the result, to compare; NaN if there is none.
    sent : list of (float, int)
        When a download of this package was sent (1) and had come whole (-1).
    """

    wall: float
    cpu: float
    peak: int
    sum: float
    sent: list[tuple[float, int]]


class Child:
    """A contender in a process of its own.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_run, args=(name, theirs))
        self._child.start()

    def run(self, job: Job, *, check: bool = False) -> Measured:
        """Run once; with `check` the result is summed up."""
        self._pipe.send((job, check))
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)  # noqa: TRY004  a traceback from the child
        assert isinstance(answer, Measured)
        return answer

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._child.join(20)
        if self._child.is_alive():
            self._child.terminate()


def _run(name: str, pipe: Connection) -> None:
    prepare = _contenders.CONTENDERS[name]
    while (message := pipe.recv()) is not None:
        job, check = message
        try:
            pipe.send(_measure(prepare, job, check=check))
        except Exception:  # noqa: BLE001  told by the other side
            pipe.send(traceback.format_exc())
    for client in _contenders.clusters:
        client.shutdown()


def _measure(prepare: Any, job: Job, *, check: bool) -> Measured:
    if "clearsky_xr" in sys.modules:
        _contenders.forget()
    run = prepare(job)
    sent: list[tuple[float, int]] = []
    if "clearsky_xr" in sys.modules:
        _watch(sent)
    gc.collect()
    _reset_peak()
    before = _memory("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _memory("VmHWM") - before
    total = float("nan")
    if check and result is not None:
        values = np.asarray(result)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        assert values.shape == job.shape, values.shape
        total = float(np.nansum(values, dtype=np.float64))
    return Measured(wall, cpu, peak, total, sent)


def _watch(sent: list[tuple[float, int]]) -> None:
    from clearsky_xr import _client

    async def composite(self: Any, *args: Any) -> bytes:
        sent.append((time.perf_counter(), 1))
        try:
            return await _genuine(self, *args)
        finally:
            sent.append((time.perf_counter(), -1))

    _genuine = getattr(_client, "_genuine", None) or _client.Client.composite
    _client._genuine = _genuine  # type: ignore[attr-defined]
    _client.Client.composite = composite  # type: ignore[method-assign]


def warmed(job: Job) -> Job:
    """Give a job with one date: whoever has run it has imported everything."""
    work = replace(job.work, dates=1)
    last = job.work.dates - 1
    calls = tuple(replace(call, date=0) for call in job.calls if call.date == last)
    return replace(job, work=work, calls=calls)


def _memory(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
