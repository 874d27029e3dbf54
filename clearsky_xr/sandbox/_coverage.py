"""Where an account's orders meet an area, and which days they give there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import shapely
from shapely.geometry.base import BaseGeometry

from ._accounts import Account, Order
from ._query import Composite


def matching(account: Account, query: Composite) -> list[Order]:
    """Give the orders of the query's model and constellation set."""
    assert query.model is not None
    name, sent = query.model.name, query.constellations
    return [order for order in account.orders if order.matches(name, sent)]


def covers(orders: Iterable[Order], geometry: BaseGeometry, *, partial: bool) -> bool:
    """Whether the union of the orders covers the geometry, or meets it if `partial`."""
    areas = [order.area for order in orders]
    if partial:
        return any(area.intersects(geometry) for area in areas)
    # One order is the common case and spares the union.
    return any(area.covers(geometry) for area in areas) or (
        len(areas) > 1 and shapely.union_all(areas).covers(geometry)
    )


def clip(orders: Iterable[Order], geometry: BaseGeometry) -> BaseGeometry:
    """Give the part of the geometry that the orders cover."""
    areas = [order.area for order in orders]
    if any(area.covers(geometry) for area in areas):
        return geometry
    return _polygons(shapely.union_all(areas).intersection(geometry))


def split(
    orders: Sequence[Order], geometry: BaseGeometry
) -> list[tuple[BaseGeometry, tuple[Order, ...]]]:
    """Cut an area into parts that are covered by the same orders.

    Returns
    -------
    list of (geometry, orders)
        Disjoint parts that some order covers, in EPSG:4326.
    """
    parts: list[tuple[BaseGeometry, tuple[Order, ...]]] = [(geometry, ())]
    for order in orders:
        cut = []
        for part, owners in parts:
            if order.area.covers(part):
                cut.append((part, (*owners, order)))
                continue
            inside = _polygons(part.intersection(order.area))
            outside = _polygons(part.difference(order.area))
            cut.append((inside, (*owners, order)))
            cut.append((outside, owners))
        parts = [(part, owners) for part, owners in cut if not part.is_empty]
    return [(part, owners) for part, owners in parts if owners]


def ordered_days(orders: Iterable[Order], days: Iterable[date]) -> list[date]:
    """Keep the days that some order produces."""
    orders = tuple(orders)
    return [day for day in days if any(o.in_period(day) and o.on_cadence(day) for o in orders)]


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    """Keep the parts with an area: two areas may meet in a line as well."""
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and p.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
