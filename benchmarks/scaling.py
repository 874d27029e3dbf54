"""What a cluster does with large work: memory for gigabytes, the gate for many requests.

``python -m benchmarks.scaling memory --gigabytes 20`` reduces that many gigabytes of decoded pixels
to month means on workers of 2 GB each, and tells the peak memory of each process.
``python -m benchmarks.scaling requests --count 100000`` sends that many requests of one pixel to a
server that answers at once, and tells what the gate on the scheduler costs.
``python -m benchmarks.scaling open`` opens a country for a year: a million chunks.
"""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import pickle
import resource
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import click
import distributed
import xarray as xr

import clearsky_xr
from clearsky_xr._array import origin

FIELD = (15.05, 46.05, 15.06, 46.06)


def peak_mb() -> float:
    """Give the largest memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds() -> float:
    """Give the processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(options: dict[str, Any], pipe: Connection) -> None:
    """Run a sandbox until the other side hangs up; samples how many of its connections are busy."""
    with clearsky_xr.sandbox.serve(**options) as server:
        pipe.send((server.url, server.api_key))
        samples: list[int] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.01):
                if not samples and not server.in_flight:
                    continue
                samples.append(server.in_flight)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        pipe.recv()
        over.set()
        thread.join()
        while samples and not samples[-1]:
            samples.pop()
        pipe.send(
            {
                "peak in flight": server.peak_in_flight,
                "downloads": len(server.downloads()),
                "credits": round(sum(entry.credits for entry in server.ledger()), 2),
                "connections busy": round(
                    statistics.fmean(samples) / options["max_connections"] if samples else 0.0, 3
                ),
            }
        )


@contextmanager
def sandbox(**options: Any) -> Iterator[tuple[dict[str, str], Connection]]:
    """Give access to a sandbox in a process of its own, and the pipe that it reports through."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(options, there))
    process.start()
    try:
        url, key = here.recv()
        yield {"base_url": url, "api_key": key}, here
    finally:
        process.join(30)
        process.kill()


@click.group()
def main() -> None:
    """Measure a cluster on large work."""


@main.command()
@click.option("--gigabytes", default=20.0, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--connections", default=4, show_default=True)
def memory(gigabytes: float, workers: int, threads: int, connections: int) -> None:
    """Reduce many gigabytes to month means."""
    area = (15.05, 46.05, 15.18, 46.14)  # about 1024 x 1024 px
    with sandbox(max_connections=connections, cadence_days=1) as (access, pipe):
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=threads, memory_limit="2GB",
                dashboard_address=":0",
            ) as cluster,
            distributed.Client(cluster) as client,
        ):  # fmt: skip
            clearsky_xr.cluster.setup(client, api_key=access["api_key"])
            one = clearsky_xr.open_timeseries(area, "2024-01-01", **access)
            days = max(1, round(gigabytes * 1e9 / one.reflectance.nbytes))
            last = dt.date(2024, 1, 1) + dt.timedelta(days - 1)
            ds = clearsky_xr.open_timeseries(area, ("2024-01-01", str(last)), **access)
            began = time.perf_counter()
            means = ds[["reflectance"]].groupby("time.month").mean()
            with tempfile.TemporaryDirectory() as folder:
                means.drop_encoding().to_zarr(f"{folder}/means.zarr", consolidated=False)
            seconds = time.perf_counter() - began
            peaks = {
                "scheduler and client": peak_mb(),
                **client.run(peak_mb),
            }
        pipe.send("done")
        server = pipe.recv()
    report(
        {
            "shape": dict(ds.sizes),
            "chunks": ds.reflectance.data.numblocks,
            "decoded GB": round(ds.reflectance.nbytes / 1e9, 1),
            "result MB": round(means.nbytes / 1e6),
            "seconds": round(seconds, 1),
            "peak MB": {name: round(peak) for name, peak in peaks.items()},
            "server": server,
        }
    )


@main.command()
@click.option("--count", default=100_000, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--connections", default=64, show_default=True)
@click.option("--latency", default=0.0, show_default=True)
@click.option("--dates-in-chunk", default=100, show_default=True)
def requests(
    *, count: int, workers: int, threads: int, connections: int, latency: float, dates_in_chunk: int
) -> None:
    """Send many requests of one pixel each."""
    last = dt.date(2025, 1, 1)
    first = last - dt.timedelta(count - 1)
    options = {"start_date": first, "cadence_days": 1, "latency": latency}
    with sandbox(max_connections=connections, **options) as (access, pipe):
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=threads, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            clearsky_xr.cluster.setup(client, api_key=access["api_key"])
            ds = clearsky_xr.open_timeseries(
                FIELD, (str(first), str(last)), bands="nir", chunks={"time": dates_in_chunk},
                **access,
            )  # fmt: skip
            point = ds.reflectance.isel(x=30, y=30, band=0)
            point = point.chunk({"time": dates_in_chunk})
            before = cpu_seconds()
            began = time.perf_counter()
            values = point.compute()
            seconds = time.perf_counter() - began
            spent = clearsky_xr.spent()
            peaks = {"scheduler and client": peak_mb(), **client.run(peak_mb)}
            here = cpu_seconds() - before
        pipe.send("done")
        server = pipe.recv()
    report(
        {
            "values": int(values.notnull().sum()),
            "seconds": round(seconds, 1),
            "requests a second": round(count / seconds),
            "processor of scheduler and client, ms a request": round(1000 * here / count, 2),
            "spent": spent.settled,
            "peak MB": {name: round(peak) for name, peak in peaks.items()},
            "server": server,
        }
    )


@main.command("open")
@click.option("--repetitions", default=7, show_default=True)
def opening(repetitions: int) -> None:
    """Open a country for a year: 10^6 chunks."""
    # They are not those that the cube prefers, so that there are as many; see docs/decisions.md.
    warnings.filterwarnings("ignore", "The specified chunks separate")
    slovenia = (13.4, 45.4, 16.6, 46.9)
    with sandbox(max_connections=4, max_area_km2=10**6, cadence_days=1) as (access, pipe):
        cube = clearsky_xr.resolve(slovenia, "2024", **access)
        rows, cols = cube.grid.shape
        side = int((rows * cols * len(cube.dates) / 1e6) ** 0.5)
        chunks = {"time": 1, "y": side, "x": side}
        seconds: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        for _ in range(repetitions):
            for name, how in {"lazily": None, "with Dask": chunks}.items():
                began = time.perf_counter()
                ds = xr.open_dataset(cube, engine="clearsky", chunks=how, **access)
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                if how is None:
                    sizes["pickle of the Dataset, bytes"] = len(pickle.dumps(ds))
                    lazy = origin(ds.reflectance.variable._data)
                    sizes["pickle of the lazy array, bytes"] = len(pickle.dumps(lazy))
                else:
                    sizes["chunks"] = ds.reflectance.data.npartitions
                    part = ds.reflectance.isel(time=slice(0, 2), y=slice(0, 2 * side), x=0)
                    graph = part.data.__dask_graph__()
                    sizes["chunks of a part"] = part.data.npartitions
                    sizes["tasks of a part"] = len(graph.cull(part.data.__dask_keys__()))
        pipe.send("done")
        pipe.recv()
    medians = {name: round(1000 * statistics.median(s), 1) for name, s in seconds.items()}
    report({"shape": [len(cube.dates), rows, cols], **sizes, "milliseconds": medians})


def report(found: dict[str, Any]) -> None:
    """Print what was found."""
    click.echo(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
