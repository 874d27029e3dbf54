"""Dask clusters: one limit, one budget and one key for all processes.

::

    client = Client(...)  # any dask.distributed cluster
    clearsky_xr.cluster.setup(client)
    ds = xr.open_dataset(area, engine="clearsky", time=..., chunks={})
    ds.reflectance.mean("time").compute()

Needs the extra ``cluster``, and this package on the scheduler and all workers.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from distributed import Client, get_client
from distributed.core import Status as WorkerStatus
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.serialize import to_serialize

from . import _loop
from ._account import process
from ._budget import Spent
from ._gate import NAME
from ._link import Link, SchedulerLink
from ._notices import warn
from ._scheduler import ClusterGate
from ._semaphore import SemaphoreLink
from ._settings import checked_concurrency, keys_to_share, take_keys
from .errors import ClearSkyError, InvalidOptionError

__all__ = ["GateStatus", "Status", "setup", "status"]

_GONE: Final = (WorkerStatus.closed, WorkerStatus.closing, WorkerStatus.failed)


@dataclass(frozen=True, slots=True)
class GateStatus:
    """How one account's gate on the scheduler stands.

    Parameters
    ----------
    limit : int
        Requests that may be in flight.
    in_flight : int
        Those that are, orphans among them.
    waiting : int
        Requests that have asked and wait.
    orphans : int
        Requests of dead processes that the service may still be working on.
    """

    limit: int
    in_flight: int
    waiting: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a cluster stands.

    Parameters
    ----------
    gates : tuple of GateStatus
        One for each account that has been used.
    spent : Spent
        By all processes since `setup`, credits by the contract's formula.
    processes : dict of str to Spent
        The same for each worker (by its address) and client (by its id).
    """

    gates: tuple[GateStatus, ...] = ()
    spent: Spent = field(default_factory=Spent)
    processes: dict[str, Spent] = field(default_factory=dict)

    def __repr__(self) -> str:
        gates = "".join(
            f", {g.in_flight} of {g.limit} connections in use"
            + (f" ({g.orphans} by processes that died)" if g.orphans else "")
            for g in self.gates
        )
        return (
            f"<clearsky_xr cluster{gates}, {self.spent.requests} requests and "
            f"{self.spent.settled:.2f} credits spent>"
        )


def setup(
    client: Client | None = None,
    *,
    api_key: str | None = None,
    concurrency: int | None = None,
    quarantine: float | None = None,
) -> Any:
    """Give a Dask cluster one gate, one ledger and one key for all its processes.

    To be called once for a cluster, before anything is computed on it (what is in flight at that
    moment is not counted); again to change an option. Workers that join later are set up as
    well. From then on the account's ``MaxConcurrentConnections`` holds for the notebook and all
    workers together, and so do ``max_credits=`` and `clearsky_xr.budget`.

    Where the scheduler takes no plugins a `distributed.Semaphore` keeps the limit, and a warning
    says what that costs.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the current one.
    api_key : str, optional
        By default that of the environment variable ``CLEARSKY_API_KEY`` here. It is handed to
        the scheduler and from there to the workers' memory; it is in no task, graph or log. Without
        one the workers' own ``CLEARSKY_API_KEY`` serves.
    concurrency : int, optional
        Most requests of an account in flight, where that is less than the account's limit.
    quarantine : float, optional
        Most seconds for which the connections of a worker that died count as taken, since
        the service may still be working on its requests. By default as long as the worker itself
        would have waited, 15 minutes.

    Returns
    -------
    Status
        Or an awaitable of it, if the client is asynchronous.

    Raises
    ------
    InvalidOptionError
        There is no client, or an option has an unusable value.
    CredentialsError
        The key is unusable.

    Examples
    --------
    >>> import distributed
    >>> import clearsky_xr
    >>> with distributed.Client(processes=False, dashboard_address=":0") as client:
    ...     clearsky_xr.cluster.setup(client)
    <clearsky_xr cluster, 0 requests and 0.00 credits spent>
    """
    node = _client(client)
    if quarantine is not None and not quarantine >= 0:
        raise InvalidOptionError(f"quarantine={quarantine!r} is not a number of seconds")
    most = checked_concurrency(concurrency)
    keys = keys_to_share(api_key)
    if keys and not _is_private(node.scheduler.address):
        warn(
            "the API key goes to the Dask scheduler and its workers in clear text: use TLS "
            "(tls://), or give the workers CLEARSKY_API_KEY and call setup where it is not set"
        )
    return node.sync(_setup, node, keys, most, quarantine)


def status(client: Client | None = None) -> Any:
    """Say how a cluster stands that `setup` has set up.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the current one.

    Returns
    -------
    Status
        Or an awaitable of it, if the client is asynchronous.

    Raises
    ------
    InvalidOptionError
        There is no client.
    ClearSkyError
        The cluster has not been set up, or its scheduler takes no plugins.
    """
    node = _client(client)
    return node.sync(_status, node)


