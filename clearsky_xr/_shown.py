"""What a Dataset still shows of the cube that it was opened from."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ._array import opened
from ._cube import Cube
from ._selection import Pointwise, Selection, read_key
from ._settings import Settings
from ._variable import behind
from .errors import InputError


def cube_of(dataset: xr.Dataset) -> tuple[Cube, Settings]:
    """Find the cube that a Dataset was opened from.

    Raises
    ------
    InputError
        It no longer shows that.
    """
    for variable in dataset.variables.values():
        array = behind(variable)
        if array is not None:
            return array.cube, array.settings
    source = opened(dataset.encoding.get("source"))
    if source is None:
        raise InputError(
            "this Dataset does not come from the engine 'clearsky', or no longer shows it",
            hint="Call .clearsky on what was opened, or on a selection of it.",
        )
    return source


def selection_of(dataset: xr.Dataset, cube: Cube) -> Selection:
    """Read from the coordinates what of the cube is selected.

    Raises
    ------
    InputError
        Coordinates are gone, or are none of the cube's.
    """
    if gone := [name for name in ("time", "y", "x") if name not in dataset.coords]:
        raise InputError(
            f"the coordinate {' and '.join(gone)} is gone",
            hint="Select with isel or sel, which keep it.",
        )
    times, ys, xs = (dataset[name] for name in ("time", "y", "x"))
    where = {date: k for k, date in enumerate(cube.dates)}
    size, window = cube.grid.resolution, cube.grid.window
    try:
        dates = [where[day.astype("datetime64[D]").item()] for day in np.atleast_1d(times.values)]
    except (KeyError, AttributeError):
        raise InputError(
            "the coordinate time has dates that the cube has not",
            hint="Select from what was opened; decode_times=False is not understood here.",
        ) from None
    rows = np.floor(-ys.values / size).astype(int) - window.row0
    cols = np.floor(xs.values / size).astype(int) - window.col0
    inside = (rows >= 0) & (rows < cube.grid.shape[0])
    across = (cols >= 0) & (cols < cube.grid.shape[1])
    if not inside.all() or not across.all():
        raise InputError("the coordinates y and x have pixels that the cube has not")
    shape = (len(cube.dates), len(cube.layers), *cube.grid.shape)
    layers = slice(None)
    if ys.dims and ys.dims == xs.dims:  # points
        first = np.array(dates).reshape(-1, *[1] * ys.ndim)
        return read_key(Pointwise((first, layers, rows[None], cols[None])), shape)
    return read_key((np.array(dates), layers, np.atleast_1d(rows), np.atleast_1d(cols)), shape)
