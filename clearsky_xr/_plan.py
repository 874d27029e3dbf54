"""From the pixels wanted of a date to the requests that bring them cheapest.

Everything that is assumed about how a download is billed stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ._area import Area
from ._geometry import area_km2, bounds_km2, outline, wkt
from ._pixels import Mask, PixelSet, Window
from .errors import AreaLimitError

#: How a geometry is billed: by its own surface, or by that of its bounding box.
Billing = Literal["geometry", "bbox"]

#: The smallest charge, credits (contract, section 8.2).
MINIMUM: Final = 0.01
#: The most that one request may cost, credits (contract, section 9).
MOST_CREDITS: Final = 2000.0

#: Longest WKT that is sent, characters. The service's limit is not documented; this is
#: some ten thousand scattered pixels.
MOST_TEXT: Final = 2**20

# Splits fall on multiples of this many pixels where they can, so that cubes that
# overlap ask for the same windows, and stores for whole blocks.
_LATTICE: Final = 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may ask for.

    Parameters
    ----------
    pixels : int
        Size of the raster, pixels.
    area_km2 : float
        ``MaxCompositeAreaKm2`` of the account.
    corner : tuple of int
        Row and column from which the places of splits are counted.
    """

    pixels: int
    area_km2: float = float("inf")
    corner: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        # What the smallest charge buys; below it each pixel might become a request of its own.
        if self.area_km2 < 10 * MINIMUM:
            raise AreaLimitError(
                f"the account's MaxCompositeAreaKm2 is {self.area_km2}: too small to buy anything",
                hint="Ask the vendor about the limits of this account.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What one request asks for, whatever the date.

    Parameters
    ----------
    pixels : PixelSet
        Contains what was wanted, and more where more costs the same.
    wkt : str
        The geometry that is sent.
    area_km2 : float
        The surface that is billed.
    credits : float
        The price by the contract's formula.
    unsure : bool
        The price would differ under the other way of billing.
    """

    pixels: PixelSet
    wkt: str
    area_km2: float
    credits: float
    unsure: bool


def credits_for(km2: float) -> float:
    """Give the price of a surface in credits (contract, section 8.2)."""
    return max(MINIMUM, round(km2 * 0.1, 2))


def billed_km2(geometry: Area, billing: Billing) -> float:
    """Give the surface of a geometry that counts for its price, km2."""
    return area_km2(geometry) if billing == "geometry" else bounds_km2(geometry)


def cover(
    pixels: PixelSet, epsg: int, resolution: int, bounds: Bounds, billing: Billing = "geometry"
) -> tuple[Piece, ...]:
    """Choose the requests that bring a pixel set of one date for the least credits.

    Billed by geometry, that is the pixels themselves, as one MultiPolygon, or
    their bounding window where it costs no more; billed by bounding box, the
    rectangles into which recursive cuts divide the set as long as that is
    cheaper. What exceeds the bounds is split.

    Parameters
    ----------
    pixels : PixelSet
        Not empty, with a tight window.
    epsg, resolution : int
        The lattice: UTM zone, and metres.
    bounds : Bounds
    billing : {"geometry", "bbox"}

    Returns
    -------
    tuple of Piece
        Disjoint; together they contain `pixels`.
    """
    if pixels.window.size > bounds.pixels:
        return _split(pixels, epsg, resolution, bounds, billing)
    best = _cheapest(pixels, epsg, resolution, billing)
    too_large = (
        best.area_km2 > bounds.area_km2 or best.credits > MOST_CREDITS or len(best.wkt) > MOST_TEXT
    )
    if too_large and len(best.pixels) > 1:
        return _split(pixels, epsg, resolution, bounds, billing)
    if billing == "bbox" and _could_save(pixels, best):
        parts = tuple(
            piece
            for part in _cut(pixels)
            for piece in cover(part, epsg, resolution, bounds, billing)
        )
        if sum(piece.credits for piece in parts) < best.credits - MINIMUM / 2:
            return parts
    return (best,)


def _cheapest(pixels: PixelSet, epsg: int, resolution: int, billing: Billing) -> Piece:
    """Give the cheaper of the set itself and its bounding window; the window if equal."""
    window = _piece(PixelSet(pixels.window), epsg, resolution, billing)
    if pixels.mask is None or window.credits == MINIMUM:
        return window
    exact = _piece(pixels, epsg, resolution, billing)
    return window if window.credits <= exact.credits else exact


def _piece(pixels: PixelSet, epsg: int, resolution: int, billing: Billing) -> Piece:
    geometry = outline(pixels, epsg, resolution)
    other: Billing = "bbox" if billing == "geometry" else "geometry"
    surface = billed_km2(geometry, billing)
    price = credits_for(surface)
    # The one download whose bill was seen was a rectangle (contract, section 12).
    unsure = pixels.mask is not None and price != credits_for(billed_km2(geometry, other))
    return Piece(pixels, wkt(geometry), surface, price, unsure)


def _split(
    pixels: PixelSet, epsg: int, resolution: int, bounds: Bounds, billing: Billing
) -> tuple[Piece, ...]:
    # Scattered clusters part at their gap; what fills its window is halved on
    # the common lattice.
    apart = tuple(_cut(pixels))
    if sum(part.window.size for part in apart) > pixels.window.size / 2:
        apart = tuple(pixels.split(_LATTICE, bounds.corner))
    return tuple(
        piece for part in apart for piece in cover(part, epsg, resolution, bounds, billing)
    )


def _could_save(pixels: PixelSet, piece: Piece) -> bool:
    """Say whether smaller rectangles might be cheaper: the pixels alone are the lower bound."""
    if pixels.mask is None or piece.credits == MINIMUM:
        return False
    least = credits_for(piece.area_km2 * len(pixels) / pixels.window.size)
    return piece.credits - least > max(MINIMUM / 2, 0.02 * piece.credits)


def _cut(pixels: PixelSet) -> Iterator[PixelSet]:
    """Yield the two parts whose bounding windows are smallest together."""
    mask = pixels.dense
    rest, row = _best_cut(mask)
    rest_cols, col = _best_cut(mask.T)
    window = pixels.window
    if rest <= rest_cols:
        at = window.row0 + row
        halves = (
            Window(window.row0, at, window.col0, window.col1),
            Window(at, window.row1, window.col0, window.col1),
        )
    else:
        at = window.col0 + col
        halves = (
            Window(window.row0, window.row1, window.col0, at),
            Window(window.row0, window.row1, at, window.col1),
        )
    for half in halves:
        if half.size and (part := pixels.crop(half).tight()) is not None:
            yield part


def _best_cut(mask: Mask) -> tuple[int, int]:
    """Find the row before which to cut, and the pixels of both windows then.

    Of equal cuts the most even one, so that a full window is halved.
    """
    height, width = mask.shape
    if height < 2:
        return mask.size + 1, 0
    filled = mask.any(axis=1)
    first = np.where(filled, mask.argmax(axis=1), width)
    last = np.where(filled, width - mask[:, ::-1].argmax(axis=1), 0)
    rows = np.arange(height)
    top = np.where(filled, rows, height)
    bottom = np.where(filled, rows + 1, 0)

    def areas(order: slice) -> NDArray[np.int64]:
        wide = np.maximum.accumulate(last[order]) - np.minimum.accumulate(first[order])
        high = np.maximum.accumulate(bottom[order]) - np.minimum.accumulate(top[order])
        return np.asarray(np.maximum(wide, 0) * np.maximum(high, 0))

    above = areas(slice(None))[:-1]
    below = areas(slice(None, None, -1))[::-1][1:]
    total = above + below
    best = np.flatnonzero(total == total.min())
    cut = best[np.abs(best + 1 - height / 2).argmin()] + 1
    return int(total.min()), int(cut)
