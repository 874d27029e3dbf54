"""A store as one process has opened it: what is there, on its way, or paid but not kept yet."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import _geotiff, _loop
from ._account import Process, process
from ._blocks import Block
from ._cube import Cube
from ._holdings import Flight, Held, Holdings
from ._layers import NODATA, fill_in
from ._location import Location
from ._pixels import PixelSet
from ._purchase import Answer
from ._request import Receipt, Request
from ._sidecar import Sidecar, sidecar_of
from ._spool import DurableSpool, leftovers
from ._store import Damaged, Store, find
from .errors import StoreError, UnexpectedImageError


@dataclass(slots=True, eq=False)
class Fill:
    """Blocks of a date that are being bought and kept.

    Parameters
    ----------
    blocks : dict of Block to int
        Those that it has claimed, with their numbers.
    bought : set of Block
        Those whose pixels it brought, once it is done; the others were there.
    answers : list of Answer
        Their pixels.
    """

    blocks: dict[Block, int]
    bought: set[Block] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)
    flights: list[Flight] | None = None
    task: asyncio.Task[None] = field(init=False)
    _waiting: int = 0

    def join(self) -> None:
        """Begin to wait for it."""
        self._waiting += 1

    def leave(self) -> None:
        """Stop waiting; when the last one gives up, what was not sent is not sent any more."""
        self._waiting -= 1
        if self._waiting or self.task.done():
            return
        if self.flights is None:
            self.task.cancel()
        else:  # what was sent lands, and is kept
            for flight in self.flights:
                flight.leave()

    def call_off(self) -> None:
        """Cancel what was not sent, whoever waits: the process ends."""
        if self.flights is None:
            self.task.cancel()
        for flight in self.flights or ():
            if not flight.sent:
                flight.task.cancel()


class Stock:
    """A store as this process has opened it. What changes belongs to the background loop.

    Parameters
    ----------
    store : Store
    shared : Process

    Attributes
    ----------
    holdings : Holdings
        Paid answers that are not in the store yet, and purchases under way.
    fills : dict
        By date and block.
    damaged : set of (datetime.date, Block)
        Blocks that cannot be read.
    torn : set of (datetime.date, Block)
        Blocks whose writer may have died over them.
    """

    def __init__(self, store: Store, shared: Process) -> None:
        self.location = store.location
        self.store = store
        self.holdings = Holdings()
        self.fills: dict[tuple[dt.date, Block], Fill] = {}
        self.damaged: set[tuple[dt.date, Block]] = set()
        self.torn: set[tuple[dt.date, Block]] = set()
        self.shared = shared
        # Held while what the dead have left is taken over: who buys waits for what they paid.
        self.adopting = asyncio.Lock()
        self._lock = threading.Lock()
        # Elsewhere than on a local disk to ask again takes long; nothing that is there goes away.
        self._known: dict[dt.date, set[Block]] = {}

    @cached_property
    def sidecar(self) -> Sidecar:
        """The folder beside the store; made on first use."""
        return sidecar_for(self.location)

    @cached_property
    def spool(self) -> DurableSpool:
        """Where paid answers wait until the store has them."""
        return DurableSpool(self.sidecar.new_spool, self.sidecar.refused)

    def refresh(self) -> bool:
        """Read the store's metadata anew; False if another store is there now."""
        before = self.store
        if before.is_current():
            return True
        try:
            now = Store(self.location)
        except StoreError:
            return False
        if now.record != before.record or not before.dates.items() <= now.dates.items():
            return False
        self.store = now
        self._known.clear()
        return True

    def index(self, date: dt.date) -> int:
        """Give the place of a date along the store's time."""
        if date not in self.store.dates:
            with self._lock:
                if date not in self.store.dates:
                    self.refresh()
        if date not in self.store.dates:
            raise StoreError(
                f"the store {self.location.name} does not know {date} any more",
                hint="It was made anew since it was opened: open it again.",
            )
        return self.store.dates[date]

    def absent(self, date: dt.date, blocks: Collection[Block]) -> list[Block]:
        """Say which blocks are not in the store, or damaged."""
        known = self._known.get(date, set())
        there = known | self.store.present(self.index(date), set(blocks) - known)
        if self.location.folder is None:
            self._known[date] = there
        return [b for b in blocks if b not in there or (date, b) in self.damaged]

    def still_absent(self, date: dt.date, blocks: Collection[Block]) -> list[Block]:
        """Say which claimed blocks are absent: another process may have mended damaged ones."""
        index, bands = self.index(date), self.store.record.cube.bands[:1]
        for block in blocks:
            if (date, block) in self.damaged:
                with contextlib.suppress(Damaged):
                    self.store.read(index, self.store.blocks.window_of(block), bands)
                    self.damaged.discard((date, block))
        return self.absent(date, blocks)

    def number(self, date: dt.date, block: Block) -> int:
        """Count the blocks of all dates, for claims."""
        rows, cols = self.store.blocks.shape
        return self.index(date) * rows * cols + self.store.blocks.number(block)

    def adopt(self) -> tuple[list[Held], list[str]]:
        """Read what processes that died have left: paid answers, and notices for the user."""
        found: list[Held] = []
        notices: list[str] = []
        lost: list[Request] = []
        cube = self.store.record.cube
        for folder in self.sidecar.adopt():
            for left in leftovers(folder):
                if not left.answered:
                    lost.append(left.request)
                    self.spool.drop(left.path)
                    continue
                try:
                    _check_belongs(left.request, cube)
                    tags, _ = _geotiff.read(left.path.read_bytes(), left.request)
                except (UnexpectedImageError, OSError) as error:
                    kept = self.spool.set_aside(left.path)
                    notices.append(
                        f"a paid answer of an earlier process is kept at {kept}: {error}"
                    )
                    continue
                when = dt.datetime.fromtimestamp(left.path.stat().st_mtime, dt.UTC)
                receipt = Receipt.of(left.request, tags, when)
                found.append(Held(left.request, receipt, left.path))
                touched = self.store.blocks.touched(left.request.pixels)
                self.torn |= {(left.request.date, block) for block in touched}
        if lost:
            notices.append(
                f"{len(lost)} downloads were under way when an earlier process ended: up to "
                f"{sum(request.credits for request in lost):.2f} credits may have been charged "
                "without an answer"
            )
        return found, notices

    def keep(
        self,
        date: dt.date,
        blocks: Iterable[Block],
        answers: Mapping[Answer, PixelSet | None],
        area: PixelSet,
    ) -> tuple[set[Block], str | None]:
        """Write blocks that are complete; to be called in a thread by who has claimed them.

        Parameters
        ----------
        date : datetime.date
        blocks : iterable of Block
        answers : mapping of Answer to PixelSet or None
            With those of their pixels that belong to the area: they share its price.
        area : PixelSet
            The pixels of the blocks that belong to the area.

        Returns
        -------
        complete : set of Block
            Those whose pixels are all there, kept or not.
        trouble : str or None
            Why the store could not be written.
        """
        store, bands = self.store, self.store.record.cube.bands
        index = self.index(date)
        complete: set[Block] = set()
        trouble: str | None = None
        for answer in answers:
            answer.unpack()  # whoever reads it next finds its bytes in the store, not in the spool
        receipts: dict[Block, list[dict[str, Any]]] = {}
        for block in blocks:
            own = area.crop(store.blocks.window_of(block) & area.window).tight()
            if own is None:
                complete.add(block)
            elif (shares := _shares(own, answers)) is not None:
                receipts[block] = shares
        complete |= set(receipts)
        try:
            for rectangle in _rectangles(receipts):
                whole = store.blocks.whole(rectangle)
                frame = np.full((len(bands), *whole.window.shape), NODATA, np.int16)
                fill_in(frame, whole.window, area, [(a.pixels, a.values(bands)) for a in answers])
                for block in rectangle:
                    self._make_room(date, block)
                store.write(index, frame, {block: receipts[block] for block in rectangle})
                self.damaged -= {(date, block) for block in rectangle}
        except Exception as error:  # noqa: BLE001  stores raise what they like
            trouble = f"{type(error).__name__}: {error}"[:300]
        return complete, trouble

    def sweep(self, date: dt.date, blocks: Iterable[Block]) -> None:
        """Remove what dead writers have left of blocks that are claimed."""
        for block in blocks:
            self.store.sweep(self.index(date), block)
            self.torn.discard((date, block))

    def _make_room(self, date: dt.date, block: Block) -> None:
        """Remove what is left of a block that was damaged, or whose writer died."""
        if (date, block) in self.torn:
            self.sweep(date, [block])
        if (date, block) in self.damaged:
            self.store.remove(self.index(date), block)

    def settled(self, held: Held, area: PixelSet | None) -> bool:
        """Say whether the store has all that an answer brought of the area."""
        return area is None or not self.absent(held.request.date, self.store.blocks.touched(area))


