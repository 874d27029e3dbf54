"""Paid answers: raw bytes on local disk, recent pixels in memory, one flight each.

Nothing that is here, or on its way here, is bought again. It is a cache of the
process: a private temporary folder, emptied when the process ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ._pixels import PixelSet
from ._request import Receipt, Request

# Decoded pixels that are kept for a reader who comes right after, bytes: the
# second band of an expression, the next variable. The rest is decoded again from
# disk, which costs time but no money.
_RECENT: Final = 48 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A paid answer.

    Parameters
    ----------
    request : Request
        What it answers: its pixels are those that the answer brought.
    receipt : Receipt
    path : pathlib.Path or None
        Where the raw bytes lie; None if the disk refused them.
    content : bytes or None
        The raw bytes, if they could not be written.
    """

    request: Request
    receipt: Receipt
    path: Path | None
    content: bytes | None = None

    @property
    def pixels(self) -> PixelSet:
        """The pixels that it brought."""
        return self.request.pixels

    def read(self) -> bytes:
        """Give the raw bytes back."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        return self.path.read_bytes()


@dataclass(slots=True, eq=False)
class Flight:
    """A purchase under way.

    Parameters
    ----------
    request : Request
    task : asyncio.Task
        Ends with the answer in the spool.
    sent : bool
        Whether it went out: from then on it is never cancelled.
    values : ndarray of int16 or None
        The decoded answer, for those who waited for it.
    """

    request: Request
    task: asyncio.Task[Held] = field(init=False)
    sent: bool = False
    values: NDArray[np.int16] | None = None
    _waiting: int = 0

    @property
    def pixels(self) -> PixelSet:
        """The pixels that it will bring."""
        return self.request.pixels

    def join(self) -> None:
        """Begin to wait for the answer."""
        self._waiting += 1

    def leave(self) -> None:
        """Stop waiting; the last one to give up cancels what was not sent yet."""
        self._waiting -= 1
        if not self._waiting and not self.sent:
            self.task.cancel()

    @property
    def abandoned(self) -> bool:
        """Whether all who wanted the answer have given up."""
        return self._waiting == 0

    async def landed(self) -> Held:
        """Wait for the answer."""
        return await asyncio.shield(self.task)


class Holdings:
    """What an account has paid for in this process: index of answers and flights.

    It belongs to the background loop. Answers are found by a series (everything
    but pixels and layers) and by the pixels and layers that they hold.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, list[Held]] = {}
        self._flights: dict[Hashable, list[Flight]] = {}

    def find(
        self, series: Hashable, layers: tuple[str, ...], pixels: PixelSet
    ) -> tuple[list[Held], list[Flight], PixelSet | None]:
        """Look for pixels.

        Parameters
        ----------
        series : hashable
        layers : tuple of str
            All of them must be in an answer.
        pixels : PixelSet

        Returns
        -------
        held : list of Held
        flights : list of Flight
            Those that bring some of the pixels.
        missing : PixelSet or None
            What none of them brings.
        """
        held: list[Held] = []
        flights: list[Flight] = []
        missing: PixelSet | None = pixels
        wanted = set(layers)
        for source in (*self._held.get(series, ()), *self._flights.get(series, ())):
            if missing is None:
                break
            if not wanted <= set(source.request.layers):
                continue
            if isinstance(source, Flight) and source.task.cancelling():
                continue
            rest = missing.without(source.pixels)
            if rest is missing or (rest is not None and len(rest) == len(missing)):
                continue
            missing = rest
            if isinstance(source, Held):
                held.append(source)
            else:
                flights.append(source)
        return held, flights, missing

    def forget(self, held: Held) -> None:
        """Let go of an answer whose bytes are gone."""
        for answers in self._held.values():
            if held in answers:
                answers.remove(held)

    def depart(self, series: Hashable, flight: Flight) -> None:
        """Take note of a purchase that begins; it leaves by itself when its task ends."""
        flights = self._flights.setdefault(series, [])
        flights.append(flight)

        def ended(task: asyncio.Task[Held]) -> None:
            flights.remove(flight)
            if not flights and self._flights.get(series) is flights:
                del self._flights[series]
            # Its error belongs to those who wait; asking for it here keeps asyncio
            # from reporting it when they have all gone.
            if not task.cancelled() and task.exception() is None:
                self._held.setdefault(series, []).append(task.result())

        flight.task.add_done_callback(ended)


class Spool:
    """The folder of raw answers, and recent pixels in memory; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._count = 0
        self._recent: OrderedDict[Held, NDArray[np.int16]] = OrderedDict()
        self._bytes = 0

    def write(self, content: bytes, name: str) -> Path:
        """Write a paid answer to disk, before anything else is done with it.

        Raises
        ------
        OSError
            The disk refuses.
        """
        path = self._new_path(name)
        path.write_bytes(content)
        return path

    @staticmethod
    def set_aside(path: Path) -> Path:
        """Move the bytes of an answer that was refused to where they outlive the process."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="clearsky-refused-"))
            return Path(shutil.move(path, folder / path.name))
        except OSError:
            return path  # at least until the process ends

    def remember(self, held: Held, values: NDArray[np.int16]) -> None:
        """Keep decoded pixels for the next reader, as far as there is room."""
        with self._lock:
            if values.nbytes > _RECENT or held in self._recent:
                return
            self._recent[held] = values
            self._bytes += values.nbytes
            while self._bytes > _RECENT:
                self._bytes -= self._recent.popitem(last=False)[1].nbytes

    def recall(self, held: Held) -> NDArray[np.int16] | None:
        """Give decoded pixels that are still in memory."""
        with self._lock:
            if held in self._recent:
                self._recent.move_to_end(held)
            return self._recent.get(held)

    def _new_path(self, name: str) -> Path:
        with self._lock:
            # Long-lived temporary folders are swept on many machines.
            if self._folder is None or not self._folder.is_dir():
                # mkdtemp makes it readable by this user only.
                self._folder = Path(tempfile.mkdtemp(prefix="clearsky-spool-"))
                # Not atexit: children of multiprocessing leave by os._exit, and run only this.
                # In other processes multiprocessing itself runs it at the end.
                Finalize(None, _sweep, (self._folder, os.getpid()), exitpriority=0)
            self._count += 1
            return self._folder / f"{self._count:08d}-{name}.tif"


def _sweep(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not empty its parent's folder
        shutil.rmtree(folder, ignore_errors=True)
