"""Values at points: one small request a date, however the cube was opened."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import NDArray

from ._grid import from_lonlat
from ._notices import warn
from ._variable import buys_whole_chunks
from .errors import InputError

Sampled = TypeVar("Sampled", xr.Dataset, xr.DataArray)

# What a DataArray is called while it is handled as a Dataset.
_NAMELESS: Final = "<sampled>"
_LON_LAT: Final = (("lon", "lat"), ("longitude", "latitude"))


def sample(obj: Sampled, points: Any) -> Sampled:
    """Take the pixels under points, as lazily as the object is.

    All points of a date are one request, which costs 0.01 credits as long as
    they are few: a cube opened with Dask would otherwise buy every chunk that
    holds a point. This works for objects that were opened, selected from and
    rechunked; after arithmetic whole chunks are bought, and a warning says so.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        With the dimensions ``y`` and ``x`` and a CRS in ``spatial_ref``.
    points : GeoDataFrame, GeoSeries, DataFrame, or array-like of shape (n, 2)
        Points in any CRS; a table with columns ``lon`` and ``lat`` (or
        ``longitude`` and ``latitude``); or pairs of (lon, lat), degrees.

    Returns
    -------
    xarray.Dataset or xarray.DataArray
        As `obj`, with the dimension ``point`` in the place of ``y`` and ``x``,
        and first: (point, time, band). Its labels are the index of the table;
        ``x`` and ``y`` are the centres of the pixels.

    Raises
    ------
    InputError
        Unreadable points, or points outside the grid; nothing is sent.

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox"
    ... )
    >>> points = clearsky_xr.sample(ds, [(15.052, 46.053), (15.057, 46.058)])
    >>> dict(points.sizes)
    {'point': 2, 'time': 4, 'band': 10}
    """
    labels, lonlat = _read_points(points)
    rows, cols = _locate(obj, labels, lonlat)
    whole = obj.to_dataset(name=_NAMELESS) if isinstance(obj, xr.DataArray) else obj
    index = {
        "y": xr.Variable("point", rows),
        "x": xr.Variable("point", cols),
    }
    taken = xr.Dataset(
        {
            name: _take(variable, index, obj.name if isinstance(obj, xr.DataArray) else name)
            for name, variable in whole.data_vars.items()
        },
        attrs=whole.attrs,
    )
    # As values: xarray takes the name of an index for that of a dimension.
    taken = taken.assign_coords(point=("point", labels.to_numpy())).transpose("point", ...)
    taken.encoding = whole.encoding
    if isinstance(obj, xr.DataArray):
        return taken[_NAMELESS].rename(obj.name)
    return taken


def _read_points(points: Any) -> tuple[pd.Index[Any], NDArray[np.float64]]:
    """Give labels, and longitudes and latitudes of shape (n, 2)."""
    if hasattr(points, "to_crs"):
        if points.crs is None:
            raise InputError("the points have no CRS", hint="Say which: points.set_crs(4326).")
        shapes = np.asarray(points.to_crs("EPSG:4326").geometry)
        if not (shapely.get_type_id(shapes) == shapely.GeometryType.POINT).all():
            raise InputError(
                "not all geometries are points", hint="Take points.representative_point()."
            )
        return points.index, shapely.get_coordinates(shapes)
    if isinstance(points, pd.DataFrame | Mapping):
        table = pd.DataFrame(points)
        for lon, lat in _LON_LAT:
            if lon in table and lat in table:
                return table.index, table[[lon, lat]].to_numpy(np.float64)
        raise InputError("the table has no columns 'lon' and 'lat'")
    try:
        pairs = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(
            "cannot read the points",
            hint="Give a GeoDataFrame, a table with lon and lat, or pairs of (lon, lat).",
        )
    return pd.RangeIndex(len(pairs)), pairs


def _locate(
    obj: xr.Dataset | xr.DataArray, labels: pd.Index[Any], lonlat: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the rows and columns of the pixels under points."""
    import odc.geo.xr as _odc  # noqa: F401  gives objects their .odc

    geobox = obj.odc.geobox
    if geobox is None or geobox.crs is None:
        raise InputError(
            "the object has no grid with a CRS",
            hint="It needs x and y of more than one pixel, and spatial_ref.",
        )
    x, y = from_lonlat(lonlat, geobox.crs.to_epsg()).T
    affine = geobox.affine  # north-up: no rotation terms
    cols, rows = np.floor((x - affine.c) / affine.a), np.floor((y - affine.f) / affine.e)
    height, width = geobox.shape
    outside = ~((rows >= 0) & (rows < height) & (cols >= 0) & (cols < width))
    if outside.any():
        some = "; ".join(
            f"{label} at longitude {lon:.6g}, latitude {lat:.6g}"
            for label, (lon, lat) in zip(labels[outside][:5], lonlat[outside][:5], strict=True)
        )
        raise InputError(
            f"{outside.sum()} of {len(labels)} points lie outside the grid: {some}",
            hint="Open an area that holds them all, or leave them out. Are longitude and latitude "
            "in this order?",
        )
    return rows.astype(np.intp), cols.astype(np.intp)


def _take(variable: xr.DataArray, index: dict[str, xr.Variable], name: Hashable) -> xr.DataArray:
    if not {"y", "x"} <= set(variable.dims):
        return variable
    if variable.chunks is not None and buys_whole_chunks(variable.variable):
        warn(
            f"{name!r} was computed from the cube, so that whole Dask chunks are bought "
            "to sample it. Sample first and compute afterwards."
        )
    return variable.isel(index)
