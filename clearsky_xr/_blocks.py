"""The blocks in which a store keeps pixels: squares counted from the corner of its grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ._pixels import PixelSet, Window

#: Side of a block, pixels.
SIDE: Final = 256

#: Row and column of a block.
Block = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a grid.

    Parameters
    ----------
    window : Window
        Of the grid; the blocks at its lower and right edge may be smaller.
    """

    window: Window

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks along (y, x)."""
        height, width = self.window.shape
        return -(-height // SIDE), -(-width // SIDE)

    def number(self, block: Block) -> int:
        """Count a block, row by row, from 0."""
        return block[0] * self.shape[1] + block[1]

    def window_of(self, block: Block) -> Window:
        """Give the pixels of a block."""
        row, col = self.window.row0 + block[0] * SIDE, self.window.col0 + block[1] * SIDE
        return Window(row, row + SIDE, col, col + SIDE) & self.window

    def touched(self, pixels: PixelSet) -> list[Block]:
        """Find the blocks that hold pixels of a set, row by row.

        Parameters
        ----------
        pixels : PixelSet
            Inside the grid.
        """
        row0, row1, col0, col1 = self._range(pixels.window)
        if pixels.mask is None:
            return [(i, j) for i in range(row0, row1) for j in range(col0, col1)]
        above = pixels.window.row0 - self.window.row0 - row0 * SIDE
        left = pixels.window.col0 - self.window.col0 - col0 * SIDE
        frame = np.zeros(((row1 - row0) * SIDE, (col1 - col0) * SIDE), bool)
        height, width = pixels.window.shape
        frame[above : above + height, left : left + width] = pixels.mask
        filled = frame.reshape(row1 - row0, SIDE, col1 - col0, SIDE).any(axis=(1, 3))
        return [(row0 + int(i), col0 + int(j)) for i, j in np.argwhere(filled)]

    def whole(self, blocks: Iterable[Block]) -> PixelSet:
        """Give all pixels of some blocks, at least one."""
        windows = [self.window_of(block) for block in blocks]
        around = Window(
            min(w.row0 for w in windows),
            max(w.row1 for w in windows),
            min(w.col0 for w in windows),
            max(w.col1 for w in windows),
        )
        if sum(w.size for w in windows) == around.size:
            return PixelSet(around)
        mask = np.zeros(around.shape, bool)
        for window in windows:
            mask[around.slices(window)] = True
        return PixelSet(around, mask)

    def _range(self, window: Window) -> tuple[int, int, int, int]:
        row, col = self.window.row0, self.window.col0
        return (
            (window.row0 - row) // SIDE,
            -(-(window.row1 - row) // SIDE),
            (window.col0 - col) // SIDE,
            -(-(window.col1 - col) // SIDE),
        )
