"""Where an account's orders meet an area, and which days they give there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import shapely
from shapely.geometry.base import BaseGeometry

from ._accounts import Account, Order
from ._holes import Hole
from ._imagery import Imagery
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


def sub_areas(
    orders: Sequence[Order], holes: Iterable[Hole], imagery: Imagery, geometry: BaseGeometry
) -> list[tuple[BaseGeometry, list[date]]]:
    """Cut an area into parts, and list the images of each.

    What was produced is listed even if it is not stored any more, or restricted: the
    search says what exists, not what can be served (contract, section 4.3).

    Returns
    -------
    list of (geometry, dates)
        Disjoint parts that some order covers and that lie in the data, in EPSG:4326.
    """
    holes = [hole for hole in holes if hole.kind != "restricted"]
    found = []
    for part, owners in _split([*orders, *holes], geometry):
        ordered = [owner for owner in owners if isinstance(owner, Order)]
        lacking = [owner for owner in owners if isinstance(owner, Hole)]
        if ordered and not any(hole.kind == "outside" for hole in lacking):
            days = [
                day
                for day in imagery.dates(part)
                if any(order.in_period(day) and order.on_cadence(day) for order in ordered)
                and not any(hole.in_period(day) for hole in lacking)
            ]
            found.append((part, days))
    return found


def _split(
    owners: Iterable[Order | Hole], geometry: BaseGeometry
) -> list[tuple[BaseGeometry, tuple[Order | Hole, ...]]]:
    """Cut an area into disjoint parts that lie in the same orders and holes."""
    parts: list[tuple[BaseGeometry, tuple[Order | Hole, ...]]] = [(geometry, ())]
    for owner in owners:
        cut = []
        for part, earlier in parts:
            if owner.area.covers(part):
                cut.append((part, (*earlier, owner)))
                continue
            inside = _polygons(part.intersection(owner.area))
            outside = _polygons(part.difference(owner.area))
            cut.append((inside, (*earlier, owner)))
            cut.append((outside, earlier))
        parts = [(part, all_owners) for part, all_owners in cut if not part.is_empty]
    return parts


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    """Keep the parts with an area: two areas may meet in a line as well."""
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and p.area > 0]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
