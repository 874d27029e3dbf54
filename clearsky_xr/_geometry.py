"""The geometry that selects exactly a given pixel set at the service, and its surface."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from ._area import Area
from ._grid import to_lonlat
from ._pixels import Mask, PixelSet

# The geometry of a pixel set is drawn this far inside its pixels, pixels. With
# "intersect" every pixel of the set is then met and no other, with a quarter of
# a pixel to spare on both sides for rounding and for the bow of edges. (Half a
# pixel would leave nothing of a window that is one pixel wide.)
_INSET: Final = 0.25
# An edge that is straight in UTM bows in degrees, by 0.03 m a km: cut it there.
_EDGE_METRES: Final = 1000.0
# Digits after the point, degrees: about a centimetre.
_DIGITS: Final = 7

_GEOD: Final = pyproj.Geod(ellps="WGS84")


def outline(pixels: PixelSet, epsg: int, resolution: int) -> Area:
    """Draw the geometry that selects a pixel set with ``intersect``.

    Pixels that touch at a corner only become separate polygons.

    Parameters
    ----------
    pixels : PixelSet
        Not empty.
    epsg, resolution : int
        The lattice: UTM zone, and metres.

    Returns
    -------
    shapely.Polygon or shapely.MultiPolygon
        In EPSG:4326, degrees, 7 decimals.
    """
    window = pixels.window
    # In pixels: x to the right, y upwards.
    shape: Area
    if pixels.mask is None:
        shape = shapely.box(
            window.col0 + _INSET, _INSET - window.row1, window.col1 - _INSET, -window.row0 - _INSET
        )
    else:
        row0, row1, col0, col1 = _runs(pixels.mask)
        runs = shapely.box(
            window.col0 + col0, -window.row0 - row1, window.col0 + col1, -window.row0 - row0
        )
        # Part by part: thousands of scattered pixels take seconds as one geometry.
        merged = shapely.get_parts(shapely.disjoint_subset_union_all(runs))
        inset = shapely.buffer(merged, -_INSET, join_style="mitre", cap_style="flat")
        shape = shapely.MultiPolygon(list(shapely.get_parts(inset)))
    metres = shapely.segmentize(shapely.transform(shape, lambda xy: xy * resolution), _EDGE_METRES)
    degrees = shapely.transform(metres, lambda xy: np.round(to_lonlat(xy, epsg), _DIGITS))
    assert isinstance(degrees, shapely.Polygon | shapely.MultiPolygon)
    return degrees


def wkt(geometry: Area) -> str:
    """Write a geometry as WKT with 7 decimals."""
    # Untrimmed, since trimmed numbers near zero are written as 5.44e-5.
    return str(shapely.to_wkt(geometry, rounding_precision=_DIGITS, trim=False))


def area_km2(geometry: BaseGeometry) -> float:
    """Give the geodesic surface on the WGS 84 ellipsoid, km2 (contract, section 8.2)."""
    oriented = shapely.orient_polygons(geometry)
    return abs(_GEOD.geometry_area_perimeter(oriented)[0]) / 1e6


def bounds_km2(geometry: Area) -> float:
    """Give the geodesic surface of the bounding box in degrees, km2."""
    return area_km2(shapely.box(*geometry.bounds))


def _runs(mask: Mask) -> tuple[NDArray[np.int64], ...]:
    """Cut a mask into rectangles: runs along the rows, equal runs below each other merged."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    order = np.lexsort((rows, stops, starts))
    rows, starts, stops = rows[order], starts[order], stops[order]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (np.diff(starts) != 0) | (np.diff(stops) != 0) | (np.diff(rows) != 1)
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(rows)) - 1
    return rows[first], rows[last] + 1, starts[first], stops[first]
