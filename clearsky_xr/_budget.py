"""The ledger of a process: what was spent, what may have been, and what may be."""

from __future__ import annotations

import datetime as dt
import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from .errors import BudgetError, InvalidOptionError

# Repeats of lost downloads together may cost this many credits, or this share of
# what was settled, whichever is more: enough for a flaky link, too little to hurt.
_LOST_CREDITS: Final = 1.0
_LOST_SHARE: Final = 0.02

# Sums of two-decimal numbers carry binary dust.
_DUST: Final = 1e-6


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


class _Account:
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
    up for all its processes.

    Parameters
    ----------
    limit : float
        Credits.
    ledger : Ledger
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
        ledger: Ledger,
        elsewhere: Callable[[], Elsewhere | None] = lambda: None,
    ) -> None:
        self.limit = checked_limit(limit)
        self._ledger = ledger
        self._account = _Account()
        self._name = secrets.token_hex(8)
        self._find = elsewhere
        self.elsewhere: Elsewhere | None = None

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
        said = None if self.elsewhere is None else self.elsewhere.tally(self._name)
        if said is not None:
            return said
        own = self._account
        with self._ledger.lock:
            return Tally(own.totals(), len(own.dates), own.in_flight)

    def _left(self) -> float:
        own = self._account
        return self.limit - own.settled - own.possibly - own.reserved

    def __enter__(self) -> Self:
        self.elsewhere = self._find()
        if self.elsewhere is not None:
            self.elsewhere.open_budget(self._name, self.limit)
        with self._ledger.lock:
            self._ledger.active.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._ledger.lock:
            self._ledger.active.remove(self)
        if self.elsewhere is not None:
            self.elsewhere.close_budget(self._name)

    def __repr__(self) -> str:
        return f"<clearsky_xr budget of {self.limit:.2f} credits, {self.left:.2f} left>"


class Priced(Protocol):
    """What a ledger asks of a download: a `Request`, or what is known of one elsewhere."""

    @property
    def date(self) -> dt.date:
        """Its day."""

    @property
    def credits(self) -> float:
        """Its price."""

    @property
    def credits_at_most(self) -> float:
        """Its price rounded up to the cent."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Budgets that held when a computation began: it stays bound by them when they have ended.

    An error ends a ``with`` block while other tasks of the same computation still send.

    Parameters
    ----------
    here : tuple of Budget
    elsewhere : tuple of str
        Names of those of a cluster.
    """

    here: tuple[Budget, ...] = ()
    elsewhere: tuple[str, ...] = ()


#: What became of a booking: in flight, answered, perhaps charged, or not charged.
Outcome = Literal["reserved", "settled", "possibly", "released"]


@dataclass(slots=True, eq=False)
class Booking:
    """A download that the ledger knows of.

    Parameters
    ----------
    request : Priced
    reserved : float
        Its price rounded up, credits.
    budgets : tuple of Budget
        Those that it counts for.
    purse : Purse or None
        That of its cube.
    elsewhere : tuple of str
        Budgets of a cluster that it counts for, beside those that hold there now.
    outcome : {"reserved", "settled", "possibly", "released"}
    size : int
        Bytes of its answer.
    """

    request: Priced
    reserved: float
    budgets: tuple[Budget, ...]
    purse: Purse | None = None
    elsewhere: tuple[str, ...] = ()
    outcome: Outcome = "reserved"
    size: int = 0


#: Is called whenever something was booked.
Watcher = Callable[[], None]


class Ledger:
    """Books every download before it is sent; safe under threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.active: list[Budget] = []
        self.watchers: list[Watcher] = []
        self._total = _Account()
        self._repeated = 0.0
        self._purses: dict[str, Budget] = {}

    def bound(self) -> tuple[Budget, ...]:
        """Give the budgets that hold now."""
        with self.lock:
            return tuple(self.active)

    def reserve(
        self, request: Priced, purse: Purse | None = None, bound: Bound | None = None
    ) -> Booking:
        """Book a download that is about to be sent.

        Parameters
        ----------
        request : Priced
        purse : Purse, optional
            Of the cube that it is for.
        bound : Bound, optional
            Budgets that held when the computation began which sends it.

        Raises
        ------
        BudgetError
            It does not fit into a budget; nothing is booked.
        """
        price = request.credits_at_most
        with self.lock:
            own = () if purse is None else (self._budget_of(purse),)
            bound = bound or Bound()
            budgets = tuple(dict.fromkeys((*self.active, *own, *bound.here)))
            for budget in budgets:
                if budget._left() + _DUST < price:  # noqa: SLF001  two halves of one thing
                    raise _refused(budget, price)
            for account in self._accounts(budgets):
                account.reserved += price
                account.in_flight += 1
        self._tell()
        return Booking(request, price, budgets, purse, bound.elsewhere)

    def settle(self, booking: Booking, size: int = 0) -> None:
        """Turn a reservation into money spent: the answer, of so many bytes, is complete."""
        with self.lock:
            for account in self._accounts(booking.budgets):
                account.reserved -= booking.reserved
                account.in_flight -= 1
                account.dates.add(booking.request.date)
                account.settled += booking.request.credits
                account.requests += 1
                account.bytes += size
            booking.outcome, booking.size = "settled", size
        self._tell()

    def release(self, booking: Booking, *, possibly: bool) -> None:
        """End a reservation without an answer; `possibly` if it may have been charged."""
        with self.lock:
            for account in self._accounts(booking.budgets):
                account.reserved -= booking.reserved
                account.in_flight -= 1
                if possibly:
                    account.possibly += booking.request.credits
            booking.outcome = "possibly" if possibly else "released"
        self._tell()

    def repeat_lost(self, credits: float) -> bool:  # noqa: A002  the field's word
        """Ask to pay for a lost download once more; grants within the allowance."""
        with self.lock:
            allowance = max(_LOST_CREDITS, _LOST_SHARE * self._total.settled)
            granted = self._repeated + credits <= allowance
            if granted:
                self._repeated += credits
            return granted

    def spent(self) -> Spent:
        """Give the totals."""
        with self.lock:
            return self._total.totals()

    def _budget_of(self, purse: Purse) -> Budget:
        if purse.name not in self._purses:
            self._purses[purse.name] = Budget(purse.limit, self)
        return self._purses[purse.name]

    def _accounts(self, budgets: tuple[Budget, ...]) -> list[_Account]:
        return [self._total, *(budget._account for budget in budgets)]  # noqa: SLF001

    def _tell(self) -> None:
        for watcher in list(self.watchers):
            watcher()


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


def _refused(budget: Budget, price: float) -> BudgetError:
    spent = budget.report()
    return BudgetError(
        f"the budget of {budget.limit:.2f} credits does not allow a download of {price:.2f}: "
        f"{spent.settled:.2f} are spent, {spent.reserved:.2f} in flight, {spent.possibly:.2f} may "
        f"have been charged, {budget.left:.2f} are left",
        hint="Nothing was sent. Select less, or raise the budget; .clearsky.plan() tells the "
        "price beforehand. Prices are rounded up to the cent before they are known to be settled.",
        limit=budget.limit,
        asked=price,
        left=budget.left,
    )
