"""Pictures and indices of a cube: made from its own bands, lazily where Dask is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ._bands import resolve_bands, resolve_indices
from ._layers import NODATA, REFLECTANCE
from .errors import InputError, InvalidBandError, InvalidOptionError

#: Bands of true colour.
TRUE_COLOUR: Final = ("red", "green", "blue")
#: Reflectance that is shown white: the vendor's display hint of 2000 counts (contract, 7.3).
BRIGHT: Final = 0.2

# More panels than anybody can look at; each of them buys a date.
_PANELS: Final = 24


def rgb(dataset: xr.Dataset, bands: Sequence[str], vmin: float, vmax: float) -> xr.DataArray:
    """Make a picture; see `ClearSkyAccessor.rgb`."""
    if isinstance(bands, str) or len(bands) != 3:
        raise InvalidOptionError(
            f"bands={bands!r}: a picture needs three bands",
            hint='bands=("nir", "red", "green") shows vegetation in red.',
        )
    if not np.isfinite([vmin, vmax]).all() or vmin >= vmax:
        raise InvalidOptionError(
            f"vmin={vmin} and vmax={vmax} are no range", hint="Reflectances are from 0 to 1."
        )
    picture: xr.DataArray = xr.apply_ufunc(
        _colours, _reflectance(dataset, bands),
        input_core_dims=[["band"]], output_core_dims=[["rgba"]],
        kwargs={"vmin": vmin, "vmax": vmax},
        dask="parallelized", output_dtypes=[np.uint8],
        dask_gufunc_kwargs={"output_sizes": {"rgba": 4}},
    )  # fmt: skip
    picture.name = "rgb"
    picture.attrs = {
        "long_name": f"{', '.join(bands)} from {vmin:g} to {vmax:g}",
        # Whatever is drawn says of itself whether its pixels are synthetic.
        **{name: dataset.attrs[name] for name in ("title", "source") if name in dataset.attrs},
    }
    return picture.assign_coords(rgba=list("rgba"))


def plot_rgb(
    dataset: xr.Dataset, bands: Sequence[str], vmin: float, vmax: float, options: dict[str, Any]
) -> Any:
    """Draw a picture; see `ClearSkyAccessor.plot_rgb`."""
    if find_spec("matplotlib") is None:
        raise InputError(
            "plot_rgb needs matplotlib", hint="Install it: pip install 'clearsky-xr[plot]'."
        )
    picture = rgb(dataset, bands, vmin, vmax)
    count = picture.sizes.get("time", 1)
    if count > _PANELS:
        raise InvalidOptionError(
            f"{count} dates are too many to be looked at, and each of them is bought",
            hint=f"Select up to {_PANELS}: ds.isel(time=slice(None, None, 7)).clearsky.plot_rgb().",
        )
    if "time" in picture.dims and count == 1:
        picture = picture.isel(time=0)
    if "time" in picture.dims:
        options = {"col": "time", "col_wrap": min(4, count), **options}
    drawn = picture.plot.imshow(x="x", y="y", rgb="rgba", **options)
    if hasattr(drawn, "axs"):  # facets
        figure, axes, places = drawn.fig, drawn.axs.flat, drawn.name_dicts.flat
    else:
        figure, axes, places = drawn.axes.figure, [drawn.axes], [picture.coords]
    for ax, place in zip(axes, places, strict=True):
        ax.set_aspect("equal")
        if place is not None and "time" in place:
            ax.set_title(str(np.datetime64(np.asarray(place["time"]).item(), "ns"))[:10])
    title = str(picture.attrs.get("title", ""))
    if title.startswith("SANDBOX"):
        figure.text(0.995, 0.5, title, fontsize="x-small", ha="right", va="center", rotation=90)
    return drawn


def index(dataset: xr.Dataset, wanted: str | Mapping[str, Sequence[str]]) -> xr.DataArray:
    """Compute an index; see `ClearSkyAccessor.index`."""
    chosen = resolve_indices(wanted, str(dataset.attrs.get("model", "")))
    if len(chosen) != 1:
        raise InvalidOptionError("index() computes one index at a time")
    name, layer = chosen[0]
    first, second = layer.strip("[]").split("_")
    value: xr.DataArray = xr.apply_ufunc(
        _difference, _reflectance(dataset, (first, second)),
        input_core_dims=[["band"]], dask="parallelized", output_dtypes=[np.float32],
    )  # fmt: skip
    value.name = name
    value.attrs = {"long_name": f"({first} - {second}) / ({first} + {second})", "units": "1"}
    return value


def _reflectance(dataset: xr.Dataset, names: Sequence[str]) -> xr.DataArray:
    """Select bands, in the order of the names, in one chunk: they come in one request."""
    if "reflectance" not in dataset or "band" not in dataset["reflectance"].dims:
        raise InvalidBandError(
            "this Dataset has no reflectance with bands",
            hint="Open it with bands=..., and do not select a single band before.",
        )
    cube = dataset["reflectance"]
    bands = resolve_bands(list(names), str(dataset.attrs.get("model", "")))
    own = [str(value) for value in cube["band"].values]
    if missing := [band for band in bands if band not in own]:
        raise InvalidBandError(
            f"the cube has no band {', '.join(missing)}, only {', '.join(own)}",
            hint=f'Open it with bands="all", or bands={[*own, *missing]}: bands cost nothing.',
        )
    part = cube.isel(band=[own.index(band) for band in bands])
    return part.chunk(band=-1) if part.chunks is not None else part


def _scaled(values: NDArray[Any]) -> NDArray[np.float32]:
    """Give reflectances, NaN without data, also of what mask_and_scale=False has opened."""
    if not np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32, copy=False)
    return np.where(values == NODATA, np.nan, values / REFLECTANCE).astype(np.float32)


def _difference(values: NDArray[Any]) -> NDArray[np.float32]:
    """Turn reflectances (..., 2) into normalised differences (...)."""
    x, y = np.moveaxis(_scaled(values), -1, 0)
    total = x + y
    nothing = np.full_like(total, np.nan)
    result: NDArray[np.float32] = np.divide(x - y, total, out=nothing, where=total != 0)
    return result


def _colours(values: NDArray[Any], *, vmin: float, vmax: float) -> NDArray[np.uint8]:
    """Turn reflectances (..., 3) into colours and opacity (..., 4)."""
    values = _scaled(values)
    there = np.asarray(np.isfinite(values).all(axis=-1))
    share = (np.where(there[..., None], values, vmin) - vmin) / (vmax - vmin)
    picture = np.zeros((*values.shape[:-1], 4), np.uint8)
    picture[..., :3] = np.rint(255 * np.clip(share, 0, 1))
    picture[..., 3] = np.where(there, 255, 0)
    return picture
