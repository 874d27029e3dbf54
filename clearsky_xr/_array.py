"""The lazy array behind a variable: an index key in, pixels out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from . import _loop
from ._account import process
from ._cube import Cube
from ._fetch import Fetched, fetch
from ._ledger import Bound
from ._notices import on_a_worker, warn
from ._selection import Pointwise, Selection, read_key
from ._settings import SANDBOX, Settings


class ClearSkyArray(BackendArray):
    """Some layers of a cube as an array (time, band, y, x), or (time, y, x) for one.

    It pickles as what it asks for: no pixels, no key, no connection.

    Parameters
    ----------
    cube : Cube
    settings : Settings
    layers : tuple of str, or str
        Those along ``band``; a single one has no such dimension.
    divisor : float or None
        float32 with NaN, numbers divided by it; None is the service's int16.
    """

    __slots__ = ("cube", "dims", "divisor", "dtype", "layers", "settings", "shape")

    def __init__(
        self, cube: Cube, settings: Settings, layers: tuple[str, ...] | str, divisor: float | None
    ) -> None:
        self.cube = cube
        self.settings = settings
        self.layers = layers
        self.divisor = divisor
        self.dtype = np.dtype(np.int16 if divisor is None else np.float32)
        single = isinstance(layers, str)
        self.dims = ("time", "y", "x") if single else ("time", "band", "y", "x")
        self.shape = (len(cube.dates), *(() if single else (len(layers),)), *cube.grid.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cube, self.settings, self.layers, self.divisor)

    def __dask_tokenize__(self) -> Hashable:
        return (
            "clearsky_xr.array",
            self.cube.fingerprint,
            self.settings.base_url,
            self.settings.store,
            self.settings.missing,
            self.layers,
            self.divisor,
        )

    def __repr__(self) -> str:
        return f"<ClearSkyArray {self.dims} {self.shape} {self.dtype} of {self.cube!r}>"

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.VECTORIZED, _Raw(self, key).get
        )

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        return await indexing.async_explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.VECTORIZED, _Raw(self, key).get_async
        )

    def selection(self, key: indexing.ExplicitIndexer) -> Selection:
        """Understand what an index key asks for; nothing is fetched."""
        # xarray turns slices of negative step round; the pixels are the same.
        return _Raw(self, key).select(key.tuple)


def unwrapped(lazy: Any) -> Iterator[Any]:
    """Yield a lazy array and what xarray has wrapped in it, outermost first."""
    while lazy is not None:
        yield lazy
        lazy = getattr(lazy, "array", None)


def origin(lazy: Any) -> ClearSkyArray | None:
    """Look for our array under xarray's wrappers."""
    return next((array for array in unwrapped(lazy) if isinstance(array, ClearSkyArray)), None)


#: Cubes that were opened last, by the name that their Datasets carry.
_opened: OrderedDict[str, tuple[Cube, Settings]] = OrderedDict()
_MOST_OPENED: Final = 1000


def remember_opened(cube: Cube, settings: Settings) -> str:
    """Give a name by which `opened` finds a cube again, also when its pixels are loaded."""
    name = f"clearsky:{cube.fingerprint}"
    if settings.store is not None:
        name += f"@{settings.store.digest}-{settings.missing}"
    _opened[name] = (cube, settings)
    _opened.move_to_end(name)
    while len(_opened) > _MOST_OPENED:
        _opened.popitem(last=False)
    return name


def opened(name: object) -> tuple[Cube, Settings] | None:
    """Find a cube by its name; None if this process has not opened it, or long ago."""
    return _opened.get(name) if isinstance(name, str) else None


class _Raw:
    """What xarray calls with the raw key, which no longer tells of which kind it was."""

    def __init__(self, array: ClearSkyArray, key: indexing.ExplicitIndexer) -> None:
        self._array = array
        self._pointwise = isinstance(key, indexing.VectorizedIndexer)

    def get(self, key: tuple[Any, ...]) -> NDArray[Any]:
        selection = self.select(key)
        _warn_if_alone(self._array.settings)
        return _heard(_loop.run(self._fetch(selection, process().bound())))

    async def get_async(self, key: tuple[Any, ...]) -> NDArray[Any]:
        selection = self.select(key)
        return _heard(await _loop.join(self._fetch(selection, process().bound())))

    def select(self, key: tuple[Any, ...]) -> Selection:
        array = self._array
        if isinstance(array.layers, str):
            # A single layer has no dimension: an index that drops it.
            depth = max((k.ndim for k in key if isinstance(k, np.ndarray)), default=0)
            one = np.zeros((1,) * depth, np.intp) if self._pointwise and depth else 0
            key = (key[0], one, *key[1:])
        rows, cols = array.cube.grid.shape
        shape = (len(array.cube.dates), len(_tuple(array.layers)), rows, cols)
        return read_key(Pointwise(key) if self._pointwise else key, shape)

    async def _fetch(self, selection: Selection, bound: Bound) -> Fetched:
        array = self._array
        return await fetch(
            array.cube, array.settings, _tuple(array.layers), selection, array.divisor,
            bound=bound,
        )  # fmt: skip


# The process has been told already.
_told = False


def _warn_if_alone(settings: Settings) -> None:
    """Say once that a worker of a Dask cluster knows nothing of the others."""
    global _told  # noqa: PLW0603  once per process is the point
    if _told or settings.missing != "buy" or settings.base_url == SANDBOX:
        return
    if on_a_worker() and process().link is None:
        _told = True
        warn(
            "each worker of this Dask cluster keeps the account's limit of connections and all "
            "budgets for itself. Call clearsky_xr.cluster.setup(client) once to let them hold for "
            "the cluster"
        )


def _tuple(layers: tuple[str, ...] | str) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else layers


def _heard(fetched: Fetched) -> NDArray[Any]:
    for notice in dict.fromkeys(fetched.notices):
        warn(notice)
    return fetched.values
