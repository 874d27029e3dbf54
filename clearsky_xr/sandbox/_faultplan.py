"""Which fault strikes which request."""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Iterable

from .faults import Fault


class Plan:
    """The faults of a server, and how often each one was met. Safe to use from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._met: list[tuple[Fault, int]] = [(fault, 0) for fault in faults]

    def add(self, fault: Fault) -> None:
        """Add a fault; its matching requests count from now."""
        with self._lock:
            self._met.append((fault, 0))

    def pick(self, endpoint: str, day: dt.date | None) -> Fault | None:
        """Give the fault that strikes this request, the oldest one first.

        A fault does not count the requests that an older one strikes.
        """
        with self._lock:
            for i, (fault, met) in enumerate(self._met):
                if fault.endpoint not in (endpoint, "any"):
                    continue
                if fault.date is not None and fault.date != day:
                    continue
                self._met[i] = (fault, met + 1)
                turn = met + 1 - fault.first
                if turn < 0 or (fault.times is not None and turn >= fault.times):
                    continue
                if fault.share == 1 or _chance(fault, turn) < fault.share:
                    return fault
        return None


def _chance(fault: Fault, turn: int) -> float:
    """Throw the dice for a request: seeded, so that a run can be had again."""
    return random.Random(f"{fault.seed} {fault.kind} {turn}").random()  # noqa: S311  no secret
