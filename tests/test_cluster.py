"""Dask clusters of real processes: one limit, one budget, one key for all of them."""

import asyncio
import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import contextmanager

import dask.graph_manipulation
import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _link, _loop
from clearsky_xr.errors import (
    BudgetError,
    ClearSkyError,
    ClearSkyWarning,
    CredentialsError,
)
from clearsky_xr.sandbox import Fault

from .conftest import FARM, SPRING, access, paid
from .test_canary import KEY, hidden, pickled

distributed = pytest.importorskip("distributed")

YEAR = ("2024-04-01", "2025-03-31")  # 73 images
PATIENCE = 60.0

# What a process does that a test does not wait for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Sending large graph"),
    # Chunks of four dates, whatever the account's connections would suggest.
    pytest.mark.filterwarnings("ignore:The specified chunks separate"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def local_cluster(workers, threads, **options):
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=":0",
            **options,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.fixture(scope="module")
def four_by_two():
    with local_cluster(4, 2) as client:
        yield client


@pytest.fixture
def cluster(four_by_two):
    """A cluster of 4 x 2 that has been set up, and knows no keys but those of its tests."""
    assert "CLEARSKY_API_KEY" not in os.environ
    clearsky_xr.cluster.setup(four_by_two)
    yield four_by_two
    _account.process().links.clear()


def cube(server, time=YEAR, **options):
    return clearsky_xr.open_timeseries(
        FARM, time, chunks={"time": 4}, **{**access(server), **options}
    )


def reference(serve, time=YEAR, **options):
    """The pixels as a single process without Dask gets them."""
    server = serve()
    return xr.open_dataset(FARM, engine="clearsky", time=time, **access(server), **options).load()


def until(true, what):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def dates_of(entries):
    return sorted(str(entry.date) for entry in entries)


# --- the limit


@pytest.mark.parametrize("limit", [4, 1, 16])
def test_the_limit_holds_and_is_used(cluster, serve, limit):
    server = serve(max_connections=limit, latency=0.05)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    time = YEAR if limit > 1 else SPRING
    ds = cube(server, time)
    got = ds.reflectance.compute()
    np.testing.assert_array_equal(got, reference(serve, time).reflectance)
    assert server.peak_in_flight == limit
    assert [entry.status for entry in server.downloads()] == [200] * ds.sizes["time"]
    gates = clearsky_xr.cluster.status(cluster).gates
    assert clearsky_xr.cluster.GateStatus(limit, 0, 0, 0) in gates


def test_notebook_and_workers_share_the_gate(cluster, serve):
    server = serve(max_connections=2, latency=0.05)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server)
    far = cluster.compute(ds.reflectance.isel(time=slice(0, 40)).mean())
    here = xr.open_dataset(FARM, engine="clearsky", time=SPRING, **access(server)).load()
    np.testing.assert_array_equal(here.reflectance, reference(serve, SPRING).reflectance)
    far.result(timeout=PATIENCE)
    assert server.peak_in_flight == 2
    assert len(paid(server)) == 44


def test_a_smaller_number_may_be_asked_for_and_changed_while_it_runs(cluster, serve):
    server = serve(max_connections=16, latency=0.05)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key, concurrency=2)
    ds = cube(server)
    ds.reflectance.isel(time=slice(0, 16)).mean().compute()
    assert server.peak_in_flight == 2
    rest = cluster.compute(ds.reflectance.isel(time=slice(16, None)).mean())
    clearsky_xr.cluster.setup(cluster, concurrency=5)
    rest.result(timeout=PATIENCE)
    assert server.peak_in_flight == 5
    clearsky_xr.cluster.setup(cluster)


def test_setting_up_again_while_it_runs_lets_nothing_through(cluster, serve):
    server = serve(max_connections=2, latency=0.05)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    before = clearsky_xr.spent().requests
    result = cluster.compute(cube(server).reflectance.mean())
    while not result.done():
        clearsky_xr.cluster.setup(cluster)
    result.result()
    assert server.peak_in_flight == 2
    assert [entry.status for entry in server.downloads()] == [200] * 73
    assert clearsky_xr.spent().requests - before == 73


