"""Where pixels come from: the seam between the service and its archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

FloatArray = npt.NDArray[np.float32]

#: Pixel size of the archive, metres.
NATIVE: Final = 10


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of pixels on the lattice of one zone and resolution.

    The pixel (col, row) is the square ``col * r <= x <= (col + 1) * r``,
    ``-(row + 1) * r <= y <= -row * r``: columns grow eastwards, rows southwards, and
    every edge lies on a multiple of the resolution (contract, section 13).

    Parameters
    ----------
    epsg : int
        UTM zone, 326zz or 327zz.
    resolution : int
        Metres.
    col, row : int
        The upper left pixel.
    width, height : int
        Pixels.
    """

    epsg: int
    resolution: int
    col: int
    row: int
    width: int
    height: int

    def rows(self, start: int, stop: int) -> Block:
        """Give the strip of rows ``start`` to ``stop`` (exclusive), counted from the top."""
        return Block(
            self.epsg, self.resolution, self.col, self.row + start, self.width, stop - start
        )


class Imagery(Protocol):
    """An archive of dated images.

    Attributes
    ----------
    label : str
        ``"synthetic"`` or ``"scenes"``: what every answer says about its origin.
    """

    label: str

    def dates(self, area: BaseGeometry) -> Sequence[date]:
        """Give the days that have an image somewhere in the area (EPSG:4326), ascending."""

    def has(self, area: BaseGeometry, day: date) -> bool:
        """Whether there is an image of the day somewhere in the area (EPSG:4326)."""

    def on_cadence(self, day: date) -> bool:
        """Whether images of such a day are made at all, sooner or later."""

    def read(self, block: Block, day: date, version: int) -> FloatArray:
        """Read pixels.

        Returns
        -------
        float32 array (10, y, x)
            Reflectance x 10000, not rounded, of the ten Stratus bands in the
            order of ``all``; NaN is no-data.
        """


def coarsen(pixels: FloatArray, factor: int) -> FloatArray:
    """Average square groups of pixels, leaving out no-data.

    Parameters
    ----------
    pixels : float32 array (band, y, x)
        NaN is no-data, in all bands of a pixel alike; y and x are multiples of `factor`.
    factor : int
        Pixels on a side of a group.

    Returns
    -------
    float32 array (band, y / factor, x / factor)
        NaN where a group has no valid pixel.
    """
    if factor == 1:
        return pixels
    bands, height, width = pixels.shape
    groups = (height // factor, factor, width // factor, factor)
    valid = ~np.isnan(pixels[0])
    count = valid.reshape(groups).sum(axis=(1, 3), dtype=np.float32)
    filled = np.where(valid, pixels, np.float32(0))
    # float64 sums, so that the result does not depend on how an array is cut.
    total = filled.reshape(bands, *groups).sum(axis=(2, 4), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = (total / count).astype(np.float32)
    return mean
