"""Where the values of a selection are gathered, masked and scaled."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ._layers import NODATA, fill_in
from ._pixels import PixelSet
from ._purchase import Packed
from ._selection import Tile

# Rows are decoded and scaled together up to so many bytes of int16, which then are still
# in the processor's cache; tiled answers have 256 rows of 10 bands.
_STRIP: Final = 4 * 2**20

_scratch = threading.local()


class Part(Protocol):
    """Pixels of one date, wherever they come from."""

    @property
    def pixels(self) -> PixelSet:
        """The pixels, on the lattice."""

    @property
    def exact(self) -> bool:
        """Whether all else on the window of the pixels is nodata."""

    def values(self, names: tuple[str, ...]) -> NDArray[np.int16]:
        """Give layers (layers, y, x) on the window of the pixels; to be called in a thread."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where values are gathered.

    Parameters
    ----------
    values : ndarray, shape (dates, layers, ...pixels)
        int16, or float32 with NaN.
    names : tuple of str
        Its layers.
    divisor : float or None
        What numbers are divided by; None leaves the service's int16 as they are.
    """

    values: NDArray[Any]
    names: tuple[str, ...]
    divisor: float | None

    def clear(self, k: int, tile: Tile) -> None:
        """Say that a tile has no pixel of the area."""
        self.values[k][(slice(None), *tile.target)] = self._nothing

    def place(self, k: int, tile: Tile, wanted: PixelSet, parts: Sequence[Part]) -> None:
        """Put the pixels of parts where the selection wants them."""
        window, names = tile.pixels.window, self.names
        decoded = [(part.pixels, part.values(names)) for part in parts]
        single = len(decoded) == 1 and wanted.window in decoded[0][0].window
        if single and wanted.window == window and (wanted.mask is None or parts[0].exact):
            pixels, values = decoded[0]
            frame = values[(slice(None), *pixels.window.slices(window))]
        else:
            frame = np.full((len(names), *window.shape), NODATA, np.int16)
            fill_in(frame, window, wanted, decoded)
        numbers = frame[(slice(None), *tile.source)]
        # In two steps: numpy moves the axes of an array index beside an integer.
        target = self.values[k]
        place = (slice(None), *tile.target)
        if self.divisor is None:
            target[place] = numbers
        elif isinstance(tile.target[0], slice):
            self._scale(numbers, target[place])
        else:
            scaled = np.empty(numbers.shape, np.float32)
            self._scale(numbers, scaled)
            target[place] = scaled

    def seat(self, k: int, tile: Tile, wanted: PixelSet, layers: tuple[str, ...]) -> Seat | None:
        """Give the place of a date's pixels, if an answer of these layers fits in as it is."""
        fits = self.names == layers and _is_whole(tile)
        return Seat(self, k, tile, wanted) if fits else None

    @property
    def _nothing(self) -> float:
        return NODATA if self.divisor is None else np.nan

    def _scale(self, numbers: NDArray[np.int16], out: NDArray[np.float32]) -> None:
        assert self.divisor is not None
        np.divide(numbers, np.float32(self.divisor), out=out)
        out[numbers == NODATA] = np.nan


@dataclass(slots=True, eq=False)
class Seat:
    """The place of one date's pixels, into which they may be decoded without a detour.

    Attributes
    ----------
    taken : bool
        Whether they are there.
    """

    _output: Output
    _k: int
    _tile: Tile
    _wanted: PixelSet
    taken: bool = field(default=False, init=False)

    def fits(self, pixels: PixelSet) -> bool:
        """Say whether an answer with these pixels can be put in as it is."""
        return pixels.window == self._wanted.window

    def take(self, image: Packed) -> None:
        """Decode an answer into the place; to be called in a thread."""
        output, window, wanted = self._output, self._tile.pixels.window, self._wanted
        target = output.values[self._k][(slice(None), *self._tile.target)]
        if wanted.window != window:
            target[...] = output._nothing  # noqa: SLF001  two halves of one thing
            target = target[(slice(None), *window.slices(wanted.window))]
        layers, height, width = target.shape
        step = max(1, _STRIP // (2 * layers * width))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            out = target[:, rows]
            raw = out if output.divisor is None else _borrow(out.shape)
            image.read_into(raw, start)
            if wanted.mask is not None:
                raw[:, ~wanted.mask[rows]] = NODATA
            if output.divisor is not None:
                output._scale(raw, out)  # noqa: SLF001
        self.taken = True


def _is_whole(tile: Tile) -> bool:
    """Say whether the tile's window lies in the output as it is, without gaps."""
    whole = all(
        isinstance(source, slice) and (source.start, source.stop) == (0, length)
        for source, length in zip(tile.source, tile.pixels.window.shape, strict=False)
    )
    return whole and len(tile.target) == 2 and all(isinstance(t, slice) for t in tile.target)


def _borrow(shape: tuple[int, ...]) -> NDArray[np.int16]:
    """Give room that this thread uses again and again: fresh memory is zeroed page by page."""
    size = int(np.prod(shape))
    room: NDArray[np.int16] | None = getattr(_scratch, "room", None)
    if room is None or room.size < size:
        room = _scratch.room = np.empty(max(size, _STRIP // 2), np.int16)
    return room[:size].reshape(shape)