def test_a_worker_that_joins_later_belongs_to_it(serve):
    server = serve(max_connections=3, latency=0.1)
    with local_cluster(1, 2) as client:
        clearsky_xr.cluster.setup(client, api_key=server.api_key)
        result = client.compute(cube(server).reflectance.mean(("y", "x")))
        client.cluster.scale(3)
        client.wait_for_workers(3, timeout=PATIENCE)
        got = result.result(timeout=PATIENCE)
        np.testing.assert_allclose(got, reference(serve).reflectance.mean(("y", "x")), rtol=1e-5)
        assert server.peak_in_flight == 3
        workers = [name for name in clearsky_xr.cluster.status(client).processes if "://" in name]
    assert len(workers) > 1
    assert len(paid(server)) == 73


# --- workers that die


@pytest.mark.parametrize("stored", [False, True], ids=["without a store", "with a store"])
def test_a_killed_worker_costs_what_it_had_in_flight_and_no_more(serve, tmp_path, stored):
    server = serve(max_connections=4, latency=0.4)
    options = {"store": tmp_path / "cube.zarr"} if stored else {}
    with local_cluster(2, 2) as client:
        clearsky_xr.cluster.setup(client, api_key=server.api_key, quarantine=1.0)
        ds = cube(server, ("2025-01-01", "2025-04-01"), **options)  # 19 images
        result = client.compute(ds.reflectance)
        until(lambda: server.in_flight == 4, "downloads")
        victim, spent = max(
            (
                (name, spent)
                for name, spent in clearsky_xr.cluster.status(client).processes.items()
                if "://" in name
            ),
            key=lambda item: item[1].reserved,
        )
        assert spent.reserved > 0
        pid = client.run(os.getpid, workers=[victim])[victim]
        # Not by what was counted before the question: it has gone on since.
        until(lambda: server.in_flight == 4, "downloads")
        os.kill(pid, signal.SIGKILL)
        got = result.result(timeout=PATIENCE)
        status = clearsky_xr.cluster.status(client)
        total = clearsky_xr.spent()
    np.testing.assert_array_equal(got, reference(serve, ("2025-01-01", "2025-04-01")).reflectance)
    assert server.peak_in_flight == 4  # orphans counted
    (gate,) = status.gates
    assert (gate.in_flight, gate.orphans) == (0, 0)
    each = paid(server)[0].credits
    again = len(server.downloads()) - 19
    # At most its in-flight requests, and without a store what its finished tasks held.
    assert again <= (4 if stored else 19)
    assert (
        total.possibly
        == status.spent.possibly
        == pytest.approx(each * round(total.possibly / each))
    )
    assert 0 < total.possibly <= 4 * each
    assert total.settled + total.possibly >= sum(entry.credits for entry in paid(server)) - 0.001


