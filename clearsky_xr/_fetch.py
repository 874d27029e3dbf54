"""The one recipe: held? -> slot -> POST -> spool -> verify, decode -> place.

Follow `fetch` for a selection, `_Fetch._obtain` for one date of one tile, and
`_Fetch._buy` for one request.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _clock, _geotiff
from ._account import Account, Process, account, process
from ._cube import Cube
from ._geotiff import NODATA
from ._pixels import PixelSet
from ._plan import Bounds, Piece, cover
from ._request import Receipt, Request
from ._retry import Failed, Outcome, Retry
from ._selection import Selection, Tile
from ._settings import Settings
from ._spool import Flight, Held
from .errors import ClearSkyError, UnexpectedImageError

T = TypeVar("T")

#: Most bytes of one decoded raster: bounds the memory of a request in flight.
RASTER_BYTES: Final = 32 * 2**20


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
    work = _Fetch(process(), owner, cube, settings, await owner.info())
    names = tuple(layers[i] for i in selection.layers)
    values = np.empty(selection.shape, np.int16 if divisor is None else np.float32)
    jobs = work.jobs(selection, names, values, divisor)
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
    return Fetched(selection.finish(values), work.notices)


@dataclass(slots=True)
class _Job:
    """One date of one tile."""

    work: _Fetch
    tile: Tile
    wanted: PixelSet
    date: dt.date
    target: NDArray[Any]
    names: tuple[str, ...]
    divisor: float | None

    async def run(self) -> None:
        sources: list[tuple[Held, NDArray[np.int16] | None]] = []
        for source in await self.work.obtain(self.date, self.wanted):
            if isinstance(source, Held):
                sources.append((source, None))
            else:
                held = await _landed(source)
                sources.append((held, source.values))
        await self.work.in_thread(lambda: self._place(sources))

    def _place(self, sources: list[tuple[Held, NDArray[np.int16] | None]]) -> None:
        """Put the values of the sources where the selection wants them."""
        window = self.tile.pixels.window
        pieces = [(held, self.work.values(held, self.names, fresh)) for held, fresh in sources]
        if len(pieces) == 1 and self.wanted.mask is None and self.wanted.window == window:
            held, values = pieces[0]
            rows, cols = held.pixels.window.slices(window)
            frame = values[:, rows, cols]
        else:
            frame = np.full((len(self.names), *window.shape), NODATA, np.int16)
            for held, values in pieces:
                shared = window & held.pixels.window & self.wanted.window
                rows, cols = held.pixels.window.slices(shared)
                mask = held.pixels.dense[rows, cols]
                mask = mask & self.wanted.dense[self.wanted.window.slices(shared)]
                own = (slice(None), *window.slices(shared))
                np.copyto(frame[own], values[:, rows, cols], where=mask)
        put(self.target, self.tile, frame, self.divisor)


def put(target: NDArray[Any], tile: Tile, frame: NDArray[np.int16], divisor: float | None) -> None:
    """Scale and mask a tile's frame (layers, y, x) into its place (layers, ...pixels)."""
    numbers = frame[(slice(None), *tile.source)]
    place = (slice(None), *tile.target)
    if divisor is None:
        target[place] = numbers
    else:
        scaled = np.divide(numbers, np.float32(divisor), dtype=np.float32)
        scaled[numbers == NODATA] = np.nan
        target[place] = scaled


