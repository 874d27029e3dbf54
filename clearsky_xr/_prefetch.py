"""Buying what a store does not have of a selection, and nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from ._blocks import Block
from ._cube import Cube
from ._fetch import open_desk
from ._pixels import PixelSet
from ._selection import Selection, Tile
from ._settings import Settings
from ._stored import FromStore


@dataclass(slots=True)
class Missing:
    """What a store does not have of a selection.

    Parameters
    ----------
    blocks : set of (datetime.date, Block)
    credits : float
        What they cost.
    """

    blocks: set[tuple[dt.date, Block]] = field(default_factory=set)
    credits: float = 0.0


async def missing(cube: Cube, settings: Settings, selection: Selection) -> Missing:
    """Find out what would be bought; buys nothing."""
    desk = await open_desk(cube, settings)
    found = Missing()
    assert isinstance(desk.source, FromStore)
    source = desk.source

    async def work(date: dt.date, k: int, tile: Tile, wanted: PixelSet | None) -> None:  # noqa: ARG001
        if wanted is None:
            return
        absent = await source.absent(date, wanted)
        # A block on the edge of two tiles is one block.
        new = [block for block in absent if (date, block) not in found.blocks]
        found.blocks.update((date, block) for block in new)
        price = await source.price(date, new) if new else 0.0
        found.credits += price  # not in one line: others add while this one waits

    await desk.each(selection, work)
    found.credits = round(found.credits, 2)
    return found


async def prefetch(
    cube: Cube, settings: Settings, selection: Selection, done: Callable[[int], None]
) -> list[str]:
    """Buy what a store does not have of a selection, and keep it.

    Parameters
    ----------
    cube : Cube
    settings : Settings
        With a store.
    selection : Selection
    done : callable
        Is told of numbers of blocks that have been bought.

    Returns
    -------
    list of str
        What the user should hear about.
    """
    desk = await open_desk(cube, settings)
    assert isinstance(desk.source, FromStore)
    source = desk.source

    async def work(date: dt.date, k: int, tile: Tile, wanted: PixelSet | None) -> None:  # noqa: ARG001
        if wanted is not None:
            absent = await source.absent(date, wanted)
            await source.get(date, wanted)
            done(len(absent))

    await desk.each(selection, work)
    return desk.notices
