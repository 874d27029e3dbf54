"""Pixels from a store: what is there is read, what is missing is bought, kept and given."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _clock
from ._blocks import Block
from ._cube import Cube
from ._fills import LOOK, Filler
from ._layers import bands_for, derive
from ._output import Part, Seat
from ._pixels import PixelSet
from ._plan import MINIMUM
from ._purchase import Answer
from ._service import FromService
from ._stock import Stock
from ._store import Damaged
from .errors import NotBoughtError, StoreError, StoreMismatchError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Pixels that the store has.

    Parameters
    ----------
    stock : Stock
    date : datetime.date
    pixels : PixelSet
    exact : bool
        Whether what does not belong to the cube's area is nodata already.
    """

    stock: Stock
    date: dt.date
    pixels: PixelSet
    exact: bool

    def values(self, names: tuple[str, ...]) -> NDArray[np.int16]:
        """Read layers (layers, y, x) on the window of the pixels.

        Raises
        ------
        Damaged
            Bytes of some blocks are not those that were written.
        """
        bands = bands_for(names)
        values = self.stock.store.read(self.stock.index(self.date), self.pixels.window, bands)
        return derive(values, bands, names)


class FromStore:
    """Gets the pixels of a cube from a store, for one computation.

    Parameters
    ----------
    cube : Cube
        What is read.
    stock : Stock
    service : FromService or None
        Buys what is missing for the store's own cube; None if nothing may be bought.
    offline : {"raise", "nan"}
        What pixels are that were never bought, if nothing may be bought.
    notices : list of str
        What the user should hear about.

    Attributes
    ----------
    same : bool
        Whether the cube has the store's own area and edge, and not only a part of it.
    """

    def __init__(
        self,
        cube: Cube,
        stock: Stock,
        service: FromService | None,
        offline: str,
        notices: list[str],
    ) -> None:
        own = stock.store.record.cube
        self.same = (own.clip, own.pixels) == (cube.clip, cube.pixels) and own.area == cube.area
        if not self.same:  # a part of the store's area, or of another store at its place
            try:
                stock.store.record.check(cube, None)
            except StoreMismatchError as error:
                raise StoreError(
                    f"the store {stock.location.name} is another one now: {error.message}",
                    hint="It was made anew since it was opened: open it again.",
                ) from None
        self.stock = stock
        self.service = service
        self._offline = offline
        self._notices = notices
        self._filler = Filler(stock, service, notices)
        self._areas: dict[Hashable, PixelSet | None] = {}

    def next_tile(self) -> None:
        """Let go of what was chosen so far: other pixels' turn has come."""
        self._areas.clear()
        self._filler.next_tile()
        if self.service is not None:
            self.service.next_tile()

    async def get(
        self,
        date: dt.date,
        wanted: PixelSet,
        seat: Seat | None = None,  # noqa: ARG002
    ) -> Sequence[Part]:
        """Get parts that together hold the pixels of a date; see `FromService.get`.

        The seat stays free: what is bought has to be kept first.

        Raises
        ------
        ClearSkyError
            A request failed, or the store; `NotBoughtError` if nothing may be bought.
        """
        known = await self._thread(partial(self.known, wanted))
        if known is None:
            return []
        wanted = known
        stored, fresh = await self.bring(date, wanted)
        blocks = self.stock.store.blocks
        if len(stored) == len(blocks.touched(PixelSet(wanted.window))):
            windows = [wanted.window]  # one read for all of them
        else:
            windows = [blocks.window_of(block) & wanted.window for block in sorted(stored)]
        there = (Stored(self.stock, date, PixelSet(window), self.same) for window in windows)
        return [*fresh, *there]

    async def bring(self, date: dt.date, wanted: PixelSet) -> tuple[set[Block], list[Answer]]:
        """Make sure that the store has the pixels of a date.

        Returns
        -------
        stored : set of Block
            To be read from the store.
        fresh : list of Answer
            That hold the other blocks.
        """
        stock, fresh = self.stock, list[Answer]()
        need = set(stock.store.blocks.touched(wanted))
        while need:
            absent = await self._thread(partial(stock.absent, date, need))
            if not absent:
                break
            if self.service is None:
                if self._offline == "raise":
                    raise NotBoughtError(
                        f"the store {stock.location.name} does not have these pixels",
                        hint='missing="nan" shows them as NaN. To buy them open the store with '
                        'xr.open_dataset(area, engine="clearsky", time=..., store=...).',
                        date=str(date), window=str(stock.store.blocks.whole(absent).window),
                    )  # fmt: skip
                return need - set(absent), fresh
            fills = self._filler.depart(date, absent)
            try:
                for fill in fills:
                    await asyncio.shield(fill.task)
                    fresh += fill.answers
                    need -= fill.bought
                if not any(fill.bought for fill in fills):
                    await _clock.sleep(LOOK)
            finally:
                for fill in fills:
                    fill.leave()
            if not fills:  # other processes are buying them
                await _clock.sleep(LOOK)
        return need, fresh

    def known(self, wanted: PixelSet) -> PixelSet | None:
        """Leave out what a part touches beyond the rim of the recorded area."""
        if self.same:
            return wanted
        if wanted.window not in self._areas:
            self._areas[wanted.window] = self.stock.store.record.cube.wanted(
                PixelSet(wanted.window)
            )
        area = self._areas[wanted.window]
        if area is None:
            return None
        mask = wanted.crop(area.window).dense & area.dense
        return PixelSet(area.window, mask).tight()

    async def absent(self, date: dt.date, wanted: PixelSet) -> list[Block]:
        """Say which blocks of a date's pixels the store does not have."""
        known = await self._thread(partial(self.known, wanted))
        if known is None:
            return []
        wanted = known
        touched = self.stock.store.blocks.touched(wanted)
        return await self._thread(partial(self.stock.absent, date, touched))

    async def price(self, date: dt.date, blocks: Sequence[Block]) -> float:
        """Say what blocks of a date cost, credits; buys nothing."""
        area = await self._thread(partial(self._filler.whole, tuple(blocks)))
        if area is None or self.service is None:
            return 0.0
        return sum(piece.credits for piece in await self.service.cover(area, date))

    def forget(self, parts: Sequence[object]) -> None:
        """Forget answers that cannot be read any more."""
        if self.service is not None:
            self.service.forget(parts)

    def mend(self, date: dt.date, damaged: Damaged) -> None:
        """Treat damaged blocks as missing, within the allowance for paying twice.

        Raises
        ------
        StoreError
            Nothing may be bought, or not as much.
        """
        stock = self.stock
        fresh = [b for b in damaged.blocks if (date, b) not in stock.damaged]
        if not fresh:  # another reader was faster
            return
        side = stock.store.record.cube.grid.resolution / 1000
        km2 = sum(stock.store.blocks.window_of(block).size for block in fresh) * side**2
        price = max(MINIMUM, round(0.1 * km2, 2))
        if self.service is None or not stock.shared.ledger.repeat_lost(price):
            raise StoreError(
                f"{len(damaged.blocks)} blocks of the store {stock.location.name} are damaged: "
                "their bytes are not those that were written",
                hint="Restore them from a copy, or delete their files and compute again, which "
                f"buys them again for {price:.2f} credits at most.",
                kind="damaged", date=str(date),
                window=str(stock.store.blocks.whole(damaged.blocks).window),
            )  # fmt: skip
        stock.damaged.update((date, block) for block in fresh)
        self._notices.append(
            f"{len(fresh)} damaged blocks of {date} are bought again: {price:.2f} credits at most"
        )

    async def replay(self) -> bool:
        """Put what processes that died have paid for into the store; buys nothing.

        Returns
        -------
        bool
            False if another process is at it.
        """
        return await self._filler.replay()

    async def _thread(self, work: Callable[[], T]) -> T:
        return await self.stock.shared.in_thread(work, "store")
