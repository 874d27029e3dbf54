"""What an index key asks of a cube: pixel sets by date, and where their values go.

A key is first reduced to its distinct dates, layers and pixels. Their values are
gathered into an array of shape (dates, layers, ...pixels), and only then put into
the order, with the repetitions, that the key asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ._pixels import PixelSet, Window

Index = NDArray[np.intp]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Pixels that are handled together, for one or more dates.

    Parameters
    ----------
    pixels : PixelSet
        In rows and columns of the grid, counted from its upper left corner.
    dates : tuple of (int, int)
        Position of the date in the cube, and along the gathered array.
    target : tuple
        Index of the pixel axes of the gathered array.
    source : tuple
        Index of an array of the tile's window, shape ``window.shape`` (y, x).
    """

    pixels: PixelSet
    dates: tuple[tuple[int, int], ...]
    target: Key
    source: Key


class Selection(Protocol):
    """A key, understood.

    Attributes
    ----------
    shape : tuple of int
        Of the gathered array: dates, layers, then one or two pixel axes.
    layers : ndarray of int
        Positions of the distinct layers, ascending.
    """

    shape: tuple[int, ...]
    layers: Index

    def tiles(self, most_pixels: int) -> Iterator[Tile]:
        """Yield tiles whose windows hold at most so many pixels."""

    def finish(self, gathered: NDArray[Any]) -> NDArray[Any]:
        """Turn the gathered array into what the key asked for."""


def read_key(key: Key, shape: tuple[int, int, int, int]) -> Selection:
    """Understand an index key of the array (time, layer, y, x).

    Parameters
    ----------
    key : tuple of int, slice or integer ndarray
        Arrays of one dimension each index their own axis (xarray's
        ``OuterIndexer``); arrays of more, or several that belong together, come
        as `Pointwise`.
    shape : tuple of int
        Sizes of (time, layer, y, x).
    """
    points = isinstance(key, Pointwise) and any(isinstance(k, np.ndarray) for k in key[2:])
    return _Points(key, shape) if points else _Box(key, shape)


class Pointwise(tuple[Any, ...]):
    """A key whose arrays are broadcast together (xarray's ``VectorizedIndexer``)."""

    __slots__ = ()


class _Box:
    """Dates x layers x rows x columns."""

    def __init__(self, key: Key, shape: tuple[int, ...]) -> None:
        self._key = key
        axes = [_positions(k, n) for k, n in zip(key, shape, strict=True)]
        distinct = [
            # What a slice names is distinct and in order: sorting it took half of a plan's time.
            (axis, np.arange(len(axis)))
            if isinstance(k, slice) and (k.step is None or k.step > 0)
            else np.unique(axis, return_inverse=True)
            for k, axis in zip(key, axes, strict=True)
        ]
        self._dates, self.layers, self._rows, self._cols = (values for values, _ in distinct)
        self._inverse = [
            inverse.reshape(axis.shape) for axis, (_, inverse) in zip(axes, distinct, strict=True)
        ]
        self.shape: tuple[int, ...] = tuple(len(values) for values, _ in distinct)

    def tiles(self, most_pixels: int) -> Iterator[Tile]:
        dates = tuple((int(date), k) for k, date in enumerate(self._dates))
        if math.prod(self.shape):
            yield from self._divide(slice(0, self.shape[2]), slice(0, self.shape[3]),
                                    dates, most_pixels)  # fmt: skip

    def _divide(
        self, iy: slice, ix: slice, dates: tuple[tuple[int, int], ...], most_pixels: int
    ) -> Iterator[Tile]:
        rows, cols = self._rows[iy], self._cols[ix]
        window = Window(int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1)
        if window.size <= most_pixels or len(rows) * len(cols) == 1:
            y, x = _compact(rows - window.row0), _compact(cols - window.col0)
            mask = None
            if len(rows) * len(cols) != window.size:
                mask = np.zeros(window.shape, bool)
                mask[np.ix_(rows - window.row0, cols - window.col0)] = True
            source = (y, x) if isinstance(y, slice) or isinstance(x, slice) else np.ix_(y, x)
            yield Tile(PixelSet(window, mask), dates, (iy, ix), source)
            return
        height, width = window.shape
        if (height >= width and len(rows) > 1) or len(cols) == 1:
            middle = iy.start + max(1, int(np.searchsorted(rows, window.row0 + _middle(height))))
            middle = min(middle, iy.stop - 1)
            yield from self._divide(slice(iy.start, middle), ix, dates, most_pixels)
            yield from self._divide(slice(middle, iy.stop), ix, dates, most_pixels)
        else:
            middle = ix.start + max(1, int(np.searchsorted(cols, window.col0 + _middle(width))))
            middle = min(middle, ix.stop - 1)
            yield from self._divide(iy, slice(ix.start, middle), dates, most_pixels)
            yield from self._divide(iy, slice(middle, ix.stop), dates, most_pixels)

    def finish(self, gathered: NDArray[Any]) -> NDArray[Any]:
        pointwise = isinstance(self._key, Pointwise)
        bound = [pointwise and isinstance(k, np.ndarray) for k in self._key]
        for axis, inverse in enumerate(self._inverse):
            if inverse.ndim and not bound[axis] and not _is_identity(inverse):
                gathered = gathered.take(inverse, axis=axis)
        if any(bound):  # broadcast dimensions come first in the result
            dates, layers = self._inverse[:2]
            if all(bound[:2]):
                return gathered[dates, layers]
            if bound[0]:
                return gathered[dates]
            return np.moveaxis(gathered[:, layers], range(1, 1 + layers.ndim), range(layers.ndim))
        return gathered[tuple(0 if inverse.ndim == 0 else slice(None) for inverse in self._inverse)]


