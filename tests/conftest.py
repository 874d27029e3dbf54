"""What all tests share: a sandbox over real sockets, real scenes, a clock that need not wait."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import clearsky_xr
from clearsky_xr import _account, _clock, _loop
from clearsky_xr._ledger import Ledger
from clearsky_xr.sandbox import LedgerEntry, Server

# A quiet corner of the synthetic landscape: fields only, near the zone's middle.
FARM = (15.05, 46.05, 15.06, 46.06)
SPRING = ("2025-04-01", "2025-04-20")  # four images, every fifth day


def pytest_collection_finish() -> None:
    """Take what is imported by now out of every garbage collection: a fifth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Hear Ctrl-C also where the suite was started in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the key and the address of whoever runs the tests out of them."""
    monkeypatch.delenv("CLEARSKY_API_KEY", raising=False)
    monkeypatch.delenv("CLEARSKY_BASE_URL", raising=False)


@pytest.fixture(autouse=True)
def own_accounts() -> Iterator[None]:
    """Forget accounts after each test: the next server may get the same port, and the same key."""
    yield
    accounts = _account.process().accounts

    async def close() -> None:
        for owner in accounts.values():
            await owner.client.close()

    _loop.run(close())
    accounts.clear()
    _account.process().stocks.clear()


@pytest.fixture(autouse=True)
def own_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test spend from nothing: the allowance for lost downloads is the process's."""
    monkeypatch.setattr(_account.process(), "ledger", Ledger())


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start sandboxes that end with the test."""
    servers: list[Server] = []

    def start(**options: object) -> Server:
        servers.append(clearsky_xr.sandbox.serve(**options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """Give a sandbox with its defaults."""
    return serve()


def access(server: Server) -> dict[str, str]:
    """Give the options that point to a sandbox."""
    return {"base_url": server.url, "api_key": server.api_key}


def paid(server: Server) -> list[LedgerEntry]:
    """Give the downloads that were answered and charged."""
    return [entry for entry in server.downloads() if entry.status == 200]


def credits_of(server: Server) -> float:
    """Give the credits charged by a sandbox."""
    return round(sum(entry.credits for entry in server.ledger()), 2)


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses pass at once; gives the list of their lengths, seconds."""
    pauses: list[float] = []
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(_clock, "sleep", sleep)
    monkeypatch.setattr(_clock, "monotonic", lambda: now[0])
    return pauses


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Give the folder of real scenes; skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "s2-slovenia"
    folder = Path(os.environ.get("CLEARSKY_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("the real scenes are not here")
    return folder
