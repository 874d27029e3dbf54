"""What a geometry costs."""

from __future__ import annotations

from typing import Final, Literal

import shapely
from pyproj import Geod
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

Billing = Literal["geometry", "bbox"]

#: One unit covers up to 10 km2, in steps of 0.01 (contract, section 8.2).
CREDITS_PER_KM2: Final = 0.1
MINIMUM_CREDITS: Final = 0.01
#: Most units of one request (contract, section 9).
MAXIMUM_CREDITS: Final = 2000.0

_WGS84 = Geod(ellps="WGS84")


def area_km2(geometry: BaseGeometry) -> float:
    """Measure a geometry on the WGS 84 ellipsoid, holes subtracted.

    Parameters
    ----------
    geometry : shapely geometry
        Polygon or MultiPolygon in EPSG:4326, longitude first.

    Returns
    -------
    float
        Square kilometres; edges are geodesics.
    """
    # The sign of a ring's area follows its direction, so both are made to agree:
    # shells anticlockwise, holes clockwise.
    return (
        sum(_WGS84.geometry_area_perimeter(orient(part))[0] for part in shapely.get_parts(geometry))
        / 1e6
    )


def billed_km2(geometry: BaseGeometry, billing: Billing) -> float:
    """Measure what is billed: the geometry itself or its lon/lat bounding box.

    Returns
    -------
    float
        ``AreaEstimateKm2``, square kilometres.
    """
    return area_km2(geometry if billing == "geometry" else shapely.box(*geometry.bounds))


def credits_of(km2: float) -> float:
    """Turn square kilometres into processing units (contract, section 8.2)."""
    return max(MINIMUM_CREDITS, round(km2 * CREDITS_PER_KM2, 2))
