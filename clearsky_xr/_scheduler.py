"""The gate and the ledger of a Dask cluster: a plugin that stands on its scheduler.

Its processes (workers and clients, here "holders") ask by remote calls of the scheduler, whose
names begin with ``clearsky_xr_``. All of them may be repeated without harm, since a connection
may break after the scheduler has heard. Nothing of it knows the API key: it is passed on as the
sealed bytes in which it came.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from . import _clock
from ._budget import Budget, Purse
from ._gate import Gate
from ._ledger import Booking, Bound, Ledger
from .errors import BudgetError

#: By which the scheduler knows the plugin.
NAME: Final = "clearsky_xr"

# Until a process has asked the account for its limit.
_UNKNOWN: Final = 1


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

    async def enter(self, at_most: int | None) -> None:
        """Wait for the slot."""
        await self.gate.enter(at_most)
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
        self._claims: dict[tuple[str, int], str] = {}
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
        """Take note that a client is gone."""
        self._bereave(client)
        for name, (owner, _) in list(self._budgets.items()):
            if owner == client:
                self._end_budget(name)
                del self._budgets[name]

    # --- who belongs to it

    async def hello(self, *, sealed: bool = True) -> dict[str, Any]:
        """Tell a process what it needs; the keys are opened by it alone."""
        keys = self._keys if sealed else []
        return {"salt": self._salt, "concurrency": self._concurrency, "keys": keys}

    async def configure(self, concurrency: int | None, quarantine: float | None) -> None:
        """Change the options while it runs."""
        self._concurrency, self._quarantine = concurrency, quarantine
        for account in self._gates:
            self._set_limit(account)

    async def keys(self, sealed: Any) -> None:
        """Keep keys for the processes of the cluster."""
        self._keys.append(sealed)

    # --- the gate

    async def slot(
        self, ticket: str, holder: str, account: str, at_most: int | None, patience: float
    ) -> dict[str, Any]:
        """Answer when the holder has a slot; first come, first served."""
        if holder not in self._scheduler.workers and holder not in self._scheduler.clients:
            return {"stranger": True}
        if ticket not in self._tickets:
            entry = self._tickets[ticket] = _Ticket(holder, self._gate(account), patience)
            entry.entering = asyncio.create_task(entry.enter(at_most))
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
        if entry is None:
            return {"stranger": True}
        if entry.booking is None:
            sale = Sale(dt.date.fromisoformat(date), credits, credits_at_most)
            own = None if purse is None else Purse(*purse)
            held = [self._budgets[name][1] for name in bound if name in self._budgets]
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
    ) -> None:
        """Take a slot back, and note what came of its request."""
        entry = self._tickets.pop(ticket, None)
        if entry is None:
            return
        if not entry.entering.done():
            entry.entering.cancel()
            return
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

    async def limit(self, account: str, limit: int) -> None:
        """Set an account's limit, as it was told to a process."""
        self._gate(account)
        self._limits[account] = limit
        self._set_limit(account)

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
        for key, by in list(self._claims.items()):
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
        if entry is not None:
            entry.gate.leave()

    # --- the ledger

    async def repeat(self, credits: float) -> bool:  # noqa: A002  the field's word
        """Say whether a lost download may be paid for once more."""
        return self._ledger.repeat_lost(credits)

    async def budget(self, name: str, *, holder: str, limit: float, opened: bool) -> None:
        """Begin or end a budget that holds for the whole cluster."""
        if not opened:
            self._end_budget(name)
        elif name not in self._budgets:
            budget = Budget(limit, self._ledger)
            self._budgets[name] = holder, budget
            budget.__enter__()

    async def bound(self) -> list[str]:
        """Name the budgets that hold now."""
        active = self._ledger.bound()
        return [name for name, (_, budget) in self._budgets.items() if budget in active]

    async def report(self, name: str) -> dict[str, Any] | None:
        """Tell what counted for a budget, also after its end."""
        return asdict(self._budgets[name][1].tally()) if name in self._budgets else None

    def _end_budget(self, name: str) -> None:
        if name in self._budgets and self._budgets[name][1] in self._ledger.active:
            self._budgets[name][1].__exit__(None, None, None)

    def _tally(self, holder: str) -> Budget:
        if holder not in self._spent:
            self._spent[holder] = Budget(math.inf, self._ledger)
        return self._spent[holder]

    # --- blocks of stores

    async def claim(self, holder: str, store: str, numbers: Iterable[int]) -> list[int]:
        """Give a holder those blocks of a store that no other process is buying."""
        return [
            number
            for number in numbers
            if self._claims.setdefault((store, number), holder) == holder
        ]

    async def unclaim(self, holder: str, store: str, numbers: Iterable[int]) -> None:
        """Take blocks back."""
        for number in numbers:
            if self._claims.get((store, number)) == holder:
                del self._claims[store, number]

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
