"""A sandbox that runs: one thread with its own event loop, and a few for pixels."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from types import TracebackType
from typing import Self

from aiohttp import web

from ._app import Application
from ._ledger import LedgerEntry
from ._state import State
from .faults import Fault


class Server:
    """A running sandbox; `clearsky_xr.sandbox.serve` gives one.

    Use it as a context manager, or call `close`. It runs in a daemon thread.

    Attributes
    ----------
    url : str
        Base URL, without a slash at the end.
    """

    def __init__(self, state: State, host: str, port: int) -> None:
        self._state = state
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Bound here rather than in the thread, so that a port in use raises to the caller.
        self._socket = socket.create_server((host, port), family=family, backlog=256)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._pid = os.getpid()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="clearsky-sandbox", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failures:
            self._socket.close()
            raise self._failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "closed"
        return f"<clearsky_xr sandbox at {self.url}, {state}, {self.label}>"

    @property
    def label(self) -> str:
        """Where the pixels come from: ``"synthetic"`` or ``"scenes"``."""
        return self._state.imagery.label

    @property
    def api_key(self) -> str:
        """Key of the first account."""
        return self._state.holders[0].account.key

    @property
    def api_keys(self) -> tuple[str, ...]:
        """Keys of all accounts."""
        return tuple(holder.account.key for holder in self._state.holders)

    @property
    def balance(self) -> float:
        """Processing units left to the first account."""
        return self._state.holders[0].balance

    @property
    def in_flight(self) -> int:
        """Composite downloads in the server now, over all accounts."""
        return sum(holder.in_flight for holder in self._state.holders)

    @property
    def peak_in_flight(self) -> int:
        """Most composite downloads that one account had in the server at once.

        A download counts from when it asks for a connection until the server is done
        with it, even if the client has long gone. One that is refused for want of a
        connection counts at that moment: the peak is above the account's limit exactly
        if the client ever went above it.
        """
        return max(holder.peak for holder in self._state.holders)

    def ledger(self) -> list[LedgerEntry]:
        """Give one entry for each request received, in order of arrival."""
        return self._state.ledger.entries()

    def downloads(self) -> list[LedgerEntry]:
        """Give the entries of composite downloads, refused ones among them."""
        return [entry for entry in self.ledger() if entry.endpoint == "composite"]

    def inject(self, fault: Fault) -> None:
        """Add a fault; the requests that match it count from now."""
        self._state.faults.add(fault)

    def regenerate(self, day: date) -> int:
        """Make the service produce the images of a day anew.

        ``IMAGE_VERSION`` of the day grows by one, and synthetic pixels change a little.

        Returns
        -------
        int
            The new version.
        """
        return self._state.versions.regenerate(day)

    def close(self) -> None:
        """Stop serving and wait until the thread has ended. Does no harm twice.

        What is being answered is broken off.
        """
        # In a forked child there is no thread to stop, and the sockets are the parent's.
        if os.getpid() != self._pid or not self._thread.is_alive():
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # raised again by the constructor
            self._failures.append(error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        workers = ThreadPoolExecutor(
            max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="clearsky-sandbox"
        )
        app = Application(self._state, workers).make()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        try:
            await runner.setup()
            await web.SockSite(runner, self._socket).start()
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            workers.shutdown(wait=True, cancel_futures=True)
