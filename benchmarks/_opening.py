"""What an opening costs, and whether a long series is slower by the date than a short one."""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import xarray as xr

import clearsky_xr

from . import _contenders
from ._work import Job, Work

#: 245 groups of three dates, 64 x 64 squares of 1024 px: two years of a country.
MILLION: Final = Work("million", 65_536, 735)


def million(job: Job, repetitions: int) -> dict[str, float]:
    """Open a cube of 10^6 chunks, after the free calls; seconds, bytes, and counts."""
    access: dict[str, Any] = {"base_url": job.url, "api_key": job.key}
    cube = clearsky_xr.resolve(
        MILLION.area, MILLION.days, like=MILLION.geobox, clip=False, **access
    )  # fmt: skip

    def opened(chunks: Any) -> xr.Dataset:
        return xr.open_dataset(cube, engine="clearsky", chunks=chunks, **access)  # type: ignore[arg-type]

    lazy, chunked = opened(None), opened({})
    return {
        "chunks": float(chunked.reflectance.data.npartitions),
        "lazily": _median(lambda: opened(None), repetitions),
        "chunked": _median(lambda: opened({}), repetitions),
        "pickle": float(len(pickle.dumps(lazy.reflectance.variable))),
        "pickle_chunked": float(len(pickle.dumps(chunked.reflectance.data))),
        "pickle_dataset": float(len(pickle.dumps(lazy))),
        "pickle_dataset_chunked": float(len(pickle.dumps(chunked))),
        "layers": float(len(chunked.reflectance.data.dask.layers)),
    }


def beginning(job: Job, repetitions: int) -> dict[str, float]:
    """Open a cube from its area, free calls included, and wait for its first chunk; seconds."""
    access: dict[str, Any] = {"base_url": job.url, "api_key": job.key}
    work, days = job.work, (str(job.work.days[0]), str(job.work.days[-1]))
    found: dict[str, list[float]] = {"open": [], "first_chunk": [], "first_date": []}
    for _ in range(repetitions):
        began = time.perf_counter()
        dataset = clearsky_xr.open_timeseries(
            work.area, days, like=work.geobox, clip=False, **access
        )  # fmt: skip
        opened = time.perf_counter()
        _contenders.forget()
        dataset.reflectance.data.blocks[0, 0, 0, 0].compute(scheduler="threads", num_workers=2)
        chunk = time.perf_counter()
        _contenders.forget()
        dataset.reflectance.isel(time=0).load()
        date = time.perf_counter()
        found["open"].append(opened - began)
        found["first_chunk"].append(chunk - opened)
        found["first_date"].append(date - chunk)
    graph = dict(dataset.reflectance.data.__dask_graph__())
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {
        **medians,
        "chunks": float(dataset.reflectance.data.npartitions),
        "tasks": float(len(graph)),
    }


def by_length(job: Job, counts: tuple[int, ...], repetitions: int) -> dict[int, float]:
    """Load 8 x 8 px of ever more dates; seconds a date."""
    found = {}
    for count in counts:
        work = Work("long", 8, count)
        dataset = _contenders.opened(_with(job, work), None)
        runs = []
        for _ in range(repetitions if count < 5000 else max(3, repetitions // 3)):
            _contenders.forget()
            fresh = dataset.copy()
            began = time.perf_counter()
            fresh.load()
            runs.append((time.perf_counter() - began) / count)
        found[count] = statistics.median(runs)
    return found


def _with(job: Job, work: Work) -> Job:
    from dataclasses import replace

    return replace(job, work=work)


def _median(call: Callable[[], Any], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
