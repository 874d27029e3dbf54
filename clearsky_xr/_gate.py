"""At most so many requests in flight for one account."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from . import _clock
from ._ledger import Booking

#: By which the scheduler of a Dask cluster knows the gate of the cluster, and tasks the budgets
#: that they are bound by.
NAME: Final = "clearsky_xr"

# After a refusal the gate narrows; it widens by one after so many answers.
_ANSWERS_TO_WIDEN: Final = 10


class Slot(Protocol):
    """A place in flight, while it is held; what comes of its request is told to it."""

    async def book(self, booking: Booking) -> None:
        """Book a download with whoever else counts.

        Raises
        ------
        BudgetError
            It does not fit into a budget.
        """

    def answered(self) -> None:
        """Take note of a complete answer."""

    def refused(self, pause: float | None) -> None:
        """Take note of a 429 or a 1003, and of the seconds that the service asked to wait."""


class Door(Protocol):
    """What requests of an account wait at: a `Gate`, or one elsewhere that several processes share.

    Attributes
    ----------
    limit : int
        Requests in flight.
    """

    @property
    def limit(self) -> int:
        """Requests that it lets through at a time."""

    def slot(self, at_most: int | None = None) -> AbstractAsyncContextManager[Slot]:
        """Hold a slot; waits until one is free."""

    def limit_to(self, limit: int) -> None:
        """Set the limit, when the account tells it."""


class Gate:
    """A door that lets `limit` requests through at a time.

    It belongs to one event loop and is not safe under threads.

    Parameters
    ----------
    limit : int
        Requests in flight; the account's ``MaxConcurrentConnections``.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._narrowed = limit
        self._answers = 0
        self._answered = True
        self._paused_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self, at_most: int | None = None) -> AsyncIterator[Slot]:
        """Hold a slot; waits until one is free.

        Parameters
        ----------
        at_most : int, optional
            Wait until fewer than this many requests are in flight, where that
            is less than the gate's own limit.
        """
        await self.enter(at_most)
        try:
            yield self
        finally:
            self.leave()

    async def enter(self, at_most: int | None = None) -> None:
        """Take a slot, to be given back by `leave`; see `slot`."""
        while True:
            if (pause := self._paused_until - _clock.monotonic()) > 0:
                await _clock.sleep(pause)
            elif self.in_flight < min(self._narrowed, at_most or self._narrowed):
                break
            else:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
        self.in_flight += 1

    def leave(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self._wake()

    async def book(self, booking: Booking) -> None:
        """Nobody else counts: the ledger of this process has it."""

    def limit_to(self, limit: int) -> None:
        """Set the limit, when the account tells it; a gate that has narrowed stays so."""
        wide = self._narrowed >= self.limit
        self.limit = limit
        self._narrowed = limit if wide else min(limit, self._narrowed)
        self._wake()

    def refused(self, pause: float | None) -> None:
        """Take note of a 429 or a 1003.

        Parameters
        ----------
        pause : float or None
            Seconds that the service asked to wait: nothing is sent meanwhile.
        """
        # Refusals with no answer between them are one sign, not many.
        if self._answered:
            self._narrowed = max(1, self._narrowed // 2)
        self._answered, self._answers = False, 0
        if pause is not None:
            self._paused_until = max(self._paused_until, _clock.monotonic() + pause)

    def answered(self) -> None:
        """Take note of a complete answer: after some of them the gate widens again."""
        self._answered = True
        self._answers += 1
        if self._narrowed < self.limit and self._answers >= _ANSWERS_TO_WIDEN:
            self._narrowed += 1
            self._answers = 0
            self._wake()

    def _wake(self) -> None:
        # All of them look again: they wait for different limits. They are few,
        # since each fetch keeps no more requests waiting than the gate is wide.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
