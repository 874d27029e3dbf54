"""A variable that hands selections down to the cube, also when Dask is between them.

Dask hands one selection down to the array that it was made from. A second one
(``ds.sel(band="B8").isel(x=3, y=4)``) and a selection of points it applies to
whole chunks, and every pixel of those chunks would be paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import xarray as xr
from xarray.core.indexing import ImplicitToExplicitIndexingAdapter, OuterIndexer

from ._array import ClearSkyArray, origin, unwrapped
from ._interrupt import watch_dask
from ._notices import warn
from ._plan import MINIMUM

# Bytes of a chunk of scattered points: Dask's own default size.
_CHUNK_BYTES: Final = 128 * 2**20


class CubeVariable(xr.Variable):
    """A variable of a cube: its indexing and rechunking ask the cube for less.

    It has no state of its own: as long as its Dask array is fresh from the cube,
    the lazy array is found in the graph. The Dask arrays are plain ones, and what
    any other operation gives is a plain `xarray.Variable`.
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> Self:
        lazy = _behind(self._data)
        if lazy is None:
            return super().__getitem__(key)
        taken = xr.Variable(self.dims, lazy)[key]
        if not taken.size:
            return super().__getitem__(key)
        array: Any = self._data
        chunks = {
            dim: max(sizes)
            for dim, sizes in zip(self.dims, array.chunks, strict=True)
            if len(sizes) > 1
        }
        if "time" in taken.dims and not set(taken.dims) <= set(self.dims):
            # All points of a date are one request, so only dates are divided.
            chunks = {"time": _dates_in(taken)}
        data = _dask_array(
            taken._data,
            tuple(min(n, chunks.get(dim, n)) for dim, n in taken.sizes.items()),
            array.name,
        )
        return self._replace(dims=taken.dims, data=data)

    def chunk(self, *args: Any, **kwargs: Any) -> Self:
        """Turn into a Dask array, or cut one anew, as `xarray.Variable.chunk` does.

        xarray names the chunks of ``open_dataset(area, chunks={})`` after the
        arguments alone: when the date search finds other dates, a live cluster
        would answer with the pixels of the old ones. Here the names follow what
        the cube asks for.
        """
        plain = super().chunk(*args, **kwargs)
        behind = _behind(self._data)
        lazy = self._data if origin(self._data) else behind
        if lazy is None or plain.data is self._data:
            return plain
        if behind is not None and _finer(plain, self):
            return plain  # smaller windows would cost more than cutting what one window brings
        if behind is None:
            _warn_of_small_windows(plain, origin(self._data))
        name = getattr(self._data, "name", plain.data.name)
        return plain._replace(data=_dask_array(lazy, plain.data.chunks, name))


def decode(encoded: xr.Dataset, decoders: Mapping[str, Any]) -> xr.Dataset:
    """Decode a lazy cube's coordinates, and make its variables hand selections down.

    Parameters
    ----------
    encoded : xarray.Dataset
        Its pixels are masked and scaled as they arrive.
    decoders : mapping
        Options of `xarray.decode_cf`; None is xarray's default.
    """
    given = {name: value for name, value in decoders.items() if value is not None}
    decoded = xr.decode_cf(encoded, mask_and_scale=False, **given)
    names = [name for name in decoded.data_vars if name in encoded.data_vars]
    decoded = decoded.assign(
        {
            name: CubeVariable(v.dims, v._data, v.attrs, v.encoding, fastpath=True)
            for name, v in ((name, decoded[name].variable) for name in names)
        }
    )
    decoded.encoding = encoded.encoding
    return decoded


def _blocks(variable: xr.Variable) -> dict[Any, int]:
    return dict(zip(variable.dims, variable.data.numblocks, strict=True))


def _finer(new: xr.Variable, old: xr.Variable) -> bool:
    """Say whether a date's pixels would be asked for in more pieces than before."""
    before = _blocks(old)
    return any(n > before[dim] for dim, n in _blocks(new).items() if dim != "time")


def _warn_of_small_windows(variable: xr.Variable, array: ClearSkyArray | None) -> None:
    """Warn of chunks of which each costs the smallest charge for less than it pays for."""
    sizes = dict(zip(variable.dims, variable.data.chunksize, strict=True))
    pieces = _blocks(variable).get("y", 1) * _blocks(variable).get("x", 1)
    if array is None or pieces == 1 or not {"y", "x"} <= set(sizes):
        return
    km2 = sizes["y"] * sizes["x"] * (array.cube.grid.resolution / 1000) ** 2
    if km2 < 10 * MINIMUM:
        warn(
            f"chunks of {sizes['y']} x {sizes['x']} px are requests of {MINIMUM} credits each, "
            f"{pieces * MINIMUM:.2f} for each date of the whole. Larger chunks cost less: "
            "chunks={} chooses them"
        )


def buys_whole_chunks(variable: xr.Variable) -> bool:
    """Say whether a Dask variable hangs on a cube that its indexing can no longer ask for less."""
    if isinstance(variable, CubeVariable) and _behind(variable._data) is not None:
        return False
    layers = variable.data.dask.layers
    return any(
        origin(layer[name]) is not None
        for name, layer in layers.items()
        if name.startswith("original-") and name in layer
    )


def behind(variable: xr.Variable) -> ClearSkyArray | None:
    """Find the cube's array of which a variable is a selection, lazy or fresh from Dask."""
    return origin(variable._data) or origin(_behind(variable._data))


def _behind(data: Any) -> Any:
    """Find the lazy array that a Dask array was made from, if nothing else was done to it."""
    layers = getattr(getattr(data, "dask", None), "layers", {})
    key = f"original-{getattr(data, 'name', None)}"
    if key not in layers:
        return None
    lazy = layers[key][key].array
    return lazy if origin(lazy) else None


def _dask_array(lazy: Any, chunks: Any, name: str) -> Any:
    """Make a Dask array, named after an earlier one and by what it asks the cube for."""
    import dask.array as da
    from dask.base import tokenize

    watch_dask()
    keys = [getattr(getattr(array, "key", None), "tuple", None) for array in unwrapped(lazy)]
    asked = [origin(lazy), chunks, *keys]
    return da.from_array(  # type: ignore[no-untyped-call]
        ImplicitToExplicitIndexingAdapter(lazy, OuterIndexer),
        chunks,
        name=f"{name.rpartition('-')[0]}-{tokenize(asked)}",
        meta=np.empty((0,) * lazy.ndim, lazy.dtype),
    )


def _dates_in(points: xr.Variable) -> int:
    rest: int = points.size // points.sizes["time"]
    return max(1, int(_CHUNK_BYTES // (rest * points.dtype.itemsize)))
