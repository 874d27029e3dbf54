"""Reading in other processes, threads and loops; and what an interrupt leaves behind."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import dask
import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr.sandbox import Server

from .conftest import FARM, SPRING, access, credits_of, paid

# Long enough for a slow machine under load; what hangs, hangs for ever.
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[1]

# As in the configuration of pytest: odc-geo still multiplies affines with *.
STRICT = ["-W", "error", "-W", "ignore:Use `@` matmul:PendingDeprecationWarning"]


def lazy(server: Server, **options) -> xr.Dataset:
    return xr.open_dataset(FARM, engine="clearsky", time=SPRING, **access(server), **options)


def reference(serve: Callable[..., Server]) -> xr.Dataset:
    """Give the same pixels from a sandbox of their own, read in this process alone."""
    return lazy(serve()).load()


def until(reached: Callable[[], bool]) -> None:
    """Wait for another process; the deadline is that of a failure."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


class Script:
    """A program in a process of its own, with warnings as errors."""

    def __init__(self, code: str, folder: Path, *arguments: str, **environment: str) -> None:
        # A file, since spawned children want to import it.
        path = folder / "script.py"
        path.write_text(textwrap.dedent(code))
        self._process = subprocess.Popen(
            [sys.executable, *STRICT, str(path), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment}, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> str:
        """Give the next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(self._process.communicate()[1])
        return line.strip()

    def tell(self, line: str) -> None:
        """Write it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def finish(self) -> str:
        """Wait for its end, which must be good and silent; gives what it printed."""
        out, err = self._process.communicate(timeout=PATIENCE)
        assert (self._process.returncode, err) == (0, "")
        return out


def run(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Run a script from its beginning to its good and silent end."""
    with Script(code, folder, *arguments, **environment) as script:
        return script.finish()


# --- fork

# From 3.12 Python warns of every fork with threads about; that it works is what is tested.
forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def _read_in_child(pipe: Connection, ds: xr.Dataset, window: dict[str, slice]) -> None:
    values = ds.reflectance.isel(window).values
    folder = _account.process().spool._folder
    pipe.send((float(np.nansum(values, dtype=np.float64)), str(folder)))


def child(method: str, ds: xr.Dataset, window: dict[str, slice]) -> tuple[float, str]:
    """Read in a child process; gives the sum of the values, and the child's spool."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_read_in_child, args=(there, ds, window))
    process.start()
    there.close()
    try:
        assert here.poll(PATIENCE), "the child hangs"
        result: tuple[float, str] = here.recv()
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()  # else the end of the tests would wait for a child that hangs
    return result


@forking
def test_fork_after_use(serve) -> None:
    server = serve()
    ds = lazy(server)
    window, more = {"x": slice(0, 30)}, {"x": slice(0, 50)}
    first = ds.reflectance.isel(window).values
    expected = reference(serve).reflectance.isel(more).values
    mine = _account.process().spool._folder
    assert mine is not None
    files = sorted(mine.iterdir())

    total, theirs = child("fork", ds, more)

    assert total == pytest.approx(float(np.nansum(expected, dtype=np.float64)), rel=1e-12)
    # The child has its own spool, and buys anew what it cannot know of.
    assert theirs not in (str(mine), "None")
    assert len(paid(server)) == 8
    assert sorted(mine.iterdir()) == files
    # The parent's loop, sockets and answers are as they were.
    np.testing.assert_array_equal(ds.copy().reflectance.isel(window).values, first)
    assert len(paid(server)) == 8
    np.testing.assert_array_equal(lazy(server).reflectance.isel(more).values, expected)
    assert len(paid(server)) == 12


@forking
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_childs_spool_ends_with_the_child(
    method: str,
) -> None:
    # Embedded, since a fork server may be older than a key in the environment.
    ds = xr.open_dataset(FARM, engine="clearsky", time=["2025-04-01"], base_url="sandbox")
    _, folder = child(method, ds, {"x": slice(0, 3)})
    assert "clearsky-spool-" in folder
    # Children of multiprocessing leave by os._exit: what is registered with atexit never runs.
    assert not Path(folder).exists()


@forking
def test_fork_while_another_thread_reads(serve) -> None:
    server = serve(latency=0.3, max_connections=8)
    ds = lazy(server)
    before = threading.Thread(target=lambda: ds.reflectance.isel(x=slice(0, 40)).values)
    before.start()
    until(lambda: server.in_flight > 0)
    total, _ = child("fork", ds, {"x": slice(40, 50)})
    before.join()
    expected = reference(serve).reflectance.isel(x=slice(40, 50)).values
    assert total == pytest.approx(float(np.nansum(expected, dtype=np.float64)), rel=1e-12)
    assert len(paid(server)) == 8


@forking
def test_fork_with_the_embedded_sandbox() -> None:
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, base_url="sandbox")
    window = {"x": slice(0, 7)}
    expected = float(np.nansum(ds.reflectance.isel(window).values, dtype=np.float64))
    assert child("fork", ds, window)[0] == pytest.approx(expected, rel=1e-12)
    assert ds.reflectance.isel(x=slice(60, 63)).shape == (4, 10, ds.sizes["y"], 3)


FORK = """
    import os, sys, warnings
    warnings.filterwarnings("ignore", "This process .* multi-threaded", DeprecationWarning)
    import xarray as xr
    import clearsky_xr
    from clearsky_xr import _account, _loop

    url, key = sys.argv[1:]
    area, time = (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20")
    ds = xr.open_dataset(area, engine="clearsky", time=time, base_url=url, api_key=key)
    ds.copy().load()
    folder = _account.process().spool._folder
    files = {name: (folder / name).stat().st_size for name in os.listdir(folder)}
    assert sum(files.values()) == clearsky_xr.spent().bytes, files
    pid = os.fork()
    if pid == 0:
        # Ends like any program, so that all that was registered for the exit runs.
        ds.reflectance.isel(x=slice(0, 5)).values
        print("child", str(_account.process().spool._folder), flush=True)
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert {name: (folder / name).stat().st_size for name in os.listdir(folder)} == files
    _account.process().recent._values.clear()  # so that it is the disk that is read
    ds.copy().load()
    print("parent", str(folder))
"""


def test_the_spool_outlives_a_forked_child_and_not_the_process(
    server: Server, tmp_path: Path
) -> None:
    out = run(FORK, tmp_path, server.url, server.api_key).split()
    assert out[0::2] == ["child", "parent"]
    assert out[1] != out[3]
    # Four of the parent, four small ones of the child, and none for the second load.
    assert len(paid(server)) == 8
    assert not Path(out[3]).exists()
    assert not Path(out[1]).exists()


# --- children that know nothing

CHILDREN = """
    import multiprocessing, os, pickle, sys

    def read(blob, pipe):
        import pickle
        from clearsky_xr import errors
        try:
            # Unpickled here, as a worker of a cluster does.
            ds = pickle.loads(blob)
            pipe.send(float(ds.reflectance.isel(x=slice(0, 20)).astype("f8").sum()))
        except errors.CredentialsError as error:
            pipe.send(f"CredentialsError: {error}")

    if __name__ == "__main__":
        method, url, key, day = sys.argv[1:]
        import xarray as xr
        ds = xr.open_dataset(
            (15.05, 46.05, 15.06, 46.06), engine="clearsky", time=[day], base_url=url, api_key=key
        )
        context = multiprocessing.get_context(method)
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=read, args=(pickle.dumps(ds), there))
        process.start()
        there.close()
        print(here.recv())
        process.join()
        assert process.exitcode == 0
"""


def test_a_key_of_the_environment_that_went_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, base_url=server.url)
    monkeypatch.delenv("CLEARSKY_API_KEY")
    with pytest.raises(errors.CredentialsError, match="CLEARSKY_API_KEY"):
        ds.load()
    assert not server.downloads()


