"""Paid answers and purchases under way: what is there, or on its way, is not bought again."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._pixels import PixelSet
from ._request import Receipt, Request


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A paid answer.

    Parameters
    ----------
    request : Request
        What it answers: its pixels are those that the answer brought.
    receipt : Receipt
    path : pathlib.Path or None
        Where the spool has it; None if it could not even begin.
    content : bytes or None
        The raw bytes, if they could not be written there.
    extent : (int, int) or None
        Where they begin in the file, and how many they are; None if it holds nothing else.
    """

    request: Request
    receipt: Receipt
    path: Path | None
    content: bytes | None = None
    extent: tuple[int, int] | None = None

    @property
    def pixels(self) -> PixelSet:
        """The pixels that it brought."""
        return self.request.pixels

    def read(self) -> bytes:
        """Give the raw bytes back."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        if self.extent is None:
            return self.path.read_bytes()
        start, size = self.extent
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)


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
    def shared(self) -> bool:
        """Whether several wait for the answer."""
        return self._waiting > 1

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

    def copy(self) -> Holdings:
        """Give what is held or in flight now, apart from what will be."""
        twin = Holdings()
        twin._held = {series: list(held) for series, held in self._held.items()}
        twin._flights = {series: list(flights) for series, flights in self._flights.items()}
        return twin

    def add(self, series: Hashable, held: Held) -> None:
        """Take note of an answer."""
        self._held.setdefault(series, []).append(held)

    def forget(self, held: Held) -> None:
        """Let go of an answer: its bytes are gone, or kept elsewhere."""
        for series, answers in list(self._held.items()):
            if held in answers:
                answers.remove(held)
            # Empty ones do not stay, or a long series would forget slower and slower.
            if not answers:
                del self._held[series]

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
                self.add(series, task.result())

        flight.task.add_done_callback(ended)
