"""The children of `_nursery`: forked from one process that has imported everything.

``python _store_child.py FD`` is the nursery. It takes orders from a socket, one JSON value each,
and forks a child for every order that comes with three files, the child's own stdin, stdout and
stderr. A child does what its order says, verb by verb (`Worker`), and ends as a program ends. It
may be told to die at a step of what it does to the disk, or to wait there (`Steps`).
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# Two blocks side by side, of which one request brings both: 35 x 311 pixels.
AREA = (15.05, 46.05, 15.09, 46.053)
DAYS = [
    "2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16",
    "2025-04-21", "2025-04-26", "2025-05-01", "2025-05-06",
]  # fmt: skip
NODATA = -32768
NOBODY = 65534


# --- what children say and hear: lines of JSON


def say(value: object) -> None:
    """Write a line to who has ordered this child."""
    os.write(1, f"{json.dumps(value)}\n".encode())


def hear() -> str:
    """Wait for a line; byte by byte, since any thread may be the next to wait."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(3)  # nobody is there any more
        line += byte
    return line.decode().strip()


# --- what a process does to the disk

_WRITES = os.O_WRONLY | os.O_RDWR
_ONE = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.truncate": None}
_TWO = {"os.rename": 2, "os.link": 2, "os.symlink": None}


class Steps:
    """All that this process does to a store and to the folder beside it.

    A step is an event of `sys.addaudithook` that will change what is on the disk, and is reported
    before it does. Its name is the event with the path, in which random parts are stars.

    Parameters
    ----------
    store : str
        Its path.
    die_at : str, optional
        The process kills itself as it comes to this step for the first time.
    die_number : int, optional
        It kills itself at the step with this number, counted from 1. Steps in what others have
        left half done are not counted.
    torn : bool
        Whether it dies not before, but right after it has opened the file of the step: what is in
        the file then is not what was to be written.
    wait_at : str, optional
        It waits there for a line. ``read`` with the path of an answer is such a place, too.
    asks_at : int, optional
        It tells when it tries to lock something for the time with this number, counted from 1:
        either a block, or a whole file.
    asks_for : {"fcntl.lockf", "fcntl.flock"}
        Which of them.
    tells : bool
        It says the name of each step as it comes to it.
    """

    def __init__(
        self,
        store: str,
        *,
        die_at: str | None = None,
        die_number: int | None = None,
        torn: bool = False,
        wait_at: str | None = None,
        asks_at: int = 0,
        asks_for: str = "",
        tells: bool = False,
    ) -> None:
        self._store = store
        self._die_at, self._die_number = die_at, die_number
        self._torn, self._wait_at = torn, wait_at
        self._asks_at, self._asks_for = asks_at, asks_for
        self._left = [str(path) for path in Path(f"{store}.clearsky").glob("new-*")]
        self._lock = threading.Lock()
        self._dying = False
        self._slipped = ""
        self._tells = tells
        self.names: list[str] = []
        self.files: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == self._asks_for:
            self._asks_at -= 1
            if not self._asks_at:
                say("asks")
        if self._dying or not (event == "open" or event in _ONE or event in _TWO):
            return
        path = self._place(event, arguments)
        if not path.startswith(self._store) or path.startswith(tuple(self._left)):
            return
        if self._slipped and os.path.lexists(self._slipped):
            self._die()
        flags = arguments[2] if event == "open" else 0
        if event == "open" and not flags & _WRITES:
            event = "read"
        elif not _changes(event, path, flags):
            if f"{event} {self._shown(path)}" == self._die_at and event == "os.mkdir":
                # It fails, as there is no folder to make it in; unless another thread makes that
                # right now, and then nobody would hear of this one.
                self._slipped = path
            return
        name = f"{event} {self._shown(path)}"
        if event != "read":
            self._count(name, path, flags)
        if name == self._wait_at:
            self._wait_at = None
            say("waits")
            hear()

    def _count(self, name: str, path: str, flags: int) -> None:
        with self._lock:
            self.names.append(name)
            if self._tells:
                say(name)
            if flags & os.O_TRUNC:
                self.files.add(name)
            if name == self._die_at or len(self.names) == self._die_number:
                self._dying = True
                if self._torn:
                    os.write(os.open(path, flags, 0o600), b"{")
                self._die()

    def _die(self) -> None:
        self._dying = True
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _place(event: str, arguments: tuple[Any, ...]) -> str:
        path = arguments[0]
        if isinstance(path, int):
            return ""
        path = os.fsdecode(path)
        where = _ONE.get(event) or _TWO.get(event)
        if where is not None and arguments[where] != -1:
            path = str(Path(f"/proc/self/fd/{arguments[where]}").readlink() / path)
        return path

    def _shown(self, path: str) -> str:
        shown = path[len(self._store) :]
        return re.sub(r"\b\d{8}-", "*-", re.sub("[0-9a-f]{32}", "*", shown))


