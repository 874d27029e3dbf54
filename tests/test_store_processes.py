"""One store and many processes: killed, interrupted, racing, unprivileged, forked and spawned."""

from __future__ import annotations

import array
import json
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import shapely
import xarray as xr
import zarr
from pyproj import Geod

import clearsky_xr
from clearsky_xr.sandbox import Account, Server
from clearsky_xr.sandbox.faults import Fault

from ._store_child import AREA, DAYS
from .conftest import access, credits_of, paid

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Long enough for a slow machine under load; what hangs, hangs for ever.
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[1]
STRICT = ["-W", "error", "-W", "ignore:Use `@` matmul:PendingDeprecationWarning"]

TWO = DAYS[:2]


# --- children


class Child:
    """A process of `_store_child`, forked from the nursery."""

    def __init__(self, nursery: Nursery, order: dict[str, Any]) -> None:
        self._nursery = nursery
        theirs_in, self._in = os.pipe()
        self._out, theirs_out = os.pipe()
        self._err = tempfile.TemporaryFile()  # noqa: SIM115  closed at the end of the child
        self._status: int | None = None
        try:
            self.pid = int(nursery.ask(order, theirs_in, theirs_out, self._err.fileno()))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def read(self) -> Any:
        """Give the next value that it says."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._out], [], [], PATIENCE)[0]:
                os.kill(self.pid, signal.SIGKILL)
                pytest.fail("the child hangs")
            byte = os.read(self._out, 1)
            if not byte:
                return None
            line += byte
        value = json.loads(line)
        if isinstance(value, dict) and "error" in value:
            pytest.fail(value["error"])
        return value

    def expect(self, value: object) -> None:
        """Wait until it says something."""
        assert self.read() == value

    def go(self) -> None:
        """Let it go on."""
        os.write(self._in, b"go\n")

    def ask(self, value: object) -> Any:
        """Tell it something, and give its answer."""
        os.write(self._in, f"{json.dumps(value)}\n".encode())
        return self.read()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self) -> tuple[list[Any], int]:
        """Wait for its end; gives what it still said, and its status."""
        said = []
        while (value := self.read()) is not None:
            said.append(value)
        return said, self._reap()

    def _reap(self) -> int:
        if self._status is None:
            self._status = int(self._nursery.ask({"wait": self.pid}))
            os.close(self._in)
            os.close(self._out)
            self._err.seek(0)
            self._said = self._err.read().decode()
            self._err.close()
        return self._status

    def killed(self) -> list[Any]:
        """Wait for its end, which must be that of a kill; gives what it still said."""
        said, status = self.end()
        assert status == -signal.SIGKILL, "it was not killed"
        return said

    def finish(self) -> dict[str, Any]:
        """Wait for its end, which must be good and silent; gives its report."""
        said, status = self.end()
        assert (status, self._said) == (0, "")
        (report,) = said
        assert isinstance(report, dict)
        return report

    def close(self) -> None:
        """Leave nothing behind."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()


class Nursery:
    """The process from which children are forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [
                sys.executable,
                *STRICT,
                "-m",
                "tests._store_child",
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()], cwd=ROOT, start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        theirs.close()
        self._orders = ours
        assert ours.recv(16) == b"ready"

    def ask(self, order: dict[str, Any], *files: int) -> str:
        """Give an order; gives the answer."""
        sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        with self._lock:
            self._orders.sendmsg([json.dumps(order).encode()], sent)
            return self._orders.recv(64).decode()

    def close(self) -> None:
        """End it."""
        self._orders.close()
        assert self._process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def commons() -> Iterator[Path]:
    """Give a folder that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def served(commons: Path) -> Path:
    """Keep what the service has, fetched without any store."""
    path = commons / "served.npy"
    with clearsky_xr.sandbox.serve() as server:
        ds = xr.open_dataset(
            AREA, engine="clearsky", time=DAYS, mask_and_scale=False, **access(server)
        )
        assert ds.reflectance.shape == (8, 10, 35, 311)
        np.save(path, ds.reflectance.values)
    return path


