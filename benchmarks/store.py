"""What a store costs: filling it beside fetching without one, reading it beside plain Zarr.

Run it with ``python -m benchmarks.store [--latency 0.2] [--repetitions 5]``. The
sandbox runs in a process of its own and has every answer ready; repetitions come in
random order. Figures of one run can be compared with each other only.
"""

from __future__ import annotations

import gc
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import xarray as xr

import clearsky_xr

from ._contenders import forget
from ._service import Service

AREA = (15.05, 46.05, 15.10, 46.08)
TIME = [f"2025-{month:02}-{day:02}" for month in (4, 5, 6) for day in range(1, 31, 5)]


def measure(cases: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Time each case; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repetitions + 1):
        for name in random.sample(list(cases), len(cases)):
            forget()
            gc.collect()
            began = time.perf_counter()
            cases[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


@click.command()
@click.option("--latency", default=0.2, help="Seconds to the first byte of an answer.")
@click.option("--repetitions", default=5)
def main(latency: float, repetitions: int) -> None:
    """Measure, and print medians, their ratio, and the ratio of the best ones.

    On a busy machine the best ones say more: what is in the way differs from run to run.
    """
    service = Service("deflate")
    service.set_latency(latency)
    folder = Path(tempfile.mkdtemp())
    full, fresh = folder / "full.zarr", folder / "fresh.zarr"

    def opened(**options: Any) -> xr.Dataset:
        return clearsky_xr.open_timeseries(
            AREA, TIME, base_url=service.url, api_key=service.keys[4], clip=False, **options
        )

    def filled() -> None:
        opened(store=fresh).load()
        shutil.rmtree(fresh)
        shutil.rmtree(folder / "fresh.zarr.clearsky")

    def raw(**options: Any) -> xr.Dataset:
        return opened(store=full, mask_and_scale=False, **options)

    try:
        cube = opened(store=full)
        cube.load()
        print(f"{dict(cube.sizes)}, latency {latency} s")  # noqa: T201
        pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "fill a store / fetch without": (filled, lambda: opened().load()),
            "read decoded, Dask / plain open_zarr": (
                lambda: opened(store=full).load(),
                lambda: xr.open_zarr(full).load(),
            ),
            "read decoded, no Dask / plain": (
                lambda: opened(store=full, chunks=None).load(),
                lambda: xr.open_zarr(full, chunks=None).load(),
            ),
            "read int16, Dask / plain": (
                lambda: raw().load(),
                lambda: xr.open_zarr(full, mask_and_scale=False).load(),
            ),
            "read int16, no Dask / plain": (
                lambda: raw(chunks=None).load(),
                lambda: xr.open_zarr(full, chunks=None, mask_and_scale=False).load(),
            ),
        }
        cases = {(name, k): case for name, pair in pairs.items() for k, case in enumerate(pair)}
        seconds = measure({f"{name}|{k}": case for (name, k), case in cases.items()}, repetitions)
        for name in pairs:
            both = [seconds[f"{name}|{k}"] for k in (0, 1)]
            one, other = map(statistics.median, both)
            best = min(both[0]) / min(both[1])
            print(  # noqa: T201
                f"{name:40s} {one:7.3f} s / {other:7.3f} s = {one / other:5.2f}, best {best:5.2f}"
            )
    finally:
        service.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