def hold_the_gil(seconds):
    """Let no other thread of the process run, the one that talks to the scheduler included."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_a_worker_that_holds_the_gil_keeps_its_slots_and_hands_them_back(cluster, serve):
    server = serve(max_connections=4, latency=0.2)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    winter = ("2025-01-01", "2025-04-01")  # 19 images
    result = cluster.compute(cube(server, winter).reflectance)
    until(lambda: server.in_flight == 4, "downloads")
    stuck = [
        cluster.submit(hold_the_gil, 2, workers=[name], pure=False)
        for name in list(cluster.scheduler_info()["workers"])[:2]
    ]
    np.testing.assert_array_equal(
        result.result(timeout=PATIENCE), reference(serve, winter).reflectance
    )
    distributed.wait(stuck, timeout=PATIENCE)
    assert server.peak_in_flight == 4
    assert len(paid(server)) == 19


# --- money


def test_one_budget_for_all_workers(cluster, serve):
    server = serve(max_connections=16)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server)
    each = clearsky_xr.plan(ds.isel(time=0)).credits_at_most
    before = clearsky_xr.spent()
    limit = round(10 * each + 0.02, 2)
    with clearsky_xr.budget(limit) as b, pytest.raises(BudgetError, match="Nothing was sent"):
        ds.reflectance.mean().compute()
    until(lambda: server.in_flight == 0 and b.report().reserved == 0, "the last answers")
    assert 0 < sum(entry.credits for entry in paid(server)) <= limit
    assert b.report().settled == pytest.approx(sum(e.credits for e in paid(server)), abs=0.001)
    assert b.left == pytest.approx(limit - b.report().settled)
    spent = clearsky_xr.spent() - before
    assert (spent.settled, spent.requests) == (b.report().settled, len(paid(server)))
    # A cube's own limit counts over all workers, too.
    other = serve(max_connections=16, api_key=server.api_key)
    dear = cube(other, max_credits=limit)
    with pytest.raises(BudgetError):
        dear.reflectance.mean().compute()
    until(lambda: other.in_flight == 0, "the last answers")
    assert 0 < sum(entry.credits for entry in paid(other)) <= limit


def wait_for(name):
    """A task that others wait for."""
    distributed.Event(name).wait(timeout=PATIENCE)


def test_tasks_that_begin_when_a_budget_has_ended_are_bound_by_it(cluster, serve):
    server = serve(max_connections=16)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server, SPRING)
    each = clearsky_xr.plan(ds.isel(time=0)).credits_at_most
    name = uuid.uuid4().hex
    later = dask.graph_manipulation.bind(ds.reflectance.mean(), dask.delayed(wait_for)(name))
    with clearsky_xr.budget(2 * each) as b:
        held = cluster.compute(later)
        until(lambda: cluster.processing() and any(cluster.processing().values()), "the graph")
    assert not paid(server)
    distributed.Event(name, client=cluster).set()
    with pytest.raises(BudgetError, match=f"budget of {2 * each:.2f}"):
        held.result(timeout=PATIENCE)
    until(lambda: server.in_flight == 0, "the last answers")
    assert sum(entry.credits for entry in paid(server)) <= 2 * each
    # What is submitted afterwards is not.
    np.testing.assert_array_equal(
        cluster.compute(ds.reflectance).result(timeout=PATIENCE),
        reference(serve, SPRING).reflectance,
    )
    assert b.report().settled <= 2 * each


def forget():
    """Let go of what a process holds, as one that was started anew."""
    for owner in _account.process().accounts.values():
        owner.holdings._held.clear()


def test_what_is_persisted_in_a_budget_is_bound_by_it_and_its_results_are_not(cluster, serve):
    server = serve(max_connections=16)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server)
    each = clearsky_xr.plan(ds.isel(time=0)).credits_at_most
    with clearsky_xr.budget(3 * each) as b:
        kept = ds.reflectance.persist()  # comes back at once
    distributed.wait(kept, timeout=PATIENCE)
    until(lambda: server.in_flight == 0 and b.report().reserved == 0, "the last answers")
    assert 0 < sum(entry.credits for entry in paid(server)) <= 3 * each
    assert b.report().settled == pytest.approx(sum(e.credits for e in paid(server)), abs=0.001)
    del kept
    # A mean that was computed in a budget is used, and what it was made of bought again, without.
    ds = cube(server, SPRING)
    with clearsky_xr.budget(len(ds.time) * each + 0.02):
        mean = ds.reflectance.mean("time").persist()
        distributed.wait(mean, timeout=PATIENCE)
    before = len(paid(server))
    cluster.run(forget)
    again = float(ds.reflectance.mean("time").max().compute())
    assert again == pytest.approx(float(reference(serve, SPRING).reflectance.mean("time").max()))
    assert len(paid(server)) == before + len(ds.time)


def test_progress_counts_all_workers(cluster, serve, capsys):
    server = serve(max_connections=8, latency=0.1)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server, SPRING)
    with clearsky_xr.progress():
        ds.reflectance.mean().compute()
    last = capsys.readouterr().err.split("\r")[-1]
    charged = sum(entry.credits for entry in paid(server))
    assert last.startswith("4 requests")
    assert f"{charged:.2f} credits, 4 dates, 0 in flight" in last


def test_a_shared_store_is_bought_into_once(cluster, serve, tmp_path):
    server = serve(max_connections=8, latency=0.1)
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server, SPRING, store=tmp_path / "cube.zarr")
    # Eight tasks that want the same block of each date at the same time.
    parts = [ds.reflectance.isel(x=k).mean() for k in range(8)]
    got = [float(part.result(timeout=PATIENCE)) for part in cluster.compute(parts)]
    expected = reference(serve, SPRING).reflectance
    for k in range(8):
        assert got[k] == pytest.approx(float(expected.isel(x=k).mean()), rel=1e-5)
    assert dates_of(paid(server)) == ["2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16"]
    plan = cube(server, ("2025-04-01", "2025-04-30"), store=tmp_path / "cube.zarr").clearsky.plan()
    assert len(plan.requests) == 2
    assert "bought once" in repr(plan)
    assert "buys for itself" in repr(cube(server, SPRING).clearsky.plan())


def test_a_store_on_object_storage_is_bought_into_once(cluster, serve):
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    s3 = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        endpoint = "http://{}:{}".format(*s3.get_host_and_port())
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(
            Bucket="fields"
        )
        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint}}
        server = serve(max_connections=8, latency=0.1)
        clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
        ds = cube(server, SPRING, store="s3://fields/cube.zarr", storage_options=options)
        parts = [ds.reflectance.isel(x=k).mean() for k in range(8)]
        got = [float(part.result(timeout=PATIENCE)) for part in cluster.compute(parts)]
    finally:
        s3.stop()
    expected = reference(serve, SPRING).reflectance
    for k in range(8):
        assert got[k] == pytest.approx(float(expected.isel(x=k).mean()), rel=1e-5)
    assert len(paid(server)) == 4


# --- failures and names


def test_a_failure_names_date_window_and_cause_once(cluster, serve):
    server = serve(faults=[Fault.status(500, times=None).on(date="2025-04-11")])
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server, SPRING)
    server.inject(Fault.status(400, code=1002, times=None))
    with pytest.raises(ClearSkyError) as caught:
        ds.reflectance.mean().compute()
    text = str(caught.value)
    assert text.count("date 2025-04-") == text.count("window rows") == 1
    assert "1002" in text
    assert server.api_key not in text


def test_task_names_can_be_read_and_follow_the_catalogue(cluster, serve):
    server = serve()
    clearsky_xr.cluster.setup(cluster, api_key=server.api_key)
    ds = cube(server, SPRING)
    name = ds.reflectance.data.name
    assert name.startswith("open_dataset-reflectance-")
    assert cube(server, SPRING).reflectance.data.name == name
    kept = ds.reflectance.persist()
    distributed.wait(kept)
    before = len(paid(server))
    assert before == 4
    np.testing.assert_array_equal(cube(server, SPRING).reflectance.compute(), kept.compute())
    assert len(paid(server)) == before  # equal cubes share their keys
    other = cube(server, ("2025-04-02", "2025-04-21"))  # as many dates, but others
    assert other.reflectance.data.name != name
    np.testing.assert_array_equal(
        other.reflectance.compute(), reference(serve, ("2025-04-02", "2025-04-21")).reflectance
    )


# --- keys


def test_a_worker_without_a_key_says_so(four_by_two, serve):
    server = serve()
    ds = cube(server, SPRING)
    with pytest.raises(CredentialsError, match=r"this process \(pid \d+\).*\n.*cluster.setup"):
        ds.reflectance.mean().compute()
    assert paid(server) == []


def test_without_setup_it_works_and_warns(serve, monkeypatch):
    server = serve(max_connections=8)
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)  # the workers inherit it
    with local_cluster(1, 2) as client, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = cube(server, SPRING, api_key=None).reflectance.compute()
        until(lambda: [w for w in seen if "cluster.setup" in str(w.message)], "the warning")
        assert clearsky_xr.spent().requests == 0
        with pytest.raises(ClearSkyError, match="has no gate"):
            clearsky_xr.cluster.status(client)
    np.testing.assert_array_equal(got, reference(serve, SPRING).reflectance)
    found = [w for w in seen if "cluster.setup" in str(w.message)]
    assert all(w.category is ClearSkyWarning for w in found)


def test_the_key_is_nowhere_but_in_memory(serve, tmp_path, monkeypatch):
    """A cluster started from the command line, with logs of scheduler and workers at DEBUG."""
    server = serve(api_key=KEY, max_connections=4, latency=0.05)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = tmp_path / "config" / "logging.yaml"
    configuration.parent.mkdir()
    configuration.write_text(
        "logging: {distributed: debug, distributed.core: debug, clearsky_xr: debug, asyncio: debug}"
    )
    environment = {
        **os.environ, "DASK_CONFIG": str(configuration.parent),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    address = f"tcp://127.0.0.1:{port}"
    log = (tmp_path / "log").open("wb")

    def dask(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip

    processes = [dask("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
    try:
        worker = ("worker", address, "--nthreads", "2", "--no-dashboard")
        processes += [dask(*worker), dask(*worker)]
        with distributed.Client(address, timeout=PATIENCE) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            status = clearsky_xr.cluster.setup(client, api_key=KEY)
            ds = cube(server, SPRING)
            graph = ds.reflectance.mean(("y", "x"))
            got = graph.compute()
            server.inject(Fault.status(400, code=1002, times=None))
            with pytest.raises(ClearSkyError) as caught:
                cube(server, ("2025-05-01", "2025-05-10")).reflectance.compute()
            stream = client.get_task_stream()
            logs = client.get_scheduler_logs(), client.get_worker_logs()
            events = client.get_events()
            plugins = client.run_on_scheduler(
                lambda dask_scheduler: repr(
                    [vars(p) for p in dask_scheduler.plugins.values()]
                    + [dask_scheduler.worker_plugins, dask_scheduler.clients]
                )
            )
            # The test can fail: the key is in the workers' memory, under the cube's name of it.
            from clearsky_xr._settings import _given

            (name,) = [name for name, key in _given.items() if key == KEY]
            there = client.run(lambda: __import__("clearsky_xr._settings")._settings._given[name])
            hidden(status, pickled(graph), stream, logs, events, plugins, caught.value)
        np.testing.assert_allclose(
            got, reference(serve, SPRING).reflectance.mean(("y", "x")), rtol=1e-5
        )
        assert server.peak_in_flight <= 4
        assert list(there.values()) == [KEY, KEY]
    finally:
        _account.process().links.clear()
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(PATIENCE)
        log.close()
    text = (tmp_path / "log").read_bytes()
    assert b"clearsky_xr_keys" in text
    assert b"clearsky_xr_slot" in text
    hidden(text)


# --- where there are no plugins


def test_a_scheduler_that_takes_no_plugins_counts_with_a_semaphore(serve, monkeypatch):
    server = serve(max_connections=3, latency=0.05)
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    import dask

    with (
        dask.config.set({"distributed.scheduler.blocked-handlers": ["register_scheduler_plugin"]}),
        local_cluster(2, 2) as client,
    ):
        with pytest.warns(ClearSkyWarning, match="takes no plugin"):
            clearsky_xr.cluster.setup(client)
        ds = cube(server, api_key=None)
        got = ds.reflectance.compute()
        here = ds.reflectance.isel(time=0).compute(scheduler="synchronous")
        with pytest.raises(ClearSkyError, match="no gate"):
            clearsky_xr.cluster.status(client)
    expected = reference(serve).reflectance
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(here, expected[0])
    assert server.peak_in_flight == 3


# --- in one process, and asynchronous


def test_a_cluster_in_this_process(serve):
    server = serve(max_connections=2, latency=0.05)
    with distributed.Client(
        processes=False, n_workers=2, threads_per_worker=2, dashboard_address=":0"
    ) as client:
        clearsky_xr.cluster.setup(client, api_key=server.api_key)
        got = cube(server, SPRING).reflectance.compute()
        assert clearsky_xr.cluster.status(client).spent.requests == 4
        # The workers and the client are one process, whose purchases count once.
        assert clearsky_xr.spent().requests == 4
    np.testing.assert_array_equal(got, reference(serve, SPRING).reflectance)
    assert server.peak_in_flight == 2
    # When the cluster has gone the process has its own gate again.
    assert _account.process().link is None
    cube(server, ["2025-05-01"]).load(scheduler="synchronous")
    assert len(paid(server)) == 5


def test_what_is_given_up_or_outlives_the_cluster_is_given_back(serve):
    server = serve()
    cube(server, ["2025-04-01"])
    owner = _account.process().accounts[server.url, server.api_key]

    async def abandon(link):
        async def hold(door):
            async with door:
                await asyncio.sleep(PATIENCE)

        for turns in range(1, 6):
            for door in (link.claim("store", [1, 2]), owner.gate.slot()):
                task = asyncio.create_task(hold(door))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def outlive(client):
        async with owner.gate.slot():
            await asyncio.to_thread(client.close)
            return b"paid for"

    with distributed.Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        clearsky_xr.cluster.setup(client)
        plugin = client.cluster.scheduler.plugins["clearsky_xr"]
        _loop.run(abandon(_account.process().link))
        until(lambda: not plugin._claims and not plugin._tickets, "what was given up")
        assert _loop.run(outlive(client)) == b"paid for"


def test_blocks_are_given_back_however_long_the_scheduler_is_out_of_reach(serve, monkeypatch):
    monkeypatch.setattr(_link, "_AGAIN", (0.0, 0.0, 0.0))
    server = serve()
    with distributed.Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        clearsky_xr.cluster.setup(client, api_key=server.api_key)
        plugin = client.cluster.scheduler.plugins["clearsky_xr"]
        link = _account.process().link
        send, missed = link._send, []

        def broken(verb, what):
            if verb == "unclaim" and len(missed) < 10:
                missed.append(verb)
                raise ConnectionError("out of reach")
            return send(verb, what)

        async def claim():
            async with link.claim("store", [1, 2]) as got:
                return got

        monkeypatch.setattr(link, "_send", broken)
        assert _loop.run(claim()) == {1, 2}
        until(lambda: not plugin._claims, "what was given back")
        assert len(missed) == 10


def test_an_asynchronous_client(serve):
    server = serve(max_connections=2)

    async def main():
        async with distributed.Client(
            processes=False, n_workers=1, dashboard_address=":0", asynchronous=True
        ) as client:
            await clearsky_xr.cluster.setup(client, api_key=server.api_key)
            with pytest.raises(ClearSkyError, match=r"asyncio\.to_thread"):
                cube(server, SPRING)
            ds = await asyncio.to_thread(cube, server, SPRING)
            got = await client.compute(ds.reflectance)
            status = await clearsky_xr.cluster.status(client)
            with pytest.raises(ClearSkyError, match="asynchronous"), clearsky_xr.budget(1.0):
                pass
            return got, status

    got, status = asyncio.run(main())
    np.testing.assert_array_equal(got, reference(serve, SPRING).reflectance)
    assert status.spent.requests == 4
    assert repr(status).startswith("<clearsky_xr cluster, 0 of 2 connections in use, 4 requests")


def test_status_survives_pickle():
    status = clearsky_xr.cluster.Status()
    assert pickle.loads(pickle.dumps(status)) == status
