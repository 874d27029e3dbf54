"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from typing import Final

from .errors import ClearSkyWarning

_INSIDE: Final = ("clearsky_xr", "xarray", "dask")


def warn(message: str) -> None:
    """Warn, naming the innermost line outside of this package, xarray and Dask."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001  as warnings itself does
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    # On a worker of a Dask cluster nobody looks: its clients are told as well.
    worker = sys.modules.get("distributed.worker")
    tell = getattr(worker, "warn", warnings.warn)
    tell(message, ClearSkyWarning, stacklevel=level)


def on_a_worker() -> bool:
    """Say whether the code that runs is a task in another process than its Dask client."""
    # It may also be in the middle of being imported.
    find = getattr(sys.modules.get("distributed.worker"), "get_worker", None)
    if find is None:
        return False
    try:
        return not str(find().address).startswith("inproc://")
    except ValueError:
        return False


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in _INSIDE
