"""A cube as a lazy, CF-encoded Dataset."""

from __future__ import annotations

import datetime as dt
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from odc.geo.xr import xr_coords
from xarray.core.indexing import LazilyIndexedArray
from xarray.indexes import PandasIndex

from ._array import ClearSkyArray, remember_opened
from ._bands import BANDS
from ._cube import Cube
from ._dates import TIME_UNITS
from ._layers import INDEX, NODATA, REFLECTANCE
from ._record import Origin
from ._settings import Settings

# A chunk's float32 pixels, bytes: Dask's own default size of a chunk.
_CHUNK_BYTES: Final = 128 * 2**20
# Fewest dates in a chunk, which are fetched together: the connections of the service's
# first paid plan (contract, section 9), so that one task keeps them busy. Of more
# connections three quarters, so that two threads do. Not more, since Dask buys whole chunks
# of what is selected after arithmetic: who has more than sixteen connections has more threads.
_CHUNK_DATES: Final = 4
_MOST_DATES: Final = 12
# Side of the chunks of a cube that is too large for one, pixels: up to 16 layers a request
# each. Smaller ones would be more requests, with as much waiting each.
_CHUNK_SIDE: Final = 1024


def to_dataset(
    cube: Cube, settings: Settings, origin: Origin, *, scaled: bool, connections: int | None = None
) -> xr.Dataset:
    """Describe a cube as a lazy, CF-encoded Dataset; nothing is downloaded.

    Parameters
    ----------
    cube : Cube
    settings : Settings
    origin : {"service", "synthetic", "scenes"}
        What the pixels are.
    scaled : bool
        float32 with NaN, or the service's int16 with its CF attributes.
    connections : int, optional
        Of the account, where they are known.
    """
    together = connections or _CHUNK_DATES
    variables: dict[str, xr.Variable] = {}
    if cube.bands:
        variables["reflectance"] = _variable(
            cube, settings, cube.bands, REFLECTANCE, scaled=scaled, together=together,
            attrs={
                "long_name": "surface reflectance",
                "standard_name": "surface_bidirectional_reflectance",
                "units": "1",
            },
        )  # fmt: skip
    for name, layer in cube.indices:
        x, y = layer.strip("[]").split("_")
        variables[name] = _variable(
            cube, settings, layer, INDEX, scaled=scaled, together=together,
            attrs={"long_name": f"({x} - {y}) / ({x} + {y})", "units": "1"},
        )  # fmt: skip
    dataset = xr.Dataset(
        variables, _centres(cube).assign(_coordinates(cube)), _attributes(cube, origin)
    )
    dataset.encoding["source"] = remember_opened(cube, settings)
    return dataset


def _variable(
    cube: Cube,
    settings: Settings,
    layers: tuple[str, ...] | str,
    divisor: float,
    *,
    scaled: bool,
    together: int,
    attrs: dict[str, Any],
) -> xr.Variable:
    array = ClearSkyArray(cube, settings, layers, divisor if scaled else None)
    packing = {"scale_factor": 1 / divisor, "_FillValue": np.int16(NODATA)}
    encoding: dict[str, Any] = {
        "grid_mapping": "spatial_ref",
        # Named as a coordinate, too: plain open_zarr makes the CRS a data variable otherwise.
        "coordinates": "spatial_ref",
        "preferred_chunks": preferred_chunks(cube, array.dims, together),
    }
    if scaled:
        # odc-geo looks for "nodata" before "_FillValue", which is for int16 on disk alone: without
        # it a reprojection fills with reflectances of -32768. xarray writes neither of them.
        encoding |= {**packing, "dtype": np.dtype(np.int16), "nodata": np.nan}
    else:
        attrs = {**attrs, **packing}
    return xr.Variable(array.dims, LazilyIndexedArray(array), attrs, encoding)


def preferred_chunks(cube: Cube, dims: tuple[str, ...], together: int) -> dict[str, int]:
    """Choose the chunks of ``chunks={}``: a few dates of the whole grid, or of squares of it.

    The pixels of all layers count, since that is what a request brings.

    Parameters
    ----------
    cube : Cube
    dims : tuple of str
    together : int
        Requests that may be in flight.
    """
    rows, cols = cube.grid.shape
    most = _CHUNK_BYTES // (4 * len(cube.layers))
    if most < min(_CHUNK_DATES, len(cube.dates)) * rows * cols:
        rows, cols = min(rows, _CHUNK_SIDE), min(cols, _CHUNK_SIDE)
    wanted = min(max(_CHUNK_DATES, -(-3 * together // 4)), _MOST_DATES)
    dates = max(1, min(wanted, most // (rows * cols), len(cube.dates)))
    sizes = {"time": dates, "y": rows, "x": cols}
    return {dim: sizes.get(dim, len(cube.bands)) for dim in dims}


def _centres(cube: Cube) -> xr.Coordinates:
    """Give ``y``, ``x`` and ``spatial_ref``.

    Centres are whole metres, since every resolution is even: so the indexes are ranges, and
    those of a country weigh no more in a pickle than those of a field.
    """
    size, window = cube.grid.resolution, cube.grid.window
    first = {"y": -window.row0 * size - size // 2, "x": window.col0 * size + size // 2}
    spatial = xr_coords(cube.grid.geobox, crs_coord_name="spatial_ref")
    found = xr.Coordinates({"spatial_ref": spatial["spatial_ref"]})
    for axis, step, count in zip("yx", (-size, size), window.shape, strict=True):
        metres = pd.RangeIndex(first[axis], first[axis] + step * count, step, name=axis)
        index = PandasIndex(metres, axis, coord_dtype=np.dtype(np.float64))
        found = found.assign(xr.Coordinates.from_xindex(index))
        found[axis].attrs = {
            **spatial[axis].attrs,
            "standard_name": f"projection_{axis}_coordinate",
            "long_name": f"{axis} of the pixel centre",
            "axis": axis.upper(),
            "units": "m",
        }
    return found


def _coordinates(cube: Cube) -> dict[str, Any]:
    epoch = dt.date(1970, 1, 1)
    seconds = np.array([(day - epoch).days * 86400 for day in cube.dates], np.int64)
    coordinates: dict[str, Any] = {
        # As it stands on disk: xarray decodes it, as the user's decode_times says.
        "time": (
            "time",
            seconds,
            {
                "standard_name": "time",
                "long_name": "UTC day of the image",
                "axis": "T",
                "units": TIME_UNITS,
                "calendar": "proleptic_gregorian",
            },
        ),
    }
    if cube.bands:
        bands = [BANDS[name] for name in cube.bands]
        coordinates |= {
            # Text as objects becomes text of any length on disk: Zarr v3 has no settled type for
            # fixed-length text.
            "band": ("band", np.array(cube.bands, object), {"long_name": "Sentinel-2 band"}),
            "common_name": ("band", np.array([b.common_name for b in bands], object)),
            "band_name": ("band", np.array([b.name for b in bands], object)),
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


def _attributes(cube: Cube, origin: Origin) -> dict[str, Any]:
    what = f"Cloudless Sentinel-2 time series, {cube.model}"
    source = (
        f"ClearSKY Vision Processing API, model {cube.model} from "
        f"{', '.join(cube.constellations)}: images synthesised by a network, also where the sky "
        "was clear"
    )
    if origin != "service":
        what = f"SANDBOX, not imagery: {what}"
        source = (
            "clearsky_xr sandbox: SYNTHETIC pixels of an invented landscape"
            if origin == "synthetic"
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
