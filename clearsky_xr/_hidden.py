"""Whether a lazy array of a cube is hidden in any object: in a closure, an attribute, a list."""

from __future__ import annotations

import pickle
import threading
from itertools import chain
from types import MethodType
from typing import Any, Final

import cloudpickle
import numpy as np
import xarray as xr
from dask.base import is_dask_collection

from ._array import ClearSkyArray
from .errors import PlanIncomplete

# What cannot hold an array of ours. Locks cannot be pickled, either.
_PLAIN: Final = (
    bool, int, float, complex, str, bytes, slice, type(None), np.generic, np.dtype,
    type(threading.Lock()), type(threading.RLock()),
)  # fmt: skip
# How xarray calls the methods that put results in the place of Dask arrays.
_FINALIZERS: Final = ("_dask_postcompute", "_dask_finalize")


class Detector:
    """Says of any object whether a lazy array of a cube is inside, and remembers it."""

    def __init__(self) -> None:
        # By id; the object is kept, so that no other one gets its id.
        self._searched: dict[int, tuple[Any, bool]] = {}

    def __call__(self, value: Any) -> bool:
        """Look into a value, however deep.

        Raises
        ------
        PlanIncomplete
            It cannot be looked into.
        """
        if isinstance(value, _PLAIN):
            return False
        # A graph has many of these, and they are quickly gone through.
        if type(value) in (tuple, list):
            return any(map(self, value))
        if type(value) is dict:
            return any(map(self, chain(value, value.values())))
        if id(value) not in self._searched:
            self._searched[id(value)] = value, _search(value)
        return self._searched[id(value)][1]


def _search(value: Any) -> bool:
    try:
        _Search(_Nowhere(), pickle.HIGHEST_PROTOCOL).dump(value)
    except _Found:
        return True
    except Exception as error:
        raise PlanIncomplete(
            f"what will be bought cannot be told: a task holds a {type(value).__name__} that "
            f"cannot be looked into ({error})",
            hint="There might be a lazy cube in it. Hand the task what can be pickled.",
        ) from error
    return False


class _Search(cloudpickle.Pickler):  # type: ignore[misc]
    """Meets all that a pickle would bring along, also what functions hold."""

    def persistent_id(self, obj: Any) -> object | None:
        """Meet an object before it is pickled; what gets an id is not entered."""
        if isinstance(obj, ClearSkyArray):
            raise _Found
        if isinstance(obj, np.ndarray):
            return None if obj.dtype.hasobject else True
        if not _is_finalizer(obj):
            return True if isinstance(obj, _PLAIN) else None
        # What it is bound to has Dask arrays, but is about to get their results instead.
        owner = obj.__self__
        for variable in owner.variables.values() if isinstance(owner, xr.Dataset) else [owner]:
            if not is_dask_collection(variable) and _search(variable):
                raise _Found
        return True


class _Found(Exception):  # noqa: N818  nothing went wrong
    """Raised to end a search."""


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _is_finalizer(obj: Any) -> bool:
    return (
        isinstance(obj, MethodType)
        and obj.__name__ in _FINALIZERS
        and isinstance(obj.__self__, xr.Dataset | xr.Variable)
    )
