"""Pixels of one date, bought at most once: held? -> slot -> POST -> spool -> verify, decode."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _clock, _geotiff
from ._account import Account, Process
from ._client import AccountInfo
from ._cube import Cube
from ._pixels import PixelSet
from ._plan import Bounds, Piece, cover
from ._request import Receipt, Request
from ._retry import Failed, Outcome, Retry
from ._settings import Settings
from ._spool import Flight, Held
from .errors import ClearSkyError, SpoolError, UnexpectedImageError

T = TypeVar("T")

#: Most bytes of one decoded raster: bounds the memory of a request in flight.
RASTER_BYTES: Final = 32 * 2**20


class Buyer:
    """Gets the pixels of a cube, date by date, for one selection.

    Parameters
    ----------
    shared : Process
    owner : Account
    info : AccountInfo
        Of the owner.
    cube : Cube
    settings : Settings

    Attributes
    ----------
    bounds : Bounds
        What one request may ask for.
    notices : list of str
        What the user should hear about.
    """

    def __init__(
        self,
        shared: Process,
        owner: Account,
        info: AccountInfo,
        cube: Cube,
        settings: Settings,
    ) -> None:
        self._shared = shared
        self._account = owner
        self._cube = cube
        self._settings = settings
        self._covers: dict[PixelSet, asyncio.Task[tuple[Piece, ...]]] = {}
        self.bounds = Bounds(RASTER_BYTES // (2 * len(cube.layers)), info.area_km2 or float("inf"))
        self.notices: list[str] = []

    def forget(self, answers: list[tuple[Held, NDArray[np.int16] | None]]) -> None:
        """Forget answers that cannot be read any more."""
        for held, _ in answers:
            if held.path is not None and not held.path.exists():
                self._account.holdings.forget(held)

    def forget_covers(self) -> None:
        """Let go of the requests chosen so far, when other pixels' turn comes."""
        self._covers.clear()

    async def get(
        self, date: dt.date, wanted: PixelSet
    ) -> list[tuple[Held, NDArray[np.int16] | None]]:
        """Get answers that together hold the pixels of a date.

        Parameters
        ----------
        date : datetime.date
        wanted : PixelSet
            Not empty.

        Returns
        -------
        list of (Held, ndarray of int16 or None)
            With the decoded pixels of those that have just landed.

        Raises
        ------
        ClearSkyError
            A request failed; it names date and window.
        """
        held, flights = await self._obtain(date, wanted)
        try:
            landed = [(await _landed(flight), flight.values) for flight in flights]
        finally:
            for flight in flights:
                flight.leave()
        return [*((answer, None) for answer in held), *landed]

    async def _obtain(self, date: dt.date, wanted: PixelSet) -> tuple[list[Held], list[Flight]]:
        """Find what is held or in flight of a date's pixels, and send for the rest.

        The flights are joined, and are to be left.
        """
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
            held, flights, missing = holdings.find(series, cube.layers, wanted)
            if missing is None or (planned is not None and missing.same(planned)):
                break
            # Others may send for the same pixels while this is thought about, so look again.
            planned, pieces = missing, await self._cover(missing, date)
        for piece in pieces if missing is not None else ():
            flight = Flight(self._request(date, piece))
            flight.task = asyncio.create_task(self._buy(flight))
            holdings.depart(series, flight)
            flights.append(flight)
        for flight in flights:
            flight.join()
        return held, flights

    async def _cover(self, pixels: PixelSet, date: dt.date) -> tuple[Piece, ...]:
        """Choose the requests for pixels, once for all dates that want the same."""
        if pixels not in self._covers:
            self._covers[pixels] = asyncio.create_task(self._choose(pixels, date))
        return await asyncio.shield(self._covers[pixels])

    async def _choose(self, pixels: PixelSet, date: dt.date) -> tuple[Piece, ...]:
        """Cover pixels; learns first how they are billed where that matters."""
        grid, owner = self._cube.grid, self._account

        def choose() -> tuple[Piece, ...]:
            billing = owner.billing or "geometry"
            return cover(pixels, grid.epsg, grid.resolution, self.bounds, billing)

        pieces = await self.in_thread(choose)
        unsure = next((piece for piece in pieces if piece.unsure), None)
        if unsure is not None and owner.billing is None:
            learnt = await owner.learn_billing(self._request(date, unsure))
            if learnt == "bbox":
                pieces = await self.in_thread(choose)
        return pieces

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
        began: float | None = None
        while True:
            try:
                content = await self._send(flight)
                break
            except Failed as failed:
                failure = failed
            flight.sent = False
            now = _clock.monotonic()
            began = now if began is None else began
            if failure.outcome is Outcome.REFUSED:
                owner.refused(failure.retry_after)
            pause = retry.wait(
                failure, now - began, may_repeat_lost=self._settings.on_lost == "retry"
            )
            if flight.abandoned:
                raise failure.error  # nobody waits for it any more: buy nothing for nobody
            if failure.outcome is Outcome.LOST:
                if not ledger.repeat_lost(request.credits):
                    raise failure.error
                self.notices.append(
                    f"the answer for {request.date}, {request.pixels.window}, was lost and is "
                    f"asked for again: {request.credits:.2f} credits may be charged twice"
                )
            await _clock.sleep(pause)
        flight.sent = True
        held, flight.values = await self.in_thread(partial(self._land, content, request))
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

    def _land(self, content: bytes, request: Request) -> tuple[Held, NDArray[np.int16] | None]:
        """Spool, then verify and decode."""
        spool, path = self._shared.spool, None
        try:
            path = spool.write(content, f"{request.date}")
        except OSError as error:
            # Paid pixels are not given up for a full disk: memory holds them.
            self.notices.append(
                f"the spool on disk refuses paid answers ({error.strerror}): they are held in "
                "memory. Free space in the temporary folder, or set TMPDIR"
            )
        tags: dict[str, str] = {}
        values: NDArray[np.int16] | None = None
        refused: UnexpectedImageError | None = None
        try:
            image = _geotiff.read(content, request)
            tags, values = image.tags, image.values
        except UnexpectedImageError as error:
            kept = "nowhere: the disk refused them" if path is None else str(spool.set_aside(path))
            refused = error.at(kept=kept)
        except Exception as error:  # noqa: BLE001  such as MemoryError
            # The bytes are paid and may be right: they are held, and whoever reads them meets
            # the cause.
            self.notices.append(f"a paid answer could not be decoded yet: {type(error).__name__}")
        if refused is not None:
            raise refused
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
        if values is not None:
            spool.remember(held, values)
        return held, values

    def values(
        self, held: Held, names: tuple[str, ...], fresh: NDArray[np.int16] | None
    ) -> NDArray[np.int16]:
        """Give layers of an answer, from memory or decoded again.

        Returns
        -------
        ndarray of int16, shape (layers, y, x)
            On the window of the answer's request.
        """
        values = self._shared.spool.recall(held) if fresh is None else fresh
        if values is None:
            try:
                content = held.read()
            except OSError as error:
                raise SpoolError(
                    f"a paid answer is no longer in the temporary folder: {error.strerror}",
                    hint="Something swept it. Computing again buys it again; set TMPDIR to a "
                    "folder that is left alone.",
                    date=str(held.request.date),
                    path=str(held.path),
                ) from None
            values = _geotiff.read(content, held.request).values
            self._shared.spool.remember(held, values)
        if names == held.request.layers:
            return values
        return values[[held.request.layers.index(name) for name in names]]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what needs a processor off the loop."""
        try:
            done = asyncio.get_running_loop().run_in_executor(self._shared.threads, work)
        except RuntimeError:
            # The main thread has ended and pools take no more work, but another thread is still
            # reading: what it has paid for must land.
            return work()
        return await done


async def _landed(flight: Flight) -> Held:
    """Wait for a purchase; its error says where it happened."""
    try:
        return await flight.landed()
    except ClearSkyError as error:
        # A copy, since the same flight may fail several readers.
        failure = error.at(date=str(flight.request.date), window=str(flight.pixels.window))
    raise failure
