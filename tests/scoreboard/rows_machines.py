"""Processes, threads, loops and clusters: dying, forked, nested, interrupted, many."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

import clearsky_xr
from clearsky_xr import _account
from clearsky_xr.sandbox import Server

from ..test_processes import CHILDREN, QUIET, child, run
from .bench import (
    DAYS,
    FARM,
    KEY,
    PATIENCE,
    Bench,
    credits_of,
    start_cluster,
    stop_cluster,
    watch,
)
from .board import row
from .rows_waiting import gated

TWELVE = DAYS[:12]


@row(
    19,
    "worker dies holding slots",
    "slots come back after quarantine, the server's peak (orphans counted) stays within the limit; "
    "at most its in-flight requests are bought again, booked as lost",
)
def a_worker_dies(bench: Bench) -> dict[str, Any]:
    server = bench.serve(max_connections=4, latency=0.4)
    bench.may_hear("under way when an earlier process ended")
    client = start_cluster()
    try:
        clearsky_xr.cluster.setup(client, api_key=KEY, quarantine=1.0)
        ds = clearsky_xr.open_timeseries(
            FARM, TWELVE, base_url=server.url, api_key=KEY, store=bench.folder / "fields.zarr",
            chunks={"time": 3},
        )  # fmt: skip
        result = client.compute(ds.reflectance)
        bench.until(lambda: server.in_flight == 4)
        workers = {
            name: spent
            for name, spent in clearsky_xr.cluster.status(client).processes.items()
            if "://" in name
        }
        victim = max(workers, key=lambda name: workers[name].reserved)
        pid = client.run(os.getpid, workers=[victim])[victim]
        bench.until(lambda: server.in_flight == 4)
        os.kill(pid, signal.SIGKILL)
        got = result.result(timeout=PATIENCE)
        status = clearsky_xr.cluster.status(client)
        spent = clearsky_xr.spent()
    finally:
        stop_cluster(client)
        _account.process().links.clear()
    np.testing.assert_array_equal(got, bench.truth(TWELVE))
    assert server.peak_in_flight == 4
    (gate,) = status.gates
    assert (gate.limit, gate.in_flight, gate.orphans) == (4, 0, 0)
    again = len(server.downloads()) - 12
    price = server.downloads()[0].credits
    assert 0 <= again <= 4
    assert 0 < spent.possibly <= 4 * price + 1e-9
    assert spent.settled + spent.possibly >= credits_of(server.downloads()) - 1e-9
    return {"bought again": again, "possibly charged": spent.possibly}


@row(
    20,
    "N workers x M threads",
    "the sandbox's peak never exceeds the account's `MaxConcurrentConnections`",
)
def many(bench: Bench) -> dict[str, Any]:
    client = bench.cluster()
    truth = bench.truth(TWELVE)
    peaks = []
    for limit in (1, 3):
        server = bench.serve(max_connections=limit, latency=0.05)
        clearsky_xr.cluster.setup(client, api_key=KEY)
        ds = clearsky_xr.open_timeseries(
            FARM, TWELVE, base_url=server.url, api_key=KEY, chunks={"time": 2}
        )
        far = client.compute(ds.reflectance)
        # And the notebook itself, with threads of its own, somewhere else.
        here = [
            clearsky_xr.open_timeseries(
                (15.08, 46.05, 15.09, 46.06), [day], base_url=server.url, api_key=KEY, chunks=None
            )
            for day in DAYS[:4]
        ]
        threads = bench.threads(*(cube.load for cube in here))
        np.testing.assert_array_equal(far.result(timeout=PATIENCE), truth)
        for thread in threads:
            thread.join(PATIENCE)
        assert {entry.status for entry in server.downloads()} == {200}  # no 1003
        assert len(server.downloads()) == 16
        assert server.peak_in_flight == limit
        peaks.append(server.peak_in_flight)
    return {"processes": 3, "threads in all": 8, "limits": "1 and 3",
            "peaks": " and ".join(map(str, peaks))}  # fmt: skip


@row(
    21,
    "KeyboardInterrupt, cancellation",
    "paid requests in flight land in the spool, slots released, ledger settled, next compute works",
)
def interrupted(bench: Bench) -> dict[str, Any]:
    truth = bench.truth(TWELVE)
    before = clearsky_xr.spent().settled

    def after(server: Server, gate: threading.Event, most: int) -> None:
        """Look at what is left, and go on."""
        gate.set()
        bench.quiet(server)
        owner = _account.process().accounts[server.url, KEY]
        assert owner.gate.in_flight == 0
        sent = server.downloads()
        assert {entry.status for entry in sent} == {200}
        assert 4 <= len(sent) <= most, len(sent)

        def held() -> list[Any]:
            return [one for answers in owner.holdings._held.values() for one in answers]

        bench.until(lambda: len(held()) == len(sent))
        assert all(answer.path is not None and answer.path.exists() for answer in held())
        again = bench.open(server, TWELVE)
        np.testing.assert_array_equal(again.reflectance.values, truth)
        assert len(server.downloads()) == 12
        spent = clearsky_xr.spent()
        assert (spent.possibly, spent.reserved) == (0, 0)

    def all_gated(server_options: dict[str, Any]) -> tuple[Server, threading.Event]:
        gate = threading.Event()
        return bench.serve(replace(gated(gate), times=None), **server_options), gate

    for chunks in (None, {"time": 12}):
        server, gate = all_gated({})
        ds = bench.open(server, TWELVE, chunks=chunks)

        def press(server: Server = server) -> None:
            bench.until(lambda: server.in_flight == 4)
            os.kill(os.getpid(), signal.SIGINT)

        (finger,) = bench.threads(press)
        try:
            ds.reflectance.compute()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it was not interrupted")
        finger.join(PATIENCE)
        after(server, gate, 4)

    server, gate = all_gated({})
    ds = bench.open(server, TWELVE)

    async def impatient() -> None:
        task = asyncio.create_task(ds.load_async())
        await asyncio.to_thread(bench.until, lambda: server.in_flight == 4)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return
        raise AssertionError("it was not cancelled")

    asyncio.run(impatient())
    after(server, gate, 4)
    charged = credits_of([entry for server in bench.servers for entry in server.downloads()])
    assert round(clearsky_xr.spent().settled - before, 2) == charged
    return {"sent after it": 0}


CELLS = """
import asyncio, clearsky_xr, xarray as xr
area, days = (15.05, 46.05, 15.06, 46.06), {days}
ds = clearsky_xr.open_timeseries(area, days[:1]).load()      # the kernel's loop runs
print("sync", float(ds.reflectance.sum()))
---
ds = xr.open_dataset(area, engine="clearsky", time=days[1:2])
await ds.load_async()
print("async", float(ds.reflectance.sum()))
---
lazy = clearsky_xr.open_timeseries(area, days[2:3])
print("gathered", [float(x.reflectance.sum()) for x in await asyncio.gather(
    *(asyncio.to_thread(lazy.isel(x=slice(10 * k, 10 * k + 10)).load) for k in range(3)))])
