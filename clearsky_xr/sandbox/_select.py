"""Which pixels of the lattice belong to a geometry, exactly and fast."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from shapely.geometry.base import BaseGeometry

from ._errors import invalid
from ._imagery import Block

Mode = Literal["intersect", "contained"]
BoolArray = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.floating[Any]]
_Ints = npt.NDArray[np.int64]

#: Largest raster of one answer, pixels. The sandbox's own limit: the service states
#: none, but two fields at the ends of a zone must not ask for a terabyte.
MAX_PIXELS: Final = 64_000_000


@lru_cache(maxsize=128)
def _transformer(epsg: int) -> Transformer:
    return Transformer.from_crs(4326, epsg, always_xy=True)


def project(geometry: BaseGeometry, epsg: int) -> BaseGeometry:
    """Transform vertex by vertex; edges stay straight lines (contract, section 13).

    Parameters
    ----------
    geometry : shapely geometry
        In EPSG:4326.
    epsg : int
        Of the output.
    """

    def to_crs(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack(_transformer(epsg).transform(lonlat[:, 0], lonlat[:, 1]), axis=1)

    return shapely.transform(geometry, to_crs)


def select(
    geometry: BaseGeometry, epsg: int, resolution: int, mode: Mode
) -> tuple[Block, BoolArray]:
    """Find the pixels of a geometry.

    A pixel square whose open interior is crossed by the boundary of a valid polygon
    shares area with it and is not inside it. Any other square lies wholly on one side,
    which its centre tells. Hence ``intersect`` is *crossed or centre inside*, and
    ``contained`` is *centre inside and not crossed*.

    Parameters
    ----------
    geometry : shapely geometry
        Valid Polygon or MultiPolygon in the output CRS, metres.
    epsg : int
        Of that CRS.
    resolution : int
        Metres.
    mode : {"intersect", "contained"}
        ``PixelSelectionMode``.

    Returns
    -------
    block : Block
        Bounding rectangle of the selected pixels.
    mask : bool array (y, x)
        The selected ones.

    Raises
    ------
    ApiError
        992: no pixel is selected, or the raster is larger than the sandbox serves.
    """
    starts, ends = _edges(geometry)
    # Rows grow southwards.
    scale = np.array([1 / resolution, -1 / resolution])
    starts, ends = starts * scale, ends * scale
    left, top = (int(v) for v in np.floor(starts.min(axis=0)))
    right, bottom = (int(v) for v in np.ceil(starts.max(axis=0)))
    shape = (max(bottom - top, 1), max(right - left, 1))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise invalid(
            Geometry=f"Geometry must span at most {MAX_PIXELS} pixels, "
            f"spans {shape[1]} x {shape[0]}"
        )
    starts, ends = starts - (left, top), ends - (left, top)
    inside = _centres_inside(starts, ends, shape)
    crossed = _crossed(starts, ends, shape)
    mask = inside | crossed if mode == "intersect" else inside & ~crossed
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise invalid(Geometry="Geometry must select at least one pixel")
    mask = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    block = Block(
        epsg, resolution, left + int(cols[0]), top + int(rows[0]), mask.shape[1], mask.shape[0]
    )
    return block, mask


def select_in(block: Block, geometry: BaseGeometry, mode: Mode) -> BoolArray:
    """Mark the pixels of a block that belong to a geometry.

    Parameters
    ----------
    block : Block
        The frame; what is selected outside it is left out.
    geometry, mode
        As for `select`.

    Returns
    -------
    bool array (y, x)
    """
    mask = np.zeros((block.height, block.width), bool)
    part, chosen = select(geometry, block.epsg, block.resolution, mode)
    left, top = max(part.col, block.col), max(part.row, block.row)
    right = min(part.col + part.width, block.col + block.width)
    bottom = min(part.row + part.height, block.row + block.height)
    if left < right and top < bottom:
        mask[top - block.row : bottom - block.row, left - block.col : right - block.col] = chosen[
            top - part.row : bottom - part.row, left - part.col : right - part.col
        ]
    return mask


def _edges(geometry: BaseGeometry) -> tuple[_Floats, _Floats]:
    """Give start and end, (edge, xy) each, of every edge of every ring."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[1:] == ring[:-1]
    return points[:-1][same], points[1:][same]


def _spread(counts: _Ints) -> tuple[_Ints, _Ints]:
    """Give group and position in it of every member of groups of the given sizes."""
    group = np.repeat(np.arange(counts.size), counts)
    first = np.cumsum(counts) - counts
    return group, np.arange(group.size) - first[group]


def _x_at(y: _Floats, start: _Floats, end: _Floats) -> _Floats:
    """Where edges meet given heights; multiplied first, so that lattice points stay exact."""
    dx, dy = (end - start).T
    with np.errstate(divide="ignore", invalid="ignore"):
        x: _Floats = start[:, 0] + (y - start[:, 1]) * dx / dy
    return x


def _centres_inside(start: _Floats, end: _Floats, shape: tuple[int, int]) -> BoolArray:
    """Even-odd test of pixel centres, by one sweep along the rows."""
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    # Rows whose centre line y = row + 0.5 has low <= y < high: half open, so that a
    # vertex on the line counts once.
    first = np.ceil(low - 0.5).astype(np.int64)
    last = np.ceil(high - 0.5).astype(np.int64) - 1
    edge, step = _spread(np.maximum(last - first + 1, 0))
    row = first[edge] + step
    x = _x_at(row + 0.5, start[edge], end[edge])
    # The first pixel whose centre lies right of the crossing.
    col = np.ceil(x - 0.5).astype(np.int64)
    toggles = np.zeros((shape[0], shape[1] + 1), np.uint8)
    np.bitwise_xor.at(toggles, (row, np.clip(col, 0, shape[1])), 1)
    odd: BoolArray = np.bitwise_xor.accumulate(toggles, axis=1)[:, :-1].astype(bool)
    return odd


def _crossed(start: _Floats, end: _Floats, shape: tuple[int, int]) -> BoolArray:
    """Mark the pixels whose open square is met by an edge."""
    # Edges one below the other: low is the end with the smaller y.
    flip = start[:, 1] > end[:, 1]
    low, high = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    first = np.floor(low[:, 1]).astype(np.int64)
    last = np.ceil(high[:, 1]).astype(np.int64) - 1
    # A horizontal edge on a lattice line has last < first: it meets no open square.
    edge, step = _spread(np.maximum(last - first + 1, 0))
    row = first[edge] + step
    low, high = low[edge], high[edge]
    upper, lower = np.maximum(row, low[:, 1]), np.minimum(row + 1, high[:, 1])
    flat = low[:, 1] == high[:, 1]
    # An end of the edge inside the row is taken as it is, not recomputed.
    x0 = np.where(flat | (upper == low[:, 1]), low[:, 0], _x_at(upper, low, high))
    x1 = np.where(flat | (lower == high[:, 1]), high[:, 0], _x_at(lower, low, high))
    left = np.floor(np.minimum(x0, x1)).astype(np.int64)
    right = np.ceil(np.maximum(x0, x1)).astype(np.int64) - 1
    piece, step = _spread(np.maximum(right - left + 1, 0))
    mask = np.zeros(shape, bool)
    mask[row[piece], np.clip(left[piece] + step, 0, shape[1] - 1)] = True
    return mask