class _Sealed:
    """Keys on their way to workers: whatever shows it does not show them."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def __repr__(self) -> str:
        return "<keys>"


async def _setup(
    client: Any, keys: dict[str, str], concurrency: int | None, quarantine: float | None
) -> Status:
    _clients.append(client.id)
    try:
        gate = ClusterGate(concurrency, quarantine)
        await _wait(client.register_plugin(gate, NAME))
        await client.scheduler.clearsky_xr_configure(concurrency=concurrency, quarantine=quarantine)
    except (ValueError, ImportError, AttributeError) as error:  # blocked, or not installed there
        warn(
            f"the Dask scheduler takes no plugin ({type(error).__name__}: {error}). A "
            "distributed.Semaphore keeps the account's limit instead: slots of dead workers come "
            "back when their lease ends, though the service may still be working for them; "
            "max_credits= and budget() hold for each process by itself; the key is not "
            "handed over, so the workers need CLEARSKY_API_KEY; and stores on other machines "
            "than the workers' may be bought into twice"
        )
        # The same for all clients, so that they share the semaphore.
        salt = hashlib.blake2b(str(client.scheduler_info().get("id")).encode()).digest()[:16]
        await _wait(client.register_plugin(WorkerSetup(salt, concurrency), NAME))
        _join(SemaphoreLink(*_of_client(client), salt, concurrency))
        return Status()
    if keys:
        await client.scheduler.clearsky_xr_keys(sealed=to_serialize(_Sealed(keys)))  # type: ignore[no-untyped-call]
    await _wait(client.register_plugin(WorkerSetup(), NAME))
    said = await client.scheduler.clearsky_xr_hello(sealed=False)
    _join(SchedulerLink(*_of_client(client), said["salt"], said["concurrency"]))
    return await _status(client)


async def _status(client: Any) -> Status:
    try:
        said = await client.scheduler.clearsky_xr_status()
    except OSError:
        raise
    except Exception:  # noqa: BLE001  the scheduler does not know the call
        said = None
    if said is None:
        raise ClearSkyError(
            "this cluster has no gate on its scheduler",
            hint="Call clearsky_xr.cluster.setup(client) first.",
            kind="cluster",
        )
    return Status(
        tuple(GateStatus(**gate) for gate in said["gates"]),
        Spent(**said["spent"]),
        {holder: Spent(**spent) for holder, spent in said["holders"].items()},
    )


class WorkerSetup(WorkerPlugin):
    """Connects a worker's process to the scheduler, and fetches the keys from there.

    Parameters
    ----------
    salt : bytes or None
        Of the fallback to a semaphore.
    concurrency : int or None
        As above.
    """

    name = NAME

    def __init__(self, salt: bytes | None = None, concurrency: int | None = None) -> None:
        self.salt = salt
        self._concurrency = concurrency

    async def setup(self, worker: Any) -> None:
        """Connect; also when a worker joins later."""
        node = worker, worker.address, partial(_works, worker)
        if self.salt is not None:
            _join(SemaphoreLink(*node, self.salt, self._concurrency))
            return
        said = await worker.scheduler.clearsky_xr_hello()
        if not _in_this_process(worker):
            for sealed in said["keys"]:
                take_keys(sealed.keys)
        _join(SchedulerLink(*node, said["salt"], said["concurrency"]))


#: Processes that are more than a worker: they have a client that has set up a cluster.
_clients: list[str] = []


def _in_this_process(worker: Any) -> bool:
    return bool(_clients) or str(worker.address).startswith("inproc://")


def _works(worker: Any) -> bool:
    # A process that is a worker and nothing else stays one to its end: what its threads still do
    # when it closes counts for the cluster.
    return worker.status not in _GONE or not _in_this_process(worker)


def _of_client(client: Any) -> tuple[Any, str, Callable[[], bool]]:
    # While its connection is made anew it belongs to the cluster, too.
    return client, client.id, lambda: client.status not in ("closing", "closed")


def _join(link: SchedulerLink | SemaphoreLink) -> None:
    """Let this process wait at the cluster's gate from now on."""
    shared = process()
    known: Link = link
    others = [other for other in shared.links if other.alive and other.holder != link.holder]
    shared.holders.add(link.holder)
    shared.links = [*others, known]  # in one step: it is never without one

    def tell() -> None:
        for account in shared.accounts.values():
            account.tell_limit()

    _loop.background().call_soon_threadsafe(tell)


def _client(client: Client | None) -> Any:
    if client is not None:
        return client
    try:
        return get_client()
    except ValueError:
        raise InvalidOptionError(
            "there is no Dask client", hint="Pass one: clearsky_xr.cluster.setup(Client(...))."
        ) from None


async def _wait(what: Awaitable[Any] | Any) -> Any:
    return await what if isinstance(what, Awaitable) else what


def _is_private(address: str) -> bool:
    """Say whether nobody can listen between here and an address."""
    parts = urlsplit(address)
    if parts.scheme != "tcp":
        return parts.scheme in ("tls", "inproc", "wss")
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
