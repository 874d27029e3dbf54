"""The ledger of a process: what was spent, what may have been, and what may be."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ._budget import Budget, Purse, Spent, Sums
from .errors import BudgetError

# Repeats of lost downloads together may cost this many credits, or this share of
# what was settled, whichever is more: enough for a flaky link, too little to hurt.
_LOST_CREDITS: Final = 1.0
_LOST_SHARE: Final = 0.02

# Sums of two-decimal numbers carry binary dust.
_DUST: Final = 1e-6


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
        self._total = Sums()
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
                if budget.margin() + _DUST < price:
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

    def _accounts(self, budgets: tuple[Budget, ...]) -> list[Sums]:
        return [self._total, *(budget.sums for budget in budgets)]

    def _tell(self) -> None:
        for watcher in list(self.watchers):
            watcher()


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
