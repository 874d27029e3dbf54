"""The ledger of a process: what was spent, and what may have been."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

# Repeats of lost downloads together may cost this many credits, or this share of
# what was settled, whichever is more: enough for a flaky link, too little to hurt.
_LOST_CREDITS: Final = 1.0
_LOST_SHARE: Final = 0.02


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
        In flight.
    requests : int
        Complete answers.
    """

    settled: float
    possibly: float
    reserved: float
    requests: int


class Ledger:
    """Books every download before it is sent; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled = self._possibly = self._reserved = self._repeated = 0.0
        self._requests = 0

    def reserve(self, credits: float) -> None:  # noqa: A002  the field's word
        """Book a download that is about to be sent."""
        with self._lock:
            self._reserved += credits

    def settle(self, credits: float) -> None:  # noqa: A002
        """Turn a reservation into money spent: the answer is complete."""
        with self._lock:
            self._reserved -= credits
            self._settled += credits
            self._requests += 1

    def release(self, credits: float, *, possibly: bool) -> None:  # noqa: A002
        """End a reservation without an answer; `possibly` if it may have been charged."""
        with self._lock:
            self._reserved -= credits
            if possibly:
                self._possibly += credits

    def repeat_lost(self, credits: float) -> bool:  # noqa: A002
        """Ask to pay for a lost download once more; grants within the allowance."""
        with self._lock:
            allowance = max(_LOST_CREDITS, _LOST_SHARE * self._settled)
            granted = self._repeated + credits <= allowance
            if granted:
                self._repeated += credits
            return granted

    def spent(self) -> Spent:
        """Give the totals."""
        with self._lock:
            # Sums of two-decimal numbers; rounding takes off the binary dust, abs a -0.
            return Spent(
                abs(round(self._settled, 2)),
                abs(round(self._possibly, 2)),
                abs(round(self._reserved, 2)),
                self._requests,
            )
