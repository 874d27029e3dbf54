"""What has been paid of a selection, and what came with it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from ._account import Process
from ._blocks import Block
from ._cube import Cube
from ._fetch import open_desk
from ._pixels import PixelSet
from ._selection import Selection, Tile
from ._service import FromService, land, series_of
from ._settings import Settings
from ._shown import cube_of, selection_of
from ._stock import Stock, stock_of
from ._stored import FromStore
from .errors import ClearSkyError, InvalidOptionError

# Coordinates along time that receipts give, and their fields.
_COORDINATES: Final = {
    "model_version": "model_version",
    "image_version": "image_version",
    "image_constellations": "constellations",
}


def stock_behind(dataset: xr.Dataset) -> Stock:
    """Give the store that a Dataset was opened with.

    Raises
    ------
    InvalidOptionError
        It has none.
    """
    settings = cube_of(dataset)[1]
    if settings.store is None:
        raise InvalidOptionError("this cube has no store", hint='Open it with store="fields.zarr".')
    return stock_of(settings.store)


def fetched(dataset: xr.Dataset) -> xr.DataArray:
    """Say which blocks have been bought; see `ClearSkyAccessor.fetched`."""
    cube, stock = cube_of(dataset)[0], stock_behind(dataset)
    dates, blocks = _blocks(dataset, cube, stock)
    values = np.zeros((len(dates), len(blocks)), bool)
    for k, date in enumerate(dates):
        absent = set(stock.absent(date, blocks))
        values[k] = [block not in absent for block in blocks]
    size = cube.grid.resolution
    centres = [stock.store.blocks.window_of(block) for block in blocks]
    return xr.DataArray(
        values,
        dims=("time", "block"),
        coords={
            "time": np.array(dates, "datetime64[ns]"),
            "row": ("block", np.array([row for row, _ in blocks], int)),
            "col": ("block", np.array([col for _, col in blocks], int)),
            "y": ("block", np.array([-(w.row0 + w.row1) / 2 * size for w in centres], float)),
            "x": ("block", np.array([(w.col0 + w.col1) / 2 * size for w in centres], float)),
        },
        name="fetched",
        attrs={"long_name": "whether the store has the block"},
    )


def receipts(dataset: xr.Dataset) -> pd.DataFrame:
    """Give what came with the pixels of a store; see `ClearSkyAccessor.receipts`."""
    cube, stock = cube_of(dataset)[0], stock_behind(dataset)
    dates, blocks = _blocks(dataset, cube, stock)
    rows = []
    for date in dates:
        absent = set(stock.absent(date, blocks))
        for block in blocks:
            if block not in absent:
                rows += [
                    {"time": pd.Timestamp(date), "row": block[0], "col": block[1], **receipt}
                    for receipt in stock.store.receipts(stock.index(date), block)
                ]
    columns = [
        "time",
        "row",
        "col",
        "image_date",
        *_COORDINATES.values(),
        "credits",
        "when",
        "request",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["when"] = pd.to_datetime(table["when"], utc=True)
    return table


def with_receipts(dataset: xr.Dataset) -> xr.Dataset:
    """Add coordinates; see `ClearSkyAccessor.with_receipts`."""
    table = receipts(dataset)
    times = pd.DatetimeIndex(np.atleast_1d(dataset["time"].values))
    coordinates = {}
    for name, column in _COORDINATES.items():
        said = table.groupby("time")[column].agg(lambda v: v.iloc[0] if v.nunique() == 1 else "")
        values = said.reindex(times).fillna("").to_numpy(object)
        dims = dataset["time"].dims
        coordinates[name] = (dims, values if dims else values[0])
    return dataset.assign_coords(coordinates)


async def paid(
    cube: Cube, settings: Settings, selection: Selection
) -> dict[dt.date, list[Mapping[str, Any]]]:
    """Give the receipts of those dates of a selection of which everything is paid for.

    It waits for downloads that are on their way, and sends nothing for pixels.

    Returns
    -------
    dict of datetime.date to list of mapping
        Fields of `Receipt`. A date of which something is missing is not in it; one of
        which nothing belongs to the area has none.
    """
    desk = await open_desk(cube, settings)
    found: dict[dt.date, list[Mapping[str, Any]]] = {}
    lacking: set[dt.date] = set()

    async def work(date: dt.date, k: int, tile: Tile, wanted: PixelSet | None) -> None:  # noqa: ARG001
        said = found.setdefault(date, [])
        if wanted is None:
            return
        source = desk.source
        if isinstance(source, FromStore):
            more = await _in_store(desk.shared, source, date, wanted)
        else:
            assert isinstance(source, FromService)
            more = await _held(source, date, wanted)
        if more is None:
            lacking.add(date)
        else:
            said += more

    await desk.each(selection, work)
    return {date: said for date, said in found.items() if date not in lacking}


async def _held(
    source: FromService, date: dt.date, wanted: PixelSet
) -> list[Mapping[str, Any]] | None:
    """Give the receipts of pixels that this process holds; None if it lacks some."""
    series = series_of(source.cube, date)
    held, flights, missing = source.holdings.find(series, source.cube.layers, wanted)
    if missing is not None:
        return None
    for flight in flights:
        flight.join()
    try:
        # Not looked up again: a flight that has landed may not be among what is held yet.
        held += [await land(flight) for flight in flights]
    except ClearSkyError:
        return None  # whoever sent for it hears of it
    except asyncio.CancelledError:
        if any(flight.task.cancelled() for flight in flights):
            return None
        raise
    finally:
        for flight in flights:
            flight.leave()
    return [asdict(answer.receipt) for answer in held]


async def _in_store(
    shared: Process, source: FromStore, date: dt.date, wanted: PixelSet
) -> list[Mapping[str, Any]] | None:
    """Give the receipts of pixels that a store has; None if it lacks some."""
    if await source.absent(date, wanted):
        return None
    stock = source.stock
    blocks = stock.store.blocks.touched(wanted)

    def read() -> list[Mapping[str, Any]]:
        index = stock.index(date)
        return [receipt for block in blocks for receipt in stock.store.receipts(index, block)]

    return await shared.in_thread(read, "store")


def _blocks(
    dataset: xr.Dataset, cube: Cube, stock: Stock
) -> tuple[Sequence[dt.date], Sequence[Block]]:
    """Give the dates and the blocks that are selected."""
    dates: dict[dt.date, None] = {}
    blocks: set[Block] = set()
    corner = cube.grid.window
    for tile in selection_of(dataset, cube).tiles(cube.grid.window.size):
        window = tile.pixels.window.shifted(corner.row0, corner.col0)
        wanted = cube.wanted(PixelSet(window, tile.pixels.mask))
        if wanted is not None:
            blocks.update(stock.store.blocks.touched(wanted))
        dates |= {cube.dates[date]: None for date, _ in tile.dates}
    return sorted(dates), sorted(blocks)
