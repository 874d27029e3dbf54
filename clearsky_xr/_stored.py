"""Pixels from a store: what is there is read, what is missing is bought, kept and given."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _clock
from ._blocks import Block
from ._cube import Cube
from ._holdings import Held
from ._layers import bands_for, derive
from ._output import Part, Seat
from ._pixels import PixelSet
from ._plan import MINIMUM
from ._purchase import Answer
from ._service import FromService, land, series_of
from ._stock import Fill, Stock
from ._store import Damaged
from .errors import ClearSkyError, NotBoughtError, StoreError, StoreMismatchError

T = TypeVar("T")

# How often to look whether another process has kept a block that it is buying, seconds.
_LOOK: Final = 0.1
# How often to try to put an answer away whose blocks another process has claimed.
_TRIES: Final = 10


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
        self._areas: dict[Hashable, PixelSet | None] = {}

    def next_tile(self) -> None:
        """Let go of what was chosen so far: other pixels' turn has come."""
        self._areas.clear()
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
            fills = self._depart(date, absent)
            try:
                for fill in fills:
                    await asyncio.shield(fill.task)
                    fresh += fill.answers
                    need -= fill.bought
                if not any(fill.bought for fill in fills):
                    await _clock.sleep(_LOOK)
            finally:
                for fill in fills:
                    fill.leave()
            if not fills:  # other processes are buying them
                await _clock.sleep(_LOOK)
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
        area = await self._thread(partial(self._whole, tuple(blocks)))
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
        stock = self.stock
        async with stock.adopting:
            if not await self._thread(stock.sidecar.strangers):
                return True
            with stock.sidecar.adopting() as alone:
                return alone and await self._adopt()

    async def _adopt(self) -> bool:
        stock = self.stock
        found, notices = await self._thread(stock.adopt)
        self._notices += notices
        for held in found:
            date = held.request.date
            stock.holdings.add(series_of(stock.store.record.cube, date), held)
            area = await self._thread(partial(self._area, held.pixels))
            if area is not None and date in stock.store.dates:
                await self._put_away(held, area)
        return True

    async def _put_away(self, held: Held, area: PixelSet) -> None:
        """Put an answer that a dead process has left into the store."""
        date, stock = held.request.date, self.stock
        need = set(stock.store.blocks.touched(area))
        for _ in range(_TRIES):
            fill = self._start(date, need, partial(self._put_in, held, area))
            if fill is not None:
                fill.join()
                try:
                    await asyncio.shield(fill.task)
                finally:
                    fill.leave()
                need -= set(fill.blocks)
            need = {block for block in need if (date, block) not in stock.fills}
            if not need:
                return
            # Who has claimed them and sees us at it lets go; who does not is buying them.
            await _clock.sleep(_LOOK)

    def _depart(self, date: dt.date, absent: Iterable[Block]) -> list[Fill]:
        """Join what is on its way, and claim the rest; without an await, so never twice."""
        stock = self.stock
        joined = {
            fill: None
            for block in absent
            if (fill := stock.fills.get((date, block))) and not fill.task.cancelling()
        }
        if (fill := self._start(date, absent, self._buy)) is not None:
            joined[fill] = None
        for fill in joined:
            fill.join()
        return list(joined)

    def _start(
        self, date: dt.date, blocks: Iterable[Block], work: Callable[..., Awaitable[None]]
    ) -> Fill | None:
        """Claim those blocks that nobody has, and begin to work on them."""
        stock = self.stock
        mine = {
            block: number
            for block in blocks
            if (date, block) not in stock.fills
            and stock.sidecar.claim(number := stock.number(date, block))
        }
        if not mine:
            return None
        fill = Fill(mine)
        stock.fills |= {(date, block): fill for block in mine}

        async def run() -> None:
            try:
                await work(date, fill)
            finally:
                for block, number in mine.items():
                    del stock.fills[date, block]
                    stock.sidecar.release(number)

        fill.task = asyncio.create_task(run())
        fill.task.add_done_callback(_heard)
        return fill

    async def _buy(self, date: dt.date, fill: Fill) -> None:
        """Buy the claimed blocks of a date that are still missing, and keep them."""
        stock = self.stock
        link = stock.shared.link
        if link is None:
            await self._buy_claimed(date, fill, set(fill.blocks))
            return
        # Locks tell the processes of one machine apart; the scheduler those of a cluster.
        async with link.claim(stock.location.digest, list(fill.blocks.values())) as got:
            if got:  # who waits for the others looks again
                await self._buy_claimed(date, fill, {b for b, n in fill.blocks.items() if n in got})

    async def _buy_claimed(self, date: dt.date, fill: Fill, mine: set[Block]) -> None:
        stock, service = self.stock, self.service
        assert service is not None
        # Between the look that found them missing and the claim another process may have kept
        # them, or died with them in its spool.
        if not await self.replay():
            return  # who waits for this looks again
        blocks = await self._thread(partial(stock.still_absent, date, sorted(mine)))
        area = await self._thread(partial(self._whole, tuple(blocks))) if blocks else None
        if area is None:
            fill.bought = set(blocks)  # nothing of them belongs to the area
            return
        held, fill.flights = await service.send(date, area)
        fill.answers = [Answer(answer, stock.shared.recent) for answer in held]
        failure: BaseException | None = None
        for flight in fill.flights:
            try:
                landed = await land(flight)
                fill.answers.append(Answer(landed, stock.shared.recent, flight.values))
            except (ClearSkyError, asyncio.CancelledError) as error:
                failure = failure or error
        fill.bought = await self._keep(date, blocks, fill.answers, area)
        if failure is not None:
            raise failure

    async def _put_in(self, held: Held, area: PixelSet, date: dt.date, fill: Fill) -> None:
        """Keep the claimed blocks of an answer that a dead process has left."""
        stock = self.stock
        await self._thread(partial(stock.sweep, date, fill.blocks))
        blocks = await self._thread(partial(stock.still_absent, date, sorted(fill.blocks)))
        fill.answers = [Answer(held, stock.shared.recent)]
        fill.bought = await self._keep(date, blocks, fill.answers, area)

    async def _keep(
        self, date: dt.date, blocks: Sequence[Block], answers: Sequence[Answer], area: PixelSet
    ) -> set[Block]:
        """Write blocks into the store, and let go of answers of which it has everything."""
        stock = self.stock
        own = {a: await self._thread(partial(self._area, a.pixels)) for a in answers}
        complete, trouble = await self._thread(partial(stock.keep, date, blocks, own, area))
        if trouble is not None:
            on_disk = all(answer.held.content is None for answer in answers)
            place = f"in {stock.sidecar.folder}" if on_disk else "in the memory of this process"
            self._notices.append(
                f"the store {stock.location.name} cannot be written: {trouble}. What was paid "
                f"for is {place}, and is put into the store when it can be written again"
            )
            return complete
        for answer in answers:
            if await self._thread(partial(stock.settled, answer.held, own[answer])):
                stock.holdings.forget(answer.held)
                if answer.held.path is not None:
                    stock.spool.drop(answer.held.path)
        return complete

    def _whole(self, blocks: tuple[Block, ...]) -> PixelSet | None:
        """Give the pixels of blocks that belong to the area; the same object for each date."""
        if blocks not in self._areas:
            whole = self.stock.store.blocks.whole(blocks)
            self._areas[blocks] = self.stock.store.record.cube.wanted(whole)
        return self._areas[blocks]

    def _area(self, pixels: PixelSet) -> PixelSet | None:
        """Give the pixels of a set that belong to the area."""
        if pixels not in self._areas:
            self._areas[pixels] = self.stock.store.record.cube.wanted(pixels)
        return self._areas[pixels]

    async def _thread(self, work: Callable[[], T]) -> T:
        return await self.stock.shared.in_thread(work, waits=True)


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of a failure that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
