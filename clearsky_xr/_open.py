"""From what a user asks for to a cube, and from a cube to a Dataset."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import shapely
import xarray as xr
from odc.geo.xr import xr_coords
from xarray.core.indexing import LazilyIndexedArray

from . import _loop
from ._account import account
from ._area import resolve_area
from ._array import ClearSkyArray
from ._bands import BANDS, resolve_bands, resolve_indices
from ._client import AccountInfo, search_body
from ._cube import Cube, PixelMode
from ._dates import DateRange, resolve_time
from ._geometry import wkt
from ._grid import resolve_grid
from ._mask import SIDE
from ._pixels import PixelSet
from ._settings import Settings
from .errors import (
    BandLimitError,
    InvalidAreaError,
    InvalidBandError,
    InvalidOptionError,
    NoImageryError,
    UnexpectedResponseError,
)

#: Scale of reflectances and of indices in int16 (contract, section 7.3).
REFLECTANCE: Final = 10000.0
INDEX: Final = 32767.0

#: Inputs of Stratus-2 (contract, section 5.8).
CONSTELLATIONS: Final = ("Sentinel1", "Sentinel2", "Landsat89")

# A chunk's float32 pixels, bytes: Dask's own default size of a chunk.
_CHUNK_BYTES: Final = 128 * 2**20
# A chunk should hold this many dates, so that one task keeps several connections busy.
_CHUNK_DATES: Final = 8
# Side of the chunks of a cube that is too large for one, pixels.
_CHUNK_SIDE: Final = 512


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
    if not str(model).strip():
        raise InvalidOptionError("model must be a name, e.g. 'Stratus2'")
    sources = CONSTELLATIONS if constellations is None else _names(constellations)
    band_ids = resolve_bands(bands, model)
    index_layers = resolve_indices(indices, model)
    if not band_ids and not index_layers:
        raise InvalidBandError("neither bands nor indices were asked for")
    cube = Cube(
        area=where,
        grid=resolve_grid(where, resolution=resolution, crs=crs, like=like),
        dates=() if isinstance(when, DateRange) else when,
        bands=band_ids,
        indices=index_layers,
        model=model.strip(),
        constellations=sources,
        clip=clip,
        pixels=pixels,
        allow_partial=allow_partial,
    )
    window = cube.grid.window
    # Only a small area can lie between the pixels; a large one would take long to look through.
    if max(window.shape) <= SIDE and cube.wanted(PixelSet(window)) is None:
        raise InvalidAreaError(
            f"no pixel of {cube.grid.resolution} m belongs to the area",
            hint='Use pixels="intersect", a finer resolution, or a larger area.',
        )
    info, entries = _loop.run(_ask(settings, cube, when))
    if info.bands is not None and len(cube.layers) > info.bands:
        raise BandLimitError(
            f"{len(cube.layers)} layers are asked for; the account's MaxTotalBands is {info.bands}",
            hint="Ask for fewer bands and indices. Indices can also be computed from bands.",
        )
    if isinstance(when, DateRange):
        cube = _with_dates(cube, _common_dates(entries, cube, when))
    return cube


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


def _with_dates(cube: Cube, dates: tuple[dt.date, ...]) -> Cube:
    return Cube(**{**cube.__getstate__(), "dates": dates})


def _common_dates(
    entries: list[Mapping[str, Any]], cube: Cube, when: DateRange
) -> tuple[dt.date, ...]:
    """Give the dates that every sub-area has (or any, if partial images are allowed)."""
    wanted = (cube.model.lower(), {name.lower() for name in cube.constellations})
    lists: list[set[dt.date]] = []
    others = []
    for entry in entries:
        has = {str(name).lower() for name in entry.get("SatelliteConstellations") or ()}
        if (str(entry.get("Model", "")).lower(), has) == wanted:
            lists += [_days(part) for part in entry.get("DatesByGeog") or ()]
        else:
            others.append(f"{entry.get('Model')} ({', '.join(sorted(has))})")
    joined = set.union if cube.allow_partial else set.intersection
    dates = tuple(sorted(day for day in joined(*lists) if day in when)) if lists else ()
    if dates:
        return dates
    some = bool(lists) and bool(set.union(*lists))
    raise NoImageryError(
        f"there is no image of the whole area from {when.start} to {when.end or 'now'} "
        f"by {cube.model} ({', '.join(cube.constellations)})",
        hint="Parts of the area have images: allow_partial=True takes them."
        if some and not cube.allow_partial
        else f"Orders of this account here: {', '.join(map(str, others))}."
        if others
        else "Does an order of this account cover the area and the time?",
    )


def _days(part: Any) -> set[dt.date]:
    try:
        return {dt.date.fromisoformat(str(day)[:10]) for day in part.get("Dates") or ()}
    except (AttributeError, ValueError):
        raise UnexpectedResponseError("the date search answered with unreadable dates") from None


def _names(values: Any) -> tuple[str, ...]:
    names = tuple([values] if isinstance(values, str) else values)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InvalidOptionError(
            f"constellations={values!r} must be names",
            hint=f"Stratus-2 reads {', '.join(CONSTELLATIONS)}.",
        )
    return tuple(dict.fromkeys(name.strip() for name in names))


def to_dataset(cube: Cube, settings: Settings, info: AccountInfo, *, scaled: bool) -> xr.Dataset:
    """Describe a cube as a lazy, CF-encoded Dataset; nothing is downloaded.

    Parameters
    ----------
    cube : Cube
    settings : Settings
    info : AccountInfo
    scaled : bool
        float32 with NaN, or the service's int16 with its CF attributes.
    """
    variables: dict[str, xr.Variable] = {}
    if cube.bands:
        variables["reflectance"] = _variable(
            cube, settings, cube.bands, REFLECTANCE, scaled=scaled,
            attrs={
                "long_name": "surface reflectance",
                "standard_name": "surface_bidirectional_reflectance",
                "units": "1",
            },
        )  # fmt: skip
    for name, layer in cube.indices:
        x, y = layer.strip("[]").split("_")
        variables[name] = _variable(
            cube, settings, layer, INDEX, scaled=scaled,
            attrs={"long_name": f"({x} - {y}) / ({x} + {y})", "units": "1"},
        )  # fmt: skip
    dataset = xr.Dataset(variables, _coordinates(cube), _attributes(cube, info))
    dataset.encoding["source"] = f"clearsky:{cube.fingerprint}"
    return dataset


def _variable(
    cube: Cube,
    settings: Settings,
    layers: tuple[str, ...] | str,
    divisor: float,
    *,
    scaled: bool,
    attrs: dict[str, Any],
) -> xr.Variable:
    array = ClearSkyArray(cube, settings, layers, divisor if scaled else None)
    packing = {"scale_factor": 1 / divisor, "_FillValue": np.int16(-32768)}
    encoding: dict[str, Any] = {
        "grid_mapping": "spatial_ref",
        "preferred_chunks": preferred_chunks(cube, array.dims),
    }
    if scaled:
        encoding |= {**packing, "dtype": np.dtype(np.int16)}
    else:
        attrs = {**attrs, **packing}
    return xr.Variable(array.dims, LazilyIndexedArray(array), attrs, encoding)


def preferred_chunks(cube: Cube, dims: tuple[str, ...]) -> dict[str, int]:
    """Choose the chunks of ``chunks={}``: several dates, within a memory target.

    The pixels of all layers count, since that is what a request brings.
    """
    height, width = cube.grid.shape
    layers = len(cube.layers)

    def dates(rows: int, cols: int) -> int:
        return max(1, _CHUNK_BYTES // (4 * layers * rows * cols))

    rows, cols = height, width
    if dates(rows, cols) < min(_CHUNK_DATES, len(cube.dates)):
        rows, cols = min(height, _CHUNK_SIDE), min(width, _CHUNK_SIDE)
    sizes = {"time": min(len(cube.dates), dates(rows, cols)), "y": rows, "x": cols}
    return {dim: sizes.get(dim, len(cube.bands)) for dim in dims}


def _coordinates(cube: Cube) -> dict[str, Any]:
    spatial = xr_coords(cube.grid.geobox, crs_coord_name="spatial_ref")
    for axis in ("y", "x"):
        spatial[axis].attrs |= {
            "standard_name": f"projection_{axis}_coordinate",
            "long_name": f"{axis} of the pixel centre",
            "axis": axis.upper(),
            "units": "m",
        }
    epoch = dt.date(1970, 1, 1)
    seconds = np.array([(day - epoch).days * 86400 for day in cube.dates], np.int64)
    coordinates: dict[str, Any] = {
        # As it stands on disk: xarray decodes it, as the user's decode_times says. Whole
        # seconds in int64 can be appended to; days since the first date cannot.
        "time": (
            "time",
            seconds,
            {
                "standard_name": "time",
                "long_name": "UTC day of the image",
                "axis": "T",
                "units": "seconds since 1970-01-01",
                "calendar": "proleptic_gregorian",
            },
        ),
        **{str(name): coordinate for name, coordinate in spatial.items()},
    }
    if cube.bands:
        bands = [BANDS[name] for name in cube.bands]
        coordinates |= {
            "band": ("band", list(cube.bands), {"long_name": "Sentinel-2 band"}),
            "common_name": ("band", [b.common_name for b in bands]),
            "band_name": ("band", [b.name for b in bands]),
            "wavelength": (
                "band",
                np.array([b.wavelength for b in bands], np.float64),
                {"long_name": "centre wavelength", "units": "nm",
                 "standard_name": "sensor_band_central_radiation_wavelength"},
            ),
            "bandwidth": (
                "band",
                np.array([b.bandwidth for b in bands], np.float64),
                {"long_name": "full width of the band", "units": "nm"},
            ),
        }  # fmt: skip
    return coordinates


def _attributes(cube: Cube, info: AccountInfo) -> dict[str, Any]:
    what = f"Cloudless Sentinel-2 time series, {cube.model}"
    source = (
        f"ClearSKY Vision Processing API, model {cube.model} from "
        f"{', '.join(cube.constellations)}: images synthesised by a network, also where the sky "
        "was clear"
    )
    if info.sandbox is not None:
        what = f"SANDBOX, not imagery: {what}"
        source = (
            "clearsky_xr sandbox: SYNTHETIC pixels of an invented landscape"
            if info.sandbox == "synthetic"
            else "clearsky_xr sandbox: pixels of local scenes, not of the service"
        )
    return {
        "Conventions": "CF-1.11",
        "title": what,
        "source": source,
        "institution": "ClearSKY Vision",
        "references": "https://docs.clearsky.vision",
        # Without the time of day, so that equal cubes are equal datasets.
        "history": f"opened with clearsky_xr {version('clearsky-xr')}",
        "geospatial_bounds": shapely.to_wkt(cube.area, rounding_precision=7),
        "geospatial_bounds_crs": "EPSG:4326",
        "model": cube.model,
        "constellations": ",".join(cube.constellations),
        "pixel_selection": f"{cube.pixels}, clip={cube.clip}",
    }