def _changes(event: str, path: str, flags: int) -> bool:
    """Say whether an event will change what is on the disk."""
    there = os.path.lexists(path)
    if event == "open":
        return not there or bool(flags & os.O_TRUNC)
    if event == "os.mkdir":
        return not there and Path(path).parent.exists()
    return there


# --- what a child can do


class Worker:
    """One child. Its verbs are methods without arguments; the order has their options."""

    def __init__(self, order: dict[str, Any]) -> None:
        import numpy as np

        self.order = order
        self.store: str = order["store"]
        self.heard: list[warnings.WarningMessage] = []
        self.served = dict(zip(DAYS, np.load(order["expected"]), strict=True))
        self.ds: Any = None

    def _expected(self, ds: Any) -> Any:
        import numpy as np

        return np.stack([self.served[str(day)[:10]] for day in ds.time.values])

    def open(self) -> None:
        """Open the cube with its store."""
        import xarray as xr

        self.ds = xr.open_dataset(
            AREA, engine="clearsky", time=self.order["days"], store=self.store,
            base_url=self.order["url"], api_key=self.order["key"], mask_and_scale=False,
        )  # fmt: skip

    def offline(self) -> None:
        """Open what the store has."""
        import clearsky_xr

        self.ds = clearsky_xr.open_store(self.store, mask_and_scale=False)

    def meet(self) -> None:
        """Wait until the others are here, too."""
        say("ready")
        hear()

    def load(self) -> None:
        """Read everything; it must be what the service has."""
        import numpy as np

        np.testing.assert_array_equal(self.ds.reflectance.values, self._expected(self.ds))

    def cram(self) -> None:
        """Live with a disk that takes no large files any more; the kernel says so."""
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    def left(self) -> None:
        """Read the left one of the two blocks."""
        import numpy as np

        part = self.ds.reflectance.isel(x=slice(0, 200))
        np.testing.assert_array_equal(part.values, self._expected(self.ds)[..., :200])

    def prefetch(self) -> None:
        """Buy what is missing; says what that has cost."""
        say(self.ds.clearsky.prefetch(progress=False).settled)

    def interrupted(self) -> None:
        """Buy what is missing until Ctrl-C; tells when the program ends, if it does then."""
        say("begins")
        try:
            self.ds.clearsky.prefetch(progress=False)
        except KeyboardInterrupt:
            say("interrupted")
        atexit.register(say, "ends")

    def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        import clearsky_xr

        while clearsky_xr.spent().reserved:
            time.sleep(0.01)

    def receipts(self) -> None:
        """Look whether each block has its receipt."""
        table = self.ds.clearsky.receipts()
        assert len(table) == 2 * self.ds.sizes["time"], table
        assert (table["credits"] > 0).all(), table
        assert (table["image_date"] == table["time"].dt.strftime("%Y%m%d")).all(), table

    def look(self) -> None:
        """Read with Zarr alone: a block is complete or absent, and metadata are true."""
        import numpy as np
        import zarr

        if not Path(self.store).exists():
            return
        group = zarr.open_group(self.store, mode="r", use_consolidated=True)
        pixels, seconds = group["reflectance"], group["time"][:]
        receipts = group["receipts/receipt"]
        count = len(set(seconds.tolist()))
        assert count == len(seconds) == pixels.shape[0] == receipts.shape[0]
        for values, day in zip(pixels[:], seconds.astype("M8[s]").astype("M8[D]"), strict=True):
            for block in (slice(0, 256), slice(256, None)):
                if (values[..., block] != NODATA).any():
                    np.testing.assert_array_equal(
                        values[..., block], self.served[str(day)][..., block]
                    )

    def plain(self) -> None:
        """Read with xarray alone: everything is there."""
        import numpy as np
        import xarray as xr

        with xr.open_zarr(self.store, mask_and_scale=False, chunks=None, consolidated=True) as ds:
            np.testing.assert_array_equal(ds.reflectance.values, self._expected(ds))
            assert "spatial_ref" in ds.coords
            days = [str(day)[:10] for day in ds.time.values]
            assert len(set(days)) == len(days)
            assert set(days) >= set(self.order["days"]), days

    def attend(self) -> None:
        """Do the same in one store after the other, as they are named."""
        while (line := hear()) != "go":
            task = json.loads(line)
            self.store = task["store"]
            self.heard.clear()
            try:
                self.work(task["verbs"].split())
            except Exception:  # noqa: BLE001  the next store may do better
                say({"error": traceback.format_exc()})
            else:
                say(self.said())

    def work(self, verbs: list[str]) -> None:
        """Do as the verbs say."""
        for verb in verbs:
            getattr(self, verb)()

    def said(self) -> list[str]:
        """Give the warnings that a user would have heard."""
        return [str(warning.message) for warning in self.heard]

    def fork(self) -> None:
        """Become three, which do the same from here on."""
        children = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                children = []
                break
            children.append(pid)
        self.children = children
        self.child = not children

    def join(self) -> None:
        """Become one again."""
        if self.child:
            end(0)
        for pid in self.children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def live(order: dict[str, Any]) -> NoReturn:
    """Be a child."""
    from clearsky_xr.errors import ClearSkyWarning

    try:
        os.environ |= order["environment"]
        if order["humble"] and os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        worker = Worker(order)
        steps = Steps(order["store"], **order["steps"])
        with warnings.catch_warnings(record=True) as worker.heard:
            warnings.simplefilter("always", ClearSkyWarning)
            worker.work(order["verbs"])
        _finish()  # its steps count, too
        say({"warnings": worker.said(), "steps": steps.names, "files": sorted(steps.files)})
    except BaseException:  # noqa: BLE001  whatever it was, somebody wants to know
        say({"error": traceback.format_exc()})
        end(1)
    end(0)


