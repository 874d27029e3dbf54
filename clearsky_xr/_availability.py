"""What the free availability call says, and what it means (contract, sections 4.4 and 10)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

Kind = Literal[
    "ready",
    "outside",
    "restricted",
    "not_ordered",
    "expired",
    "off_cadence",
    "incomplete",
    "not_produced",
    "unknown",
]

_WHY: Final[Mapping[Kind, str]] = {
    "ready": "every part of the area has its image, and orders of this account cover it",
    "outside": "the area lies outside the data, as open water does: no image will ever come",
    "restricted": "the service does not allow this account to see this area or date",
    "not_ordered": "orders of this account do not cover the whole area on this date, with this "
    "model and these constellations: it has to be ordered first",
    "expired": "no image is within its storage time: it is not there any more, whatever credits "
    "are left, or was never made",
    "off_cadence": "the day is not in the rhythm of the orders: its image never comes, and "
    "clearsky_xr.dates lists those that do",
    "incomplete": "a part of the area still lacks its image: ask again later, or take the other "
    "part with allow_partial=True",
    "not_produced": "no part of the area has an image: it is not made yet, or never will be",
    "unknown": "the service says neither that it is ready nor what is missing",
}


@dataclass(frozen=True, slots=True, repr=False)
class Availability:
    """What the service says about an area and a date. It counts as true if it is ready.

    The service's own words are kept as they are, in lower case: None where it said
    nothing, which counts as unknown and not as false.

    Parameters
    ----------
    date : datetime.date
    polygon_in_data_area : bool or None
        The area lies inside the data, and is not all water, for example.
    intersected_active_zones, intersected_active_zones_utm_epsg : bool or None
        Some tile meets the area; some tile of the UTM zone that was asked for does.
    data_available_for_user : bool or None
        Access is not restricted.
    orders_cover_polygon : bool or None
        Orders of the account cover the whole area.
    any_image_within_storage_months : bool or None
        At least one image is still stored.
    data_on_zone_data_frequency_date : bool or None
        The day is in the rhythm of production.
    all_images_predicted : bool or None
        No tile still waits for its image.
    fully_available, partially_available : bool or None
        All tiles, and some, have an image. Both may be true.
    uncertainty_available, partially_uncertainty_available : bool or None
        The same of the layer of uncertainty.
    """

    date: dt.date
    polygon_in_data_area: bool | None = None
    intersected_active_zones: bool | None = None
    intersected_active_zones_utm_epsg: bool | None = None
    data_available_for_user: bool | None = None
    orders_cover_polygon: bool | None = None
    any_image_within_storage_months: bool | None = None
    data_on_zone_data_frequency_date: bool | None = None
    all_images_predicted: bool | None = None
    fully_available: bool | None = None
    partially_available: bool | None = None
    uncertainty_available: bool | None = None
    partially_uncertainty_available: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether a download of the whole area would be answered, credits permitting.

        The vendor's own test, in which only the images themselves have to be vouched for.
        """
        return (
            self.fully_available is True
            and self.orders_cover_polygon is not False
            and self.data_available_for_user is not False
        )

    @property
    def kind(self) -> Kind:
        """The state in one word: ``"ready"``, or the first reason why not.

        In the order in which they matter: ``"outside"``, ``"restricted"``,
        ``"not_ordered"``, ``"expired"``, ``"off_cadence"``, ``"incomplete"``,
        ``"not_produced"``, ``"unknown"``.
        """
        states: tuple[tuple[Kind, bool], ...] = (
            ("ready", self.ready),
            (
                "outside",
                self.polygon_in_data_area is False or self.intersected_active_zones is False,
            ),
            ("restricted", self.data_available_for_user is False),
            ("not_ordered", self.orders_cover_polygon is False),
            ("expired", self.any_image_within_storage_months is False),
            ("off_cadence", self.data_on_zone_data_frequency_date is False),
            (
                "incomplete",
                self.all_images_predicted is False
                or (self.fully_available is False and self.partially_available is True),
            ),
            (
                "not_produced",
                self.fully_available is False and self.partially_available is False,
            ),
        )
        return next((kind for kind, so in states if so), "unknown")

    @property
    def why(self) -> str:
        """The same in words, with what to do about it."""
        return _WHY[self.kind]

    def __bool__(self) -> bool:
        return self.ready

    def __repr__(self) -> str:
        state = "ready" if self.ready else f"not ready ({self.kind})"
        return f"<clearsky_xr.Availability of {self.date}, {state}: {self.why}>"


def read_availability(date: dt.date, data: Mapping[str, Any]) -> Availability:
    """Read ``Data`` of the service's answer; what is no boolean is unknown."""
    told = {}
    for name in (field.name for field in fields(Availability) if field.name != "date"):
        value = data.get("".join(word.capitalize() for word in name.split("_")))
        told[name] = value if isinstance(value, bool) else None
    return Availability(date, **told)
