"""Windows and pixel sets: which pixels of the global lattice, in whole numbers.

The lattice of a CRS and a resolution has its pixel edges on the multiples of the
resolution. Column ``c`` lies between ``x = c * resolution`` and
``(c + 1) * resolution``; row ``r`` between ``y = -r * resolution`` and
``-(r + 1) * resolution``, so that rows grow southwards as in every raster. Axis
order is always (y, x): rows first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of lattice pixels: rows [row0, row1), columns [col0, col1)."""

    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.row1 - self.row0, self.col1 - self.col0

    @property
    def size(self) -> int:
        """Number of pixels; 0 for an empty window."""
        height, width = self.shape
        return max(height, 0) * max(width, 0)

    def __and__(self, other: Window) -> Window:
        return Window(
            max(self.row0, other.row0),
            min(self.row1, other.row1),
            max(self.col0, other.col0),
            min(self.col1, other.col1),
        )

    def __contains__(self, other: Window) -> bool:
        return (
            self.row0 <= other.row0
            and other.row1 <= self.row1
            and self.col0 <= other.col0
            and other.col1 <= self.col1
        )

    def __str__(self) -> str:
        return f"rows {self.row0}:{self.row1}, columns {self.col0}:{self.col1}"

    def slices(self, inner: Window) -> tuple[slice, slice]:
        """Give the (y, x) slices that cut `inner` out of an array of this window."""
        return (
            slice(inner.row0 - self.row0, inner.row1 - self.row0),
            slice(inner.col0 - self.col0, inner.col1 - self.col0),
        )

    def shifted(self, rows: int, cols: int) -> Window:
        """Move the window."""
        return Window(self.row0 + rows, self.row1 + rows, self.col0 + cols, self.col1 + cols)

    def halves(self, lattice: int = 1, corner: tuple[int, int] = (0, 0)) -> tuple[Window, Window]:
        """Cut the longer side in two, on a multiple of `lattice` where there is one inside.

        Multiples are counted from `corner`, (row, column).
        """
        height, width = self.shape
        if height >= width:
            cut = _cut(self.row0, self.row1, lattice, corner[0])
            return (
                Window(self.row0, cut, self.col0, self.col1),
                Window(cut, self.row1, self.col0, self.col1),
            )
        cut = _cut(self.col0, self.col1, lattice, corner[1])
        return (
            Window(self.row0, self.row1, self.col0, cut),
            Window(self.row0, self.row1, cut, self.col1),
        )


def _cut(start: int, stop: int, lattice: int, origin: int) -> int:
    middle = (start + stop) // 2
    aligned = origin + round((middle - origin) / lattice) * lattice
    return aligned if start < aligned < stop else middle


@dataclass(frozen=True, slots=True, eq=False)
class PixelSet:
    """The pixels wanted of one date: a window, and a mask where not all of it is wanted.

    Parameters
    ----------
    window : Window
    mask : ndarray of bool, shape ``window.shape`` (y, x), or None
        None means every pixel of the window.
    """

    window: Window
    mask: Mask | None = None

    def __len__(self) -> int:
        return self.window.size if self.mask is None else int(np.count_nonzero(self.mask))

    def same(self, other: PixelSet) -> bool:
        """Say whether two sets hold the same pixels in the same window."""
        return self is other or (
            self.window == other.window and bool(np.array_equal(self.dense, other.dense))
        )

    @property
    def dense(self) -> Mask:
        """The mask as an array, also where it is None."""
        return np.ones(self.window.shape, bool) if self.mask is None else self.mask

    def tight(self) -> PixelSet | None:
        """Shrink the window to the pixels; None if there are none."""
        if self.mask is None:
            return self if self.window.size else None
        rows, cols = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return None
        window = Window(
            self.window.row0 + int(rows[0]),
            self.window.row0 + int(rows[-1]) + 1,
            self.window.col0 + int(cols[0]),
            self.window.col0 + int(cols[-1]) + 1,
        )
        return self.crop(window)

    def crop(self, window: Window) -> PixelSet:
        """Keep what lies in `window`, which becomes the window; it must lie inside this one."""
        if self.mask is None:
            return PixelSet(window)
        mask = self.mask[self.window.slices(window)]
        return PixelSet(window, None if mask.all() else mask)

    def without(self, other: PixelSet) -> PixelSet | None:
        """Give the pixels of this set that are not in `other`; None if there are none."""
        shared = self.window & other.window
        if not shared.size:
            return self
        if other.mask is None and self.window in other.window:
            return None
        mask = self.dense.copy()
        view = mask[self.window.slices(shared)]
        view &= ~other.dense[other.window.slices(shared)]
        return PixelSet(self.window, mask).tight()

    def split(self, lattice: int = 1, corner: tuple[int, int] = (0, 0)) -> Iterator[PixelSet]:
        """Yield the non-empty halves of the set, cut across its longer side."""
        for half in self.window.halves(lattice, corner):
            if (part := self.crop(half).tight()) is not None:
                yield part
