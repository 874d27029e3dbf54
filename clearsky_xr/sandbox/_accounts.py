"""Accounts, what they have ordered, and what they have left."""

from __future__ import annotations

import secrets
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Literal

import shapely
from shapely.geometry.base import BaseGeometry

from ._errors import NO_UNITS, TOO_MANY_CONNECTIONS, ApiError
from ._models import MODELS

Overload = Literal["1003", "429"]

#: The whole of it, EPSG:4326.
WORLD = "POLYGON ((-180 -90, -180 90, 180 90, 180 -90, -180 -90))"


@dataclass(frozen=True, slots=True)
class Order:
    """What an account may read.

    Parameters
    ----------
    wkt : str
        Area, EPSG:4326. The whole world by default.
    model : str
        ``Model`` of the API.
    constellations : tuple of str
        Matched as a set.
    start, end : date or None
        Period, both inclusive; None is open.
    frequency : int
        Days between images, 1 to 7, counted from `reference_date`
        (contract, section 10).
    reference_date : date
        Anchor of the cadence.
    storage_months : int or None
        When set, images of a month are kept until the end of the next month, and this
        many months longer (contract, section 8.4); None keeps them for ever. Days of
        production are not emulated: an image counts as produced on its own date.
    """

    wkt: str = WORLD
    model: str = "Stratus2"
    constellations: tuple[str, ...] = ("Sentinel1", "Sentinel2", "Landsat89")
    start: date | None = None
    end: date | None = None
    frequency: int = 1
    reference_date: date = date(2025, 1, 1)
    storage_months: int | None = None
    area: BaseGeometry = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model.lower() not in MODELS:
            known = ", ".join(model.name for model in MODELS.values())
            raise ValueError(f"unknown model {self.model!r}; the sandbox has {known}")
        if not 1 <= self.frequency <= 7:
            raise ValueError(f"frequency must be 1 to 7 days, got {self.frequency}")
        if self.storage_months is not None and self.storage_months < 0:
            raise ValueError(f"storage_months must not be negative, got {self.storage_months}")
        area = shapely.from_wkt(self.wkt)
        shapely.prepare(area)
        object.__setattr__(self, "area", area)

    def matches(self, model: str, constellations: frozenset[str]) -> bool:
        """Whether the order is of this model and constellation set."""
        return self.model.lower() == model.lower() and constellations == {
            name.lower() for name in self.constellations
        }

    def in_period(self, day: date) -> bool:
        """Whether the day lies in the order's period."""
        return (self.start is None or day >= self.start) and (self.end is None or day <= self.end)

    def on_cadence(self, day: date) -> bool:
        """Whether the order's cadence produces an image of the day."""
        return (day - self.reference_date).days % self.frequency == 0

    def keeps(self, day: date) -> bool:
        """Whether an image of the day is still stored."""
        if self.storage_months is None:
            return True
        now = datetime.now(UTC)
        age = (now.year - day.year) * 12 + now.month - day.month
        return age <= 1 + self.storage_months


@dataclass(frozen=True, slots=True)
class Account:
    """One account: its key, its limits, its orders.

    Parameters
    ----------
    key : str
        The API key; a random one by default. Not part of the repr.
    max_connections, max_area_km2, max_bands : int
        ``MaxConcurrentConnections``, ``MaxCompositeAreaKm2``, ``MaxTotalBands``.
    balance : float
        Processing units at the start.
    credit_limit : float
        Units that may be used in arrears.
    orders : tuple of Order
        What may be read; by default Stratus2 of the whole world.
    api_requests : int or None
        When set, the hard counter of contract section 8.3: how often any piece of
        an area may be downloaded for one date and model. A further download that
        overlaps so many earlier ones is refused with 994.
    """

    key: str = field(default_factory=lambda: f"sandbox-{secrets.token_hex(16)}", repr=False)
    max_connections: int = 4
    max_area_km2: int = 2500
    max_bands: int = 20
    balance: float = 100_000.0
    credit_limit: float = 0.0
    orders: tuple[Order, ...] = (Order(),)
    api_requests: int | None = None

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("an account needs a key")
        for name in ("max_connections", "max_area_km2", "max_bands"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Holder:
    """The changing side of one account. Safe to use from any thread.

    Attributes
    ----------
    account : Account
        The fixed side.
    name : str
        What stands for the account in the ledger; never the key.
    tenant : str
        ``TenantId``.
    balance : float
        Units left.
    peak : int
        Most composite downloads that were in the server at once, the refused ones
        among them: above ``max_connections`` exactly if the client ever went above it.
    """

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name = name
        self.tenant = str(uuid.uuid5(uuid.NAMESPACE_OID, f"clearsky sandbox {name}"))
        self.balance = account.balance
        self.peak = 0
        self._in_flight = 0
        self._retrieved: dict[tuple[date, str], list[BaseGeometry]] = defaultdict(list)
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Composite downloads being worked on now."""
        return self._in_flight

    @contextmanager
    def slot(self, overload: Overload) -> Iterator[int]:
        """Hold one connection of the account.

        Yields
        ------
        int
            Connections in use, this one included.

        Raises
        ------
        ApiError
            All connections are in use: 400 with code 1003, or 429, by `overload`.
        """
        with self._lock:
            self.peak = max(self.peak, self._in_flight + 1)
            if self._in_flight >= self.account.max_connections:
                raise ApiError(
                    TOO_MANY_CONNECTIONS,
                    f"Maximum of {self.account.max_connections} concurrent requests reached.",
                    status=429 if overload == "429" else 400,
                )
            self._in_flight += 1
            count = self._in_flight
        try:
            yield count
        finally:
            with self._lock:
                self._in_flight -= 1

    def take(self, units: float, geometry: BaseGeometry, day: date, model: str) -> None:
        """Take the units of one download, before the work is done.

        Taken first so that two downloads cannot spend the same last units;
        `give_back` undoes it if the work fails.

        Raises
        ------
        ApiError
            994: not enough units, or the hard counter is used up.
        """
        with self._lock:
            left = self.balance + self.account.credit_limit
            if units > left + 1e-9:
                raise ApiError(
                    NO_UNITS,
                    f"Not enough processing units: {units:.2f} needed, {max(left, 0):.2f} left.",
                )
            if self.account.api_requests is not None:
                earlier = self._retrieved[day, model]
                if _overlapping(geometry, earlier) >= self.account.api_requests:
                    raise ApiError(
                        NO_UNITS,
                        f"The area was already downloaded {self.account.api_requests} time(s) "
                        f"for {day}.",
                    )
                earlier.append(geometry)
            self.balance = round(self.balance - units, 2)

    def give_back(self, units: float, geometry: BaseGeometry, day: date, model: str) -> None:
        """Undo `take` for a download that was not delivered."""
        with self._lock:
            self.balance = round(self.balance + units, 2)
            if self.account.api_requests is not None:
                self._retrieved[day, model].remove(geometry)


def _overlapping(geometry: BaseGeometry, others: Sequence[BaseGeometry]) -> int:
    """Count the geometries that share interior area with `geometry`."""
    hits = [other for other in others if shapely.intersects(geometry, other)]
    return sum(not shapely.touches(geometry, other) for other in hits)
