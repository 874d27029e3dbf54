"""What a process knows and holds of an account: limits, gate, billing rule, holdings.

One per origin and key, found again by `account`. All of it belongs to the
background loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar
from weakref import WeakValueDictionary

from . import _clock, _loop
from ._area import resolve_area
from ._availability import Availability
from ._client import AccountInfo, Balance, Client, Timeouts
from ._explain import Burst
from ._gate import Door, Gate
from ._geotiff import environment
from ._holdings import Holdings
from ._ledger import Bound, Ledger
from ._link import Link, budgets_of_task
from ._plan import Billing, billed_km2, credits_for
from ._request import Question, Request
from ._retry import Failed, Outcome, Policy, Retry
from ._settings import SANDBOX, Settings
from ._spool import Recent, Spool
from ._versions import Versions
from .errors import ClearSkyError, RateLimitedError, ServiceUnavailableError

T = TypeVar("T")

#: Connections if the account does not say: the service's first paid plan (contract, section 9).
_CONNECTIONS: Final = 4

# More than this one process cannot make use of, whatever the account says.
_MOST_CONNECTIONS: Final = 256

# Refusals may mean that the limits were changed; they are asked for again no more often than
# this, seconds.
_ASK_AGAIN: Final = 60.0

TIMEOUTS = Timeouts()
POLICY = Policy()


class Account:
    """One key at one origin.

    Parameters
    ----------
    client : Client
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.policy = POLICY
        self._gate = Gate(_CONNECTIONS)
        self.holdings = Holdings()
        self.billing: Billing | None = None
        self._info: AccountInfo | None = None
        self._asking = asyncio.Lock()
        self._asked = -math.inf
        self._again: asyncio.Task[None] | None = None
        self._learning = asyncio.Lock()
        # As long as downloads belong to them.
        self._bursts: WeakValueDictionary[str, Burst] = WeakValueDictionary()
        self._versions: defaultdict[str, Versions] = defaultdict(Versions)

    @property
    def gate(self) -> Door:
        """What requests wait at: the gate of this process, or of the cluster it belongs to."""
        link = process().link
        if link is None:
            return self._gate
        return link.door(self.client.identify, self.client.timeouts.total)

    async def bound(self, asked: Bound) -> Bound:
        """Add the budgets that hold for the cluster to those that held for who asked."""
        link = process().link
        if link is None:
            return asked
        return Bound(asked.here, await link.bound(asked.elsewhere))

    async def may_repeat(self, ledger: Ledger, price: float) -> bool:
        """Say whether a lost download may be paid for once more, credits."""
        link = process().link
        return ledger.repeat_lost(price) and (link is None or await link.may_repeat(price))

    async def info(self, *, anew: bool = False) -> AccountInfo:
        """Give the account's limits; asks the service once per process, unless told to."""
        if self._info is not None and not anew:
            return self._info  # also while it is asked for again
        async with self._asking:
            if self._info is None or anew:
                self._info = await self._free(self.client.account)
                self.tell_limit()
            return self._info

    def tell_limit(self) -> None:
        """Let the gate know the account's limit, if it has been asked for."""
        if self._info is None:
            return
        limit = min(self._info.connections or _CONNECTIONS, _MOST_CONNECTIONS)
        if limit != self.gate.limit:
            self.gate.limit_to(limit)

    def doubt_limit(self) -> None:
        """Ask for the limits anew after a refusal: they may have been lowered meanwhile."""
        now = _clock.monotonic()
        if self._info is not None and now - self._asked > _ASK_AGAIN:
            self._asked = now
            self._again = asyncio.get_running_loop().create_task(self._ask_again())

    async def _ask_again(self) -> None:
        # What is known stays if the answer does not come: it was good until now.
        with contextlib.suppress(ClearSkyError, Failed):
            await self.info(anew=True)

    async def balance(self) -> Balance:
        """Ask for the balance; empty where the service does not tell it any more.

        Raises
        ------
        ClearSkyError
            It could not be reached.
        """
        try:
            return await self._free(self.client.balance)
        except (RateLimitedError, ServiceUnavailableError):
            raise
        except ClearSkyError:
            # The call that is current was answered with this key: so the old one is gone.
            return Balance()

    async def models(self) -> list[Mapping[str, Any]]:
        """List models; free."""
        return await self._free(self.client.models)

    def bearable(self, pause: float | None) -> float | None:
        """Give the seconds for which the whole account should pause, if that makes sense.

        A pause beyond the deadline fails the request at once. If it held the gate
        as well, everything after it would hang without a word.
        """
        return None if pause is None or pause > self.policy.deadline else pause

    async def search(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Search dates; free."""
        return await self._free(lambda: self.client.search(body))

    async def estimate(self, request: Request) -> float:
        """Let the service price a request, credits; free."""
        return await self._free(lambda: self.client.estimate(request))

    async def available(self, question: Question) -> Availability:
        """Ask whether an image can be served; free."""
        return await self._free(lambda: self.client.available(question))

    def burst(self, cube: str) -> Burst:
        """Give the burst to which a download belongs that is begun now.

        Parameters
        ----------
        cube : str
            Its fingerprint.
        """
        burst = self._bursts.get(cube)
        if burst is None or burst.over:
            # Without slot and repeats: who asks holds a slot, and will not wait for long.
            burst = Burst(lambda request: self.client.available(request.question))
            self._bursts[cube] = burst
        return burst

    def versions(self, cube: str) -> Versions:
        """Give what is known of the versions of a cube's images; `cube` is its fingerprint."""
        return self._versions[cube]

    async def learn_billing(self, request: Request) -> Billing:
        """Find out how a geometry that is no rectangle is billed; asks once per process.

        Parameters
        ----------
        request : Request
            Whose price differs between the two ways.
        """
        async with self._learning:
            if self.billing is None:
                price = await self.estimate(request)
                geometry = resolve_area(request.wkt)
                own = credits_for(billed_km2(geometry, "geometry"))
                box = credits_for(billed_km2(geometry, "bbox"))
                self.billing = "bbox" if abs(price - box) < abs(price - own) else "geometry"
            return self.billing

    async def _free(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that costs nothing, and repeat it as the policy says."""
        retry = Retry(self.policy)
        began: float | None = None
        while True:
            async with self.gate.slot() as slot:
                try:
                    return await call()
                except Failed as failed:
                    failure = failed
                if failure.outcome is Outcome.REFUSED:
                    slot.refused(self.bearable(failure.retry_after))
            now = _clock.monotonic()
            began = now if began is None else began
            await _clock.sleep(retry.wait(failure, now - began))


#: What fills a processor; what waits for a store; and what is short and keeps a connection
#: waiting, and so must not queue behind either.
Work = Literal["decode", "store", "short"]


class Process:
    """What all accounts of a process share."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.spool = Spool()
        self.recent = Recent()
        cores = max(2, os.cpu_count() or 1)
        self.threads: dict[Work, ThreadPoolExecutor] = {
            "decode": ThreadPoolExecutor(cores, "clearsky_xr-decode", _enter_gdal),
            # Stores elsewhere keep a thread waiting, not busy.
            "store": ThreadPoolExecutor(16, "clearsky_xr-store"),
            "short": ThreadPoolExecutor(4, "clearsky_xr-short"),
        }
        self.accounts: dict[tuple[str, str], Account] = {}
        # To the schedulers of the clusters to which it belongs.
        self.links: list[Link] = []
        # The names that it has had there.
        self.holders: set[str] = set()
        # Stores that are open; those who open one look under the guard.
        self.stocks: dict[Hashable, Any] = {}
        self.guard = threading.Lock()

    @property
    def link(self) -> Link | None:
        """The line to the cluster that was set up last and still stands."""
        return next((link for link in reversed(self.links) if link.alive), None)

    def bound(self) -> Bound:
        """Give the budgets that hold for what this thread is about to ask for."""
        return Bound(self.ledger.bound(), budgets_of_task())

    async def in_thread(self, work: Callable[[], T], kind: Work = "decode") -> T:
        """Run work off the loop, in threads that are kept for its kind."""
        pool = self.threads[kind]
        try:
            done = asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError:
            # The main thread has ended and pools take no more work, but another thread is still
            # reading: what it has paid for must land.
            return work()
        return await done


_process: Process | None = None
_lock = threading.Lock()
# Kept from being collected in a forked child, which would close the parent's sockets.
_parents: list[Process | None] = []


def process() -> Process:
    """Give what is shared in this process; made on first use."""
    global _process  # noqa: PLW0603  one per process is the point
    with _lock:
        if _process is None:
            _process = Process()
            atexit.register(_close, _process, os.getpid())
        return _process


def _close(shared: Process, pid: int) -> None:
    """Let what was sent for stores land, and close the connections, when the process ends."""
    if os.getpid() != pid:
        return  # a forked child: they are its parent's

    async def land() -> None:
        fills = {fill for stock in shared.stocks.values() for fill in stock.fills.values()}
        for fill in fills:
            fill.call_off()
        if sent := [fill.task for fill in fills if not fill.task.done()]:
            await asyncio.wait(sent)

    async def close() -> None:
        for owner in shared.accounts.values():
            await owner.client.close()

    with contextlib.suppress(KeyboardInterrupt):  # given up
        _loop.run(land())
    _loop.run(close())
    _loop.stop()


def _waits_for(here: asyncio.AbstractEventLoop) -> bool:
    """Say whether a cluster's answers come by this loop: who blocks it waits for ever."""
    shared = _process
    return shared is not None and any(link.alive and link.loop is here for link in shared.links)


_loop.would_hang.append(_waits_for)


async def account(settings: Settings) -> Account:
    """Find the account that settings point to.

    Raises
    ------
    CredentialsError
        This process has no key.
    """
    if settings.base_url == SANDBOX:
        url, key = await asyncio.to_thread(_embedded_sandbox)
    else:
        url, key = settings.base_url, settings.key.resolve()
    accounts = process().accounts
    if (url, key) not in accounts:
        accounts[url, key] = Account(Client(url, key, TIMEOUTS))
    return accounts[url, key]


def _embedded_sandbox() -> tuple[str, str]:
    from .sandbox import embedded

    server = embedded()
    return server.url, server.api_key


def _enter_gdal() -> None:
    environment().__enter__()


def _after_fork() -> None:
    """Forget the parent's connections, threads and answers: they do not live in the child."""
    global _process, _lock
    _parents.append(_process)
    _process, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