lazy.clearsky
---
slow = xr.open_dataset(area, engine="clearsky", time=days[3:])
slow.load()
"""


async def notebook(bench: Bench, server: Server, gate: threading.Event) -> int:
    """Run cells in a real kernel; gives how many."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    kernel = AsyncKernelManager()
    # The interpreter that runs this, not whichever one a kernel was installed for.
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel._kernel_spec = KernelSpec(argv=argv, display_name="Python", language="python")
    await kernel.start_kernel(
        env={**os.environ, "CLEARSKY_BASE_URL": server.url, "CLEARSKY_API_KEY": KEY},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    client = kernel.client()
    client.start_channels()
    said: list[str] = []

    async def cell(code: str) -> dict[str, Any]:
        reply = await client.execute_interactive(
            code, timeout=PATIENCE, output_hook=lambda message: said.append(str(message["content"]))
        )
        content: dict[str, Any] = reply["content"]
        said.append(str(content))
        return content

    async def stop() -> None:
        await asyncio.to_thread(bench.until, lambda: server.in_flight == 4)
        await kernel.interrupt_kernel()

    try:
        await client.wait_for_ready(timeout=PATIENCE)
        *cells, slow = CELLS.format(days=DAYS[:7]).split("---")
        for code in cells:
            assert (await cell(code))["status"] == "ok", said[-1]
        text = "".join(said)
        assert all(word in text for word in ("sync", "async", "gathered", "text/html"))
        gate.clear()
        reply, _ = await asyncio.gather(cell(slow), stop())
        assert reply["ename"] == "KeyboardInterrupt"
        gate.set()
        reply = await cell("slow.load(); print(clearsky_xr.spent().requests)")
        assert reply["status"] == "ok", reply
        watch.look("notebook output", *said)
    finally:
        client.stop_channels()
        await kernel.shutdown_kernel(now=True)
        kernel.context.destroy(linger=0)
    # Three parts of the third day, and nothing twice.
    days = sorted(str(entry.date) for entry in server.downloads())
    assert days == sorted([*DAYS[:7], *2 * DAYS[2:3]])
    return len(cells) + 2


@row(
    22,
    "fork after use, spawn, forkserver; threads; called inside a running loop; `asyncio.run` in "
    "scripts; Jupyter",
    "works or a clear error; no hang",
)
def elsewhere(bench: Bench) -> dict[str, Any]:
    days, part = DAYS[:4], slice(0, 20)
    truth = bench.truth(days)
    server = bench.serve()
    ds = bench.open(server, days)
    ds.reflectance.isel(x=slice(0, 5)).load()
    # A forked child, after the parent has used its loop, threads and sockets; and the parent then.
    total, _ = child("fork", ds, {"x": part})
    np.testing.assert_allclose(total, np.nansum(truth[..., part], dtype=np.float64), rtol=1e-12)
    np.testing.assert_array_equal(ds.reflectance.isel(x=part).values, truth[..., part])
    ways = 1
    scripts = [
        (CHILDREN, "spawn", {"CLEARSKY_API_KEY": KEY}),
        (CHILDREN, "forkserver", {"CLEARSKY_API_KEY": KEY}),
        (CHILDREN, "spawn", {}),  # a key that was an argument does not travel
        (QUIET, "async", {}),
    ]

    def script(number: int) -> str:
        folder = bench.folder / f"script {number}"
        folder.mkdir()
        code, how, environment = scripts[number]
        order = (how, server.url, KEY, days[1]) if code is CHILDREN else (server.url, KEY, how)
        return run(code, folder, *order, **environment)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(script, range(4)))
    watch.look("output of children", *said)
    expected = truth[1, ..., part].astype("f8").sum()
    np.testing.assert_allclose([float(text) for text in said[:2]], expected, rtol=1e-12)
    assert said[2].startswith("CredentialsError: ")
    assert "CLEARSKY_API_KEY" in said[2]
    assert said[3] == "done\n"
    ways += len(scripts)

    # Eight threads that begin together; four dates, each bought once.
    other = bench.serve(latency=0.05)
    results: dict[int, np.ndarray] = {}
    start = threading.Barrier(8)

    def read(k: int) -> None:
        start.wait(PATIENCE)
        results[k] = (
            bench.open(other, days, chunks={} if k % 2 else None).reflectance[k // 2].values
        )

    for thread in bench.threads(*(lambda k=k: read(k) for k in range(8))):
        thread.join(PATIENCE)
    for k in range(8):
        np.testing.assert_array_equal(results[k], truth[k // 2])
    assert len(other.downloads()) == 4, other.downloads()
    assert other.peak_in_flight <= 4

    # Loops inside loops: a plain call where one runs, awaiting, and from two of them at once.
    third = bench.serve()

    async def cell() -> np.ndarray:
        first = bench.open(third, days[:2]).load().reflectance.values
        second = await bench.open(third, days[2:]).load_async()
        return np.concatenate([first, second.reflectance.values])

    np.testing.assert_array_equal(asyncio.run(cell()), truth)
    together: dict[int, np.ndarray] = {}
    for thread in bench.threads(*(lambda k=k: together.update({k: asyncio.run(cell())})
                                  for k in range(2))):  # fmt: skip
        thread.join(PATIENCE)
    assert len(together) == 2
    for values in together.values():
        np.testing.assert_array_equal(values, truth)
    assert len(third.downloads()) == 4

    gate = threading.Event()
    gate.set()
    kernel = bench.serve(replace(gated(gate), times=None))
    cells = asyncio.run(notebook(bench, kernel, gate))
    return {"ways": ways + 1, "threads": 8, "cells of a kernel": cells}