def _finish() -> None:
    """Do what Python does when a program ends, but for taking the interpreter apart."""
    threading._shutdown()
    atexit._run_exitfuncs()


def end(status: int) -> NoReturn:
    """End this process; without what takes longer than all that a child does."""
    with suppress(BaseException):
        _finish()  # its steps count, too
    os._exit(status)


# --- the nursery


def warm_up() -> None:
    """Import everything, and compute what each child would; starts no thread."""
    import numpy as np
    import xarray as xr

    from clearsky_xr import _area, _cube, _grid, _pixels, _plan

    for name in (
        "dask.array", "distributed", "encodings.idna", "multiprocessing.synchronize",
        "numpy.testing",
    ):  # fmt: skip
        importlib.import_module(name)
    # The faces, and what they import only when it is needed.
    for name in ("_accessor", "_api", "_dataset", "_open", "_prepare", "_variable"):
        importlib.import_module(f"clearsky_xr.{name}")
    xr.backends.list_engines()
    xr.DataArray(np.zeros(1)).chunk()
    area = _area.resolve_area(AREA)
    grid = _grid.resolve_grid(area, resolution=None, crs="auto", like=None)
    cube = _cube.Cube(
        area=area, grid=grid, dates=(), bands=("B2",), indices=(), model="Stratus2",
        constellations=("Sentinel1",), clip=True, pixels="intersect", allow_partial=False,
    )  # fmt: skip
    pixels = cube.wanted(_pixels.PixelSet(grid.window))
    bounds = _plan.Bounds(10**7, np.inf, (0, 0))
    _plan.cover(pixels, grid.epsg, grid.resolution, bounds, "geometry")
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()


def main() -> None:
    """Be the nursery until the other end of the socket is closed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # From 3.12 Python warns of every fork with threads about: those of numpy's BLAS.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    orders = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    orders.sendall(b"ready")
    while True:
        message, ancillary, _, _ = orders.recvmsg(65536, socket.CMSG_SPACE(3 * 4))
        if not message:
            orders.close()
            return
        files = array.array("i")
        for _, _, data in ancillary:
            files.frombytes(data)
        order = json.loads(message)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            orders.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            live(order)
        for file in files:
            os.close(file)
        orders.sendall(str(pid).encode())


if __name__ == "__main__":
    main()
