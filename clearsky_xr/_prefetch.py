"""Buying what a store does not have of a selection, and nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from ._blocks import Block
from ._cube import Cube
from ._fetch import open_desk
from ._ledger import Bound
from ._pixels import PixelSet, Window
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
    shares : dict
        By date and window, how many of the blocks lie there first, and their price.
    """

    blocks: set[tuple[dt.date, Block]] = field(default_factory=set)
    credits: float = 0.0
    shares: dict[tuple[dt.date, Window], tuple[int, float]] = field(default_factory=dict)


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
        if new:
            price = await source.price(date, new)
            found.credits += price  # not in one line: others add while this one waits
            found.shares[date, wanted.window] = len(new), price

    await desk.each(selection, work)
    found.credits = round(found.credits, 2)
    return found


async def prefetch(
    cube: Cube,
    settings: Settings,
    selection: Selection,
    need: Missing,
    done: Callable[[int, float], None],
    *,
    bound: Bound,
) -> list[str]:
    """Buy what a store does not have of a selection, and keep it.

    Parameters
    ----------
    cube : Cube
    settings : Settings
        With a store.
    selection : Selection
    need : Missing
        What was missing of it.
    done : callable
        Is told of numbers of these blocks that the store has now, and of their price.
    bound : Bound
        Budgets that held when it was asked for.

    Returns
    -------
    list of str
        What the user should hear about.
    """
    desk = await open_desk(cube, settings, bound)
    assert isinstance(desk.source, FromStore)
    source = desk.source

    async def work(date: dt.date, k: int, tile: Tile, wanted: PixelSet | None) -> None:  # noqa: ARG001
        if wanted is not None:
            await source.get(date, wanted)
            # Also what others have bought since, such as a call that was interrupted.
            done(*need.shares.get((date, wanted.window), (0, 0.0)))

    await desk.each(selection, work)
    return desk.notices
