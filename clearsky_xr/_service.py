"""Pixels from the service: held? in flight? else covered with requests and bought."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from functools import partial
from typing import Final

from ._account import Account, Process
from ._client import AccountInfo
from ._cube import Cube
from ._holdings import Flight, Held, Holdings
from ._pixels import PixelSet
from ._plan import Bounds, Piece, cover
from ._purchase import Answer, Buyer, Seat
from ._request import Request
from .errors import ClearSkyError

#: Most bytes of one decoded raster: bounds the memory of a request in flight.
RASTER_BYTES: Final = 32 * 2**20


def most_pixels(layers: int) -> int:
    """Give the size of the largest raster that is asked for, pixels."""
    return RASTER_BYTES // (2 * layers)


class FromService:
    """Gets the pixels of a cube, date by date, for one computation.

    Parameters
    ----------
    cube : Cube
    shared : Process
    owner : Account
    info : AccountInfo
        Of the owner.
    buyer : Buyer
    holdings : Holdings
        What is held or in flight already.
    corner : tuple of int
        Row and column of the lattice from which splits are counted.

    Attributes
    ----------
    bounds : Bounds
        What one request may ask for.
    """

    def __init__(
        self,
        cube: Cube,
        *,
        shared: Process,
        owner: Account,
        info: AccountInfo,
        buyer: Buyer,
        holdings: Holdings,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        self.cube = cube
        self._shared = shared
        self._recent = shared.recent
        self.account = owner
        self._buyer = buyer
        self.holdings = holdings
        self._covers: dict[PixelSet, asyncio.Task[tuple[Piece, ...]]] = {}
        self.bounds = Bounds(most_pixels(len(cube.layers)), info.area_km2 or float("inf"), corner)

    def forget(self, parts: Sequence[object]) -> None:
        """Forget answers that cannot be read any more."""
        for part in parts:
            if isinstance(part, Answer) and (path := part.held.path) and not path.exists():
                self.holdings.forget(part.held)

    def next_tile(self) -> None:
        """Let go of the requests chosen so far: other pixels' turn has come."""
        self._covers.clear()

    async def get(
        self, date: dt.date, wanted: PixelSet, seat: Seat | None = None
    ) -> Sequence[Answer]:
        """Get answers that together hold the pixels of a date.

        Parameters
        ----------
        date : datetime.date
        wanted : PixelSet
            Not empty.
        seat : Seat, optional
            Where they may be put at once.

        Raises
        ------
        ClearSkyError
            A request failed; it names date and window.
        """
        held, flights = await self.send(date, wanted, seat)
        try:
            landed = [Answer(await land(flight), self._recent, flight.values) for flight in flights]
        finally:
            for flight in flights:
                flight.leave()
        return [*(Answer(answer, self._recent) for answer in held), *landed]

    async def send(
        self, date: dt.date, wanted: PixelSet, seat: Seat | None = None
    ) -> tuple[list[Held], list[Flight]]:
        """Find what is held or in flight of a date's pixels, and send for the rest.

        The flights are joined, and are to be left. If a single one brings all, and
        nobody else has come to wait for it, its pixels go straight into the seat.
        """
        cube, holdings = self.cube, self.holdings
        series = series_of(cube, date)
        planned: PixelSet | None = None
        pieces: tuple[Piece, ...] = ()
        while True:
            held, flights, missing = holdings.find(series, cube.layers, wanted)
            if missing is None or (planned is not None and missing.same(planned)):
                break
            # Others may send for the same pixels while this is thought about, so look again.
            planned, pieces = missing, await self.cover(missing, date)
        burst = self.account.burst(cube.fingerprint)
        if held or flights or len(pieces) != 1 or (seat and not seat.fits(pieces[0].pixels)):
            seat = None
        for piece in pieces if missing is not None else ():
            flight = Flight(self.request(date, piece))
            flight.task = asyncio.create_task(self._buyer.buy(flight, burst, seat))
            holdings.depart(series, flight)
            flights.append(flight)
        for flight in flights:
            flight.join()
        return held, flights

    async def cover(self, pixels: PixelSet, date: dt.date) -> tuple[Piece, ...]:
        """Choose the requests for pixels, once for all dates that want the same."""
        if pixels not in self._covers:
            self._covers[pixels] = asyncio.create_task(self._choose(pixels, date))
        return await asyncio.shield(self._covers[pixels])

    async def _choose(self, pixels: PixelSet, date: dt.date) -> tuple[Piece, ...]:
        """Cover pixels; learns first how they are billed where that matters."""
        owner = self.account
        pieces = await self._shared.in_thread(partial(self.pieces, pixels), "short")
        unsure = next((piece for piece in pieces if piece.unsure), None)
        if unsure is not None and owner.billing is None:
            learnt = await owner.learn_billing(self.request(date, unsure))
            if learnt == "bbox":
                pieces = await self._shared.in_thread(partial(self.pieces, pixels), "short")
        return pieces

    def pieces(self, pixels: PixelSet) -> tuple[Piece, ...]:
        """Cover pixels by what is known of billing."""
        grid, billing = self.cube.grid, self.account.billing or "geometry"
        return cover(pixels, grid.epsg, grid.resolution, self.bounds, billing)

    def request(self, date: dt.date, piece: Piece) -> Request:
        """Write the request for a piece."""
        cube = self.cube
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
            area_km2=piece.area_km2,
        )


def series_of(cube: Cube, date: dt.date) -> tuple[object, ...]:
    """Name what an answer of a cube must agree in, but for pixels and layers."""
    return (
        date,
        cube.grid.epsg,
        cube.grid.resolution,
        cube.model.lower(),
        frozenset(cube.constellations),
        cube.allow_partial,
    )


async def land(flight: Flight) -> Held:
    """Wait for a purchase; its error says where it happened."""
    try:
        return await flight.landed()
    except ClearSkyError as error:
        # A copy, since the same flight may fail several readers.
        failure = error.at(date=str(flight.request.date), window=str(flight.pixels.window))
    raise failure
