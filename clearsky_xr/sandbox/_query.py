"""Typed requests: what a valid body says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from shapely.geometry.base import BaseGeometry

from ._models import Model
from ._select import Mode


@dataclass(frozen=True, slots=True)
class Search:
    """A date search. `first` and `last` are inclusive; None is open."""

    geometry: BaseGeometry
    first: date | None
    last: date | None
    model: Model | None
    constellations: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Composite:
    """A composite download, its estimate or its availability.

    Parameters
    ----------
    geometry : shapely geometry
        Valid Polygon or MultiPolygon, EPSG:4326.
    layers : tuple of str
        Bands and ``[X_Y]`` indices, in the order of the answer.
    day : date or None
        None only in an estimate, where it may be left out.
    model : Model or None
        As `day`.
    constellations : frozenset of str
        Lower case.
    epsg : int
        UTM zone, 47000 already resolved.
    resolution : int
        Metres.
    """

    geometry: BaseGeometry
    layers: tuple[str, ...]
    day: date | None
    model: Model | None
    constellations: frozenset[str]
    epsg: int
    resolution: int
    mode: Mode
    harmonize: bool
    allow_partial: bool
