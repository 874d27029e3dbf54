"""The values of a selection: tiles, dates and answers, placed where the key wants them."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._account import account, process
from ._cube import Cube
from ._geotiff import NODATA
from ._pixels import PixelSet
from ._purchase import Buyer
from ._selection import Selection, Tile
from ._settings import Settings
from ._spool import Held
from .errors import SpoolError


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


async def fetch(
    cube: Cube, settings: Settings, layers: tuple[str, ...], selection: Selection,
    divisor: float | None,
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

    Raises
    ------
    ClearSkyError
        The first request that failed; it names date and window. Requests in
        flight land in the spool all the same.
    """
    owner = await account(settings)
    buyer = Buyer(process(), owner, await owner.info(), cube, settings)
    dtype = np.int16 if divisor is None else np.float32
    output = _Output(
        np.empty(selection.shape, dtype), tuple(layers[i] for i in selection.layers), divisor
    )
    jobs = _jobs(buyer, cube, selection, output)
    turn = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with turn:
                job = await anext(jobs, None)
            if job is None:
                return
            await job.run()

    # Twice as many as connections: while one half is on the wire, the other one decodes.
    wide = 2 * min(owner.gate.limit, settings.concurrency or owner.gate.limit)
    workers = [asyncio.create_task(worker()) for _ in range(wide)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return Fetched(selection.finish(output.values), buyer.notices)


@dataclass(frozen=True, slots=True)
class _Output:
    """Where values are gathered: shape (dates, layers, ...pixels)."""

    values: NDArray[Any]
    names: tuple[str, ...]
    divisor: float | None

    def put(self, k: int, tile: Tile, frame: NDArray[np.int16]) -> None:
        """Scale and mask a frame of the tile's window, (layers, y, x), into its place."""
        numbers = frame[(slice(None), *tile.source)]
        # In two steps: numpy moves the axes of an array index beside an integer.
        target = self.values[k]
        place = (slice(None), *tile.target)
        if self.divisor is None:
            target[place] = numbers
        else:
            scaled = np.divide(numbers, np.float32(self.divisor), dtype=np.float32)
            scaled[numbers == NODATA] = np.nan
            target[place] = scaled


async def _jobs(
    buyer: Buyer, cube: Cube, selection: Selection, output: _Output
) -> AsyncIterator[_Job]:
    """Yield the jobs, tile by tile; what lies outside the area is filled at once."""
    corner = cube.grid.window
    for local in selection.tiles(buyer.bounds.pixels):
        window = local.pixels.window.shifted(corner.row0, corner.col0)
        tile = replace(local, pixels=PixelSet(window, local.pixels.mask))
        wanted = await buyer.in_thread(partial(cube.wanted, tile.pixels))
        buyer.forget_covers()
        for date, k in tile.dates:
            if wanted is None:
                nothing = np.full((len(output.names), *window.shape), NODATA, np.int16)
                await buyer.in_thread(partial(output.put, k, tile, nothing))
            else:
                yield _Job(buyer, cube.dates[date], k, tile, wanted, output)


@dataclass(frozen=True, slots=True)
class _Job:
    """One date of one tile."""

    buyer: Buyer
    date: dt.date
    k: int
    tile: Tile
    wanted: PixelSet
    output: _Output

    async def run(self) -> None:
        answers = await self.buyer.get(self.date, self.wanted)
        try:
            await self.buyer.in_thread(partial(self._place, answers))
        except SpoolError:
            self.buyer.forget(answers)
            raise

    def _place(self, answers: list[tuple[Held, NDArray[np.int16] | None]]) -> None:
        """Put the values of the answers where the selection wants them."""
        window, wanted = self.tile.pixels.window, self.wanted
        names = self.output.names
        decoded = [(held, self.buyer.values(held, names, fresh)) for held, fresh in answers]
        if len(decoded) == 1 and wanted.mask is None and wanted.window == window:
            held, values = decoded[0]
            frame = values[(slice(None), *held.pixels.window.slices(window))]
        else:
            frame = np.full((len(names), *window.shape), NODATA, np.int16)
            for held, values in decoded:
                shared = held.pixels.window & wanted.window
                theirs = held.pixels.window.slices(shared)
                mask = held.pixels.dense[theirs] & wanted.dense[wanted.window.slices(shared)]
                own = (slice(None), *window.slices(shared))
                np.copyto(frame[own], values[(slice(None), *theirs)], where=mask)
        self.output.put(self.k, self.tile, frame)
