"""Which pixels of a window belong to an area."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray

from ._area import Area
from ._grid import TOLERANCE
from ._pixels import Mask, PixelSet, Window

# Sides of the squares that are tested as a whole before they are divided, pixels.
# Each divides the one before: most of an area is settled in a few coarse squares.
SIDE: Final = 512
_SIDES: Final = (SIDE, 64, 8, 1)
_OUT, _IN, _CUT = 0, 1, 2

# GEOS builds the index of a prepared polygon on first use, which is not safe
# when two threads come first.
_lock = threading.Lock()


def select(
    outline: Area, window: Window, resolution: int, *, contained: bool = False
) -> PixelSet | None:
    """Give the pixels of a window that belong to an area.

    Parameters
    ----------
    outline : shapely.Polygon or MultiPolygon
        The area in the CRS of the lattice, metres.
    window : Window
    resolution : int
        Metres.
    contained : bool, default False
        Take the pixels that lie wholly inside, instead of all that share some
        surface with the area. A hair more or less (`TOLERANCE`) is let pass.

    Returns
    -------
    PixelSet or None
        With a window shrunk to the pixels; None if there are none.
    """
    height, width = window.shape
    with _lock:
        shapely.prepare(outline)
        above = max(height, width)
        # First as a whole: of a large area most windows lie inside.
        state = _classify(outline, window, resolution, np.zeros((1, 2), int), above)[:, None]
        for side in _SIDES:
            cut = state == _CUT
            if not cut.any():
                break
            if side >= above and side != 1:
                continue
            state = _finer(state, window, above, side)
            cut = np.argwhere(state == _CUT)
            state[cut[:, 0], cut[:, 1]] = _classify(outline, window, resolution, cut, side)
            above = side
    met: Mask = state == _IN if contained else state != _OUT
    if met.all():
        return PixelSet(window)
    return PixelSet(window, _finer(met, window, above, 1)).tight() if met.any() else None


def _finer(cells: NDArray[Any], window: Window, above: int, side: int) -> NDArray[Any]:
    """Divide squares into smaller ones."""
    height, width = window.shape
    factor = -(-above // side)
    rows, cols = -(-height // side), -(-width // side)
    return cells.repeat(factor, 0).repeat(factor, 1)[:rows, :cols]


def _classify(
    outline: Area, window: Window, resolution: int, cells: np.ndarray, side: int
) -> np.ndarray:
    """Say of squares of `side` pixels whether they lie out, in, or across the edge."""
    row0, col0 = window.row0 + cells[:, 0] * side, window.col0 + cells[:, 1] * side
    row1 = np.minimum(row0 + side, window.row1)
    col1 = np.minimum(col0 + side, window.col1)
    squares = shapely.box(
        (col0 + TOLERANCE) * resolution,
        -(row1 - TOLERANCE) * resolution,
        (col1 - TOLERANCE) * resolution,
        -(row0 + TOLERANCE) * resolution,
    )
    met = shapely.intersects(outline, squares)
    found = np.where(met, _CUT, _OUT).astype(np.uint8)
    found[met] = np.where(shapely.covers(outline, squares[met]), _IN, _CUT)
    return found


def _after_fork() -> None:
    """Renew the lock: a thread that held it does not exist in the child."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
