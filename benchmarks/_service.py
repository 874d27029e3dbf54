"""The sandbox in a process of its own, with every answer ready and a clock on its connections."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

import clearsky_xr
from clearsky_xr.sandbox import Account, _accounts, _download

from ._work import LAST, LAYOUTS

CONNECTIONS: Final = (4, 16)
_MEMORY: Final = 6 * 2**30


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the server saw between two looks.

    Parameters
    ----------
    requests : int
        Downloads.
    bytes : int
        Their bodies.
    busy : float
        Share of the account's connections that were in use from the first download's
        arrival to the last one's, while work remained.
    """

    requests: int
    bytes: int
    busy: float


class Service:
    """A sandbox whose latency can be set, in a process of its own; a context manager.

    Parameters
    ----------
    layout : str
        One of `LAYOUTS`.
    """

    def __init__(self, layout: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(layout, theirs), daemon=True)
        self._child.start()
        self.url, *keys = self._pipe.recv()
        self.keys: dict[int, str] = dict(zip(CONNECTIONS, keys, strict=True))

    def set_latency(self, seconds: float) -> None:
        """Set the seconds to the first byte."""
        self._pipe.send(("latency", seconds))
        self._pipe.recv()

    def traffic(self, limit: int) -> Traffic:
        """Tell what was seen since the last call."""
        self._pipe.send(("traffic", limit))
        return Traffic(*self._pipe.recv())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._pipe.send(None)
        self._child.join(10)
        if self._child.is_alive():
            self._child.terminate()


def _serve(layout: str, pipe: Connection) -> None:
    # Private parts of the sandbox, since nobody but a benchmark has use for these knobs.
    _download.MEMORY_BYTES = _MEMORY  # type: ignore[misc]
    events = _watch_slots()
    accounts = [Account(max_connections=n, balance=1e12) for n in CONNECTIONS]
    options: Any = LAYOUTS[layout]
    with clearsky_xr.sandbox.serve(
        accounts=accounts, memoize=True, start_date=LAST.replace(year=1990), end_date=LAST,
        cadence_days=1, **options,
    ) as server:  # fmt: skip
        pipe.send((server.url, *server.api_keys))
        seen = 0
        while (command := pipe.recv()) is not None:
            what, value = command
            if what == "latency":
                state = server._state
                object.__setattr__(state, "behaviour", replace(state.behaviour, latency=value))
                pipe.send(None)
                continue
            downloads = server.downloads()
            new, seen = downloads[seen:], len(downloads)
            pipe.send((len(new), sum(entry.bytes or 0 for entry in new), busy(events, value)))
            events.clear()


def _watch_slots() -> list[tuple[float, int]]:
    """Take the time whenever a download gets or leaves a connection."""
    events: list[tuple[float, int]] = []
    genuine = _accounts.Holder.slot

    @contextmanager
    def slot(self: Any, overload: Any) -> Iterator[int]:
        with genuine(self, overload) as number:
            events.append((time.perf_counter(), 1))
            try:
                yield number
            finally:
                events.append((time.perf_counter(), -1))

    _accounts.Holder.slot = slot  # type: ignore[method-assign]
    return events


def busy(events: list[tuple[float, int]], limit: int) -> float:
    """Give the share of connections in use from the first arrival to the last one."""
    arrivals = [when for when, step in events if step > 0]
    if len(arrivals) <= limit:
        return float("nan")
    end, open_, before, used = arrivals[-1], 0, arrivals[0], 0.0
    for when, step in events:
        if when > end:
            break
        used += open_ * (when - before)
        before, open_ = when, open_ + step
    return used / (limit * (end - arrivals[0]))
