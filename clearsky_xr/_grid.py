"""The pixel grid of a cube: a window of a UTM lattice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from ._area import Area
from ._pixels import Window
from .errors import InvalidGridError

#: Resolutions that the service offers, metres (contract, section 5.1).
RESOLUTIONS: Final = (10, 20, 40, 80, 160, 320, 640, 1280)

#: How near an edge must come to count as lying on it, pixels. An area that was drawn
#: along pixel edges comes back from degrees with an error of 1e-9 m or so; without
#: this tolerance it would buy a rim of pixels that it only touches.
TOLERANCE: Final = 1e-5

# A straight edge in degrees is cut into pieces of this length before it is
# projected, since it bows in UTM by 0.03 m a km (contract, section 6.3).
_EDGE_DEGREES: Final = 0.01
# Farther than this from the central meridian UTM distorts by percents.
_MERIDIAN_DEGREES: Final = 9.0


@dataclass(frozen=True, slots=True)
class Grid:
    """A window of the pixel lattice of a UTM zone.

    Parameters
    ----------
    epsg : int
        326zz or 327zz.
    resolution : int
        Pixel size, metres; one of `RESOLUTIONS`.
    window : Window
        In rows and columns of the lattice, whose edges lie on multiples of the
        resolution. Two grids of one zone and resolution share one lattice.
    """

    epsg: int
    resolution: int
    window: Window

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.window.shape

    @property
    def geobox(self) -> GeoBox:
        """The grid as an ``odc.geo`` GeoBox."""
        left, _, _, top = self.bounds()
        affine = Affine(self.resolution, 0, left, 0, -self.resolution, top)
        return GeoBox(self.shape, affine, f"EPSG:{self.epsg}")

    def bounds(self, window: Window | None = None) -> tuple[float, float, float, float]:
        """Give left, bottom, right, top in metres, of a window or of the whole grid."""
        window = window or self.window
        return (
            float(window.col0 * self.resolution),
            float(-window.row1 * self.resolution),
            float(window.col1 * self.resolution),
            float(-window.row0 * self.resolution),
        )


def utm_epsg(area: Area) -> int:
    """Choose the UTM zone of an area: the one of the middle of its bounds.

    The formula, not ``odc.geo.crs.CRS.utm``: the look-up in PROJ's database takes
    60 ms, more than all the rest of opening a cube.
    """
    west, south, east, north = area.bounds
    zone = min(int(((west + east) / 2 + 180) // 6) + 1, 60)
    return (32600 if (south + north) / 2 >= 0 else 32700) + zone


def resolve_grid(area: Area, *, resolution: Any, crs: Any, like: Any) -> Grid:
    """Turn ``resolution``, ``crs`` and ``like`` into the grid that covers the area.

    Parameters
    ----------
    area : shapely.Polygon or MultiPolygon
        In EPSG:4326.
    resolution : int or None
        Metres; None is 10, or that of `like`.
    crs : "auto", int, str, CRS or None
        ``"auto"`` or None is one UTM zone for the area, or the CRS of `like`.
    like : GeoBox, Dataset, DataArray or None
        Take exactly this grid.

    Raises
    ------
    InvalidGridError
        A resolution that is not offered, a CRS that is not a UTM zone or lies
        far from the area, or a `like` off the lattice or beside the area.
    """
    if like is not None:
        grid = _grid_like(like)
        if resolution is not None and resolution != grid.resolution:
            raise InvalidGridError(
                f"resolution={resolution} contradicts like=, which has {grid.resolution} m",
                hint="Leave one of them out.",
            )
        if not _is_auto(crs) and _utm(crs) != grid.epsg:
            raise InvalidGridError(
                f"crs={crs!r} contradicts like=, which is in EPSG:{grid.epsg}",
                hint="Leave one of them out.",
            )
        if not (covering(area, grid.epsg, grid.resolution).window & grid.window).size:
            raise InvalidGridError("the grid of like= lies beside the area")
        return grid
    return covering(
        area,
        utm_epsg(area) if _is_auto(crs) else _utm(crs),
        _offered(10 if resolution is None else resolution),
    )


def covering(area: Area, epsg: int, resolution: int) -> Grid:
    """Give the smallest grid of a lattice that covers an area.

    Raises
    ------
    InvalidGridError
        The area lies too far from the zone.
    """
    left, bottom, right, top = projected(area, epsg).bounds
    col0, row0 = (int(np.floor(v / resolution + TOLERANCE)) for v in (left, -top))
    col1, row1 = (int(np.ceil(v / resolution - TOLERANCE)) for v in (right, -bottom))
    return Grid(epsg, resolution, Window(row0, max(row1, row0 + 1), col0, max(col1, col0 + 1)))


def projected(area: Area, epsg: int) -> Area:
    """Project an area into a UTM zone, metres, with its edges straight in degrees.

    Raises
    ------
    InvalidGridError
        The area lies more than 9 degrees from the zone's central meridian.
    """
    meridian = (epsg % 100) * 6 - 183
    west, _, east, _ = area.bounds
    if max(abs(west - meridian), abs(east - meridian)) > _MERIDIAN_DEGREES:
        raise InvalidGridError(
            f"the area reaches from longitude {west:.2f} to {east:.2f}, more than "
            f"{_MERIDIAN_DEGREES:.0f} degrees from the middle of EPSG:{epsg} ({meridian})",
            hint="Choose the zone of the area (crs='auto'), or split a wide area into zones. "
            "Bounds are (west, south, east, north).",
        )
    dense = shapely.segmentize(area, _EDGE_DEGREES)
    moved = shapely.transform(dense, lambda xy: _apply(transformer(epsg, inverse=True), xy))
    assert isinstance(moved, shapely.Polygon | shapely.MultiPolygon)
    return moved


def to_lonlat(xy: NDArray[np.float64], epsg: int) -> NDArray[np.float64]:
    """Turn UTM metres into degrees; arrays of shape (n, 2), (x, y) to (lon, lat)."""
    return _apply(transformer(epsg), xy)


def from_lonlat(lonlat: NDArray[np.float64], epsg: int) -> NDArray[np.float64]:
    """Turn degrees into UTM metres; arrays of shape (n, 2), (lon, lat) to (x, y)."""
    return _apply(transformer(epsg, inverse=True), lonlat)


@lru_cache(maxsize=128)
def transformer(epsg: int, *, inverse: bool = False) -> pyproj.Transformer:
    """Give the transformer from a zone to degrees (or back): 92 us to make, so kept."""
    ends = (4326, epsg) if inverse else (epsg, 4326)
    return pyproj.Transformer.from_crs(*ends, always_xy=True)


def _apply(way: pyproj.Transformer, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack(way.transform(xy[:, 0], xy[:, 1]))


def _is_auto(crs: Any) -> bool:
    return crs is None or (isinstance(crs, str) and crs.lower() == "auto")


def _utm(crs: Any, of: str = "crs=") -> int:
    """Read a CRS as the EPSG number of a UTM zone on WGS 84."""
    try:
        epsg = int(crs) if isinstance(crs, int | np.integer) else pyproj.CRS(crs).to_epsg()
    except (pyproj.exceptions.CRSError, TypeError):
        raise InvalidGridError(
            f"cannot read {crs!r} as a CRS", hint='Give crs="auto" or a UTM zone, e.g. 32633.'
        ) from None
    if epsg is None or epsg // 100 not in (326, 327) or not 1 <= epsg % 100 <= 60:
        raise InvalidGridError(
            f"{crs!r} of {of} is not a UTM zone on WGS 84",
            hint="Cubes come on the native grid, EPSG:326zz or 327zz. Reproject afterwards, e.g. "
            "with ds.odc.reproject(...) or ds.rio.reproject(...), which costs nothing.",
        )
    return int(epsg)


def _offered(resolution: Any) -> int:
    if resolution not in RESOLUTIONS:
        raise InvalidGridError(
            f"resolution={resolution!r} is not offered",
            hint=f"Offered, in metres: {', '.join(map(str, RESOLUTIONS))}. A coarser one costs the "
            "same credits.",
        )
    return int(resolution)


def _grid_like(like: Any) -> Grid:
    geobox = like if isinstance(like, GeoBox) else _geobox_of(like)
    if geobox is None or geobox.crs is None:
        raise InvalidGridError(
            f"like= must know its grid and CRS; this {type(like).__name__} does not",
            hint="Give an odc.geo GeoBox, or an object with x and y and a CRS (rio.write_crs).",
        )
    epsg, affine = _utm(geobox.crs.to_epsg() or str(geobox.crs), of="like="), geobox.affine
    resolution = _offered(affine.a)
    col0, row0 = affine.c / resolution, -affine.f / resolution
    if (affine.b, affine.d) != (0, 0) or affine.e != -affine.a:
        raise InvalidGridError("the grid of like= is not north-up with square pixels")
    if col0 != round(col0) or row0 != round(row0):
        raise InvalidGridError(
            f"the edges of like= do not lie on multiples of {resolution} m",
            hint="Open on the native grid and reproject onto yours, which costs nothing.",
        )
    height, width = geobox.shape
    return Grid(
        epsg, resolution, Window(int(row0), int(row0) + height, int(col0), int(col0) + width)
    )


def _geobox_of(like: Any) -> GeoBox | None:
    import odc.geo.xr as _odc  # noqa: F401  gives xarray objects their .odc; only like= needs it

    return getattr(getattr(like, "odc", None), "geobox", None)