@_loop.Alone()
def stock_of(location: Location) -> Stock:
    """Find the store at a place as this process has opened it; opens it if it has not."""
    shared = process()
    with shared.guard:
        stock: Stock | None = shared.stocks.get(_known_as(location))
        if stock is None or (stock.store.changed() and not stock.refresh()):
            stock = shared.stocks[_known_as(location)] = Stock(Store(location), shared)
        return stock


@_loop.Alone()
def fresh_stock(location: Location) -> Stock | None:
    """Find a store with what other processes have done to it; None if there is none yet.

    Raises
    ------
    StoreError
        Something else is there, or it cannot be reached.
    """
    shared = process()
    with shared.guard:
        known: Stock | None = shared.stocks.pop(_known_as(location), None)
        if known is None or not known.refresh():
            store = find(location)
            known = None if store is None else Stock(store, shared)
        if known is not None:
            shared.stocks[_known_as(location)] = known
        return known


def sidecar_for(location: Location) -> Sidecar:
    """Open the folder beside a store."""
    return sidecar_of(location.folder, location.digest, lasting=not location.in_memory)


def _known_as(location: Location) -> tuple[str, bool]:
    """Tell stores apart, and who may write to one from who may not."""
    return location.place, location.read_only


def _check_belongs(request: Request, cube: Cube) -> None:
    """Refuse an answer that was bought for another store at the same place."""
    asked = request.epsg, request.resolution, request.model, request.layers
    if asked != (cube.grid.epsg, cube.grid.resolution, cube.model, cube.layers):
        raise UnexpectedImageError("the store at this place is another one now")