@dataclass
class Family:
    """Children that share a sandbox; they end with the test."""

    nursery: Nursery
    served: Path
    children: list[Child] = field(default_factory=list)

    def child(
        self, verbs: str, store: Path, server: Server, days: list[str], *, key: str | None = None,
        humble: bool = False, environment: dict[str, str] | None = None, **steps: Any,
    ) -> Child:  # fmt: skip
        order = {
            "verbs": verbs.split(),
            "store": str(store),
            "url": server.url,
            "key": key or server.api_key,
            "days": days,
            "expected": str(self.served),
            "humble": humble,
            "environment": environment or {},
            "steps": steps,
        }
        self.children.append(Child(self.nursery, order))
        return self.children[-1]

    def run(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Let a child do its work to its good and silent end; gives its report."""
        return self.child(*arguments, **options).finish()


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


def held(gate: threading.Event) -> Fault:
    """Let no image out before the gate is open."""

    def wait(image: Any) -> Any:
        gate.wait(PATIENCE)
        return image

    return Fault.image("held", wait, times=None)


def until(reached: Callable[[], bool]) -> None:
    """Wait for another process; the deadline is that of a failure."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


# --- what lies on the disk


def beside(store: Path) -> Path:
    return store.with_name(f"{store.name}.clearsky")


def copy(template: Path, folder: Path) -> Path:
    """Copy a store, with the folder beside it, into another folder."""
    for path in (template, beside(template)):
        if path.exists():
            shutil.copytree(path, folder / path.name)
    return folder / template.name


def kept(store: Path) -> set[str]:
    """Give the days whose pixels are on the disk: in the store, or as an answer in the spool."""
    found = set()
    seconds = zarr.open_group(store, mode="r")["time"][:]
    for place, day in enumerate(seconds.astype("M8[s]").astype("M8[D]").astype(str)):
        chunks = store / "reflectance" / "c" / str(place) / "0" / "0"
        spooled = any(beside(store).glob(f"spool/*/*-{day}.tif"))
        if spooled or all((chunks / block).exists() for block in "01"):
            found.add(str(day))
    return found


def spooled(steps: list[str], days: list[str]) -> set[str]:
    """Give the days whose answers were complete in the spool, by the steps of their buyer."""
    found = set()
    for place, day in enumerate(days):
        step = f"os.rename .clearsky/spool/*/*-{day}.part"
        if step in steps:
            later = steps[steps.index(step) + 1 :]
            if any(f"-{day}." in name or f"/c/{place}/" in name for name in later):
                found.add(day)
    return found


def lost(store: Path) -> int:
    """Count the requests that may have been sent, and have no answer on the disk."""
    count = 0
    for asked in beside(store).glob("spool/*/*.json"):
        with suppress(ValueError):  # cut off while it was written
            json.loads(asked.read_text())
            count += not asked.with_suffix(".tif").exists()
    return count


def neat(store: Path) -> None:
    """Check that nothing is left that somebody was in the middle of."""
    assert not list(store.rglob("*.partial"))
    assert {path.name for path in beside(store).iterdir()} <= {
        "lock",
        "claims",
        "spool",
        "adopting",
    }
    assert not list((beside(store) / "spool").iterdir())


def bought(server: Server, key: str | None = None) -> list[str]:
    """Give the days of the downloads that were charged, also if nobody was there to get them."""
    name = "" if key is None else f"account-{server.api_keys.index(key) + 1}"
    charged = [entry for entry in server.downloads() if entry.credits]
    return sorted(str(entry.date) for entry in charged if name in ("", entry.account))


# --- killed at every step


class Sweep:
    """Kills a child at every step of its work, each time on a copy of the same store.

    Then somebody else opens the copy and reads what is missing. All have accounts of their own,
    so that their downloads can be told apart even if they reach the server late.

    Attributes
    ----------
    store : Path
        As the victims find it.
    """

    VICTIMS = tuple(f"victim-{k}" for k in range(100))
    HEIRS = ("heir-0", "heir-1")

    def __init__(self, family: Family, serve: Callable[..., Server], folder: Path) -> None:
        keys = [*self.VICTIMS, *self.HEIRS, "reader", "other"]
        self.server = serve(accounts=[Account(key=key) for key in keys], memoize=True)
        self.store = folder / "template" / "fields.zarr"
        self.store.parent.mkdir()
        self._family = family
        self._folder = folder
        self._failures: dict[object, str] = {}

    def child(self, verbs: str, days: list[str], **steps: Any) -> Child:
        """Let a child prepare the store."""
        return self._family.child(verbs, self.store, self.server, days, key="other", **steps)

    def run(self, verbs: str, days: list[str], then: list[str] | None = None) -> list[str]:
        """Sweep; gives the names of the steps.

        Parameters
        ----------
        verbs : str
            What the victims do.
        days : list of str
            What they want.
        then : list of str, optional
            What those want who come after them.
        """
        then = then or days
        store = copy(self.store, self._folder / "clean")
        report = self._family.run(verbs, store, self.server, days, key="other")
        neat(store)
        names = list(dict.fromkeys(report["steps"]))
        points = [(name, False) for name in names] + [(name, True) for name in report["files"]]
        assert len(points) <= len(self.VICTIMS)
        todo = iter(list(enumerate(points)))

        def lane(key: str) -> None:
            heir = self._family.child("attend", self._folder, self.server, then, key=key)
            for k, point in todo:
                with self._noting(point):
                    self._kill(verbs, days, k, point[0], torn=point[1])
                    self._inherit(heir, key, self._place(k), then)
            heir.go()
            heir.finish()

        with ThreadPoolExecutor(len(self.HEIRS)) as lanes:
            list(lanes.map(lane, self.HEIRS))
        reader = self._family.child("attend", self._folder, self.server, then, key="reader")
        for k, point in enumerate(points):
            with self._noting(point):
                assert reader.ask({"store": str(self._place(k)), "verbs": "open load"}) == []
                neat(self._place(k))
        reader.go()
        report = reader.finish()
        assert not self._failures, "\n".join(f"{k}: {v}" for k, v in self._failures.items())
        assert report["steps"] == []
        assert bought(self.server, "reader") == []
        until(lambda: self.server.in_flight == 0)
        for key in self.VICTIMS:
            once = bought(self.server, key)
            assert len(once) == len(set(once))
        return names

    @contextmanager
    def _noting(self, point: object) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # noqa: BLE001  all of them are of interest
            self._failures.setdefault(point, str(error)[-2000:])

    def _place(self, k: int) -> Path:
        return self._folder / str(k) / self.store.name

    def _kill(self, verbs: str, days: list[str], k: int, name: str, *, torn: bool) -> None:
        store = copy(self.store, self._place(k).parent)
        had = kept(store)
        victim = self._family.child(
            verbs, store, self.server, days,
            key=self.VICTIMS[k], die_at=name, torn=torn, tells=True,
        )  # fmt: skip
        steps = victim.killed()
        # What was complete once stays, in the spool or in the store.
        assert kept(store) >= had | spooled(steps, days)

    def _inherit(self, heir: Child, key: str, store: Path, days: list[str]) -> None:
        there, losses = kept(store), lost(store)
        before = Counter(bought(self.server, key))
        said = heir.ask({"store": str(store), "verbs": "look open load receipts plain"})
        now = Counter(bought(self.server, key)) - before
        assert sorted(now.elements()) == sorted(set(days) - there)
        # Of what may have been charged without an answer the user hears, and of nothing else.
        assert [text.partition(":")[0] for text in said] == bool(losses) * [
            f"{losses} downloads were under way when an earlier process ended"
        ]


@pytest.fixture
def sweep(family: Family, serve: Callable[..., Server], tmp_path: Path) -> Sweep:
    return Sweep(family, serve, tmp_path)


def test_killed_at_every_step_of_filling(sweep: Sweep) -> None:
    sweep.child("open", TWO).finish()
    names = sweep.run("open load", TWO)
    # What the sweep is there for is among its steps.
    for step in (
        "open .clearsky/claims",
        "open .clearsky/spool/*/*-2025-04-06.json",
        "os.rename .clearsky/spool/*/*-2025-04-06.part",
        "os.rename /receipts/receipt/c/1/0/1.*.partial",
        "os.rename /reflectance/c/1/0/0/1.*.partial",
        "os.remove .clearsky/spool/*/*-2025-04-06.json",
        "os.remove .clearsky/spool/*/*-2025-04-06.tif",
        "os.rmdir .clearsky/spool/*",
        "os.remove .clearsky/spool/*.alive",
    ):
        assert step in names


def test_killed_at_every_step_of_adding_dates(sweep: Sweep) -> None:
    sweep.child("open load", TWO[1:]).finish()
    # Whoever comes next wants less, and finds arrays that are too long already.
    names = sweep.run("open", DAYS[:4], TWO)
    for step in (
        "os.rename /time/zarr.*.partial",
        "os.rename /time/c/0.*.partial",
        "os.rename /reflectance/zarr.*.partial",
        "os.rename /receipts/receipt/zarr.*.partial",
        "os.rename /zarr.*.partial",
    ):
        assert step in names


def test_killed_at_every_step_of_putting_away_what_another_left(sweep: Sweep) -> None:
    sweep.child("open", TWO).finish()
    step = "open /receipts/receipt/c/0/0/0.*.partial"
    sweep.child("open load", TWO[:1], die_at=step).killed()
    assert kept(sweep.store) == set(TWO[:1])
    names = sweep.run("open", TWO)
    for step in (
        "os.rename /receipts/receipt/c/0/0/1.*.partial",
        "os.rename /reflectance/c/0/0/0/1.*.partial",
        "os.remove .clearsky/spool/*/*-2025-04-01.tif",
        "os.remove .clearsky/spool/*.alive",
    ):
        assert step in names
    # One is enough for all: whoever comes finds it in the spool or in the store.
    assert TWO[0] not in bought(sweep.server, "heir-0") + bought(sweep.server, "heir-1")


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


def once(server: Server, days: list[str]) -> None:
    """Check that each pixel of some days has been bought, and none twice."""
    west, south, east, north = AREA
    around = shapely.box(west, south, east, north)
    whole = abs(Geod(ellps="WGS84").geometry_area_perimeter(around)[0]) / 1e6
    for day in days:
        share = sum(e.area_km2 for e in paid(server) if str(e.date) == day) / whole
        assert share == pytest.approx(1, abs=0.03), day
    assert set(bought(server)) == set(days)


@pytest.mark.parametrize("second", ["load", "left"])
def test_two_processes_fill_one_store_at_once(
    family: Family, serve: Callable[..., Server], tmp_path: Path, second: str
) -> None:
    server, store = serve(latency=0.3), tmp_path / "fields.zarr"  # so that they meet
    both = [family.child(f"open meet {verb}", store, server, DAYS[:4]) for verb in ("load", second)]
    for child in both:
        child.expect("ready")
    for child in both:
        child.go()
    for child in both:
        assert child.finish()["warnings"] == []
    once(server, DAYS[:4])
    family.run("open load look receipts plain", store, server, DAYS[:4])
    once(server, DAYS[:4])
    neat(store)


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
