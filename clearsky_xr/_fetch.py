"""The values of a selection: tiles, dates and parts, placed where the key wants them."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ._account import Process, account, process
from ._cube import Cube
from ._ledger import Bound
from ._output import Output, Part, Seat
from ._pixels import PixelSet
from ._purchase import Buyer
from ._selection import Selection, Tile
from ._service import FromService, most_pixels
from ._settings import Settings
from ._stock import stock_of
from ._store import Damaged
from ._stored import FromStore
from ._versions import Versions
from .errors import SpoolError

# Dates that are read at a time where nothing may be bought.
_READERS: Final = 8
# Dates that may wait for the decoders, at least: the first tile on a page of the result's memory
# pays for the page, up to ten times what its neighbours take, and the connections should not
# be idle meanwhile.
_DECODING: Final = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """A selection's values, and what its user should hear about.

    Parameters
    ----------
    values : ndarray
        In the shape that the key asked for.
    notices : list of str
        To be given as warnings where the user's own code is on the stack.
    """

    values: NDArray[Any]
    notices: list[str]


class _Source(Protocol):
    """Where the pixels of a date come from."""

    async def get(
        self, date: dt.date, wanted: PixelSet, seat: Seat | None = None
    ) -> Sequence[Part]:
        """Get parts that together hold the pixels of a date; later ones lie on top.

        None of them, if the pixels are in the seat.
        """

    def next_tile(self) -> None:
        """Let go of what was chosen so far: other pixels' turn has come."""

    def forget(self, parts: Sequence[object]) -> None:
        """Forget answers that cannot be read any more."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that one computation needs.

    Parameters
    ----------
    shared : Process
    cube : Cube
    source : FromService or FromStore
    wide : int
        Dates that are handled at a time.
    notices : list of str
        What the user should hear about.
    versions : Versions or None
        Of the images that are bought, if any may be.
    """

    shared: Process
    cube: Cube
    source: _Source
    wide: int
    notices: list[str]
    versions: Versions | None = None

    async def each(
        self, selection: Selection, work: Callable[[dt.date, int, Tile, PixelSet | None], Any]
    ) -> None:
        """Do some work for each date of each tile of a selection, several at a time.

        Parameters
        ----------
        selection : Selection
        work : coroutine function
            Of the date, its place in the gathered array, the tile, and the pixels
            wanted of it, None if none of them belongs to the area.
        """
        jobs = self._jobs(selection)
        turn = asyncio.Lock()

        async def worker() -> None:
            while True:
                async with turn:
                    job = await anext(jobs, None)
                if job is None:
                    return
                await work(*job)

        workers = [asyncio.create_task(worker()) for _ in range(self.wide)]
        try:
            await asyncio.gather(*workers)
            if self.versions is not None:
                self.notices.extend(self.versions.news())
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def tiles(self, selection: Selection) -> Iterator[Tile]:
        """Yield the tiles of a selection, on the lattice."""
        corner = self.cube.grid.window
        for local in selection.tiles(most_pixels(len(self.cube.layers))):
            window = local.pixels.window.shifted(corner.row0, corner.col0)
            yield replace(local, pixels=PixelSet(window, local.pixels.mask))

    async def _jobs(
        self, selection: Selection
    ) -> AsyncIterator[tuple[dt.date, int, Tile, PixelSet | None]]:
        for tile in self.tiles(selection):
            wanted = await self.shared.in_thread(partial(self.cube.wanted, tile.pixels), "short")
            self.source.next_tile()
            for date, k in tile.dates:
                yield self.cube.dates[date], k, tile, wanted


async def open_desk(cube: Cube, settings: Settings, bound: Bound | None = None) -> Desk:
    """Find out where the pixels of a cube come from; `bound` as in `fetch`, if any are bought."""
    shared = process()
    notices: list[str] = []
    offline = settings.missing != "buy"
    if offline:
        assert settings.store is not None
        stock = await shared.in_thread(partial(stock_of, settings.store), "store")
        source = FromStore(cube, stock, None, settings.missing, notices)
        return Desk(shared, cube, source, _READERS, notices)
    owner = await account(settings)
    info = await owner.info()
    bound = await owner.bound(bound or Bound())
    connections = min(owner.gate.limit, settings.concurrency or owner.gate.limit)
    # While some are on the wire, others decode.
    wide = connections + max(connections, _DECODING)
    if settings.store is None:
        versions = owner.versions(cube.fingerprint)
        buyer = Buyer(
            shared, owner, settings, spool=shared.spool, notices=notices, bound=bound,
            versions=versions,
        )  # fmt: skip
        service = FromService(
            cube, shared=shared, owner=owner, info=info, buyer=buyer, holdings=owner.holdings
        )
        return Desk(shared, cube, service, wide, notices, versions)
    stock = await shared.in_thread(partial(stock_of, settings.store), "store")
    own = stock.store.record.cube
    versions = owner.versions(own.fingerprint)
    buyer = Buyer(
        shared, owner, settings, spool=stock.spool, notices=notices, bound=bound,
        versions=versions,
    )  # fmt: skip
    service = FromService(
        own, shared=shared, owner=owner, info=info, buyer=buyer, holdings=stock.holdings,
        corner=(own.grid.window.row0, own.grid.window.col0),
    )  # fmt: skip
    return Desk(
        shared, cube, FromStore(cube, stock, service, settings.missing, notices), wide, notices,
        versions,
    )  # fmt: skip


async def fetch(
    cube: Cube, settings: Settings, layers: tuple[str, ...], selection: Selection,
    divisor: float | None, *, bound: Bound,
) -> Fetched:  # fmt: skip
    """Get the values of a selection; buys what is not held.

    Parameters
    ----------
    cube : Cube
    settings : Settings
    layers : tuple of str
        What the positions in ``selection.layers`` count.
    selection : Selection
    divisor : float or None
        Gives float32 with NaN, numbers divided by it; None gives the service's
        int16 as they are.
    bound : Bound
        Budgets that held when the selection was asked for.

    Raises
    ------
    ClearSkyError
        The first request that failed; it names date and window. Requests in
        flight land in the spool all the same.
    """
    desk = await open_desk(cube, settings, bound)
    dtype = np.int16 if divisor is None else np.float32
    output = Output(
        np.empty(selection.shape, dtype), tuple(layers[i] for i in selection.layers), divisor
    )

    async def work(date: dt.date, k: int, tile: Tile, wanted: PixelSet | None) -> None:
        if wanted is None:
            await desk.shared.in_thread(partial(output.clear, k, tile))
            return
        while True:
            seat = output.seat(k, tile, wanted, cube.layers)
            parts = await desk.source.get(date, wanted, seat)
            if seat is not None and seat.taken:
                return
            try:
                await desk.shared.in_thread(partial(output.place, k, tile, wanted, parts))
            except SpoolError:
                desk.source.forget(parts)
                raise
            except Damaged as damaged:
                assert isinstance(desk.source, FromStore)
                desk.source.mend(date, damaged)
            else:
                return

    await desk.each(selection, work)
    return Fetched(selection.finish(output.values), desk.notices)
