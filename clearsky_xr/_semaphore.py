"""The gate where a scheduler takes no plugins: a `distributed.Semaphore`.

It keeps the number of requests, and nothing else: the slots of a dead process come back after
the scheduler's lease timeout, whether or not the service still works on its requests, and
budgets, stores and keys are each process's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from distributed import Semaphore

from ._budget import Spent, Tally
from ._gate import Door, Gate, Slot

_log = logging.getLogger(__name__)


class SemaphoreLink:
    """A line to a scheduler that only counts.

    Parameters
    ----------
    node : distributed.Worker or distributed.Client
    holder : str
        By which the scheduler knows it.
    running : callable
        Whether it still belongs to the cluster.
    salt : bytes
        The same in all processes of the cluster.
    concurrency : int or None
        Most requests in flight of any account.
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
        self._concurrency = concurrency
        self._doors: dict[str, SemaphoreDoor] = {}
        self.holder = holder

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """That of the worker or client."""
        loop: asyncio.AbstractEventLoop = self._node.loop.asyncio_loop
        return loop

    @property
    def alive(self) -> bool:
        """Whether the process still belongs to the cluster."""
        return self._running()

    def door(self, identify: Callable[[bytes], str], patience: float) -> Door:  # noqa: ARG002
        """Give what requests of an account wait at."""
        account = identify(self._salt)
        if account not in self._doors:
            self._doors[account] = SemaphoreDoor(self._node, account, self._concurrency)
        return self._doors[account]

    async def bound(self, names: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Know nothing of others."""
        return ()

    async def may_repeat(self, price: float) -> bool:  # noqa: ARG002
        """Leave it to the process."""
        return True

    @asynccontextmanager
    async def claim(self, store: str, numbers: Sequence[int]) -> AsyncIterator[frozenset[int]]:  # noqa: ARG002
        """Leave it to the process."""
        yield frozenset(numbers)

    def open_budget(self, name: str, limit: float) -> None:
        """Leave it to the process."""

    def close_budget(self, name: str) -> None:
        """Leave it to the process."""

    def tally(self, name: str) -> Tally | None:  # noqa: ARG002
        """Know nothing of others."""
        return None

    def others(self, own: Collection[str]) -> Spent:  # noqa: ARG002
        """Know nothing of others."""
        return Spent()


class SemaphoreDoor:
    """A semaphore on the scheduler, behind a gate of this process.

    Parameters
    ----------
    node : distributed.Worker or distributed.Client
    account : str
    concurrency : int or None
    """

    def __init__(self, node: Any, account: str, concurrency: int | None) -> None:
        self._own = Gate(1)
        self._node = node
        self._account = account
        self._concurrency = concurrency
        self._semaphore: asyncio.Future[Semaphore] | None = None
        self._pool = ThreadPoolExecutor(thread_name_prefix="clearsky_xr-semaphore")

    @property
    def limit(self) -> int:
        """Requests that it lets through at a time; 0 as long as it has not been told."""
        return 0 if self._semaphore is None else self._own.limit

    def limit_to(self, limit: int) -> None:
        """Count with a semaphore of this size; all processes hear the same from the account."""
        limit = min(limit, self._concurrency or limit)
        if limit == self.limit:
            return
        self._own.limit_to(limit)
        self._pool.shutdown(wait=False)
        # Acquiring blocks a thread each; one more gives back.
        self._pool = ThreadPoolExecutor(limit + 1, thread_name_prefix="clearsky_xr-semaphore")
        make = partial(
            Semaphore, limit, f"clearsky_xr-{self._account}-{limit}",
            scheduler_rpc=self._node.scheduler, loop=self._node.loop,
        )  # fmt: skip
        self._semaphore = asyncio.ensure_future(self._thread(make))

    @asynccontextmanager
    async def slot(self, at_most: int | None = None) -> AsyncIterator[Slot]:
        """Hold a slot; waits until one is free."""
        async with self._own.slot(at_most) as slot:
            if self._semaphore is None:  # the free call that asks for the limit
                yield slot
                return
            semaphore = await asyncio.shield(self._semaphore)
            taking = asyncio.ensure_future(self._thread(semaphore.acquire))
            try:
                await asyncio.shield(taking)
            except asyncio.CancelledError:
                taking.add_done_callback(lambda _: self._pool.submit(self._release, semaphore))
                raise
            try:
                yield slot
            finally:
                release = partial(self._release, semaphore)
                await asyncio.shield(asyncio.ensure_future(self._thread(release)))

    def _release(self, semaphore: Semaphore) -> None:
        try:
            semaphore.release()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001  what was paid for is worth more than a lease
            _log.debug("a lease was not given back: %s", error)

    async def _thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
