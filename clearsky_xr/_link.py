"""A process's line to the scheduler of a Dask cluster, where the gate and the ledger are.

The scheduler's side is `_scheduler`. Remote calls run on the loop of the worker or client; who
asks, on the background loop or in a thread, waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from . import _clock
from ._budget import Spent, Tally
from ._gate import Door, Slot
from ._ledger import Booking
from .errors import BudgetError, ClearSkyError

_log = logging.getLogger(__name__)

#: How remote calls are named.
PREFIX: Final = "clearsky_xr_"

# Slots that a process asks for at a time. Each waits in a connection of its own to the scheduler,
# and a few are enough: a slot is granted in about a millisecond.
_ASKING: Final = 4

# Pauses between attempts when the scheduler does not answer, seconds.
_AGAIN: Final = (0.1, 0.5, 2.0)

#: Names an account for the scheduler, given its salt: so that no two programs give the same name.
Identify = Callable[[bytes], str]


class Link(Protocol):
    """What a process that belongs to a cluster shares with the others."""

    @property
    def alive(self) -> bool:
        """Whether the process still belongs to the cluster."""

    def door(self, identify: Identify, patience: float) -> Door:
        """Give what requests of an account wait at, each of which takes so many seconds at most."""

    async def bound(self) -> tuple[str, ...]:
        """Name the budgets that hold for the cluster now."""

    async def may_repeat(self, price: float) -> bool:
        """Say whether a lost download may be paid for once more, credits."""

    def claim(
        self, store: str, numbers: Sequence[int]
    ) -> AbstractAsyncContextManager[frozenset[int]]:
        """Be the only process that buys blocks of a store; gives those that it got."""

    def open_budget(self, name: str, limit: float) -> None:
        """Begin a budget for the whole cluster."""

    def close_budget(self, name: str) -> None:
        """End it."""

    def tally(self, name: str) -> Tally | None:
        """Tell what counted for a budget; None if the scheduler does not know it."""

    def others(self) -> Spent:
        """Tell what the other processes have spent."""


class SchedulerLink:
    """A line to the plugin on the scheduler.

    Parameters
    ----------
    node : distributed.Worker or distributed.Client
    holder : str
        By which the scheduler knows it: a worker's address, a client's id.
    running : callable
        Whether it still belongs to the cluster.
    salt : bytes
    concurrency : int or None
        Most requests in flight that the cluster allows to any account.
    """

    def __init__(
        self,
        node: Any,
        holder: str,
        running: Callable[[], bool],
        salt: bytes,
        concurrency: int | None,
    ) -> None:
        self._node = node
        self._running = running
        self._salt = salt
        self._doors: dict[str, SchedulerDoor] = {}
        self.holder = holder
        self.concurrency = concurrency

    @property
    def alive(self) -> bool:
        """Whether the process still belongs to the cluster."""
        return self._running()

    def door(self, identify: Identify, patience: float) -> Door:
        """Give what requests of an account wait at, each of which takes so many seconds at most."""
        account = identify(self._salt)
        if account not in self._doors:
            self._doors[account] = SchedulerDoor(self, account, patience)
        return self._doors[account]

    async def bound(self) -> tuple[str, ...]:
        """Name the budgets that hold for the cluster now."""
        return tuple(await self.call("bound"))

    async def may_repeat(self, price: float) -> bool:
        """Say whether a lost download may be paid for once more, credits."""
        return bool(await self.call("repeat", credits=price))

    @asynccontextmanager
    async def claim(self, store: str, numbers: Sequence[int]) -> AsyncIterator[frozenset[int]]:
        """Be the only process that buys blocks of a store; gives those that it got."""
        what = {"holder": self.holder, "store": store, "numbers": list(numbers)}
        got = frozenset(await self.call("claim", **what))
        try:
            yield got
        finally:
            await asyncio.shield(self._quietly("unclaim", **what))

    def open_budget(self, name: str, limit: float) -> None:
        """Begin a budget for the whole cluster."""
        self.ask("budget", name=name, holder=self.holder, limit=limit, opened=True)

    def close_budget(self, name: str) -> None:
        """End it."""
        self.ask("budget", name=name, holder=self.holder, limit=0.0, opened=False)

    def tally(self, name: str) -> Tally | None:
        """Tell what counted for a budget; None if the scheduler does not know it."""
        said = self.ask("report", name=name)
        return None if said is None else Tally(**{**said, "spent": Spent(**said["spent"])})

    def others(self) -> Spent:
        """Tell what the other processes have spent."""
        said = self.ask("status")
        own = said["holders"].get(self.holder)
        return Spent(**said["spent"]) - (Spent() if own is None else Spent(**own))

    async def call(self, verb: str, **what: Any) -> Any:
        """Ask the scheduler, from the background loop; repeats what it may not have heard.

        Raises
        ------
        ClearSkyError
            It does not answer.
        """
        for pause in (*_AGAIN, None):
            try:
                return await asyncio.wrap_future(self._send(verb, what))
            except OSError as error:  # distributed's errors of connections are of this kind
                trouble = f"{type(error).__name__}: {error}"
            if pause is None or not self.alive:
                break
            await _clock.sleep(pause)
        raise ClearSkyError(
            f"the Dask scheduler, where the account's connections are counted, does not answer: "
            f"{trouble}"[:300],
            hint="Is the cluster still running?",
            kind="cluster",
        )

    def ask(self, verb: str, **what: Any) -> Any:
        """Ask the scheduler, from a thread.

        Raises
        ------
        ClearSkyError
            The thread is the one that would have to bring the answer.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise ClearSkyError(
                "this cannot be asked from the event loop of an asynchronous Dask client",
                hint="Use asyncio.to_thread, or max_credits= instead of a budget.",
                kind="cluster",
            )
        return asyncio.run_coroutine_threadsafe(self.call(verb, **what), self._loop).result()

    async def _quietly(self, verb: str, **what: Any) -> None:
        """Tell the scheduler something; if it does not answer it has forgotten this process."""
        try:
            await self.call(verb, **what)
        except ClearSkyError as error:
            _log.debug("%s", error)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._node.loop.asyncio_loop
        return loop

    def _send(self, verb: str, what: dict[str, Any]) -> Future[Any]:
        call = getattr(self._node.scheduler, PREFIX + verb)
        return asyncio.run_coroutine_threadsafe(call(**what), self._loop)


