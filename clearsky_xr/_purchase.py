"""One request, bought: slot -> POST -> spool -> verify, decode."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import _clock, _geotiff
from ._account import Account, Process
from ._explain import Burst
from ._holdings import Flight, Held
from ._layers import derive
from ._ledger import Bound
from ._pixels import PixelSet
from ._request import Receipt, Request
from ._retry import Failed, Outcome, Retry
from ._settings import Settings
from ._spool import Recent, Spool
from ._versions import Versions
from .errors import SpoolError, UnexpectedImageError


@dataclass(slots=True, eq=False)
class Answer:
    """Pixels out of a paid answer.

    Parameters
    ----------
    held : Held
    recent : Recent
        Where its decoded pixels may be.
    fresh : ndarray of int16 or None
        The decoded pixels, if they are at hand.
    """

    held: Held
    recent: Recent
    fresh: NDArray[np.int16] | None = None

    @property
    def pixels(self) -> PixelSet:
        """The pixels that it brought."""
        return self.held.pixels

    @property
    def exact(self) -> bool:
        """Never sure: whatever comes back, what was not asked for is left out."""
        return False

    def values(self, names: tuple[str, ...]) -> NDArray[np.int16]:
        """Give layers, from memory or decoded again; to be called in a thread.

        Returns
        -------
        ndarray of int16, shape (layers, y, x)
            On the window of its pixels.

        Raises
        ------
        SpoolError
            Its bytes are gone.
        """
        held = self.held
        values = self.recent.recall(held) if self.fresh is None else self.fresh
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
            _, values = _geotiff.read(content, held.request)
            self.recent.remember(held, values)
        return derive(values, held.request.layers, names)

    def unpack(self) -> None:
        """Hold the decoded pixels, so that the bytes may go; to be called in a thread."""
        self.fresh = self.values(self.held.request.layers)


class Packed(Protocol):
    """An answer whose header is right, and whose pixels are still packed."""

    def read_into(self, out: NDArray[np.int16], start: int = 0) -> None:
        """Decode rows from `start` on into an array (layers, rows, x)."""


class Seat(Protocol):
    """Where the only one who waits for an answer wants its pixels."""

    def fits(self, pixels: PixelSet) -> bool:
        """Say whether an answer with these pixels can be put in as it is."""

    def take(self, image: Packed) -> None:
        """Decode an answer into its place."""


class Buyer:
    """Buys requests for one computation.

    Parameters
    ----------
    shared : Process
    owner : Account
    settings : Settings
    spool : Spool
        Where answers are written.
    notices : list of str
        What the user should hear about; it is added to.
    bound : Bound
        The budgets that hold for it.
    versions : Versions
        Of the cube's images.
    """

    def __init__(
        self,
        shared: Process,
        owner: Account,
        settings: Settings,
        *,
        spool: Spool,
        notices: list[str],
        bound: Bound,
        versions: Versions,
    ) -> None:
        self._shared = shared
        self._account = owner
        self._settings = settings
        self.spool = spool
        self.notices = notices
        self._bound = bound
        self.versions = versions

    async def buy(self, flight: Flight, burst: Burst, seat: Seat | None = None) -> Held:
        """Send a request until it is answered or not to be repeated; land the answer.

        Parameters
        ----------
        flight : Flight
        burst : Burst
            Those that are under way together.
        seat : Seat, optional
            Where the pixels are put if nobody else has come to wait for them.

        Raises
        ------
        ClearSkyError
            The request failed.
        """
        with burst:
            content, path = await self._get(flight, burst)
        flight.sent = True
        held = await self._shared.in_thread(partial(self._land, content, flight, path, seat))
        self.versions.add(held.receipt)
        return held

    async def _get(self, flight: Flight, burst: Burst) -> tuple[bytes, Path | None]:
        """Send until it is answered; gives the bytes, and where the spool will have them."""
        owner, ledger, request = self._account, self._shared.ledger, flight.request
        retry = Retry(owner.policy)
        began: float | None = None
        while True:
            try:
                return await self._send(flight, burst)
            except Failed as failed:
                failure = failed
            flight.sent = False
            now = _clock.monotonic()
            began = now if began is None else began
            pause = retry.wait(
                failure, now - began, may_repeat_lost=self._settings.on_lost == "retry"
            )
            if flight.abandoned:
                raise failure.error  # nobody waits for it any more: buy nothing for nobody
            if failure.outcome is Outcome.LOST:
                if not await owner.may_repeat(ledger, request.credits):
                    raise failure.error
                self.notices.append(
                    f"the answer for {request.date}, {request.pixels.window}, was lost and is "
                    f"asked for again: {request.credits:.2f} credits may be charged twice"
                )
            await _clock.sleep(pause)

    async def _send(self, flight: Flight, burst: Burst) -> tuple[bytes, Path | None]:
        """One attempt, inside a slot of the gate and booked in the ledger."""
        owner, ledger, request = self._account, self._shared.ledger, flight.request
        async with owner.gate.slot(self._settings.concurrency) as slot:
            if burst.final is not None:
                raise Failed(Outcome.REJECTED, await burst.explain(burst.final, request))
            booking = ledger.reserve(request, self._settings.purse, self._bound)
            path = None
            try:
                await slot.book(booking)
                path = await self._begun(request)
            except BaseException:
                ledger.release(booking, possibly=False)
                raise
            flight.sent = True
            try:
                content = await owner.client.composite(request, _geotiff.most_bytes(request))
            except BaseException as error:
                possibly = error.charged if isinstance(error, Failed) else True
                ledger.release(booking, possibly=possibly)
                if path is not None:
                    self.spool.drop(path)
                if isinstance(error, Failed) and error.outcome is Outcome.REFUSED:
                    slot.refused(owner.bearable(error.retry_after))
                    owner.doubt_limit()
                if isinstance(error, Failed):
                    burst.failed(error.error)
                if isinstance(error, Failed) and not flight.abandoned:
                    # In this slot, or another download would be sent in it meanwhile.
                    error.error = await burst.explain(error.error, request)
                raise
            ledger.settle(booking, len(content))
            slot.answered()
            return content, path

    async def _begun(self, request: Request) -> Path | None:
        """Let the spool take note of what is about to be sent."""
        if not self.spool.writes_ahead:
            return self._begin(request)
        begin = asyncio.ensure_future(
            self._shared.in_thread(partial(self._begin, request), "short")
        )
        try:
            return await asyncio.shield(begin)
        except asyncio.CancelledError:
            # The thread goes on, whoever gives up; what it leaves would pass for sent.
            await asyncio.wait([begin])
            if not begin.cancelled() and (path := begin.result()) is not None:
                self.spool.drop(path)
            raise

    def _begin(self, request: Request) -> Path | None:
        try:
            return self.spool.begin(request)
        except OSError as error:
            self._disk_refuses(error)
            return None

    def _land(self, content: bytes, flight: Flight, path: Path | None, seat: Seat | None) -> Held:
        """Spool, then verify and decode."""
        request, written, extent = flight.request, False, None
        try:
            if path is not None:
                path, extent = self.spool.write(path, content)
                written = True
        except OSError as error:
            self._disk_refuses(error)
        tags: dict[str, str] = {}
        refused: UnexpectedImageError | None = None
        try:
            with _geotiff.opened(content, request) as image:
                tags = image.tags
                if seat is None or flight.shared:
                    flight.values = image.read()
                else:
                    seat.take(image)
        except UnexpectedImageError as error:
            kept = "nowhere: the disk refused them"
            if path is not None and written:
                kept = str(self.spool.set_aside(path, content))
            elif path is not None:
                self.spool.drop(path)
            refused = error.at(kept=kept)
        except Exception as error:  # noqa: BLE001  such as MemoryError
            # The bytes are paid and may be right: they are held, and whoever reads them meets
            # the cause.
            self.notices.append(f"a paid answer could not be decoded yet: {type(error).__name__}")
        if refused is not None:
            raise refused
        held = Held(request, Receipt.of(request, tags), path, None if written else content, extent)
        # What one reader has taken whole has no next reader as a rule.
        if flight.values is not None:
            self._shared.recent.remember(held, flight.values)
        return held

    def _disk_refuses(self, error: OSError) -> None:
        # Paid pixels are not given up for a full disk: memory holds them.
        self.notices.append(
            f"the spool on disk refuses paid answers ({error.strerror}): they are held in "
            f"memory. Free space for {self.spool.place}"
        )
