"""Budgets: limits on what may be spent, and what counted for them."""

from __future__ import annotations

import datetime as dt
import math
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from .errors import ClearSkyError, InvalidOptionError


@dataclass(frozen=True, slots=True)
class Spent:
    """Totals, credits.

    Parameters
    ----------
    settled : float
        Complete answers, by the contract's formula.
    possibly : float
        Sent without a complete answer: perhaps charged.
    reserved : float
        In flight, rounded up.
    requests : int
        Complete answers.
    bytes : int
        Their size.
    """

    settled: float = 0.0
    possibly: float = 0.0
    reserved: float = 0.0
    requests: int = 0
    bytes: int = 0

    def __add__(self, other: Spent) -> Spent:
        return self._with(other, 1)

    def __sub__(self, other: Spent) -> Spent:
        return self._with(other, -1)

    def _with(self, other: Spent, sign: int) -> Spent:
        return Spent(
            round(self.settled + sign * other.settled, 2),
            round(self.possibly + sign * other.possibly, 2),
            round(self.reserved + sign * other.reserved, 2),
            self.requests + sign * other.requests,
            self.bytes + sign * other.bytes,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What came while something was counted.

    Parameters
    ----------
    spent : Spent
    dates : int
        Days of which there were answers.
    in_flight : int
        Requests without an answer yet.
    """

    spent: Spent
    dates: int
    in_flight: int


class Sums:
    """Sums of bookings; safe under the ledger's lock."""

    def __init__(self) -> None:
        self.settled = self.possibly = self.reserved = 0.0
        self.requests = self.bytes = self.in_flight = 0
        self.dates: set[dt.date] = set()

    def totals(self) -> Spent:
        # Rounding takes off the dust, abs a -0.
        return Spent(
            abs(round(self.settled, 2)),
            abs(round(self.possibly, 2)),
            abs(round(self.reserved, 2)),
            self.requests,
            self.bytes,
        )


class Book(Protocol):
    """The ledger of a process, as far as a budget knows it."""

    lock: threading.RLock
    active: list[Budget]


class Elsewhere(Protocol):
    """Another ledger, in which several processes are booked: that of a cluster."""

    def open_budget(self, name: str, limit: float) -> None:
        """Begin a budget there, too."""

    def close_budget(self, name: str) -> None:
        """End it."""

    def tally(self, name: str) -> Tally | None:
        """Tell what counted for it; None if that is not known any more."""


class Budget:
    """A limit on what may be spent; made by `clearsky_xr.budget`.

    Budgets nest: a download must fit into all that are active when it is sent, or were
    when the computation began that sends it. It counts for them whenever its answer comes.

    It holds for this process, and on a cluster that `clearsky_xr.cluster.setup` has set
    up for all its processes. There ``persist()`` and ``client.compute()`` are
    bound by those that were active when they were called, however late their tasks begin.

    Parameters
    ----------
    limit : float
        Credits.
    book : Book
        Where it counts.
    elsewhere : callable, optional
        Gives the ledger of the cluster that this process belongs to, if any.

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox"
    ... )
    >>> with clearsky_xr.budget(1.0) as b:
    ...     pixel = ds.isel(x=3, y=4).compute()
    >>> b.report().settled, b.left
    (0.04, 0.96)
    """

    def __init__(
        self,
        limit: float,
        book: Book,
        elsewhere: Callable[[], Elsewhere | None] = lambda: None,
    ) -> None:
        self.limit = checked_limit(limit)
        self._book = book
        self.sums = Sums()
        self._name = secrets.token_hex(8)
        self._find = elsewhere
        self.elsewhere: Elsewhere | None = None
        self._heard: Tally | None = None

    @property
    def left(self) -> float:
        """What may still be spent, credits: what may have been charged counts as spent."""
        spent = self.report()
        return max(0.0, round(self.limit - spent.settled - spent.possibly - spent.reserved, 2))

    def report(self) -> Spent:
        """Give what was spent while the budget was active."""
        return self.tally().spent

    def tally(self) -> Tally:
        """Give the same, and what a progress bar wants to know."""
        if self.elsewhere is not None:
            # When the cluster has gone, what was last heard of it stays.
            with suppress(ClearSkyError):
                self._heard = self.elsewhere.tally(self._name) or self._heard
        if self._heard is not None:
            return self._heard
        own = self.sums
        with self._book.lock:
            return Tally(own.totals(), len(own.dates), own.in_flight)

    def margin(self) -> float:
        """Give what this process may still spend, credits, not rounded."""
        own = self.sums
        return self.limit - own.settled - own.possibly - own.reserved

    def __enter__(self) -> Self:
        self.elsewhere = self._find()
        if self.elsewhere is not None:
            self.elsewhere.open_budget(self._name, self.limit)
        with self._book.lock:
            self._book.active.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._book.lock:
            self._book.active.remove(self)
        if self.elsewhere is not None:
            with suppress(ClearSkyError):  # it must not hide what ended the block
                self.elsewhere.close_budget(self._name)
            self.tally()

    def __repr__(self) -> str:
        return f"<clearsky_xr budget of {self.limit:.2f} credits, {self.left:.2f} left>"


@dataclass(frozen=True, slots=True)
class Purse:
    """The limit of one opened cube, ``max_credits=``: a name, so that it may be pickled.

    Parameters
    ----------
    name : str
        Unique; each process counts for itself.
    limit : float
        Credits.
    """

    name: str
    limit: float


def checked_limit(limit: float) -> float:
    """Check a number of credits.

    Raises
    ------
    InvalidOptionError
        It is no number of 0 or more.
    """
    try:
        number = float(limit)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(limit, bool) or not number >= 0:
        raise InvalidOptionError(
            f"{limit!r} is not a number of credits",
            hint="Give a number, e.g. 5.0; one credit is about 10 km2 of one date.",
        )
    return number
