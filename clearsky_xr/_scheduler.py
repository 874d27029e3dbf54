"""The gate and the ledger of a Dask cluster: a plugin that stands on its scheduler.

Its processes (workers and clients, here "holders") ask by remote calls of the scheduler, whose
names begin with ``clearsky_xr_``. All of them may be repeated, since a connection may break after
the scheduler has heard, and none is answered by None, which is how a scheduler answers calls that
it does not know. Nothing of it knows the API key: it is passed on as the
sealed bytes in which it came.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from . import _clock
from ._budget import Budget, Purse
from ._gate import NAME, Gate
from ._ledger import Booking, Bound, Ledger
from .errors import BudgetError

# Until a process has asked the account for its limit.
_UNKNOWN: Final = 1

# So long the end of a budget waits for the graphs that were asked for while it held, seconds.
_MARK: Final = 30.0

# Of budgets that have ended, and of keys, so many are remembered.
_MOST_ENDED: Final = 1000
_MOST_KEYS: Final = 20


@dataclass(frozen=True, slots=True)
class Sale:
    """What is known here of a download.

    Parameters
    ----------
    date : datetime.date
    credits, credits_at_most : float
        Its price, and rounded up.
    """

    date: dt.date
    credits: float
    credits_at_most: float


@dataclass(slots=True, eq=False)
class _Ticket:
    """A slot that a holder waits for or has.

    Parameters
    ----------
    holder : str
    gate : Gate
    patience : float
        Seconds that the holder gives its request: so long the service may work on it.
    entering : asyncio.Task
        Ends when the slot is taken.
    since : float
        When that was.
    booking : Booking or None
    burial : asyncio.TimerHandle or None
        Gives the slot of a dead holder back.
    """

    holder: str
    gate: Gate
    patience: float
    entering: asyncio.Task[None] = field(init=False)
    since: float = 0.0
    booking: Booking | None = None
    burial: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        """Wait for the slot."""
        await self.gate.enter()
        self.since = _clock.monotonic()


class ClusterGate(SchedulerPlugin):
    """Counts what all processes of a cluster send.

    Parameters
    ----------
    concurrency : int or None
        Most requests in flight of any account; None leaves it to the accounts.
    quarantine : float or None
        Most seconds for which the slots of a dead process stay taken; None waits as long as the
        process itself would have.
    """

    name = NAME
    #: A second `setup` leaves the first one's slots and sums alone.
    idempotent = True

    def __init__(self, concurrency: int | None, quarantine: float | None) -> None:
        self._concurrency = concurrency
        self._quarantine = quarantine

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to answer."""
        self._scheduler = scheduler
        self._salt = secrets.token_bytes(16)
        self._keys: list[Any] = []
        self._ledger = Ledger()
        self._gates: dict[str, Gate] = {}
        self._limits: dict[str, int] = {}
        self._tickets: dict[str, _Ticket] = {}
        self._spent: dict[str, Budget] = {}
        self._budgets: dict[str, tuple[str, Budget]] = {}
        # Budgets whose holder has gone without ending them.
        self._cut_off: set[str] = set()
        # Whether any task has ever been bound by one.
        self._stamped = False
        # What clients have sent along with their graphs, and who waits for it.
        self._marks: dict[str, asyncio.Event] = {}
        scheduler.stream_handlers[f"{NAME}_mark"] = self.mark
        self._claims: dict[tuple[str, int], tuple[str, str]] = {}
        for verb in (
            self.hello, self.configure, self.keys, self.slot, self.book, self.leave, self.limit,
            self.repeat, self.budget, self.bound, self.report, self.claim, self.unclaim,
            self.status,
        ):  # fmt: skip
            scheduler.handlers[f"{NAME}_{verb.__name__}"] = verb

    async def close(self) -> None:
        """Let go of those who wait: the scheduler ends."""
        for ticket in list(self._tickets):
            await self.leave(ticket)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Take note that a worker is gone."""
        self._bereave(worker)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002
        """Take note that a client is gone, or that its connection broke."""
        self._bereave(client)

    def add_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002
        """Let the budgets of a client that has come back hold again."""
        for name in [name for name in self._cut_off if self._budgets[name][0] == client]:
            self._cut_off.discard(name)
            self._budgets[name][1].__enter__()

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **_: Any) -> None:
        """Bind tasks that have come by the budgets that hold now.

        They may begin when the block of the budget has ended: an error ends it, and until the
        scheduler hears that nobody waits for them any more, workers go on to begin some.
        """
        held = tuple(self._bound())
        if not held and not self._stamped:
            return
        self._stamped = True
        for key in tasks:
            task = scheduler.tasks.get(key)
            if task is None:
                continue
            names = held
            if task.state != "released":
                # It waits, or runs, for somebody else already, whom a budget of ours does not
                # bind; what both are bound by stays.
                names = tuple(n for n in (task.annotations or {}).get(NAME, ()) if n in held)
            self._stamp(task, names)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Let go of a task that has ended: who needs it again has budgets of his own."""
        if self._stamped and finish in ("memory", "erred"):
            task = self._scheduler.tasks.get(key)
            if task is not None:
                self._stamp(task, ())

    def _stamp(self, task: Any, names: tuple[str, ...]) -> None:
        # The workers get it along with the task.
        if names:
            task.annotations = {**(task.annotations or {}), NAME: names}
        elif task.annotations:
            task.annotations.pop(NAME, None)

    # --- who belongs to it

    async def hello(self, *, sealed: bool = True) -> dict[str, Any]:
        """Tell a process what it needs; the keys are opened by it alone."""
        keys = self._keys if sealed else []
        return {"salt": self._salt, "concurrency": self._concurrency, "keys": keys}

    async def configure(self, concurrency: int | None, quarantine: float | None) -> bool:
        """Change the options while it runs."""
        self._concurrency, self._quarantine = concurrency, quarantine
        for account in self._gates:
            self._set_limit(account)
        return True

    async def keys(self, sealed: Any) -> bool:
        """Keep keys for the processes of the cluster."""
        self._keys = [*self._keys[1 - _MOST_KEYS :], sealed]
        return True

    # --- the gate

    async def slot(
        self, ticket: str, *, holder: str, account: str, patience: float
    ) -> dict[str, Any]:
        """Answer when the holder has a slot; first come, first served."""
        if holder not in self._scheduler.workers and holder not in self._scheduler.clients:
            return {"stranger": True}
        if ticket not in self._tickets:
            entry = self._tickets[ticket] = _Ticket(holder, self._gate(account), patience)
            entry.entering = asyncio.create_task(entry.enter())
        entry = self._tickets[ticket]
        await asyncio.wait([entry.entering])
        return {"stranger": True} if entry.entering.cancelled() else {"limit": entry.gate.limit}

    async def book(
        self,
        ticket: str,
        *,
        date: str,
        credits: float,  # noqa: A002  the field's word
        credits_at_most: float,
        purse: tuple[str, float] | None,
        bound: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Book a download for which the holder has a slot."""
        entry = self._tickets.get(ticket)
        if entry is None or entry.burial is not None or not self._budgets.keys() >= set(bound):
            return {"stranger": True}
        if entry.booking is None:
            sale = Sale(dt.date.fromisoformat(date), credits, credits_at_most)
            own = None if purse is None else Purse(*purse)
            held = [self._budgets[name][1] for name in bound]
            counts = Bound((self._tally(entry.holder), *held))
            try:
                entry.booking = self._ledger.reserve(sale, own, counts)
            except BudgetError as error:
                return {"message": error.message, "hint": error.hint, "details": error.details}
        return {}

    async def leave(
        self,
        ticket: str,
        *,
        outcome: str = "released",
        size: int = 0,
        answered: bool = False,
        refused: bool = False,
        pause: float | None = None,
    ) -> bool:
        """Take a slot back, and note what came of its request."""
        entry = self._tickets.pop(ticket, None)
        if entry is None:
            return True
        if not entry.entering.done():
            entry.entering.cancel()
            return True
        if entry.burial is not None:
            entry.burial.cancel()
        if entry.booking is not None and outcome == "settled":
            self._ledger.settle(entry.booking, size)
        elif entry.booking is not None:
            self._ledger.release(entry.booking, possibly=outcome != "released")
        if answered:
            entry.gate.answered()
        if refused:
            entry.gate.refused(pause)
        entry.gate.leave()
        return True

    async def limit(self, account: str, limit: int) -> bool:
        """Set an account's limit, as it was told to a process."""
        self._gate(account)
        self._limits[account] = limit
        self._set_limit(account)
        return True

    def _gate(self, account: str) -> Gate:
        if account not in self._gates:
            self._gates[account] = Gate(_UNKNOWN)
        return self._gates[account]

    def _set_limit(self, account: str) -> None:
        limit = self._limits.get(account, _UNKNOWN)
        gate = self._gates[account]
        limit = min(limit, self._concurrency or limit)
        if limit != gate.limit:  # setting it would also widen a gate that has narrowed
            gate.limit_to(limit)

    def _bereave(self, holder: str) -> None:
        """Bury a holder: what it has in flight the service may still be working on."""
        for name, (owner, budget) in self._budgets.items():
            if owner == holder and self._holds(name):
                # What was begun stays bound by it.
                budget.__exit__(None, None, None)
                self._cut_off.add(name)
        for key, (by, _) in list(self._claims.items()):
            if by == holder:
                del self._claims[key]
        for ticket, entry in list(self._tickets.items()):
            if entry.holder != holder:
                continue
            if not entry.entering.done():
                entry.entering.cancel()
                del self._tickets[ticket]
                continue
            if entry.booking is not None:
                self._ledger.release(entry.booking, possibly=True)
                entry.booking = None
            most = entry.patience if self._quarantine is None else self._quarantine
            rest = max(0.0, entry.since + min(most, entry.patience) - _clock.monotonic())
            entry.burial = asyncio.get_running_loop().call_later(rest, self._bury, ticket)

    def _bury(self, ticket: str) -> None:
        entry = self._tickets.pop(ticket, None)
        if entry is None:
            return
        if entry.booking is not None:
            self._ledger.release(entry.booking, possibly=True)
        entry.gate.leave()

    # --- the ledger

    async def repeat(self, credits: float) -> bool:  # noqa: A002  the field's word
        """Say whether a lost download may be paid for once more; twice asked counts twice."""
        return self._ledger.repeat_lost(credits)

    def mark(self, name: str, **_: Any) -> None:
        """Take note that all graphs have come that a client sent before."""
        if self._holds(name):  # or nobody waits for it any more
            self._marks.setdefault(name, asyncio.Event()).set()

    async def budget(
        self, name: str, *, holder: str, limit: float, opened: bool, marked: bool = False
    ) -> bool:
        """Begin or end a budget that holds for the whole cluster.

        Graphs come by a stream and are unpacked in their turn, this call comes beside it: a
        client that ends a budget sends a mark after the graphs that were asked for while it held.
        """
        if marked and self._holds(name):  # it may have been ended, and is said again
            with suppress(TimeoutError):
                async with asyncio.timeout(_MARK):
                    await self._marks.setdefault(name, asyncio.Event()).wait()
            self._marks.pop(name, None)
        if opened and name not in self._budgets:
            budget = Budget(limit, self._ledger)
            self._budgets[name] = holder, budget
            budget.__enter__()
        elif not opened:
            self._cut_off.discard(name)
            self._end_budget(name)
        return True

    async def bound(self, names: Iterable[str] = ()) -> list[str]:
        """Name the budgets that hold now, and those of `names` that are still known."""
        return list(dict.fromkeys((*self._bound(), *(n for n in names if n in self._budgets))))

    async def report(self, name: str) -> dict[str, Any]:
        """Tell what counted for a budget, also after its end."""
        known = self._budgets.get(name)
        return {"tally": None if known is None else asdict(known[1].tally())}

    def _bound(self) -> list[str]:
        return [name for name in self._budgets if self._holds(name)]

    def _holds(self, name: str) -> bool:
        return name in self._budgets and self._budgets[name][1] in self._ledger.active

    def _end_budget(self, name: str) -> None:
        if self._holds(name):
            self._budgets[name][1].__exit__(None, None, None)
            self._budgets[name] = self._budgets.pop(name)  # the last that has ended
        # The oldest of those that have ended are forgotten.
        over = [
            n for n, (_, b) in self._budgets.items() if not self._holds(n) and not b.sums.in_flight
        ]
        for old in over[:-_MOST_ENDED]:
            del self._budgets[old]
            self._cut_off.discard(old)

    def _tally(self, holder: str) -> Budget:
        if holder not in self._spent:
            self._spent[holder] = Budget(math.inf, self._ledger)
        return self._spent[holder]

    # --- blocks of stores

    async def claim(
        self, claim: str, *, holder: str, store: str, numbers: Iterable[int]
    ) -> list[int]:
        """Give a holder those blocks of a store that nobody is buying.

        Each claim has a name of its own: one that is given back late must not free the
        blocks that the same process has claimed again.
        """
        own = holder, claim
        return [
            number for number in numbers if self._claims.setdefault((store, number), own) == own
        ]

    async def unclaim(self, claim: str, *, holder: str, store: str, numbers: Iterable[int]) -> bool:
        """Take blocks back."""
        for number in numbers:
            if self._claims.get((store, number)) == (holder, claim):
                del self._claims[store, number]
        return True

    # --- how it stands

    async def status(self) -> dict[str, Any]:
        """Tell limits, slots and credits."""
        return {
            "gates": [
                {
                    "limit": gate.limit,
                    "in_flight": gate.in_flight,
                    "waiting": sum(
                        entry.gate is gate and not entry.entering.done()
                        for entry in self._tickets.values()
                    ),
                    "orphans": sum(
                        entry.gate is gate and entry.burial is not None
                        for entry in self._tickets.values()
                    ),
                }
                for gate in self._gates.values()
            ],
            "spent": asdict(self._ledger.spent()),
            "holders": {holder: asdict(tally.report()) for holder, tally in self._spent.items()},
        }
