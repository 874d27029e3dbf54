"""The synthetic archive: a landscape that is a pure function of place, day and version."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Final

import numpy as np
from shapely.geometry.base import BaseGeometry

from ._archive import Archive
from ._cover import TILE, Cover, survey
from ._imagery import NATIVE, Block, FloatArray, coarsen
from ._seasons import paint

#: Samples on a side of a coarse pixel. Up to 80 m these are all of its 10 m pixels;
#: beyond, every second, fourth, ... in both directions, since the mean of 16,384
#: pixels for one of 1280 m would buy nothing that anybody could see.
MAX_SAMPLES: Final = 8


#: First digits of the EPSG codes of the southern zones.
SOUTH: Final = 327


class Landscape:
    """Believable farmland without end, and without any claim to be anywhere.

    Parameters
    ----------
    archive : Archive
        Its days.

    Notes
    -----
    Every pixel is made as part of a tile that lies on a fixed lattice, in the same order
    of operations, whatever window asks for it: so windows agree bit for bit.
    """

    label = "synthetic"

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        # About 0.9 MB each: the ground of 1500 px x 1500 px stays at hand between dates.
        self._survey = lru_cache(maxsize=64)(survey)

    def dates(self, area: BaseGeometry) -> Sequence[date]:  # noqa: ARG002  # as Imagery has it
        """Give the days of the archive: the same everywhere."""
        return self._archive.days()

    def has(self, area: BaseGeometry, day: date) -> bool:  # noqa: ARG002  # as Imagery has it
        """Whether the archive has the day."""
        return day in self._archive

    def on_cadence(self, day: date) -> bool:
        """Whether the day is in the archive's rhythm."""
        return self._archive.on_cadence(day)

    def read(self, block: Block, day: date, version: int) -> FloatArray:
        """Make pixels.

        Returns
        -------
        float32 array (10, y, x)
            Reflectance x 10000; NaN is open water. Beyond 10 m the mean of the valid
            samples of each pixel.
        """
        factor = block.resolution // NATIVE
        samples = min(factor, MAX_SAMPLES)
        stride = factor // samples
        out = np.empty((10, block.height, block.width), np.float32)
        south = block.epsg // 100 == SOUTH
        # A tile in pixels of the block.
        size = TILE // samples
        for top in range(block.row // size, (block.row + block.height - 1) // size + 1):
            for left in range(block.col // size, (block.col + block.width - 1) // size + 1):
                corner = (block.epsg, left * TILE * stride, top * TILE * stride, stride)
                row, col = top * size - block.row, left * size - block.col
                y0, y1 = max(row, 0), min(row + size, block.height)
                x0, x1 = max(col, 0), min(col + size, block.width)
                cover = self._survey(*corner)
                rows = slice((y0 - row) * samples, (y1 - row) * samples)
                cols = slice((x0 - col) * samples, (x1 - col) * samples)
                colours = paint(cover.keys, day, version, south=south)
                pixels = _colour(cover, colours, rows, cols)
                out[:, y0:y1, x0:x1] = coarsen(pixels, samples)
        return out


def _colour(
    cover: Cover, colours: tuple[FloatArray, FloatArray], rows: slice, cols: slice
) -> FloatArray:
    """Give the samples (10, y, x) of a part of a tile."""
    base, slope = colours
    index, texture = cover.index[rows, cols], cover.texture[rows, cols]
    out = np.empty((10, *index.shape), np.float32)
    for band in range(10):
        np.take(slope[band], index, out=out[band], mode="clip")
        out[band] *= texture
        out[band] += np.take(base[band], index, mode="clip")
    # Nothing reflects less than one count, and water is no data.
    np.maximum(out, 1, out=out)
    out[:, cover.water[rows, cols]] = np.nan
    return out
