"""Raw bytes of paid answers on local disk, and recent pixels in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ._request import Request

# Decoded pixels that are kept for a reader who comes right after, bytes: the
# second band of an expression, the next variable. The rest is decoded again from
# disk, which costs time but no money.
_RECENT: Final = 48 * 2**20

# The file of a spool that keeps its answers one after the other.
_MANY: Final = "answers"
# What lies in the folder of a durable spool: what was asked for, and the answer.
_ASKED: Final = ".json"
_ANSWER: Final = ".tif"


#: Where an answer begins in a file, and how long it is, bytes.
Extent = tuple[int, int]


class Recent:
    """Decoded pixels of the latest answers; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, NDArray[np.int16]] = OrderedDict()
        self._bytes = 0

    def remember(self, answer: Hashable, values: NDArray[np.int16]) -> None:
        """Keep decoded pixels for the next reader, as far as there is room."""
        with self._lock:
            if values.nbytes > _RECENT or answer in self._values:
                return
            self._values[answer] = values
            self._bytes += values.nbytes
            while self._bytes > _RECENT:
                self._bytes -= self._values.popitem(last=False)[1].nbytes

    def recall(self, answer: Hashable) -> NDArray[np.int16] | None:
        """Give decoded pixels that are still in memory."""
        with self._lock:
            if answer in self._values:
                self._values.move_to_end(answer)
            return self._values.get(answer)


class Spool:
    """A process's raw answers, which end with it; safe under threads.

    They lie in one file one after the other: making a file took longer than
    everything else that is done with a small answer.

    Attributes
    ----------
    writes_ahead : bool
        Whether `begin` writes to disk, and so should not be called on the loop.
    """

    writes_ahead = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._file: Path | None = None
        self._count = 0

    @property
    def place(self) -> str:
        """Where the folder is, in words."""
        return "the temporary folder, or set TMPDIR"

    def begin(self, request: Request) -> Path:  # noqa: ARG002  others write it down
        """Give the place of an answer that is about to be asked for.

        Raises
        ------
        OSError
            The disk refuses.
        """
        # Without the lock if it is there: the loop must not wait for a thread that writes.
        if (file := self._file) is not None:
            return file
        with self._lock:
            return self._file or self._new_file()

    def write(self, path: Path, content: bytes) -> tuple[Path, Extent | None]:
        """Write a paid answer to disk, before anything else is done with it.

        Returns
        -------
        path : pathlib.Path
            Where it is.
        extent : (int, int) or None
            Where it begins there and how long it is; None if it is all that is there.

        Raises
        ------
        OSError
            The disk refuses.
        """
        with self._lock:
            path = self._file or self._new_file()
            try:
                handle = os.open(path, os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError:
                # Long-lived temporary folders are swept on many machines. It has to be another
                # place, or what was in it would be read wrong and not be missed.
                path = self._new_file()
                handle = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                start = os.fstat(handle).st_size
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)
        return path, (start, len(content))

    def drop(self, path: Path) -> None:
        """Forget an answer: none came, or its pixels are kept elsewhere."""

    def set_aside(self, path: Path, content: bytes) -> Path:
        """Keep the bytes of an answer that was refused where they outlive the process."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="clearsky-refused-"))
            aside = folder / f"answer{_ANSWER}"
            aside.write_bytes(content)
        except OSError:
            return path  # at least until the process ends
        return aside

    def _new_file(self) -> Path:
        self._folder = self._new_folder()
        file = self._folder / _MANY
        file.touch()
        self._file = file
        return file

    def _new_folder(self) -> Path:
        # mkdtemp makes it readable by this user only.
        folder = Path(tempfile.mkdtemp(prefix="clearsky-spool-"))
        # Not atexit: children of multiprocessing leave by os._exit, and run only this.
        # In other processes multiprocessing itself runs it at the end.
        Finalize(None, _sweep, (folder, os.getpid()), exitpriority=0)
        return folder


class DurableSpool(Spool):
    """A spool that outlives a crash: what was asked for is written before it is sent.

    Parameters
    ----------
    new_folder : callable
        Makes the folder of this process, which others leave alone while it lives.
    refused : pathlib.Path
        Folder for answers that were refused.
    """

    writes_ahead = True

    def __init__(self, new_folder: Callable[[], Path], refused: Path) -> None:
        super().__init__()
        self._make = new_folder
        self._refused = refused

    @property
    def place(self) -> str:
        return str(self._refused.parent)

    def begin(self, request: Request) -> Path:
        with self._lock:
            if self._folder is None or not self._folder.is_dir():
                self._folder = self._new_folder()
            self._count += 1
            path = self._folder / f"{self._count:08d}-{request.date}{_ANSWER}"
        path.with_suffix(_ASKED).write_text(request.dumps(), encoding="utf-8")
        return path

    def write(self, path: Path, content: bytes) -> tuple[Path, Extent | None]:
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
        return path, None

    def drop(self, path: Path) -> None:
        # In this order: what was asked for and has no answer counts as lost.
        path.with_suffix(_ASKED).unlink(missing_ok=True)
        for rest in (path, path.with_suffix(".part")):
            rest.unlink(missing_ok=True)

    def set_aside(self, path: Path, content: bytes = b"") -> Path:  # noqa: ARG002  it has them
        try:
            self._refused.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(_ANSWER, f"{path.stem}-", self._refused)
            os.close(handle)
            aside = Path(path.replace(name))
        except OSError:
            return path
        self.drop(path)
        return aside

    def _new_folder(self) -> Path:
        return self._make()


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a process that died has left of one request.

    Parameters
    ----------
    request : Request
    path : pathlib.Path
        Of the answer's bytes, if they came.
    """

    request: Request
    path: Path

    @property
    def answered(self) -> bool:
        """Whether the answer is there."""
        return self.path.exists()


def leftovers(folder: Path) -> Iterator[Leftover]:
    """Read what lies in the folder of a durable spool; sweeps what is of no use."""
    for asked in sorted(folder.glob(f"*{_ASKED}")):
        answer = asked.with_suffix(_ANSWER)
        try:
            request = Request.loads(asked.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Cut off while it was written: nothing had been sent.
            if not answer.exists():
                asked.unlink(missing_ok=True)
            continue
        yield Leftover(request, answer)
    for orphan in folder.glob("*.part"):
        if not orphan.with_suffix(_ASKED).exists():
            orphan.unlink(missing_ok=True)
    # An answer that lost its request was kept elsewhere already.
    for answer in folder.glob(f"*{_ANSWER}"):
        if not answer.with_suffix(_ASKED).exists():
            answer.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _sweep(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not empty its parent's folder
        shutil.rmtree(folder, ignore_errors=True)
