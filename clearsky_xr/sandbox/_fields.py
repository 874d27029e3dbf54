"""JSON properties: names bound in any case, types checked strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from ._errors import INVALID, ApiError, ProblemError, invalid

_T = TypeVar("_T")
_D = TypeVar("_D")


def parse_object(body: bytes) -> dict[str, Any]:
    """Read the body of a POST.

    Raises
    ------
    ProblemError
        It is not a JSON object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProblemError(
            INVALID,
            "One or more validation errors occurred.",
            fields={"$": ["The body is not a JSON object."]},
        )
    return value


class Fields:
    """The properties of one body.

    Each getter notes what is wrong and goes on, so that one answer names every bad
    field; `finish` raises.

    Parameters
    ----------
    body : mapping
        The JSON object. Property names bind in any case (contract, section 1).
    known : collection of str
        Names in the spelling of the contract.
    """

    def __init__(self, body: Mapping[str, Any], known: Collection[str]) -> None:
        self._messages: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {}
        spelling = {name.lower(): name for name in known}
        for name, value in body.items():
            proper = spelling.get(name.lower())
            if proper is None:
                self._refuse(name, "is not a property of this request")
            elif proper in self._values:
                self._refuse(proper, "must be given once")
            else:
                self._values[proper] = value

    def finish(self) -> None:
        """Raise 992 if any field was refused.

        Raises
        ------
        ApiError
            With ``Data`` by field.
        """
        if self._messages:
            raise ApiError(
                INVALID, "One or more validation errors occurred.", fields=self._messages
            )

    def _refuse(self, name: str, reason: str) -> None:
        self._messages.setdefault(name, []).append(f"{name} {reason}")

    def read(
        self, name: str, convert: Callable[[Any], _T], default: _D, *, required: bool = False
    ) -> _T | _D:
        """Give one field; null counts as absent.

        Parameters
        ----------
        name : str
            In the spelling of the contract.
        convert : callable
            Raises ValueError with the reason ("must be ...").
        default : object
            Given for an absent or refused field.
        required : bool
            Whether absence is an error.
        """
        value = self._values.get(name)
        if value is None:
            if required:
                self._refuse(name, "must be given")
            return default
        try:
            return convert(value)
        except ValueError as error:
            self._refuse(name, str(error))
            return default

    def check(self, name: str, reason: str, *, allowed: bool) -> None:
        """Refuse a field by a rule that looks further than its type."""
        if not allowed:
            self._refuse(name, reason)

    def geometry(self) -> BaseGeometry:
        """Give the one geometry of the body.

        Raises
        ------
        ApiError
            992: both or neither of ``Wkt`` and ``GeoJson``, or not a valid Polygon or
            MultiPolygon in degrees.
        """
        wkt, geojson = self._values.get("Wkt"), self._values.get("GeoJson")
        if (wkt is None) == (geojson is None):
            raise invalid(
                Wkt="Wkt must be given, or GeoJson, but not both",
                GeoJson="GeoJson must be given, or Wkt, but not both",
            )
        name = "Wkt" if geojson is None else "GeoJson"
        try:
            geometry: Any = shapely.from_wkt(wkt) if geojson is None else shape(geojson)
        except Exception:  # noqa: BLE001  # shapely raises anything from TypeError to KeyError
            raise invalid(**{name: f"{name} must be a readable geometry"}) from None
        if reason := _unusable(geometry):
            raise invalid(**{name: f"{name} {reason}"})
        flat: BaseGeometry = shapely.force_2d(geometry)
        return flat


def _unusable(geometry: BaseGeometry) -> str:
    """Say why a geometry cannot be served; empty if it can."""
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        return f"must be a Polygon or MultiPolygon, is a {geometry.geom_type}"
    if geometry.is_empty:
        return "must not be empty"
    west, south, east, north = geometry.bounds
    if not all(math.isfinite(v) for v in shapely.get_coordinates(geometry).flat):
        return "must have finite coordinates"
    if west < -180 or south < -90 or east > 180 or north > 90:
        return "must lie within longitudes -180 to 180 and latitudes -90 to 90"
    if not geometry.is_valid or geometry.area == 0:
        return "must be a valid geometry with an area"
    return ""


def text(value: Any) -> str:
    """Take a string."""
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004
    return value


def integer(value: Any) -> int:
    """Take a whole number; true is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be an integer")  # noqa: TRY004
    return value


def boolean(value: Any) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Take a JSON object."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")  # noqa: TRY004
    return value


def names(value: Any) -> tuple[str, ...]:
    """Take a list of one or more strings."""
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError("must be a list of strings")
    return tuple(value)


def day(value: Any) -> date:
    """Take ``YYYY-MM-DD``, or a date-time, of which the UTC day counts."""
    try:
        moment = datetime.fromisoformat(text(value))
    except ValueError:
        raise ValueError("must be a date, YYYY-MM-DD or YYYY-MM-DDT00:00:00Z") from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()


def choice(*allowed: str) -> Callable[[Any], str]:
    """Take one of some words, in any case (contract, section 1)."""

    def convert(value: Any) -> str:
        word = text(value).lower()
        if word not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return word

    return convert
