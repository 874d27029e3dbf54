"""What of a Dataset becomes bands of int16, on which rectangle, and at which scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ._bands import BANDS, INDICES
from ._cog import Layer
from ._cube import Cube
from ._layers import INDEX, NODATA, REFLECTANCE
from ._pixels import Window
from .errors import InputError


@dataclass(frozen=True, slots=True)
class Variable:
    """What becomes one or more bands of each file.

    Parameters
    ----------
    name : str
        Of the variable.
    divisor : float
        The file's numbers are the values times this.
    layers : tuple of Layer
    """

    name: str
    divisor: float
    layers: tuple[Layer, ...]


def rectangle(dataset: xr.Dataset, cube: Cube) -> Window:
    """Give the lattice window of a Dataset's pixels.

    Raises
    ------
    InputError
        They are scattered, turned round, or have gaps.
    """
    size = cube.grid.resolution
    edges = []
    for axis, sign in (("y", -1), ("x", 1)):
        if axis not in dataset.dims or dataset[axis].dims != (axis,):
            raise InputError(
                f"the Dataset has no dimension {axis}: only rectangles of pixels become GeoTIFFs",
                hint="Select with slices: ds.isel(y=slice(0, 50), x=slice(0, 50)).",
            )
        places = np.floor(sign * dataset[axis].values / size).astype(int)
        if not places.size or (np.diff(places) != 1).any():
            raise InputError(
                f"the pixels along {axis} are no unbroken row of the cube",
                hint="Select with slices of step 1; ds.sortby turns an axis round. For other grids "
                "use rio.to_raster.",
            )
        edges += [int(places[0]), int(places[-1]) + 1]
    return Window(*edges)


def variable_of(dataset: xr.Dataset, name: str, cube: Cube) -> Variable:
    """Find out how a variable is written."""
    array = dataset[name]
    free = [str(dim) for dim in array.dims if dim not in ("time", "y", "x")]
    needed = {"y", "x", *(["time"] if "time" in dataset.dims else [])}
    if not needed <= set(array.dims) or free not in ([], ["band"]):
        raise InputError(
            f"the variable {name!r} has the dimensions {array.dims}, not (time, y, x) or "
            "(time, band, y, x)",
            hint=f"Leave it out: ds.drop_vars({name!r}).",
        )
    divisor = _divisor(array, name, cube)
    if name != "reflectance" and not free:
        named = str(array.attrs.get("long_name", ""))
        tags = {"long_name": named} if named else {}
        return Variable(name, divisor, (Layer(name, 1 / divisor, tags),))
    if "band" not in array.coords:
        raise InputError(f"the bands of {name!r} have no names: its coordinate band is gone")
    bands = [str(band) for band in np.atleast_1d(array["band"].values)]
    prefix = "" if name == "reflectance" else f"{name}_"
    return Variable(
        name, divisor, tuple(Layer(prefix + band, 1 / divisor, _about(band)) for band in bands)
    )


def _about(band: str) -> dict[str, str]:
    """Give the tags of a band."""
    known = BANDS.get(band)
    if known is None:
        return {}
    return {
        "common_name": known.common_name,
        "wavelength_nm": f"{known.wavelength:g}",
        "bandwidth_nm": f"{known.bandwidth:g}",
    }


def _divisor(array: xr.DataArray, name: str, cube: Cube) -> float:
    """Find out what a variable's values are multiplied with, so that int16 holds them."""
    packing = {**array.attrs, **array.encoding}
    if "scale_factor" in packing and not packing.get("add_offset"):
        exact = 1 / float(packing["scale_factor"])
        return float(round(exact)) if abs(exact - round(exact)) < 1e-6 * exact else exact
    # Arithmetic drops the encoding, and what keeps its name keeps its scale.
    if name == "reflectance":
        return REFLECTANCE
    if name in INDICES or name in dict(cube.indices):
        return INDEX
    raise InputError(
        f"it is not known how the variable {name!r} is to be written as int16",
        hint=f'Say so: ds[{name!r}].encoding["scale_factor"] = 0.0001; or leave it out.',
    )


def counts_of(values: NDArray[Any], divisor: float, what: str) -> NDArray[np.int16]:
    """Turn values into the service's numbers: what it has sent comes out as it came."""
    if np.issubdtype(values.dtype, np.integer):
        counts, nothing = values, values == NODATA
    else:
        counts = np.rint(values * values.dtype.type(divisor))
        nothing = np.isnan(counts)
    if (np.abs(np.where(nothing, 0, counts)) > -NODATA - 1).any():
        raise InputError(
            f"{what} has values that int16 cannot hold at a scale of 1/{divisor:g}",
            hint="Clip them, or write the variable with rio.to_raster.",
        )
    return np.where(nothing, NODATA, counts).astype(np.int16)