# xarray's remark on chunks that are smaller than the preferred ones; these are to be several.
small_chunks = pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")


@small_chunks
def test_dasks_process_scheduler(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    ds = lazy(server, chunks={"time": 2})
    mean = ds.reflectance.mean(("y", "x"))
    with dask.config.set(scheduler="processes", num_workers=2):
        got = mean.compute()
    expected = reference(serve).reflectance
    np.testing.assert_allclose(got, expected.mean(("y", "x")), rtol=1e-5)
    assert sorted(str(e.date) for e in paid(server)) == [str(t)[:10] for t in ds.time.values]


@small_chunks
def test_a_local_cluster(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    server = serve(max_connections=8)
    # Before the workers start: they inherit it.
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    ds = lazy(server, chunks={"time": 1})
    expected = reference(serve)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        got = ds.reflectance.compute()
    np.testing.assert_array_equal(got, expected.reflectance)
    assert sorted(str(e.date) for e in paid(server)) == [str(t)[:10] for t in ds.time.values]
    # The same in this process: it has not bought them itself.
    np.testing.assert_array_equal(ds.reflectance.compute(), expected.reflectance)
    assert len(paid(server)) == 8


# --- threads and loops


def test_eight_threads_with_datasets_of_their_own(serve) -> None:
    server = serve(latency=0.05)
    results: dict[int, np.ndarray] = {}
    start_line = threading.Barrier(8)

    def read(k: int) -> None:
        start_line.wait(PATIENCE)
        ds = lazy(server, chunks={} if k % 2 else None)
        results[k] = ds.reflectance.isel(time=k // 2, band=[k, 0]).values

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    expected = reference(serve).reflectance.values
    for k in range(8):
        np.testing.assert_array_equal(results[k], expected[k // 2, [k, 0]])
    # The odd ones read whole chunks, which hold all dates; a date is bought once all the same.
    assert sorted(str(e.date)[-2:] for e in paid(server)) == ["01", "06", "11", "16"]
    assert [e.endpoint for e in server.ledger()].count("account") == 1
    assert server.peak_in_flight <= 4


def test_opening_and_reading_inside_a_running_loop(serve) -> None:
    server = serve()

    async def notebook() -> tuple[np.ndarray, np.ndarray]:
        # As a cell does: the loop runs, and the call is a plain one.
        ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
        plain = ds.reflectance.isel(time=0).values
        awaited = await lazy(server).isel(time=slice(1, None)).load_async()
        return plain, awaited.reflectance.values

    first, rest = asyncio.run(notebook())
    expected = reference(serve).reflectance.values
    np.testing.assert_array_equal(first, expected[0])
    np.testing.assert_array_equal(rest, expected[1:])
    assert len(paid(server)) == 4


def test_loops_in_two_threads_await_together(serve) -> None:
    server = serve(max_connections=4, latency=0.3)
    areas = [FARM, (15.08, 46.05, 15.09, 46.06)]
    results: dict[int, xr.Dataset] = {}
    start_line = threading.Barrier(2)

    def run(k: int) -> None:
        ds = xr.open_dataset(
            areas[k], engine="clearsky", time=["2025-04-01", "2025-04-06"], **access(server)
        )
        start_line.wait(PATIENCE)
        results[k] = asyncio.run(ds.load_async())

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert server.peak_in_flight == 4
    assert len(paid(server)) == 4
    other = serve()
    for k in range(2):
        np.testing.assert_array_equal(
            results[k].reflectance,
            xr.open_dataset(
                areas[k], engine="clearsky", time=["2025-04-01", "2025-04-06"], **access(other)
            ).reflectance,
        )


def test_a_cancelled_load_keeps_what_was_sent(serve) -> None:
    server = serve(max_connections=2, latency=0.5)
    ds = lazy(server)

    async def impatient() -> None:
        task = asyncio.create_task(ds.copy().load_async())
        await asyncio.to_thread(until, lambda: server.in_flight == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(impatient())
    until(lambda: clearsky_xr.spent().reserved == 0)
    # A free call passes the same gate: whatever had waited there would be ahead of it.
    clearsky_xr.resolve(FARM, SPRING, **access(server))
    assert len(server.downloads()) == 2
    np.testing.assert_array_equal(ds.load().reflectance, reference(serve).reflectance)
    assert sorted(str(e.date)[-2:] for e in server.downloads()) == ["01", "06", "11", "16"]


# --- interrupts, and the end of the process

INTERRUPT = """
    import json, signal, sys, warnings
    warnings.filterwarnings("ignore", "The specified chunks separate", UserWarning)
    # A shell that runs this in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import xarray as xr
    import clearsky_xr

    url, key, chunked = sys.argv[1:]
    area, time = (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-30")

    def ask():
        chunks = {"time": 1} if chunked == "dask" else None
        return xr.open_dataset(
            area, engine="clearsky", time=time, base_url=url, api_key=key, chunks=chunks
        )

    ds = ask()
    print("dates", ds.sizes["time"], flush=True)
    try:
        ds.copy().load()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    assert sys.stdin.readline() == "look\\n"
    ask()  # its date search passes the gate behind whatever still waits there
    print(json.dumps([clearsky_xr.spent().reserved, clearsky_xr.spent().requests]), flush=True)
    assert sys.stdin.readline() == "go\\n"
    values = ds.load().reflectance
    print(json.dumps([float(values.astype("f8").sum()), clearsky_xr.spent().settled]), flush=True)
"""


def days_of(server: Server) -> list[str]:
    return sorted(str(entry.date) for entry in server.downloads())


APRIL = ["2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16", "2025-04-21", "2025-04-26"]


def test_ctrl_c_keeps_what_was_sent_and_sends_no_more(serve, tmp_path: Path) -> None:
    server = serve(max_connections=2, latency=1.0)
    with Script(INTERRUPT, tmp_path, server.url, server.api_key, "lazy") as script:
        assert script.read() == "dates 6"
        until(lambda: server.in_flight == 2)
        script.interrupt()
        assert script.read() == "interrupted"
        until(lambda: server.in_flight == 0)
        script.tell("look")
        assert json.loads(script.read()) == [0, 2]  # both landed after the interrupt
        assert len(server.downloads()) == 2
        script.tell("go")
        total, settled = json.loads(script.finish())
    assert days_of(server) == APRIL
    assert {entry.status for entry in server.downloads()} == {200}
    assert settled == pytest.approx(credits_of(server))
    whole = xr.open_dataset(FARM, engine="clearsky", time=APRIL, **access(serve()))
    expected = float(whole.reflectance.astype("f8").sum())
    assert total == pytest.approx(expected, rel=1e-12)


def test_ctrl_c_under_dask_pays_nothing_twice(serve, tmp_path: Path) -> None:
    # Dask's threads do not hear of it and go on with what they have begun, so how many
    # requests follow is theirs to say; that none is repeated is ours.
    server = serve(max_connections=2, latency=0.5)
    with Script(INTERRUPT, tmp_path, server.url, server.api_key, "dask") as script:
        assert script.read() == "dates 6"
        until(lambda: server.in_flight == 2)
        script.interrupt()
        assert script.read() == "interrupted"
        script.tell("look")
        script.tell("go")
        script.finish()
    assert days_of(server) == APRIL


QUIET = """
    import asyncio, logging, sys
    # It also speaks of whatever takes long, as everything does on a busy machine.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    import xarray as xr
    import clearsky_xr

    url, key, how = sys.argv[1:]
    area, time = (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20")
    options = dict(base_url=url, api_key=key or None)
    if how == "dask":
        clearsky_xr.open_timeseries(area, time, **options).load()
    elif how == "async":
        asyncio.run(xr.open_dataset(area, engine="clearsky", time=time, **options).load_async())
    elif how == "open":
        clearsky_xr.open_timeseries(area, time, **options)
    elif how == "error":
        try:
            clearsky_xr.open_timeseries(area, time, base_url=url, api_key="wrong")
        except clearsky_xr.errors.CredentialsError:
            pass
    elif how == "sandbox":
        xr.open_dataset(area, engine="clearsky", time=time, base_url="sandbox").load()
    elif how == "held":
        held = xr.open_dataset(area, engine="clearsky", time=time, **options)
        held.isel(time=0).load()
    print("done")
"""


@pytest.mark.parametrize("how", ["dask", "async", "open", "error", "sandbox", "held"])
def test_the_end_of_a_process_is_silent(server: Server, tmp_path: Path, how: str) -> None:
    # The development mode speaks of every socket, loop and session that was left open.
    out = run(QUIET, tmp_path, server.url, server.api_key, how, PYTHONDEVMODE="1")
    assert out == "done\n"
    expected = {"dask": 4, "async": 4, "held": 1}
    assert len(paid(server)) == expected.get(how, 0)


THREAD = """
    import sys, threading
    import xarray as xr

    url, key = sys.argv[1:]
    ds = xr.open_dataset(
        (15.05, 46.05, 15.06, 46.06), engine="clearsky", time=("2025-04-01", "2025-04-20"),
        base_url=url, api_key=key,
    )

    def read():
        print(float(ds.reflectance.astype("f8").sum()))

    threading.Thread(target=read).start()
"""


def test_a_thread_that_outlives_the_main_one_gets_its_pixels(serve, tmp_path: Path) -> None:
    # Python waits for such a thread, but from then on its thread pools take no more work:
    # not the decoding of what was paid either.
    server = serve(latency=0.5)
    total = float(run(THREAD, tmp_path, server.url, server.api_key))
    expected = float(reference(serve).reflectance.astype("f8").sum())
    assert total == pytest.approx(expected, rel=1e-12)
    assert len(paid(server)) == 4
