"""Where the archive has nothing to give although it was ordered, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, get_args

import shapely
from shapely.geometry.base import BaseGeometry

from ._accounts import WORLD

Kind = Literal["outside", "restricted", "pending"]


@dataclass(frozen=True, slots=True)
class Hole:
    """A place, and a time, without images.

    Parameters
    ----------
    kind : {"outside", "restricted", "pending"}
        No data there at all, as over open water; access is denied; or the images are
        still to be predicted.
    wkt : str
        Area, EPSG:4326. The whole world by default.
    start, end : date or None
        Days that are concerned, both inclusive; None is open.
    """

    kind: Kind
    wkt: str = WORLD
    start: date | None = None
    end: date | None = None
    area: BaseGeometry = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        object.__setattr__(self, "area", shapely.from_wkt(self.wkt))

    def in_period(self, day: date) -> bool:
        """Whether the day is concerned."""
        return (self.start is None or day >= self.start) and (self.end is None or day <= self.end)

    def meets(self, geometry: BaseGeometry) -> bool:
        """Whether a geometry shares some surface with the hole."""
        return bool(self.area.intersects(geometry) and not self.area.touches(geometry))


def without(geometry: BaseGeometry, holes: Iterable[Hole]) -> BaseGeometry:
    """Give what holes leave of a geometry; the very same object where they leave all."""
    met = [hole.area for hole in holes if hole.meets(geometry)]
    return geometry.difference(shapely.union_all(met)) if met else geometry
