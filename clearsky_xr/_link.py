"""A process's line to the scheduler of a Dask cluster, where the gate and the ledger are.

The scheduler's side is `_scheduler`. Remote calls run on the loop of the worker or client; who
asks, on the background loop or in a thread, waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from . import _clock
from ._budget import Spent, Tally
from ._gate import NAME, Door, Gate, Slot
from ._ledger import Booking
from .errors import BudgetError, ClearSkyError

_log = logging.getLogger(__name__)

#: How remote calls are named.
PREFIX: Final = f"{NAME}_"

# Slots that a process asks for at a time. Each waits in a connection of its own to the scheduler,
# and a few are enough: a slot is granted in about a millisecond.
_ASKING: Final = 4

# Figures are right as soon as a computation has ended, unless the scheduler takes longer, seconds.
_BRIEFLY: Final = 1.0

# So often a block is given back to a scheduler that does not answer.
_UNTIRING: Final = 100

# Pauses between attempts when the scheduler does not answer, seconds.
_AGAIN: Final = (0.1, 0.5, 2.0)

#: Names an account for the scheduler, given its salt: so that no two programs give the same name.
Identify = Callable[[bytes], str]


def budgets_of_task() -> tuple[str, ...]:
    """Name the budgets that held for the cluster when the task of this thread was submitted."""
    # It may also be in the middle of being imported.
    find = getattr(sys.modules.get("distributed.worker"), "get_worker", None)
    if find is None:
        return ()
    try:
        worker = find()
        task = worker.state.tasks[worker.get_current_task()]
    except (ValueError, KeyError):  # no task of a worker runs in this thread
        return ()
    return tuple((task.annotations or {}).get(NAME, ()))


class Link(Protocol):
    """What a process that belongs to a cluster shares with the others."""

    @property
    def holder(self) -> str:
        """By which the scheduler knows this process."""

    @property
    def alive(self) -> bool:
        """Whether the process still belongs to the cluster."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the answers of the scheduler arrive."""

    def door(self, identify: Identify, patience: float) -> Door:
        """Give what requests of an account wait at, each of which takes so many seconds at most."""

    async def bound(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name the budgets that hold for the cluster now, and those of `names` that it knows."""

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

    def others(self, own: Collection[str]) -> Spent:
        """Tell what the processes have spent that are not known by one of these names."""


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
        self._tasks: set[asyncio.Task[None]] = set()
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

    async def bound(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name the budgets that hold for the cluster now, and those of `names` that it knows."""
        return tuple(await self.call("bound", names=list(names)))

    async def may_repeat(self, price: float) -> bool:
        """Say whether a lost download may be paid for once more, credits."""
        return bool(await self.call("repeat", credits=price))

    @asynccontextmanager
    async def claim(self, store: str, numbers: Sequence[int]) -> AsyncIterator[frozenset[int]]:
        """Be the only process that buys blocks of a store; gives those that it got."""
        what = {
            "claim": uuid.uuid4().hex, "holder": self.holder, "store": store,
            "numbers": list(numbers),
        }  # fmt: skip
        claiming = asyncio.create_task(self.call("claim", **what))

        async def give_back() -> None:
            # Also what is granted to who does not wait for it any more.
            await asyncio.wait([claiming])
            if not claiming.cancelled():
                claiming.exception()
            # Nobody could buy these blocks as long as this process lives.
            for _ in range(_UNTIRING):
                try:
                    await self.call("unclaim", **what)
                except ClearSkyError as error:
                    _log.debug("%s", error)
                else:
                    return
                if not self.alive:
                    return
                await _clock.sleep(_AGAIN[-1])

        try:
            yield frozenset(await asyncio.shield(claiming))
        finally:
            await briefly(self.later(give_back()))

    def open_budget(self, name: str, limit: float) -> None:
        """Begin a budget for the whole cluster."""
        self.ask("budget", name=name, holder=self.holder, limit=limit, opened=True)

    def close_budget(self, name: str) -> None:
        """End it, for what is asked for from now on."""
        what = {"name": name, "holder": self.holder, "limit": 0.0, "opened": False}
        send = getattr(self._node, "_send_to_scheduler", None)
        if send is not None and self.alive:
            # A client's graphs go this way, and may still be on it.
            send({"op": f"{PREFIX}mark", "name": name})
            what["marked"] = True
        self.ask("budget", **what)

    def tally(self, name: str) -> Tally | None:
        """Tell what counted for a budget; None if the scheduler does not know it."""
        said = self.ask("report", name=name)["tally"]
        return None if said is None else Tally(**{**said, "spent": Spent(**said["spent"])})

    def others(self, own: Collection[str]) -> Spent:
        """Tell what the processes have spent that are not known by one of these names."""
        holders = self.ask("status")["holders"]
        return sum((Spent(**spent) for name, spent in holders.items() if name not in own), Spent())

    async def call(self, verb: str, **what: Any) -> Any:
        """Ask the scheduler, from the background loop; repeats what it may not have heard.

        Raises
        ------
        ClearSkyError
            It does not answer.
        """
        for pause in (*_AGAIN, None):
            try:
                said = await asyncio.wrap_future(self._send(verb, what))
            except OSError as error:  # distributed's errors of connections are of this kind
                trouble = f"{type(error).__name__}: {error}"
            else:
                if said is None:  # no call of ours answers so
                    raise ClearSkyError(
                        "the Dask scheduler has no gate: was it restarted?",
                        hint="Call clearsky_xr.cluster.setup(client) again.",
                        kind="cluster",
                    )
                return said
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
        if here is not None and here is self.loop:
            raise ClearSkyError(
                "this cannot be asked from the event loop of an asynchronous Dask client",
                hint="Use asyncio.to_thread, or max_credits= instead of a budget.",
                kind="cluster",
            )
        if not self.alive or self.loop.is_closed():
            raise ClearSkyError(
                "the Dask cluster has gone", hint="Its figures went with it.", kind="cluster"
            )
        return asyncio.run_coroutine_threadsafe(self.call(verb, **what), self.loop).result()

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something whoever waits for it, from the background loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def quietly(self, verb: str, **what: Any) -> None:
        """Tell the scheduler something; if it does not answer it has forgotten this process."""
        try:
            await self.call(verb, **what)
        except ClearSkyError as error:
            _log.debug("%s", error)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """That of the worker or client."""
        loop: asyncio.AbstractEventLoop = self._node.loop.asyncio_loop
        return loop

    def _send(self, verb: str, what: dict[str, Any]) -> Future[Any]:
        scheduler = self._node.scheduler
        if scheduler is None or self.loop.is_closed():
            raise ConnectionError("the connection to the scheduler is closed")
        return asyncio.run_coroutine_threadsafe(
            getattr(scheduler, PREFIX + verb)(**what), self.loop
        )


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
        # Counts for those who want to be fewer than the scheduler would let in.
        self._own = Gate(sys.maxsize)

    def limit_to(self, limit: int) -> None:
        """Tell the limit to all processes of the cluster."""
        self.limit = min(limit, self._link.concurrency or limit)
        self._link.later(self._link.quietly("limit", account=self._account, limit=limit))

    @asynccontextmanager
    async def slot(self, at_most: int | None = None) -> AsyncIterator[Slot]:
        """Hold a slot; waits until the scheduler grants one.

        Parameters
        ----------
        at_most : int, optional
            Wait until fewer than this many requests of this process wait or are in flight.
        """
        async with self._own.slot(at_most):
            slot = _Slot(self._link, uuid.uuid4().hex)
            entering = asyncio.create_task(self._enter(slot))
            try:
                await asyncio.shield(entering)
            except BaseException:
                # Who was asked cannot be un-asked: what comes is given back.
                if slot.asked:
                    self._link.later(_give_back(entering, slot))
                else:
                    entering.cancel()
                raise
            try:
                yield slot
            finally:
                # What was paid for does not wait for a scheduler that does not answer.
                await briefly(self._link.later(slot.leave()))

    async def _enter(self, slot: _Slot) -> None:
        async with self._asking:
            slot.asked = True
            said = await self._link.call(
                "slot", ticket=slot.ticket, holder=self._link.holder, account=self._account,
                patience=self._patience,
            )  # fmt: skip
        _check_known(said)
        self.limit = said["limit"]


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
        await self._link.quietly("leave", ticket=self.ticket, **self._came)


async def _give_back(entering: asyncio.Task[None], slot: _Slot) -> None:
    """Give a slot back that nobody waits for any more, once it is there."""
    await asyncio.wait([entering])
    if not entering.cancelled():
        entering.exception()
    await slot.leave()


async def briefly(task: asyncio.Task[None]) -> None:
    """Wait for a task, but not for long; it goes on."""
    await asyncio.wait([task], timeout=_BRIEFLY)


def _check_known(said: Mapping[str, Any]) -> None:
    """Refuse to go on if the scheduler has given this process up."""
    if said.get("stranger"):
        raise ClearSkyError(
            "the Dask scheduler no longer counts this process as part of the cluster",
            hint="Its work is done elsewhere.",
            kind="cluster",
        )
