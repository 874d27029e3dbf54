"""One store and many processes: killed, interrupted, racing, unprivileged, forked and spawned."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

from clearsky_xr.sandbox import Server

from ._nursery import (
    PATIENCE,
    ROOT,
    STRICT,
    TWO,
    Family,
    Nursery,
    beside,
    bought,
    common_folder,
    held,
    kept,
    neat,
    once,
    the_nursery,
    until,
    what_is_served,
)
from ._store_child import AREA, DAYS
from .conftest import access, credits_of, paid

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return the_nursery()


@pytest.fixture(scope="module")
def commons() -> Path:
    return common_folder()


@pytest.fixture(scope="module")
def served() -> Path:
    return what_is_served()


@pytest.fixture
def family(nursery: Nursery, served: Path) -> Iterator[Family]:
    family = Family(nursery, served)
    yield family
    for child in family.children:
        child.close()


@pytest.fixture
def gate(serve: Callable[..., Server]) -> Iterator[threading.Event]:
    """What sandboxes with `held` images wait for; opened at the latest when the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


# --- killed


def test_killed_while_making_a_store(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    # Each one begins where the one before has died: what it left lies about, and is not a store.
    # Nobody sees its dozen arrays before they are moved into place, so every third step does.
    server = serve(memoize=True)

    def make(turn: int) -> int:
        store = tmp_path / str(turn) / "fields.zarr"
        store.parent.mkdir()

        def victim(**steps: Any) -> bool:
            _, status = family.child("look open", store, server, TWO, **steps).end()
            assert status in (0, -signal.SIGKILL)
            return status != 0

        count = 0
        for number in range(1 + 3 * turn, 1000, 6):
            if store.exists():
                break
            assert victim(die_number=number)
            count += 1
        shutil.rmtree(store.parent)
        store.parent.mkdir()
        assert victim(die_at="os.rename .clearsky/new-*")
        assert not store.exists()
        for _ in range(2):
            assert victim(die_at="open /time/zarr.*.partial")  # it is there, and has no dates
        family.run("look open load receipts plain", store, server, TWO)
        neat(store)
        return count

    with ThreadPoolExecutor(2) as lanes:
        assert min(lanes.map(make, range(2))) > 15
    assert bought(server) == sorted(2 * TWO)


# --- several at once


def test_who_comes_while_it_is_bought_waits(
    family: Family, serve: Callable[..., Server], gate: threading.Event, tmp_path: Path
) -> None:
    server, store = serve(faults=[held(gate)]), tmp_path / "fields.zarr"
    first = family.child("open load", store, server, TWO)
    until(lambda: server.in_flight == 2)
    # Two blocks of two days: whoever tries to lock a fifth one has tried one of them again.
    second = family.child("open load", store, server, TWO, asks_at=5, asks_for="fcntl.lockf")
    second.expect("asks")
    gate.set()
    first.finish()
    second.finish()
    assert bought(server) == TWO
    neat(store)


def test_four_processes_make_one_store_with_different_dates(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store = serve(), tmp_path / "fields.zarr"
    four = [
        family.child("meet open meet load look", store, server, days)
        for days in (DAYS[:3], DAYS[2:5], DAYS[4:7], [DAYS[0], *DAYS[6:]])
    ]
    for _ in range(2):
        for child in four:
            child.expect("ready")
        for child in four:
            child.go()
    for child in four:
        child.finish()
    assert bought(server) == DAYS
    # What is consolidated is true.
    groups = [
        zarr.open_group(store, mode="r", use_consolidated=consolidated)
        for consolidated in (True, False)
    ]
    names = ["reflectance", "time", "receipts/receipt"]
    shapes = [[group[name].shape for name in names] for group in groups]
    assert shapes == 2 * [[(8, 10, 35, 311), (8,), (8, 1, 2)]]
    family.run("open load look receipts plain", store, server, DAYS)
    assert bought(server) == DAYS
    neat(store)


def test_who_comes_while_it_is_made_waits(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store = serve(), tmp_path / "fields.zarr"
    first = family.child("open load", store, server, TWO, wait_at="os.rename .clearsky/new-*")
    first.expect("waits")
    second = family.child(
        "open load", store, server, DAYS[1:3], asks_at=2, asks_for="fcntl.flock"
    )  # fmt: skip
    second.expect("asks")
    assert not store.exists()
    first.go()
    first.finish()
    second.finish()
    assert bought(server) == DAYS[:3]
    family.run("open load look plain", store, server, DAYS[:3])
    assert bought(server) == DAYS[:3]
    neat(store)


def test_who_comes_while_dates_are_added_waits(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store = serve(), tmp_path / "fields.zarr"
    family.run("open load", store, server, DAYS[:1])
    first = family.child("open", store, server, TWO, wait_at="os.rename /zarr.*.partial")
    first.expect("waits")
    second = family.child("open", store, server, DAYS[2:4], asks_at=2, asks_for="fcntl.flock")
    second.expect("asks")
    # Who reads does not wait, and finds what there was.
    family.run("look plain offline load", store, server, DAYS[:1])
    first.go()
    first.finish()
    second.finish()
    family.run("look open load plain", store, server, DAYS[:4])
    assert bought(server) == DAYS[:4]
    neat(store)


def lazy(server: Server, store: Path, days: list[str], **options: Any) -> xr.Dataset:
    return xr.open_dataset(
        AREA, engine="clearsky", time=days, store=store, mask_and_scale=False, **access(server),
        **options,
    )  # fmt: skip


def expected(served: Path, days: list[str]) -> np.ndarray:
    return np.load(served)[[DAYS.index(day) for day in days]]


@pytest.mark.parametrize("count", [2, 8])
def test_threads_that_want_the_same_blocks(
    served: Path, serve: Callable[..., Server], tmp_path: Path, count: int
) -> None:
    server, store = serve(latency=0.3), tmp_path / "fields.zarr"
    shared = lazy(server, store, TWO)
    results: dict[int, np.ndarray] = {}
    start_line = threading.Barrier(count)

    def read(k: int) -> None:
        # Every other one opens it for itself.
        ds = lazy(server, store, TWO) if k % 2 else shared.copy()
        start_line.wait(PATIENCE)
        results[k] = ds.reflectance.values

    threads = [threading.Thread(target=read, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for k in range(count):
        np.testing.assert_array_equal(results[k], expected(served, TWO))
    assert bought(server) == TWO


@pytest.mark.parametrize("how", ["relative", "url", "object", "link"])
def test_threads_that_name_the_store_differently(
    served: Path,
    serve: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    server, store = serve(latency=0.3), tmp_path / "data" / "fields.zarr"
    store.parent.mkdir()
    (tmp_path / "link").symlink_to(store.parent)
    monkeypatch.chdir(tmp_path)
    other = {
        "relative": "data/fields.zarr",
        "url": store.as_uri(),
        "object": zarr.storage.LocalStore(store),
        "link": tmp_path / "link" / "fields.zarr",
    }[how]
    cubes = [lazy(server, store, TWO), lazy(server, other, TWO)]
    with ThreadPoolExecutor(2) as pool:
        for values in pool.map(lambda ds: ds.reflectance.values, cubes):
            np.testing.assert_array_equal(values, expected(served, TWO))
    assert bought(server) == TWO


@pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")
def test_dask_chunks_smaller_than_blocks(
    served: Path, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store = serve(latency=0.1), tmp_path / "fields.zarr"
    ds = lazy(server, store, TWO, chunks={"time": 1, "y": 20, "x": 50})
    with dask.config.set(scheduler="threads", num_workers=8):
        values = ds.reflectance.compute()
    np.testing.assert_array_equal(values, expected(served, TWO))
    once(server, TWO)
    assert len(ds.clearsky.receipts()) == 4


# --- a buyer that dies


def spooled_at(place: int) -> str:
    """Name the step at which the answer for a date is complete, and its first block not yet."""
    return f"open /receipts/receipt/c/{place}/0/0.*.partial"


SPOOLED = spooled_at(0)


def test_what_a_dead_process_had_paid_is_taken_over(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store, day = serve(), tmp_path / "fields.zarr", DAYS[:1]
    living = family.child("open meet load receipts plain", store, server, day)
    living.expect("ready")
    family.child("open load", store, server, day, die_at=SPOOLED).killed()
    assert kept(store) == set(day)
    living.go()
    assert living.finish()["warnings"] == []
    assert bought(server) == day
    neat(store)


def test_a_buyer_that_dies_while_another_waits(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store, day = serve(), tmp_path / "fields.zarr", DAYS[:1]
    family.run("open", store, server, day)
    dying = family.child("open load", store, server, day, wait_at=SPOOLED)
    dying.expect("waits")
    living = family.child(
        "open load receipts plain", store, server, day, asks_at=3, asks_for="fcntl.lockf"
    )  # fmt: skip
    living.expect("asks")
    dying.send(signal.SIGKILL)
    dying.killed()
    assert living.finish()["warnings"] == []
    assert bought(server) == day
    neat(store)


def test_a_buyer_that_dies_before_the_answer_comes(
    family: Family, serve: Callable[..., Server], gate: threading.Event, tmp_path: Path
) -> None:
    server, store, day = serve(faults=[held(gate)]), tmp_path / "fields.zarr", DAYS[:1]
    living = family.child("open meet load receipts plain", store, server, day)
    living.expect("ready")
    dying = family.child("open load", store, server, day)
    until(lambda: server.in_flight == 1)
    dying.send(signal.SIGKILL)
    dying.killed()
    gate.set()
    living.go()
    (warning,) = living.finish()["warnings"]
    assert warning.startswith("1 downloads were under way when an earlier process ended")
    until(lambda: server.in_flight == 0)
    assert bought(server) == 2 * day
    neat(store)


def test_two_processes_come_after_one_that_died(
    family: Family, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, store, day = serve(), tmp_path / "fields.zarr", DAYS[:1]
    second = family.child(
        "open meet load", store, server, day, asks_at=1, asks_for="fcntl.lockf"
    )  # fmt: skip
    second.expect("ready")
    family.child("open load", store, server, day, die_at=SPOOLED).killed()
    # The first one is about to read what there is; it has not begun to put it into the store.
    place = f"read .clearsky/spool/*/*-{day[0]}.tif"
    first = family.child("open load", store, server, day, wait_at=place)
    first.expect("waits")
    second.go()
    second.expect("asks")
    first.go()
    first.finish()
    second.finish()
    assert bought(server) == day
    family.run("open load receipts plain", store, server, day)
    assert bought(server) == day
    neat(store)


@pytest.mark.parametrize("knows", ["the date", "not the date"])
def test_what_a_dead_process_had_paid_is_not_kept_from_others(
    family: Family, serve: Callable[..., Server], tmp_path: Path, knows: str
) -> None:
    server, store = serve(), tmp_path / "fields.zarr"
    if knows == "the date":
        family.run("open", store, server, TWO)
    first = family.child("open meet load meet", store, server, TWO[1:])
    first.expect("ready")
    second = family.child("open meet load receipts", store, server, TWO[:1])
    second.expect("ready")
    dying = spooled_at(0 if knows == "the date" else 1)
    family.child("open load", store, server, TWO[:1], die_at=dying).killed()
    # The first one looks for what it wants, and finds what the second one will want.
    first.go()
    first.expect("ready")
    second.go()
    second.finish()
    first.go()
    first.finish()
    assert bought(server) == TWO
    family.run("open load look plain", store, server, TWO)
    neat(store)


# --- Ctrl-C


def test_ctrl_c_keeps_what_was_sent_and_the_next_call_goes_on(
    family: Family, serve: Callable[..., Server], gate: threading.Event, tmp_path: Path
) -> None:
    days = DAYS[:6]
    server = serve(max_connections=2, faults=[held(gate)])
    store = tmp_path / "fields.zarr"
    child = family.child(
        "open interrupted settle meet prefetch prefetch load plain", store, server, days
    )
    child.expect("begins")
    until(lambda: server.in_flight == 2)
    child.send(signal.SIGINT)
    child.expect("interrupted")
    gate.set()
    child.expect("ready")
    # The ledger is settled when the bytes are there, just before they are written.
    until(lambda: len(kept(store)) == 2)
    assert kept(store) == set(bought(server))
    child.go()
    (price,) = {entry.credits for entry in paid(server)}
    child.expect(pytest.approx(4 * price))
    child.expect(0)
    child.expect("ends")
    child.finish()
    assert bought(server) == days
    assert credits_of(server) == pytest.approx(6 * price)
    neat(store)


def test_ctrl_c_that_ends_the_program_keeps_what_was_sent(
    family: Family, serve: Callable[..., Server], gate: threading.Event, tmp_path: Path
) -> None:
    days = DAYS[:6]
    server = serve(max_connections=2, faults=[held(gate)])
    store = tmp_path / "fields.zarr"
    child = family.child("open interrupted", store, server, days)
    child.expect("begins")
    until(lambda: server.in_flight == 2)
    child.send(signal.SIGINT)
    child.expect("interrupted")
    child.expect("ends")
    gate.set()
    child.finish()
    until(lambda: server.in_flight == 0)
    assert len(kept(store)) == 2
    assert kept(store) == set(bought(server))
    child = family.child("open prefetch load plain", store, server, days)
    (price,) = {entry.credits for entry in paid(server)}
    child.expect(pytest.approx(4 * price))
    assert child.finish()["warnings"] == []
    assert bought(server) == days
    neat(store)


# --- a store that cannot be written


def forbid(*places: Path) -> None:
    """Let nobody write; root does not mind, so the children are somebody else."""
    for place in places:
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)


def allow(*places: Path) -> None:
    """Let everybody write."""
    for place in places:
        for path in (place, *place.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)


def content(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


@dataclass
class Humble:
    """Children that may not write into a store."""

    family: Family
    store: Path
    home: Path

    def run(self, verbs: str, server: Server, days: list[str]) -> dict[str, Any]:
        environment = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}
        return self.family.run(
            verbs, self.store, server, days, humble=True, environment=environment
        )


@pytest.fixture
def humble(family: Family, commons: Path) -> Iterator[Humble]:
    with tempfile.TemporaryDirectory(dir=commons) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "data").mkdir()
        (folder / "home").mkdir()
        allow(folder / "home")
        yield Humble(family, folder / "data" / "fields.zarr", folder / "home")
        allow(folder)


@pytest.mark.parametrize("beside_it", ["its folder", "nothing"])
def test_a_full_store_that_cannot_be_written(
    humble: Humble, serve: Callable[..., Server], beside_it: str
) -> None:
    server, store = serve(), humble.store
    humble.family.run("open load", store, server, TWO)
    if beside_it == "nothing":  # as after `cp -r fields.zarr`
        shutil.rmtree(beside(store))
    forbid(store.parent)
    before = content(store.parent)
    assert humble.run("open load receipts", server, TWO)["warnings"] == []
    assert bought(server) == TWO
    requests = len(server.ledger())
    assert humble.run("offline load receipts", server, TWO)["warnings"] == []
    assert len(server.ledger()) == requests
    assert content(store.parent) == before


def test_a_missing_block_of_a_store_that_cannot_be_written(
    humble: Humble, serve: Callable[..., Server]
) -> None:
    server, store = serve(), humble.store
    humble.family.run("open", store, server, TWO)
    humble.family.run("open load", store, server, TWO[:1])
    forbid(store.parent)
    before = content(store.parent)

    # Paid pixels are given, with a warning; and once more, and by the next process, for nothing.
    for verbs in ("open load open load", "open load"):
        report = humble.run(verbs, server, TWO)
        assert report["warnings"]
        assert all("cannot be written: PermissionError" in text for text in report["warnings"])
        assert all(str(humble.home) in text for text in report["warnings"])
        assert bought(server) == TWO
        assert content(store.parent) == before
        (answer,) = humble.home.rglob("*.tif")
    humble.family.run("look", store, server, TWO)

    allow(store.parent)
    report = humble.run("open look load receipts plain", server, TWO)
    assert report["warnings"] == []
    assert bought(server) == TWO
    neat(store)
    assert not answer.exists()


# --- workers


SPAWN = """
    import json, multiprocessing, sys, warnings
    from concurrent.futures import ProcessPoolExecutor

    def read(ds, part):
        return float(ds.reflectance.isel(x=slice(*part)).astype("f8").sum())

    if __name__ == "__main__":
        warnings.filterwarnings("ignore", "The specified chunks separate", UserWarning)
        import dask
        import xarray as xr
        url, store, area, *days = sys.argv[1:]

        def lazy(days, **options):
            return xr.open_dataset(
                json.loads(area), engine="clearsky", time=days, store=store, base_url=url,
                mask_and_scale=False, **options,
            )

        parts = [(0, 200), (100, 300), (0, 311), (290, 311)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            ds = lazy(days[:2])
            sums = list(pool.map(read, [ds] * len(parts), parts))
            ds = lazy(days[2:], chunks={"time": 1, "x": 100})
            with dask.config.set(scheduler="processes", pool=pool):
                sums.append(float(ds.reflectance.astype("f8").sum()))
        print(json.dumps(sums))
"""


def test_spawned_workers(served: Path, serve: Callable[..., Server], tmp_path: Path) -> None:
    server, store = serve(latency=0.2), tmp_path / "fields.zarr"
    script = tmp_path / "script.py"  # a file, since spawned children want to import it
    script.write_text(textwrap.dedent(SPAWN))
    done = subprocess.run(
        [sys.executable, *STRICT, script, server.url, store, json.dumps(AREA), *DAYS[:4]],
        capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE, check=False,
        env={**os.environ, "CLEARSKY_API_KEY": server.api_key},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    values = expected(served, DAYS[:2]).astype("f8")
    assert json.loads(done.stdout) == [
        *(values[..., slice(*part)].sum() for part in [(0, 200), (100, 300), (0, 311), (290, 311)]),
        expected(served, DAYS[2:4]).astype("f8").sum(),
    ]
    once(server, DAYS[:4])
    neat(store)


def test_forked_workers(family: Family, serve: Callable[..., Server], tmp_path: Path) -> None:
    server, store = serve(latency=0.2), tmp_path / "fields.zarr"
    # The first day is the parent's, whose loop and spool the children must leave alone.
    family.run("open", store, server, TWO)
    family.run("open fork load join receipts plain", store, server, TWO)
    assert bought(server) == TWO
    neat(store)


@pytest.mark.parametrize("kind", ["url", "object"])
def test_a_store_in_memory_stays_in_its_process(
    served: Path, serve: Callable[..., Server], kind: str
) -> None:
    server = serve()
    store = "memory://fields.zarr" if kind == "url" else zarr.storage.MemoryStore()
    ds = lazy(server, store, TWO, chunks={})
    with pytest.raises(pickle.PicklingError, match=r"store in memory .* cannot be shared"):
        pickle.dumps(ds)
    with (
        dask.config.set(scheduler="processes"),
        pytest.raises(pickle.PicklingError, match=r"store in memory .* cannot be shared"),
    ):
        ds.reflectance.compute()
    assert bought(server) == []
    np.testing.assert_array_equal(ds.reflectance.values, expected(served, TWO))
    np.testing.assert_array_equal(lazy(server, store, TWO).reflectance, expected(served, TWO))
    assert bought(server) == TWO
