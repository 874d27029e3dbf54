"""The folder beside a store: what its processes on this machine must know of each other.

::

    fields.zarr.clearsky/
        lock            held by a process that creates the store or adds dates
        adopting        held by a process that puts in what others have left
        claims          one byte for each block of each date, locked by its buyer
        spool/<id>/     paid answers of one process that the store does not have yet
        refused/        paid bytes that were not the image asked for

Locks end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Final

import platformdirs
from filelock import FileLock, Timeout

if sys.platform != "win32":  # there each process buys for itself
    import fcntl

# Beside the folder of a process, not inside, so that the folder can go while it is locked.
_ALIVE: Final = ".alive"


class Sidecar:
    """Locks and spools of one store; safe under threads.

    Parameters
    ----------
    folder : pathlib.Path
        Exists.
    others : sequence of pathlib.Path
        Where it has been for processes that could not write here.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.refused = folder / "refused"
        self._spools = folder / "spool"
        self._all = [self._spools, *(other / "spool" for other in others)]
        self._adopting = FileLock(folder / "adopting", thread_local=False)
        self._guard = threading.Lock()
        self._claims: int | None = None
        self._own: dict[Path, FileLock] = {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one on this machine that creates the store or adds dates to it."""
        with self._guard, FileLock(self.folder / "lock", thread_local=False):
            yield

    def claim(self, number: int) -> bool:
        """Try to become the one process on this machine that buys a block of a date.

        Within a process the caller keeps the order: a process's claims do not
        exclude each other.
        """
        if sys.platform == "win32":
            return True
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a file system without locks: buying twice is better than not at all
        return True

    def release(self, number: int) -> None:
        """Give a claim back."""
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, number)

    def _file(self) -> int:
        if self._claims is None:
            # Opened once and never closed: closing any handle would end all locks.
            self._claims = os.open(self.folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        return self._claims

    def new_spool(self) -> Path:
        """Make a folder for this process's paid answers, locked while it lives."""
        folder = self._spools / uuid.uuid4().hex
        folder.parent.mkdir(parents=True, exist_ok=True)
        alive = FileLock(folder.with_suffix(_ALIVE), thread_local=False)
        with self.lock():  # others sweep locks without a folder
            alive.acquire()
            folder.mkdir(mode=0o700)
        self._take(folder, alive)
        return folder

    def strangers(self) -> bool:
        """Whether there are spools of other processes, of which some may have died."""
        return any(path.with_suffix("") not in self._own for path in self._found())

    def _found(self) -> list[Path]:
        return sorted(f for spools in self._all if spools.is_dir() for f in spools.iterdir())

    @contextlib.contextmanager
    def adopting(self) -> Iterator[bool]:
        """Be the only process that puts in what others have left; gives whether it is."""
        try:
            self._adopting.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError:  # nothing can be written here: there is nothing to put in either
            yield True
            return
        try:
            yield True
        finally:
            self._adopting.release()

    def adopt(self) -> Iterator[Path]:
        """Yield the spools of processes that have died; each belongs to this one now."""
        self._sweep()
        for folder in self._found():
            if not folder.is_dir() or folder in self._own:
                continue
            alive = FileLock(folder.with_suffix(_ALIVE), thread_local=False)
            try:
                alive.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            if not folder.is_dir():  # another process was faster
                alive.release()
                continue
            self._take(folder, alive)
            yield folder

    def _take(self, folder: Path, alive: FileLock) -> None:
        with self._guard:
            self._own[folder] = alive
        Finalize(None, _leave, (folder, alive, os.getpid()), exitpriority=0)

    def _sweep(self) -> None:
        """Remove the locks of processes that died before or after they had a folder."""
        left = [f for f in self._spools.glob(f"*{_ALIVE}") if not f.with_suffix("").exists()]
        if not left:
            return
        with contextlib.suppress(OSError), self.lock():
            for path in left:
                alive = FileLock(path, thread_local=False)
                with contextlib.suppress(Timeout):
                    alive.acquire(timeout=0)
                    if not path.with_suffix("").exists():
                        path.unlink(missing_ok=True)
                    alive.release()


def _leave(folder: Path, alive: FileLock, pid: int) -> None:
    """Remove what is of no use any more, when the process ends."""
    if os.getpid() != pid:
        return
    with contextlib.suppress(OSError):
        folder.rmdir()
    alive.release()
    if not folder.exists():
        with contextlib.suppress(OSError):
            Path(alive.lock_file).unlink()


def sidecar_of(folder: Path | None, digest: str, *, lasting: bool) -> Sidecar:
    """Open the sidecar of a store.

    Beside a store on a local disk; else, and where that is not allowed, in the
    user's cache folder; in a temporary folder if nothing else is writable.

    Parameters
    ----------
    folder : pathlib.Path or None
        Of the store.
    digest : str
        Names the store in the user's cache folder.
    lasting : bool
        Whether the store outlives this process.
    """
    places = []
    if folder is not None:
        places.append(folder.with_name(f"{folder.name}.clearsky"))
    if lasting:
        places.append(platformdirs.user_cache_path("clearsky_xr") / "stores" / digest)
    for place in places:
        with contextlib.suppress(OSError):
            # A store in a folder that is not there yet is a matter of the store.
            place.mkdir(parents=True, exist_ok=True)
            (place / "spool").mkdir(exist_ok=True)
            if os.access(place / "spool", os.W_OK) and os.access(place, os.W_OK):
                return Sidecar(place, [other for other in places if other != place])
    return Sidecar(_temporary(digest))


@cache
def _temporary(_digest: str) -> Path:
    return Path(tempfile.mkdtemp(prefix="clearsky-store-"))
