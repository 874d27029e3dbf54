"""Children that use a store together, and what is looked at when they are done or dead.

They are forked from one process, the nursery, which has imported everything (`_store_child`).
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from .conftest import access, paid

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


@functools.cache
def the_nursery() -> Nursery:
    """Give the one of this process; it ends with it."""
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


@functools.cache
def common_folder() -> Path:
    """Give a folder that other users can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def what_is_served() -> Path:
    """Keep what the service has, fetched without any store."""
    path = common_folder() / "served.npy"
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

    Parameters
    ----------
    family : Family
    serve : callable
        Starts a sandbox.
    folder : Path
    key : str
        What the keys of all accounts begin with.

    Attributes
    ----------
    store : Path
        As the victims find it.
    kills : int
        How many have been killed.
    """

    def __init__(
        self, family: Family, serve: Callable[..., Server], folder: Path, key: str = "key"
    ) -> None:
        self.victims = tuple(f"{key}-victim-{k}" for k in range(100))
        self.heirs = (f"{key}-heir-0", f"{key}-heir-1")
        self.reader, self.other = f"{key}-reader", f"{key}-other"
        self.kills = 0
        keys = [*self.victims, *self.heirs, self.reader, self.other]
        self.server = serve(accounts=[Account(key=key) for key in keys], memoize=True)
        self.store = folder / "template" / "fields.zarr"
        self.store.parent.mkdir()
        self._family = family
        self._folder = folder
        self._failures: dict[object, str] = {}

    def child(self, verbs: str, days: list[str], **steps: Any) -> Child:
        """Let a child prepare the store."""
        return self._family.child(verbs, self.store, self.server, days, key=self.other, **steps)

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
        report = self._family.run(verbs, store, self.server, days, key=self.other)
        neat(store)
        names = list(dict.fromkeys(report["steps"]))
        points = [(name, False) for name in names] + [(name, True) for name in report["files"]]
        assert len(points) <= len(self.victims)
        todo = iter(list(enumerate(points)))

        def lane(key: str) -> None:
            heir = self._family.child("attend", self._folder, self.server, then, key=key)
            for k, point in todo:
                with self._noting(point):
                    self._kill(verbs, days, k, point[0], torn=point[1])
                    self.kills += 1
                    self._inherit(heir, key, self._place(k), then)
            heir.go()
            heir.finish()

        with ThreadPoolExecutor(len(self.heirs)) as lanes:
            list(lanes.map(lane, self.heirs))
        reader = self._family.child("attend", self._folder, self.server, then, key=self.reader)
        for k, point in enumerate(points):
            with self._noting(point):
                assert reader.ask({"store": str(self._place(k)), "verbs": "open load"}) == []
                neat(self._place(k))
        reader.go()
        report = reader.finish()
        assert not self._failures, "\n".join(f"{k}: {v}" for k, v in self._failures.items())
        assert report["steps"] == []
        assert bought(self.server, self.reader) == []
        until(lambda: self.server.in_flight == 0)
        for key in self.victims:
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
            key=self.victims[k], die_at=name, torn=torn, tells=True,
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


def once(server: Server, days: list[str]) -> None:
    """Check that each pixel of some days has been bought, and none twice."""
    west, south, east, north = AREA
    around = shapely.box(west, south, east, north)
    whole = abs(Geod(ellps="WGS84").geometry_area_perimeter(around)[0]) / 1e6
    for day in days:
        share = sum(e.area_km2 for e in paid(server) if str(e.date) == day) / whole
        assert share == pytest.approx(1, abs=0.03), day
    assert set(bought(server)) == set(days)
