"""How a store lies in Zarr: its arrays, and whether those that are there are as they were made."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ._blocks import SIDE, Blocks
from ._cube import Cube
from ._dates import TIME_UNITS
from ._grid import Grid
from ._layers import NODATA, REFLECTANCE

PIXELS: Final = "reflectance"
RECEIPTS: Final = "receipts/receipt"
#: Dates in one object of ``time``.
DATES: Final = 1024
#: What ``time`` counts from.
EPOCH: Final = dt.date(1970, 1, 1)

# More dates than a store can have: the archive is daily at most.
_MOST_DATES: Final = 100_000
# Codecs that may be in the metadata of a store: none of them can run code.
_CODECS: Final = frozenset({"bytes", "blosc", "zstd", "gzip", "crc32c", "vlen-utf8"})
_KEYS: Final = {"name": "default", "configuration": {"separator": "/"}}


class Odd(Exception):  # noqa: N818  it never reaches a user
    """Something is not as it was made."""


def check_arrays(
    root: Any, cube: Cube, blocks: Blocks, *, declared: int | None = None
) -> dict[str, Any]:
    """Make sure that the arrays of a store are as they were made.

    Parameters
    ----------
    root : zarr.Group
        May hold anything.
    cube : Cube
        That the store keeps.
    blocks : Blocks
    declared : int or None
        How many dates are declared, if arrays may have more: an interrupted step
        has made some of them longer.

    Returns
    -------
    dict of str to zarr.Array
        By name; looked up once, since each look-up waits for Zarr's own thread.

    Raises
    ------
    Odd
        It says what differs.
    Exception
        Whatever Zarr raises on metadata that make no sense.
    """
    bands, (rows, cols) = len(cube.bands), cube.grid.shape
    arrays = {name: _array(root, name) for name in (PIXELS, RECEIPTS, "time", "band", "y", "x")}
    count = arrays["time"].shape[0] if declared is None else declared
    if count > _MOST_DATES:
        raise Odd(f"it has {count} dates")
    expected: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], list[str]]] = {
        PIXELS: (
            "int16", (count, bands, rows, cols), (1, bands, SIDE, SIDE), ["time", "band", "y", "x"]
        ),
        RECEIPTS: (
            "string", (count, *blocks.shape), (1, 1, 1), ["time", "block_y", "block_x"]
        ),
        "time": ("int64", (count,), (DATES,), ["time"]),
        "band": ("string", (bands,), (bands,), ["band"]),
        "y": ("float64", (rows,), (rows,), ["y"]),
        "x": ("float64", (cols,), (cols,), ["x"]),
    }  # fmt: skip
    for name, (dtype, shape, chunks, dims) in expected.items():
        array = arrays[name].metadata.to_dict()
        found = tuple(array["shape"])
        if declared is not None and dims[0] == "time" and len(found) == len(shape):
            found = (min(found[0], count), *found[1:])
        pairs = {
            "type": (str(array["data_type"]), dtype),
            "shape": (found, shape),
            "chunks": (tuple(array["chunk_grid"]["configuration"]["chunk_shape"]), chunks),
            "dimensions": (list(array.get("dimension_names") or ()), dims),
            "keys": (array["chunk_key_encoding"], _KEYS),
        }
        for what, (is_now, was) in pairs.items():
            if is_now != was:
                raise Odd(f"the {what} of its array {name}: {is_now}, was {was}")
        if odd := {codec["name"] for codec in array["codecs"]} - _CODECS:
            raise Odd(f"a codec of its array {name}: {', '.join(map(str, odd))}")
    pixels = arrays[PIXELS]
    if pixels.fill_value != NODATA:
        raise Odd(f"the fill value of its array {PIXELS}: {pixels.fill_value}")
    if pixels.attrs.get("scale_factor") != 1 / REFLECTANCE or "add_offset" in pixels.attrs:
        raise Odd(f"the scale of its array {PIXELS}")
    if arrays["time"].attrs.get("units") != TIME_UNITS:
        raise Odd("the units of its array time")
    return arrays


def _array(root: Any, name: str) -> Any:
    try:
        array = root[name]
    except KeyError:
        array = None
    if not hasattr(array, "dtype"):
        raise Odd(f"it has no array {name}")
    return array


def read_dates(arrays: Mapping[str, Any], grid: Grid, bands: Sequence[str]) -> dict[dt.date, int]:
    """Read where each date lies, once the coordinates are known to be those of the record.

    Parameters
    ----------
    arrays : mapping of str to zarr.Array
        As `check_arrays` gives them.
    grid : Grid
    bands : sequence of str

    Raises
    ------
    Odd
        They are not, or the times are no distinct days.
    Exception
        Whatever Zarr raises on bytes that cannot be decoded.
    """
    axes = grid.geobox.coordinates
    own = {"band": bands, "y": axes["y"].values, "x": axes["x"].values}
    for name, values in own.items():
        if list(arrays[name][:]) != list(values):
            raise Odd(f"its coordinate {name} is not that of its record")
    if arrays["x"].attrs.get("crs") != f"EPSG:{grid.epsg}":
        raise Odd("its CRS is not that of its record")
    days, rest = np.divmod(np.asarray(arrays["time"][:], np.int64), 86400)
    if rest.any() or len(np.unique(days)) != len(days) or (abs(days) > _MOST_DATES).any():
        raise Odd("its times are not distinct days")
    return {EPOCH + dt.timedelta(int(day)): k for k, day in enumerate(days)}
