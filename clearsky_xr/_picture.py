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
    three = xr.concat([_band(dataset, name) for name in bands], "rgba")
    picture: xr.DataArray = xr.apply_ufunc(
        _colours, three,
        input_core_dims=[["rgba"]], output_core_dims=[["rgba"]], exclude_dims={"rgba"},
        kwargs={"vmin": vmin, "vmax": vmax},
        dask="parallelized", output_dtypes=[np.uint8],
        dask_gufunc_kwargs={"output_sizes": {"rgba": 4}, "allow_rechunk": True},
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
    x, y = (_band(dataset, band) for band in (first, second))
    total = x + y
    value: xr.DataArray = (x - y) / total.where(total != 0)
    value.name = name
    value.attrs = {"long_name": f"({first} - {second}) / ({first} + {second})", "units": "1"}
    return value


def _band(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Select a band's reflectance, float32 with NaN, without what only the band knows."""
    if "reflectance" not in dataset or "band" not in dataset["reflectance"].dims:
        raise InvalidBandError(
            "this Dataset has no reflectance with bands",
            hint="Open it with bands=..., and do not select a single band before.",
        )
    cube = dataset["reflectance"]
    (band,) = resolve_bands([name], str(dataset.attrs.get("model", "")))
    own = [str(value) for value in cube["band"].values]
    if band not in own:
        raise InvalidBandError(
            f"the cube has no band {name}, only {', '.join(own)}",
            hint=f'Open it with bands="all" or one that names {band}: bands cost nothing.',
        )
    of_bands = [c for c in cube.coords if "band" in cube[c].dims]
    part = cube.isel(band=own.index(band)).drop_vars(of_bands)
    if np.issubdtype(part.dtype, np.integer):  # opened with mask_and_scale=False
        part = (part.where(part != NODATA) / REFLECTANCE).astype(np.float32)
    return part


def _colours(values: NDArray[Any], *, vmin: float, vmax: float) -> NDArray[np.uint8]:
    """Turn reflectances (..., 3) into colours and opacity (..., 4)."""
    there = np.isfinite(values).all(-1)
    share = (np.where(there[..., None], values, vmin) - vmin) / (vmax - vmin)
    picture = np.zeros((*values.shape[:-1], 4), np.uint8)
    picture[..., :3] = np.rint(255 * np.clip(share, 0, 1))
    picture[..., 3] = np.where(there, 255, 0)
    return picture