class SchedulerDoor:
    """The gate of an account on the scheduler, as one process sees it.

    Parameters
    ----------
    link : SchedulerLink
    account : str
        Its name there.
    patience : float
        Seconds that a request takes at most.
    """

    def __init__(self, link: SchedulerLink, account: str, patience: float) -> None:
        self.limit = 1
        self._link = link
        self._account = account
        self._patience = patience
        self._asking = asyncio.Semaphore(_ASKING)
        self._tasks: set[asyncio.Task[None]] = set()

    def limit_to(self, limit: int) -> None:
        """Tell the limit to all processes of the cluster."""
        self.limit = min(limit, self._link.concurrency or limit)
        self._later(self._link._quietly("limit", account=self._account, limit=limit))  # noqa: SLF001

    @asynccontextmanager
    async def slot(self, at_most: int | None = None) -> AsyncIterator[Slot]:
        """Hold a slot; waits until the scheduler grants one."""
        slot = _Slot(self._link, uuid.uuid4().hex)
        entering = asyncio.create_task(self._enter(slot, at_most))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            # Who was asked cannot be un-asked: what comes is given back.
            if slot.asked:
                entering.add_done_callback(lambda _: self._later(slot.leave()))
            else:
                entering.cancel()
            raise
        try:
            yield slot
        finally:
            leaving = self._later(slot.leave())
            await asyncio.shield(leaving)

    async def _enter(self, slot: _Slot, at_most: int | None) -> None:
        async with self._asking:
            slot.asked = True
            said = await self._link.call(
                "slot", ticket=slot.ticket, holder=self._link.holder, account=self._account,
                at_most=at_most, patience=self._patience,
            )  # fmt: skip
        _check_known(said)
        self.limit = said["limit"]

    def _later(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Slot:
    """A slot on the scheduler; remembers what came of its request until it is given back."""

    def __init__(self, link: SchedulerLink, ticket: str) -> None:
        self._link = link
        self._booking: Booking | None = None
        self._came: dict[str, Any] = {}
        self.ticket = ticket
        self.asked = False

    async def book(self, booking: Booking) -> None:
        """Book a download at the scheduler, whose budgets hold for the whole cluster."""
        sale = booking.request
        purse = booking.purse
        said = await self._link.call(
            "book", ticket=self.ticket, date=str(sale.date), credits=sale.credits,
            credits_at_most=sale.credits_at_most,
            purse=None if purse is None else (purse.name, purse.limit), bound=booking.elsewhere,
        )  # fmt: skip
        _check_known(said)
        if "message" in said:
            raise BudgetError(said["message"], hint=said["hint"], **said["details"])
        self._booking = booking

    def answered(self) -> None:
        """Take note of a complete answer."""
        self._came["answered"] = True

    def refused(self, pause: float | None) -> None:
        """Take note of a 429 or a 1003."""
        self._came |= {"refused": True, "pause": pause}

    async def leave(self) -> None:
        """Give the slot back."""
        if self._booking is not None:
            self._came |= {"outcome": self._booking.outcome, "size": self._booking.size}
        await self._link._quietly("leave", ticket=self.ticket, **self._came)  # noqa: SLF001


def _check_known(said: Mapping[str, Any]) -> None:
    """Refuse to go on if the scheduler has given this process up."""
    if said.get("stranger"):
        raise ClearSkyError(
            "the Dask scheduler no longer counts this process as part of the cluster",
            hint="Its work is done elsewhere.",
            kind="cluster",
        )
