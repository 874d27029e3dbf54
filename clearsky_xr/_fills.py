"""Blocks on their way into a store: claimed, bought or taken over from the dead, and kept."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

from . import _clock
from ._blocks import Block
from ._holdings import Held
from ._pixels import PixelSet
from ._purchase import Answer
from ._service import FromService, land, series_of
from ._stock import Fill, Stock
from .errors import ClearSkyError

T = TypeVar("T")

#: How often to look whether another process has kept a block that it is buying, seconds.
LOOK: Final = 0.1
# How often to try to put an answer away whose blocks another process has claimed.
_TRIES: Final = 10


class Filler:
    """Fills a store for one computation.

    Parameters
    ----------
    stock : Stock
    service : FromService or None
        Buys for the store's own cube; None if nothing may be bought.
    notices : list of str
        What the user should hear about; it is added to.
    """

    def __init__(self, stock: Stock, service: FromService | None, notices: list[str]) -> None:
        self._stock = stock
        self._service = service
        self._notices = notices
        self._areas: dict[Hashable, PixelSet | None] = {}

    def next_tile(self) -> None:
        """Let go of areas: other pixels' turn has come."""
        self._areas.clear()

    async def replay(self) -> bool:
        """Put what processes that died have paid for into the store; buys nothing.

        Returns
        -------
        bool
            False if another process is at it.
        """
        stock = self._stock
        async with stock.adopting:
            if not await self._thread(stock.sidecar.strangers):
                return True
            with stock.sidecar.adopting() as alone:
                return alone and await self._adopt()

    async def _adopt(self) -> bool:
        stock = self._stock
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
        date, stock = held.request.date, self._stock
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
            await _clock.sleep(LOOK)

    def depart(self, date: dt.date, absent: Iterable[Block]) -> list[Fill]:
        """Join what is on its way, and claim the rest; without an await, so never twice."""
        stock = self._stock
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
        stock = self._stock
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
        stock = self._stock
        link = stock.shared.link
        if link is None:
            await self._buy_claimed(date, fill, set(fill.blocks))
            return
        # Locks tell the processes of one machine apart; the scheduler those of a cluster.
        async with link.claim(stock.location.digest, list(fill.blocks.values())) as got:
            if got:  # who waits for the others looks again
                await self._buy_claimed(date, fill, {b for b, n in fill.blocks.items() if n in got})

    async def _buy_claimed(self, date: dt.date, fill: Fill, mine: set[Block]) -> None:
        stock, service = self._stock, self._service
        assert service is not None
        # Between the look that found them missing and the claim another process may have kept
        # them, or died with them in its spool.
        if not await self.replay():
            return  # who waits for this looks again
        blocks = await self._thread(partial(stock.still_absent, date, sorted(mine)))
        area = await self._thread(partial(self.whole, tuple(blocks))) if blocks else None
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
        stock = self._stock
        await self._thread(partial(stock.sweep, date, fill.blocks))
        blocks = await self._thread(partial(stock.still_absent, date, sorted(fill.blocks)))
        fill.answers = [Answer(held, stock.shared.recent)]
        fill.bought = await self._keep(date, blocks, fill.answers, area)

    async def _keep(
        self, date: dt.date, blocks: Sequence[Block], answers: Sequence[Answer], area: PixelSet
    ) -> set[Block]:
        """Write blocks into the store, and let go of answers of which it has everything."""
        stock = self._stock
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

    def whole(self, blocks: tuple[Block, ...]) -> PixelSet | None:
        """Give the pixels of blocks that belong to the area; the same object for each date."""
        if blocks not in self._areas:
            whole = self._stock.store.blocks.whole(blocks)
            self._areas[blocks] = self._stock.store.record.cube.wanted(whole)
        return self._areas[blocks]

    def _area(self, pixels: PixelSet) -> PixelSet | None:
        """Give the pixels of a set that belong to the area."""
        if pixels not in self._areas:
            self._areas[pixels] = self._stock.store.record.cube.wanted(pixels)
        return self._areas[pixels]

    async def _thread(self, work: Callable[[], T]) -> T:
        return await self._stock.shared.in_thread(work, "store")


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of a failure that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