class _Points:
    """Single pixels, the same on every date or each on a date of its own.

    xarray writes a lazy selection of points with arrays along all axes, of which
    those of dates and layers vary along a dimension of their own: such an axis
    is independent of the points and is kept apart.
    """

    def __init__(self, key: Key, shape: tuple[int, ...]) -> None:
        arrays = {a: k for a, k in enumerate(key) if isinstance(k, np.ndarray)}
        lead = np.broadcast_shapes(*(k.shape for k in arrays.values()))
        wide = {
            a: {d - k.ndim + len(lead) for d, n in enumerate(k.shape) if n != 1}
            for a, k in arrays.items()
        }
        own: dict[int, int | None] = {}  # axis kept apart -> its dimension, if it has one
        for a in (0, 1):
            others = set().union(*(dims for b, dims in wide.items() if b != a))
            if a in arrays and 0 not in lead and len(wide[a]) <= 1 and not wide[a] & others:
                own[a] = next(iter(wide[a]), None)
        dims = [d for d in range(len(lead)) if d not in own.values()]
        spread = [a for a in (2, 3) if a not in arrays]  # one of y and x may be a slice
        free = [_positions(key[a], shape[a]) for a in spread]
        self._points_shape = (*(lead[d] for d in dims), *(len(f) for f in free))

        def point(axis: int) -> Index:
            if axis in spread:
                values = free[0]
            else:
                values = np.broadcast_to(_positions(arrays[axis], shape[axis]), lead)
                first = tuple(slice(None) if d in dims else 0 for d in range(len(lead)))
                values = values[first].reshape([lead[d] for d in dims] + [1] * len(free))
            return np.broadcast_to(values, self._points_shape).ravel()

        def axis(a: int) -> Index:
            return _positions(np.ravel(key[a]) if a in own else key[a], shape[a])

        self._bound = [a in arrays and a not in own for a in (0, 1)]
        self._rows, self._cols = point(2), point(3)
        self._dates, self._date = np.unique(
            point(0) if self._bound[0] else axis(0), return_inverse=True
        )
        self.layers, self._layer = np.unique(
            point(1) if self._bound[1] else axis(1), return_inverse=True
        )
        count = 1 if self._bound[0] else len(self._dates)
        self.shape: tuple[int, ...] = (count, len(self.layers), len(self._rows))
        # Broadcast dimensions come first in the result, then what was sliced, in order.
        self._order: list[tuple[str, int | None]] = [
            *(("lead", d) for d in range(len(lead))),
            *(("slice", a) for a in range(4) if a not in arrays),
        ]
        self._labels: list[tuple[str, int | None]] = [
            *(("lead", own[a]) if a in own else ("slice", a) for a in (0, 1)),
            *(("lead", d) for d in dims),
            *(("slice", a) for a in spread),
        ]

    def tiles(self, most_pixels: int) -> Iterator[Tile]:
        if not math.prod(self.shape):
            return
        if self._bound[0]:
            order = np.argsort(self._date, kind="stable")
            cuts = np.flatnonzero(np.diff(self._date[order])) + 1
            for date, which in zip(self._dates, np.split(order, cuts), strict=True):
                yield from self._divide(which, ((int(date), 0),), most_pixels)
        else:
            dates = tuple((int(date), k) for k, date in enumerate(self._dates))
            yield from self._divide(np.arange(len(self._rows)), dates, most_pixels)

    def _divide(
        self, which: Index, dates: tuple[tuple[int, int], ...], most_pixels: int
    ) -> Iterator[Tile]:
        rows, cols = self._rows[which], self._cols[which]
        window = Window(int(rows.min()), int(rows.max()) + 1, int(cols.min()), int(cols.max()) + 1)
        if window.size <= most_pixels:
            source = (rows - window.row0, cols - window.col0)
            mask = np.zeros(window.shape, bool)
            mask[source] = True
            pixels = PixelSet(window, None if mask.all() else mask)
            yield Tile(pixels, dates, (which,), source)
            return
        height, width = window.shape
        upper = (
            rows < window.row0 + _middle(height)
            if height >= width
            else cols < window.col0 + _middle(width)
        )
        yield from self._divide(which[upper], dates, most_pixels)
        yield from self._divide(which[~upper], dates, most_pixels)

    def finish(self, gathered: NDArray[Any]) -> NDArray[Any]:
        values = gathered.reshape(gathered.shape[:2] + self._points_shape)
        if self._bound[1]:
            layer = self._layer.reshape(self._points_shape)[None, None]
            values = np.take_along_axis(values, layer, axis=1)
        elif not _is_identity(self._layer):
            values = values.take(self._layer, axis=1)
        if not self._bound[0] and not _is_identity(self._date):
            values = values.take(self._date, axis=0)
        # An axis without a dimension of the result holds one value.
        drop = tuple(i for i, label in enumerate(self._labels) if label not in self._order)
        left = [label for label in self._labels if label in self._order]
        return values.squeeze(drop).transpose([left.index(label) for label in self._order])


def _positions(key: Any, size: int) -> Index:
    """Give the positions that an int, a slice or an array names; negative ones counted back."""
    if isinstance(key, slice):
        return np.arange(*key.indices(size))
    values = np.asarray(key, dtype=np.intp)
    if values.size and (values.min() < -size or values.max() >= size):
        raise IndexError(f"index out of range for an axis of {size}")
    return np.where(values < 0, values + size, values)


def _middle(length: int) -> int:
    return (length + 1) // 2


def _compact(positions: Index) -> slice | Index:
    """Write ascending positions as a slice if they have no gaps: slices do not copy."""
    if int(positions[-1]) - int(positions[0]) + 1 == len(positions):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def _is_identity(inverse: Index) -> bool:
    return inverse.ndim == 1 and bool((inverse == np.arange(len(inverse))).all())
