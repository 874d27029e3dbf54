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

# What lies in the folder of a durable spool: what was asked for, and the answer.
_ASKED: Final = ".json"
_ANSWER: Final = ".tif"


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
    """The folder of a process's raw answers, which ends with it; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._count = 0

    @property
    def place(self) -> str:
        """Where the folder is, in words."""
        return "the temporary folder, or set TMPDIR"

    def begin(self, request: Request) -> Path:
        """Give the place of an answer that is about to be asked for.

        Raises
        ------
        OSError
            The disk refuses.
        """
        with self._lock:
            # Long-lived temporary folders are swept on many machines.
            if self._folder is None or not self._folder.is_dir():
                self._folder = self._new_folder()
            self._count += 1
            return self._folder / f"{self._count:08d}-{request.date}{_ANSWER}"

    def write(self, path: Path, content: bytes) -> None:
        """Write a paid answer to disk, before anything else is done with it.

        Raises
        ------
        OSError
            The disk refuses.
        """
        path.write_bytes(content)

    def drop(self, path: Path) -> None:
        """Forget an answer: none came, or its pixels are kept elsewhere."""
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
        """Move the bytes of an answer that was refused to where they outlive the process."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="clearsky-refused-"))
            return Path(shutil.move(path, folder / path.name))
        except OSError:
            return path  # at least until the process ends

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

    def __init__(self, new_folder: Callable[[], Path], refused: Path) -> None:
        super().__init__()
        self._make = new_folder
        self._refused = refused

    @property
    def place(self) -> str:
        return str(self._refused.parent)

    def begin(self, request: Request) -> Path:
        path = super().begin(request)
        path.with_suffix(_ASKED).write_text(request.dumps(), encoding="utf-8")
        return path

    def write(self, path: Path, content: bytes) -> None:
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)

    def drop(self, path: Path) -> None:
        # In this order: what was asked for and has no answer counts as lost.
        path.with_suffix(_ASKED).unlink(missing_ok=True)
        for rest in (path, path.with_suffix(".part")):
            rest.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
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