def _shares(
    own: PixelSet, answers: Mapping[Answer, PixelSet | None]
) -> list[dict[str, Any]] | None:
    """Give the receipts of a block's pixels; None if the answers do not hold all of them."""
    entries = []
    rest: PixelSet | None = own
    for answer, paid in answers.items():
        if rest is None or not (rest.window & answer.pixels.window).size:
            continue
        before = len(rest)
        rest = rest.without(answer.pixels)
        brought = before - (0 if rest is None else len(rest))
        if brought:
            entries.append(_entry(answer.held.receipt, brought / len(paid or own)))
    return entries if rest is None else None


def _rectangles(blocks: Collection[Block]) -> list[list[Block]]:
    """Divide blocks into rectangles that are written at once: all of them, or each alone."""
    if not blocks:
        return []
    rows, cols = ({block[axis] for block in blocks} for axis in (0, 1))
    full = (max(rows) + 1 - min(rows)) * (max(cols) + 1 - min(cols))
    return [sorted(blocks)] if len(blocks) == full else [[block] for block in sorted(blocks)]


def _entry(receipt: Receipt, share: float) -> dict[str, Any]:
    """Write a receipt as JSON, with a block's share of the credits."""
    return {
        "image_date": receipt.image_date,
        "model_version": receipt.model_version,
        "image_version": receipt.image_version,
        "constellations": receipt.constellations,
        "credits": receipt.credits * share,
        "when": receipt.when.isoformat(timespec="seconds"),
        "request": receipt.request,
    }
