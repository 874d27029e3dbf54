"""Where a row is played: sandboxes, clocks, a folder, and ears for what comes out."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import re
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import cloudpickle
import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _clock, _loop, errors
from clearsky_xr._client import Client
from clearsky_xr._ledger import Ledger
from clearsky_xr.sandbox import Account, LedgerEntry, Server

from .._nursery import Family, the_nursery, what_is_served
from ..conftest import FARM
from ..test_canary import KEY, hidden, pickled, search_all
from ..test_store_plain import forget

__all__ = ["DAY", "DAYS", "FARM", "KEY", "Bench", "credits_of", "forget", "watch"]

#: Images of the synthetic archive.
DAYS = [f"2025-{m:02d}-{d:02d}" for m, d in (
    (4, 1), (4, 6), (4, 11), (4, 16), (4, 21), (4, 26), (5, 1), (5, 6), (5, 11), (5, 16), (5, 21),
    (5, 26), (5, 31),
)]  # fmt: skip
DAY = DAYS[:1]

#: Long enough for a slow machine under load; what hangs, hangs for ever.
PATIENCE = 90.0


_clusters: list[Any] = []


def unlink():
    """Let this process leave the clusters that it has joined."""
    _account.process().links = []


def start_cluster(**options: Any) -> Any:
    """Start a Dask cluster of processes on this machine; gives its client."""
    import distributed

    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0", **options
    )
    # Not the default: other rows compute in this process.
    return distributed.Client(cluster, set_as_default=False)


def stop_cluster(client: Any) -> None:
    """End a cluster with its client."""
    client.close()
    client.cluster.close()


def close_cluster() -> None:
    """End the cluster that rows have shared."""
    while _clusters:
        stop_cluster(_clusters.pop())


class Watch:
    """Looks for the canary key in everything that comes by; what is seen fails the row.

    One for all rows: row 23 asks it what it has looked at.
    """

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.looked: dict[str, int] = {}

    def look(self, kind: str, *things: object) -> None:
        """Search texts and bytes."""
        hidden(*things)
        self.looked[kind] = self.looked.get(kind, 0) + len(things)


watch = Watch()


class _Listener(logging.Handler):
    """Hears every logger at its lowest level, and keeps what it heard until the end of a row."""

    def __init__(self) -> None:
        super().__init__(0)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {record.args!r}"
        if record.exc_info and record.exc_info[0]:
            text += "".join(traceback.format_exception(*record.exc_info))
        self.said.append(text)


class Bench:
    """Everything that one row needs; all of it ends with the row.

    Parameters
    ----------
    number : int
        Of the row.
    folder : Path
        Empty, and its own.

    Attributes
    ----------
    patch : pytest.MonkeyPatch
    sent : list of (float, datetime.date)
        When each download of this process was sent, by the clock of pauses.
    request : Request
        The last one of them.
    received : int
        Bytes of bodies that this process has read.
    fake_seconds : float
        Time that did not pass.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.patch = pytest.MonkeyPatch()
        self.sent: list[tuple[float, Any]] = []
        self.request: Any = None
        self.received = 0
        self.fake_seconds = 0.0
        self.pauses: list[float] = []
        self.servers: list[Server] = []
        self._stack = ExitStack()
        self._listener = _Listener()
        self._heard: list[warnings.WarningMessage] = []
        self._expected = 0
        self._allowed: list[str] = []

    # ---- begin and end

    def __enter__(self) -> Self:
        stack = self._stack
        stack.callback(self.patch.undo)
        for name in ("CLEARSKY_API_KEY", "CLEARSKY_BASE_URL"):
            self.patch.delenv(name, raising=False)
        self.patch.setattr(_account.process(), "ledger", Ledger())
        random.seed(self.number)
        stack.callback(forget)
        self._heard = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Use `@` matmul", PendingDeprecationWarning)
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        warnings.filterwarnings("ignore", "The specified chunks separate", UserWarning)
        warnings.filterwarnings("ignore", ".*Sending large graph", UserWarning)
        warnings.simplefilter("always", errors.ClearSkyWarning)
        self._listen()
        self._observe()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for server in self.servers:
                server.close()
        finally:
            self._stack.close()
        if error is None:
            said = [str(w.message) for w in self._heard[self._expected :]]
            unexpected = [s for s in said if not any(re.search(a, s) for a in self._allowed)]
            assert not unexpected, f"nobody expected these warnings: {unexpected}"
            watch.look("log records", *self._listener.said)
            watch.look("warnings", *(str(warning.message) for warning in self._heard))
            for server in self.servers:
                watch.look("ledgers", *(str(entry.to_json()) for entry in server.ledger()))
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            watch.look("file names", *files)
            watch.look("files", *(path.read_bytes() for path in files))
            watch.rows.add(self.number)

    def _listen(self) -> None:
        root = logging.getLogger()
        levels = {root: root.level}
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger) and logger.level:
                levels[logger] = logger.level
        for logger in levels:
            logger.setLevel(1)
        handlers = root.handlers[:]
        # Alone: whoever else listens would fill the report of a failure with whispers.
        root.handlers[:] = [self._listener]
        loop = _loop.background()
        loop.set_debug(True)

        def deaf() -> None:
            root.handlers[:] = handlers
            for logger, level in levels.items():
                logger.setLevel(level)
            loop.set_debug(False)

        self._stack.callback(deaf)

    def _observe(self) -> None:
        """See what is sent and received; nothing is changed by it."""
        composite, readany = Client.composite, aiohttp.StreamReader.readany
        bench = self

        async def sending(self: Client, request: Any, cap: int) -> bytes:
            bench.sent.append((_clock.monotonic(), request.date))
            bench.request = request
            return await composite(self, request, cap)

        async def receiving(self: aiohttp.StreamReader) -> bytes:
            part = await readany(self)
            if asyncio.get_running_loop() is _loop.background():
                bench.received += len(part)
            return part

        self.patch.setattr(Client, "composite", sending)
        self.patch.setattr(aiohttp.StreamReader, "readany", receiving)

    # ---- the service

    def serve(self, *faults: Any, **options: Any) -> Server:
        """Start a sandbox whose account has the canary for a key."""
        if "accounts" not in options:
            options.setdefault("api_key", KEY)
        self.servers.append(clearsky_xr.sandbox.serve(faults=faults, **options))
        return self.servers[-1]

    def accounts(self, *keys: str, **options: Any) -> list[Account]:
        """Give accounts that differ in nothing but their keys."""
        return [Account(key=key, **options) for key in keys]

    def open(self, server: Server, time: Any = DAY, area: Any = FARM, **options: Any) -> xr.Dataset:
        """Open a cube; what it shows is searched."""
        given = {"base_url": server.url, "api_key": server.api_key, **options}
        ds = xr.open_dataset(area, engine="clearsky", time=time, **given)
        watch.look("reprs", repr(ds), ds._repr_html_(), repr(ds.attrs), repr(ds.encoding))
        watch.look("pickles", pickled(ds))
        if ds.__dask_graph__() is not None:
            watch.look("graphs", cloudpickle.dumps(ds.__dask_graph__()), repr(ds.__dask_keys__()))
        return ds

    def truth(self, time: Any = DAY, area: Any = FARM, **options: Any) -> np.ndarray:
        """Give the pixels that the service has, read by nobody else's way."""
        with clearsky_xr.sandbox.serve(api_key="for-the-truth") as server:
            ds = xr.open_dataset(
                area, engine="clearsky", time=time, base_url=server.url, api_key=server.api_key,
                **options,
            )  # fmt: skip
            values: np.ndarray = ds.reflectance.values
        self.sent.clear()
        return values

    def relay(self, server: Server, allows: Callable[[int, bytes], bool]) -> Relay:
        """Stand between client and sandbox, and see the requests as they are on the wire."""
        relay = Relay(server, allows)
        self._stack.callback(relay.close)
        return relay

    def family(self) -> Family:
        """Give children that use a store together; they end with the row."""
        family = Family(the_nursery(), what_is_served())

        def end() -> None:
            for child in family.children:
                child.close()

        self._stack.callback(end)
        return family

    def cluster(self) -> Any:
        """Give a client of a Dask cluster of two processes with two threads each.

        It is shared by the rows that want one, until `close_cluster`.
        """
        if not _clusters:
            _clusters.append(start_cluster())
        self._stack.callback(unlink)
        return _clusters[0]

    # ---- what is expected

    @contextmanager
    def raises(
        self, kind: type[errors.ClearSkyError], match: str = "", *, spent: str | None = None
    ) -> Iterator[Any]:
        """Expect a failure: typed, picklable, with advice, and free of the key."""
        with pytest.raises(errors.ClearSkyError) as caught:
            yield caught
        error = caught.value
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert re.search(match, str(error)), f"{match!r} is not in {error}"
        assert spent in (None, error.spent), f"spent={error.spent!r}: {error}"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.details) == (kind, str(error), error.details)
        assert not any(ord(c) < 32 and c != "\n" for c in str(error)), repr(str(error))
        assert len(str(error)) < 5000
        search_all(error)
        watch.look("errors", repr(error), repr(error.details), *map(str, error.args))
        watch.look("tracebacks", "".join(traceback.format_exception(error)))

    def hears(self, match: str, count: int | None = None) -> list[str]:
        """Expect warnings since the last call: all of them match, and there is one at least."""
        said = [str(warning.message) for warning in self._heard[self._expected :]]
        self._expected = len(self._heard)
        assert said, f"no warning of {match!r}"
        assert all(re.search(match, text) for text in said), said
        assert count in (None, len(said)), said
        return said

    def may_hear(self, match: str) -> None:
        """Allow warnings that other processes may bring or not."""
        self._allowed.append(match)

    # ---- time

    def fake_pauses(self) -> list[float]:
        """Let pauses pass at once; gives the list of their lengths, seconds."""
        now = [1000.0]

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            until = now[0] + seconds
            await asyncio.sleep(0)
            self.fake_seconds += max(0.0, until - now[0])
            now[0] = max(now[0], until)

        self.patch.setattr(_clock, "sleep", sleep)
        self.patch.setattr(_clock, "monotonic", lambda: now[0])
        return self.pauses

    def held_clock(self) -> Callable[[float], None]:
        """Hold the time of pauses; gives a function that lets so many seconds pass."""
        now, waiting = [1000.0], list[tuple[float, asyncio.Event]]()

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            over = asyncio.Event()
            waiting.append((now[0] + seconds, over))
            await over.wait()

        def forward(seconds: float) -> None:
            now[0] += seconds
            for due, over in waiting:
                if due <= now[0]:
                    over.set()

        def advance(seconds: float) -> None:
            self.fake_seconds += seconds
            _loop.background().call_soon_threadsafe(forward, seconds)

        self.patch.setattr(_clock, "sleep", sleep)
        self.patch.setattr(_clock, "monotonic", lambda: now[0])
        return advance

    def jumping_clock(self) -> Callable[[float], None]:
        """Give a function that moves the loop's clock on by so many seconds.

        All timeouts of connections follow it: that is how minutes of silence pass in no time
        while the sockets are real.
        """
        loop = _loop.background()
        real, ahead = loop.time, [0.0]
        self.patch.setattr(loop, "time", lambda: real() + ahead[0], raising=False)
        # Idle connections have a clock of their own.
        self.patch.setattr(aiohttp.connector, "monotonic", lambda: real() + ahead[0])

        def jump(seconds: float) -> None:
            def forward() -> None:
                ahead[0] += seconds

            self.fake_seconds += seconds
            loop.call_soon_threadsafe(forward)
            for _ in range(5):
                _loop.run(asyncio.sleep(0))

        return jump

    def until(self, reached: Callable[[], Any]) -> None:
        """Wait for others; the deadline is that of a failure."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.005)

    def quiet(self, server: Server) -> None:
        """Wait until nothing is under way: what was sent has landed or is lost."""
        self.until(lambda: server.in_flight == 0)
        self.until(lambda: clearsky_xr.spent().reserved == 0)

    def threads(self, *works: Callable[[], object]) -> list[threading.Thread]:
        """Start threads; they are joined, with patience, at the end of the row at the latest."""
        started = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in started:
            thread.start()
            self._stack.callback(thread.join, PATIENCE)
        return started

    # ---- what is counted

    def counted(self) -> dict[str, Any]:
        """Give the figures of all sandboxes of the row."""
        entries = [entry for server in self.servers for entry in server.downloads()]
        found: dict[str, Any] = {"requests": len(entries)}
        if entries:
            found["charged"] = credits_of(entries)
            found["peak"] = max(server.peak_in_flight for server in self.servers)
            found["bytes"] = sum(entry.bytes for entry in entries)
        if self.fake_seconds:
            found["fake seconds"] = round(self.fake_seconds)
        return found


class Relay:
    """Hands bytes on between a client and a sandbox, until it is told to hang up.

    Parameters
    ----------
    server : Server
    allows : callable
        Of the number of a request on its connection, from 1, and its first bytes; when it
        says no, the client's connection is closed under the request, which goes nowhere.
    """

    def __init__(self, server: Server, allows: Callable[[int, bytes], bool]) -> None:
        self._target = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        self._allows = allows
        self._door = socket.create_server(("127.0.0.1", 0))
        self._open = [self._door]
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.heads: list[bytes] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._door.accept()[0]
                self.connections += 1
                there = socket.create_connection(self._target)
                self._open += [client, there]
                threading.Thread(target=self._forth, args=(client, there), daemon=True).start()
                threading.Thread(target=self._back, args=(client, there), daemon=True).start()

    def _forth(self, client: socket.socket, there: socket.socket) -> None:
        count = 0
        with suppress(OSError):
            while part := client.recv(2**16):
                if part.startswith((b"GET ", b"POST ")):
                    count += 1
                    self.heads.append(part)
                    if not self._allows(count, part):
                        client.shutdown(socket.SHUT_RDWR)
                        break
                there.sendall(part)
            there.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _back(client: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):
            while part := there.recv(2**16):
                client.sendall(part)
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def credits_of(entries: list[LedgerEntry]) -> float:
    """Sum up what was charged."""
    return round(sum(entry.credits for entry in entries), 2)
