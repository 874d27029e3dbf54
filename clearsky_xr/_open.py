"""From what a user asks for to a cube: check everything, then search the dates."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from . import _loop
from ._account import account
from ._answers import clean
from ._area import Area, resolve_area
from ._bands import resolve_bands, resolve_indices
from ._client import AccountInfo, search_body
from ._cube import Cube, PixelMode
from ._dates import DateRange, resolve_time
from ._geometry import wkt
from ._grid import Grid, resolve_grid
from ._mask import SIDE
from ._pixels import PixelSet
from ._record import Record
from ._settings import Settings
from ._stock import fresh_stock
from .errors import (
    BandLimitError,
    InvalidAreaError,
    InvalidBandError,
    InvalidOptionError,
    NoImageryError,
    UnexpectedResponseError,
)

#: Inputs of Stratus-2 (contract, section 5.8).
CONSTELLATIONS: Final = ("Sentinel1", "Sentinel2", "Landsat89")


def resolve(
    area: Any,
    time: Any,
    settings: Settings,
    *,
    bands: str | Iterable[str] | None,
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None,
    resolution: int | None,
    crs: Any,
    like: Any,
    model: str,
    constellations: Iterable[str] | None,
    clip: bool,
    pixels: PixelMode,
    allow_partial: bool,
) -> Cube:
    """Check what is asked for, and search the dates of a range.

    Everything that can be wrong is found before the service is asked.
    """
    where = resolve_area(area)
    when = resolve_time(time)
    if pixels not in ("intersect", "contained"):
        raise InvalidOptionError(
            f"pixels={pixels!r} is unknown",
            hint='"intersect" takes every pixel that the area touches, "contained" those inside.',
        )
    for name, value in (("clip", clip), ("allow_partial", allow_partial)):
        if not isinstance(value, bool):
            raise InvalidOptionError(f"{name}={value!r} must be True or False")
    model = model_name(model)
    sources = CONSTELLATIONS if constellations is None else constellation_names(constellations)
    stock = None if settings.store is None else fresh_stock(settings.store)
    record = None if stock is None else stock.store.record
    band_ids = resolve_bands(bands, model)
    index_layers = resolve_indices(indices, model)
    if not band_ids and not index_layers:
        raise InvalidBandError(
            "neither bands nor indices were asked for",
            hint='Examples: bands="all", indices="ndvi".',
        )
    cube = Cube(
        area=where,
        grid=_grid(where, resolution, crs, like, record),
        dates=() if isinstance(when, DateRange) else when,
        bands=band_ids,
        indices=index_layers,
        model=model,
        constellations=sources,
        clip=clip,
        pixels=pixels,
        allow_partial=allow_partial,
    )
    if stock is not None:
        stock.store.check(cube, None)
    window = cube.grid.window
    # Only a small area can lie between the pixels; a large one would take long to look through.
    if max(window.shape) <= SIDE and cube.wanted(PixelSet(window)) is None:
        raise InvalidAreaError(
            f"no pixel of {cube.grid.resolution} m belongs to the area",
            hint='Use pixels="intersect", a finer resolution, or a larger area.',
        )
    info, entries = _loop.run(_ask(settings, cube, when))
    if settings.store is None and info.bands is not None and len(cube.layers) > info.bands:
        raise BandLimitError(
            f"{len(cube.layers)} layers are asked for; the account's MaxTotalBands is {info.bands}",
            hint="Ask for fewer bands and indices. Indices can also be computed from bands.",
        )
    if isinstance(when, DateRange):
        cube = replace(cube, dates=_common_dates(entries, cube, when))
    return cube


def _grid(where: Area, resolution: int | None, crs: Any, like: Any, record: Record | None) -> Grid:
    """Settle the grid; where nothing is said, that of the store counts."""
    if record is not None and like is None:
        own = record.cube.grid
        if crs is None or (isinstance(crs, str) and crs.lower() == "auto"):
            crs = own.epsg
        resolution = own.resolution if resolution is None else resolution
    return resolve_grid(where, resolution=resolution, crs=crs, like=like)


async def _ask(
    settings: Settings, cube: Cube, when: DateRange | tuple[dt.date, ...]
) -> tuple[AccountInfo, list[Mapping[str, Any]]]:
    """Make the free calls that are needed, together."""
    owner = await account(settings)
    if not isinstance(when, DateRange):
        return await owner.info(), []
    body = search_body(wkt(cube.area), when.start, when.end, cube.model, cube.constellations)
    info, entries = await asyncio.gather(owner.info(), owner.search(body))
    return info, entries


def account_info(settings: Settings) -> AccountInfo:
    """Give the account's limits; no call if this process knows them."""

    async def ask() -> AccountInfo:
        return await (await account(settings)).info()

    return _loop.run(ask())


def _common_dates(
    entries: list[Mapping[str, Any]], cube: Cube, when: DateRange
) -> tuple[dt.date, ...]:
    """Give the dates that every sub-area has (or any, if partial images are allowed)."""
    wanted = (cube.model.lower(), {name.lower() for name in cube.constellations})
    lists: list[set[dt.date]] = []
    others = []
    for entry in entries:
        has = [str(name) for name in listed(entry, "SatelliteConstellations")]
        if (str(entry.get("Model", "")).lower(), {name.lower() for name in has}) == wanted:
            lists += [days(part) for part in listed(entry, "DatesByGeog")]
        else:
            others.append(clean(f"{entry.get('Model')} ({', '.join(has)})"))
    joined = set.union if cube.allow_partial else set.intersection
    dates = tuple(sorted(day for day in joined(*lists) if day in when)) if lists else ()
    if dates:
        return dates
    some = bool(lists) and bool(set.union(*lists))
    raise NoImageryError(
        f"there is no image of the whole area {when} by {cube.model} "
        f"({', '.join(cube.constellations)})",
        hint="Parts of the area have images: allow_partial=True takes them."
        if some and not cube.allow_partial
        else f"Orders of this account here: {', '.join(map(str, others))}."
        if others
        else ("Not every day has an image; a range shows which. " if when.start == when.end else "")
        + f"Does an order of this account cover the time and the area, {_place(cube)}?",
    )


def _place(cube: Cube) -> str:
    west, south, east, north = cube.area.bounds
    return (
        f"longitude {west:.5g} to {east:.5g}, latitude {south:.5g} to {north:.5g} (in this order, "
        "longitude first)"
    )


def days(part: Any) -> set[dt.date]:
    """Give the dates of a sub-area in the date search's answer."""
    try:
        return {dt.date.fromisoformat(str(day)[:10]) for day in listed(part, "Dates")}
    except ValueError:
        raise UnexpectedResponseError("the date search answered with unreadable dates") from None


def listed(part: Any, name: str) -> list[Any]:
    """Give a list out of the service's answer; an absent one is empty."""
    values = part.get(name) if isinstance(part, Mapping) else False
    if values is not None and not isinstance(values, list):
        raise UnexpectedResponseError(f"the service answered with unreadable {name}")
    return values or []


def model_name(value: Any) -> str:
    """Check the ``model`` option; the service has the last word."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidOptionError("model must be a name, e.g. 'Stratus2'")
    return value.strip()


def constellation_names(values: Any) -> tuple[str, ...]:
    """Check the ``constellations`` option."""
    one = isinstance(values, str) or not isinstance(values, Iterable)
    names = (values,) if one else tuple(values)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InvalidOptionError(
            f"constellations={values!r} must be names",
            hint=f"Stratus-2 reads {', '.join(CONSTELLATIONS)}.",
        )
    return tuple(dict.fromkeys(name.strip() for name in names))