class _Fetch:
    """One selection's way through the account."""

    def __init__(
        self, shared: Process, owner: Account, cube: Cube, settings: Settings, info: Any
    ) -> None:
        self._shared = shared
        self._account = owner
        self._cube = cube
        self._settings = settings
        self._bounds = Bounds(RASTER_BYTES // (2 * len(cube.layers)), info.area_km2 or float("inf"))
        self._covers: dict[PixelSet, tuple[Piece, ...]] = {}
        self.notices: list[str] = []

    async def jobs(
        self,
        selection: Selection,
        names: tuple[str, ...],
        values: NDArray[Any],
        divisor: float | None,
    ) -> AsyncIterator[_Job]:
        """Yield the jobs, tile by tile; what lies outside the area is filled at once."""
        corner = self._cube.grid.window
        for tile in selection.tiles(self._bounds.pixels):
            local = tile.pixels
            window = local.window.shifted(corner.row0, corner.col0)
            placed = Tile(PixelSet(window, local.mask), tile.dates, tile.target, tile.source)
            wanted = await self.in_thread(partial(self._cube.wanted, placed.pixels))
            self._covers.clear()
            for date, k in tile.dates:
                if wanted is None:
                    nothing = np.full((len(names), *window.shape), NODATA, np.int16)
                    put(values[k], placed, nothing, divisor)
                else:
                    yield _Job(
                        self, placed, wanted, self._cube.dates[date], values[k], names, divisor
                    )

    async def obtain(self, date: dt.date, wanted: PixelSet) -> list[Held | Flight]:
        """Find what is held or in flight of a date's pixels, and send for the rest."""
        cube, holdings = self._cube, self._account.holdings
        series = (
            date,
            cube.grid.epsg,
            cube.grid.resolution,
            cube.model.lower(),
            frozenset(cube.constellations),
            cube.allow_partial,
        )
        planned: PixelSet | None = None
        pieces: tuple[Piece, ...] = ()
        while True:
            sources, missing = holdings.find(series, cube.layers, wanted)
            if missing is None:
                return sources
            if planned is not None and missing.same(planned):
                break
            # Others may send for the same pixels while this is thought about, so look again.
            planned, pieces = missing, await self._cover(missing, date)
        for piece in pieces:
            flight = Flight(self._request(date, piece))
            flight.task = asyncio.create_task(self._buy(flight))
            holdings.depart(series, flight)
            sources.append(flight)
        return sources

    async def _cover(self, pixels: PixelSet, date: dt.date) -> tuple[Piece, ...]:
        """Choose the requests; learns first how they are billed where that matters."""
        if pixels not in self._covers:
            grid, owner = self._cube.grid, self._account

            def choose() -> tuple[Piece, ...]:
                billing = owner.billing or "geometry"
                return cover(pixels, grid.epsg, grid.resolution, self._bounds, billing)

            pieces = await self.in_thread(choose)
            unsure = next((piece for piece in pieces if piece.unsure), None)
            if unsure is not None and owner.billing is None:
                learnt = await owner.learn_billing(self._request(date, unsure))
                if learnt == "bbox":
                    pieces = await self.in_thread(choose)
            self._covers[pixels] = pieces
        return self._covers[pixels]

    def _request(self, date: dt.date, piece: Piece) -> Request:
        cube = self._cube
        return Request(
            date=date,
            pixels=piece.pixels,
            wkt=piece.wkt,
            credits=piece.credits,
            layers=cube.layers,
            epsg=cube.grid.epsg,
            resolution=cube.grid.resolution,
            model=cube.model,
            constellations=cube.constellations,
            allow_partial=cube.allow_partial,
        )

    async def _buy(self, flight: Flight) -> Held:
        """Send a request until it is answered or not to be repeated; land the answer."""
        owner, ledger, request = self._account, self._shared.ledger, flight.request
        retry = Retry(owner.policy)
        began = _clock.monotonic()
        while True:
            try:
                content = await self._send(flight)
                break
            except Failed as failed:
                failure = failed
            flight.sent = False
            if failure.outcome is Outcome.REFUSED:
                owner.gate.refused(failure.retry_after)
            lost = failure.outcome is Outcome.LOST
            again = (
                lost and self._settings.on_lost == "retry" and ledger.repeat_lost(request.credits)
            )
            pause = retry.wait(failure, _clock.monotonic() - began, may_repeat_lost=again)
            if lost:
                self.notices.append(
                    f"the answer for {request.date}, {request.pixels.window}, was lost and is "
                    f"asked for again: {request.credits:.2f} credits may be charged twice"
                )
            await _clock.sleep(pause)
        flight.sent = True
        held, flight.values = await self.in_thread(lambda: self._land(content, request))
        return held

    async def _send(self, flight: Flight) -> bytes:
        """One attempt, inside a slot of the gate and booked in the ledger."""
        owner, ledger, price = self._account, self._shared.ledger, flight.request.credits
        async with owner.gate.slot(self._settings.concurrency):
            ledger.reserve(price)
            flight.sent = True
            try:
                content = await owner.client.composite(
                    flight.request, _geotiff.most_bytes(flight.request)
                )
            except Failed as failed:
                ledger.release(price, possibly=failed.charged)
                raise
            except BaseException:
                ledger.release(price, possibly=True)
                raise
            ledger.settle(price)
            owner.gate.answered()
            return content

    def _land(self, content: bytes, request: Request) -> tuple[Held, NDArray[np.int16]]:
        """Spool, then verify and decode."""
        spool, path, kept = self._shared.spool, None, "nowhere, since the disk refused them"
        try:
            path = spool.write(content, f"{request.date}")
        except OSError as error:
            # Paid pixels are not given up for a full disk: memory holds them.
            self.notices.append(
                f"the spool on disk refuses paid answers ({error.strerror}): they are held in "
                "memory. Free space in the temporary folder, or set TMPDIR"
            )
        try:
            image = _geotiff.read(content, request)
        except UnexpectedImageError as error:
            if path is not None:
                kept = str(spool.set_aside(path))
            raise error.at(kept=kept) from None
        tags = image.tags
        receipt = Receipt(
            tags.get("IMAGE_DATE", ""),
            tags.get("MODEL_VERSION", ""),
            tags.get("IMAGE_VERSION", ""),
            tags.get("CONSTELLATIONS", ""),
            request.credits,
            dt.datetime.now(dt.UTC),
            request.fingerprint,
        )
        held = Held(request, receipt, path, None if path else content)
        spool.remember(held, image.values)
        return held, image.values

    def values(
        self, held: Held, names: tuple[str, ...], fresh: NDArray[np.int16] | None
    ) -> NDArray[np.int16]:
        """Give layers of an answer, shape (layers, y, x) on its window: from memory, or decoded."""
        values = self._shared.spool.recall(held) if fresh is None else fresh
        if values is None:
            values = _geotiff.read(held.read(), held.request).values
            self._shared.spool.remember(held, values)
        if names == held.request.layers:
            return values
        return values[[held.request.layers.index(name) for name in names]]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what needs a processor off the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._shared.threads, work)


async def _landed(flight: Flight) -> Held:
    """Wait for a purchase; its error says where it happened."""
    try:
        return await flight.landed()
    except ClearSkyError as error:
        # A copy, since the same flight may fail several readers.
        failure = error.at(date=str(flight.request.date), window=str(flight.pixels.window))
    raise failure
