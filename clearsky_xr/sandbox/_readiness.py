"""What an account can be served of an area and a date, and what stands in the way.

The availability call tells it and the download keeps to it, so that the two agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property

import shapely
from shapely.geometry.base import BaseGeometry

from . import _coverage
from ._accounts import Account, Order
from ._holes import Hole, without
from ._imagery import Imagery
from ._query import Composite


class Readiness:
    """One query, looked at from all sides.

    Parameters
    ----------
    account : Account
        Who asks.
    imagery : Imagery
        The archive.
    holes : sequence of Hole
        What the archive lacks.
    query : Composite
        With a date and a model.
    """

    def __init__(
        self, account: Account, imagery: Imagery, holes: Sequence[Hole], query: Composite
    ) -> None:
        assert query.day is not None
        self._day: date = query.day
        self._geometry = query.geometry
        self._imagery = imagery
        self._holes = [h for h in holes if h.in_period(query.day) and h.meets(query.geometry)]
        self._orders = [
            order for order in _coverage.matching(account, query) if order.in_period(query.day)
        ]

    @property
    def in_data(self) -> bool:
        """Whether the archive has any image of any part of the area."""
        left = without(self._geometry, self._of("outside"))
        return not left.is_empty and bool(self._imagery.dates(left))

    @property
    def restricted(self) -> bool:
        """Whether access is denied to any part of the area."""
        return any(self._of("restricted"))

    @property
    def ordered(self) -> bool:
        """Whether orders cover the whole area."""
        return _coverage.covers(self._orders, self._geometry, partial=False)

    @property
    def ordered_partly(self) -> bool:
        """Whether orders meet the area."""
        return _coverage.covers(self._orders, self._geometry, partial=True)

    @property
    def stored(self) -> bool:
        """Whether some order still keeps the images of the date."""
        return any(order.keeps(self._day) for order in self._orders)

    @property
    def on_cadence(self) -> bool:
        """Whether archive and orders have the date in their rhythm."""
        return self._imagery.on_cadence(self._day) and any(
            order.on_cadence(self._day) for order in self._orders
        )

    @property
    def predicted(self) -> bool:
        """Whether no part of the area waits for its prediction."""
        return not any(self._of("pending"))

    @cached_property
    def served(self) -> BaseGeometry:
        """The part of the area that has an image, EPSG:4326; may be empty."""
        orders = [o for o in self._orders if o.on_cadence(self._day) and o.keeps(self._day)]
        if not orders or not self._imagery.has(self._geometry, self._day):
            return shapely.Polygon()
        return self._part(orders, "outside", "pending")

    @property
    def complete(self) -> bool:
        """Whether every ordered part of the area that lies in the data has an image."""
        wanted = self._part(self._orders, "outside") if self._orders else shapely.Polygon()
        # The served part lies inside; where both were cut, their surfaces differ by rounding.
        return not self.served.is_empty and self.served.area >= wanted.area * (1 - 1e-9)

    def _of(self, *kinds: str) -> Iterator[Hole]:
        return (hole for hole in self._holes if hole.kind in kinds)

    def _part(self, orders: Sequence[Order], *holes: str) -> BaseGeometry:
        return without(_coverage.clip(orders, self._geometry), self._of(*holes))
