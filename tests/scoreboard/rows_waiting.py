"""Refusals, overload, silence: what is waited for, how long, and when it is given up."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr.sandbox import Fault, Server
from clearsky_xr.sandbox.faults import Answer, Image, in_turn

from .bench import DAY, DAYS, KEY, PATIENCE, Bench, credits_of
from .board import row

FOUR, TWELVE = DAYS[:4], DAYS[:12]


@row(
    1,
    "429 with `Retry-After` (seconds, or a date, reckoned from the response's `Date`)",
    "waits at least that, all local slots pause; raises at once if that passes the deadline; "
    "no charge",
)
def told_to_wait(bench: Bench) -> dict[str, Any]:
    advance = bench.held_clock()
    truth = bench.truth(TWELVE)
    # The clock of the second one is ten years off ours: only its own Date makes sense of it.
    by_date = {
        "Retry-After": "Wed, 21 Oct 2015 07:29:10 GMT",
        "Date": "Wed, 21 Oct 2015 07:28:30 GMT",
    }
    for fault, wait in (
        (Fault.status(429, retry_after=30), 30.0),
        (Fault("429 until", Answer(429, headers=by_date)), 40.0),
    ):
        server = bench.serve(fault)
        reading = Reading(bench, server, TWELVE)
        # The refused one and those behind it are asleep; what was on its way has come.
        bench.until(lambda s=server: len(s.downloads()) >= 1 and bench.pauses)
        sent = still(bench, server)
        assert 1 <= sent <= 4
        advance(wait - 1)
        assert still(bench, server) == sent
        advance(1.5)
        bench.until(lambda s=server, n=sent: len(s.downloads()) > n)
        np.testing.assert_array_equal(reading.end(), truth)
        refused, *answered = server.downloads()
        assert (refused.status, refused.credits) == (429, 0)
        assert [entry.status for entry in answered] == [200] * 12
        bench.pauses.clear()
    server = bench.serve(Fault.status(429, retry_after=86_400))
    with bench.raises(errors.RateLimitedError, "429", spent="no"):
        bench.open(server).load()
    assert len(server.downloads()) == 1
    assert credits_of(server.downloads()) == 0
    assert not bench.pauses
    assert bench.open(server).reflectance.notnull().all()  # and what comes after is not held up
    return {"sent during the pauses": 0}


def still(bench: Bench, server: Server) -> int:
    """Wait until nothing happens any more; gives how many downloads there were."""
    count, quiet = -1, 0
    while quiet < 20:
        bench.until(lambda: server.in_flight == 0)
        now = len(server.downloads())
        quiet = quiet + 1 if now == count else 0
        count = now
        time.sleep(0.01)
    return count


@row(
    2,
    "429 or 400/1003 without it, or garbage in it; DNS or proxy failure",
    "jittered backoff, bounded by attempts and deadline",
)
def refused_without_a_word(bench: Bench) -> dict[str, Any]:
    pauses = bench.fake_pauses()
    garbage = ["soon", "-5", "nan", "1e999", "", "Wed, 99 Oct 2015 07:28:00 GMT", "\t7 s"]
    refusals = [Fault.status(429), Fault.status(400, code=1003)]
    refusals += [Fault.status(429, retry_after=text) for text in garbage]
    seen = []
    for fault in refusals:
        server = bench.serve(replace(fault, times=6))
        pauses.clear()
        assert bench.open(server).reflectance.notnull().all()
        assert len(server.downloads()) == 7
        assert credits_of(server.downloads()) == server.downloads()[-1].credits
        for k, pause in enumerate(pauses):
            assert 0.5 * 2**k <= pause <= 2**k, pauses
        seen.append(tuple(pauses))
    assert len(set(seen)) == len(seen)  # jittered: no two of them alike

    # A name that is none, a port where nobody listens, and a gateway that is broken.
    for url in ("https://nowhere.invalid", "http://127.0.0.1:9"):
        pauses.clear()
        with bench.raises(errors.ServiceUnavailableError, "Nothing was sent", spent="no"):
            clearsky_xr.resolve((15.05, 46.05, 15.06, 46.06), DAY, base_url=url, api_key=KEY)
        assert len(pauses) == 4  # five attempts
    server = bench.serve(Fault.html(502, times=None))
    with bench.raises(errors.ServiceUnavailableError, "502", spent="maybe"):
        bench.open(server).load()
    assert len(server.downloads()) == 5
    return {"attempts without connection": 5}


@row(3, "endless 429", "`RateLimitedError` by the deadline")
def refused_for_ever(bench: Bench) -> dict[str, Any]:
    bench.fake_pauses()
    ends = []
    for fault in (Fault.status(429, times=None), Fault.status(400, code=1003, times=None)):
        server = bench.serve(fault)
        ds = bench.open(server, FOUR)
        bench.sent.clear()
        before = bench.fake_seconds
        with bench.raises(errors.RateLimitedError, "429|1003", spent="no"):
            ds.load()
        ends.append(bench.fake_seconds - before)
        assert credits_of(server.downloads()) == 0
    assert all(700 < end <= 900 for end in ends), ends
    assert clearsky_xr.spent().possibly == 0
    return {"gave up after seconds": " and ".join(f"{end:.0f}" for end in ends)}


@row(
    4,
    "burst of 500/502/503/504",
    "recovers within 5 attempts; 502 and 504 booked as possibly charged",
)
def broken_for_a_while(bench: Bench) -> dict[str, Any]:
    bench.fake_pauses()
    server = bench.serve(*in_turn(*(Fault.status(status) for status in (500, 502, 503, 504))))
    assert bench.open(server).reflectance.notnull().all()
    assert [entry.status for entry in server.downloads()] == [500, 502, 503, 504, 200]
    price = server.downloads()[-1].credits
    spent = clearsky_xr.spent()
    assert (spent.settled, spent.possibly, spent.reserved) == (price, round(2 * price, 2), 0)
    for status, possibly in ((503, 0), (504, 5)):
        endless = bench.serve(Fault.status(status, times=None))
        before = clearsky_xr.spent().possibly
        with bench.raises(errors.ServiceUnavailableError, str(status)):
            bench.open(endless).load()
        assert len(endless.downloads()) == 5
        assert round(clearsky_xr.spent().possibly - before, 2) == round(possibly * price, 2)
    return {"attempts": 5, "possibly charged": clearsky_xr.spent().possibly}


def gated(gate: threading.Event) -> Fault:
    """Let no image out before the gate is open."""

    def wait(image: Image) -> Image:
        gate.wait(PATIENCE)
        return image

    return Fault.image("gated", wait)


class Reading:
    """A download in a thread of its own, and how it ended."""

    def __init__(self, bench: Bench, server: Server, days: list[str] = DAY, **options: Any) -> None:
        self._ds = bench.open(server, days, **options)
        self.values: np.ndarray | None = None
        self.error: BaseException | None = None
        (self._thread,) = bench.threads(self._read)

    def _read(self) -> None:
        try:
            self.values = self._ds.reflectance.values
        except BaseException as error:  # noqa: BLE001  the row looks at it
            self.error = error

    def end(self) -> np.ndarray | None:
        """Wait for it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.values


@row(
    7,
    "slow first byte (minutes); stalled body; one byte a second; laptop asleep",
    "waits 300 s for the first byte, 30 s for a stall, total deadline; then lost",
)
def silence(bench: Bench) -> dict[str, Any]:
    jump = bench.jumping_clock()
    truth = bench.truth()
    lost = errors.LostDownloadError

    def first_byte(silent: float) -> Reading:
        gate = threading.Event()
        server = bench.serve(gated(gate))
        reading = Reading(bench, server, on_lost="raise")
        bench.until(lambda: len(bench.sent) == 1 and server.in_flight == 1)
        jump(silent)
        # The server goes on only when the client has had time to make up its mind.
        if silent > 300:
            bench.until(lambda: reading.error is not None)
        gate.set()
        bench.sent.clear()
        return reading

    np.testing.assert_array_equal(first_byte(295).end(), truth)
    with bench.raises(lost, "too long", spent="maybe"):
        first_byte(301).end()

    def stalled(silent: float, stall: float) -> Reading:
        server = bench.serve(Fault.stall(stall, after_bytes=1000))
        before = bench.received
        reading = Reading(bench, server, on_lost="raise")
        free = bench.received
        bench.until(lambda: server.in_flight == 1 and bench.received >= max(before, free) + 1000)
        jump(silent)
        return reading

    np.testing.assert_array_equal(stalled(25, stall=1.0).end(), truth)
    with bench.raises(lost, "too long", spent="maybe"):
        stalled(31, stall=20.0).end()

    # Byte by byte, with twenty seconds between two of them: never a stall, but never an end.
    server = bench.serve(Fault.slow(bandwidth=50.0))
    reading = Reading(bench, server, on_lost="raise")
    free, passed = bench.received, 0
    while reading.error is None and passed < 1000:
        before = bench.received
        bench.until(lambda: bench.received > before or reading.error)  # noqa: B023
        jump(20)
        passed += 20
    assert bench.received - free < 200
    assert 860 <= passed <= 940
    with bench.raises(lost, "too long", spent="maybe"):
        reading.end()

    # Asleep for a night in the middle of a body: lost, and asked for once more.
    server = bench.serve(Fault.stall(20.0, after_bytes=1000))
    reading = Reading(bench, server)
    free = bench.received
    bench.until(lambda: server.in_flight == 1 and bench.received >= free + 1000)
    before_sleep = clearsky_xr.spent().possibly
    jump(8 * 3600)
    np.testing.assert_array_equal(reading.end(), truth)
    assert len(server.downloads()) == 2
    price = server.downloads()[-1].credits
    assert round(clearsky_xr.spent().possibly - before_sleep, 2) == price
    bench.hears("may be charged twice", 1)
    return {"one byte in 20 s given up after seconds": passed}


def limits(connections: int) -> Answer:
    data = {
        "MaxConcurrentConnections": connections,
        "MaxCompositeAreaKm2": 2500,
        "MaxTotalBands": 20,
    }
    return Answer(200, json.dumps({"Data": data, "Succeeded": True, "Error": None}).encode())


@row(
    32,
    "account limit lowered mid-run, or the key shared (1003 below our limit)",
    "the gate shrinks, re-reads the account, recovers slowly",
)
def less_than_there_was(bench: Bench) -> dict[str, Any]:
    bench.fake_pauses()
    # Lowered: the account says 8 at first, and lets 2 through from then on, and says so.
    account = bench.accounts(KEY, max_connections=2)
    server = bench.serve(
        Fault("limit of old", limits(8), endpoint="account"), accounts=account, latency=0.05
    )
    ds = bench.open(server, TWELVE)
    owner = _account.process().accounts[server.url, KEY]
    assert owner.gate.limit == 8
    assert np.isfinite(ds.reflectance.values).all()
    ok = [entry for entry in server.downloads() if entry.status == 200]
    refused = [entry for entry in server.downloads() if entry.status != 200]
    assert len(ok) == 12
    assert refused
    assert {entry.code for entry in refused} == {1003}
    assert all(entry.credits == 0 for entry in refused)
    assert owner.gate.limit == 2
    asked = [entry.endpoint for entry in server.ledger()].count("account")
    assert asked == 2, asked  # at opening, and once for all refusals together
    # From then on it keeps to what it was told.
    before = len(server.downloads())
    bench.open(server, DAYS[:8], (15.08, 46.05, 15.09, 46.06)).load()
    assert {entry.status for entry in server.downloads()[before:]} == {200}

    # Shared: the limit is what it was, but somebody else uses half of it.
    server = bench.serve(Fault.status(400, code=1003, first=5), max_connections=4)
    ds = bench.open(server, DAYS[:8])
    owner = _account.process().accounts[server.url, KEY]
    assert np.isfinite(ds.reflectance.values).all()
    assert (owner.gate.limit, owner.gate._narrowed) == (4, 2)
    widths = []
    for k in range(20):  # ten answers for each step
        clearsky_xr.open_timeseries(
            (15.05 + 0.001 * k, 46.07, 15.0505 + 0.001 * k, 46.0705), DAY, chunks=None,
            base_url=server.url, api_key=KEY,
        ).load()  # fmt: skip
        widths.append(owner.gate._narrowed)
    assert widths == sorted(widths)
    assert 2 in widths
    assert widths[-1] == 4
    return {"refused": len(refused), "widths": "8 → 2, 4 → 2 → 4"}


@row(
    33,
    "key revoked, or 994, mid-run",
    "no further sends, in-flight answers kept, one error",
)
def no_more(bench: Bench) -> dict[str, Any]:
    after = 0
    for status, code, kind in (
        (401, 401, errors.CredentialsError),
        (400, 994, errors.InsufficientCreditsError),
    ):
        for chunks in (None, {"time": 3}):
            gate = threading.Event()
            held = replace(gated(gate), times=3)
            revoked = Fault.status(status, code=code, times=None)
            # Four at once: three wait, the fourth is refused, and so would be all others.
            server = bench.serve(held, revoked)
            errors_met: list[BaseException] = []
            ds = bench.open(server, TWELVE, chunks=chunks)

            def read(ds: Any = ds, met: list[BaseException] = errors_met) -> None:
                try:
                    ds.reflectance.compute()
                except BaseException as error:  # noqa: BLE001  the row looks at it
                    met.append(error)

            (reader,) = bench.threads(read)
            bench.until(lambda s=server, code=status: any(e.status == code for e in s.downloads()))
            gate.set()
            reader.join(PATIENCE)
            bench.quiet(server)
            assert len(errors_met) == 1
            with bench.raises(kind, spent="no"):
                raise errors_met[0]
            sent = server.downloads()
            kept = [entry for entry in sent if entry.status == 200]
            assert len(kept) == 3
            after = max(after, len(sent) - 4)
            assert len(sent) == 4, [entry.status for entry in sent]
            # What came is kept: with a key that is good again only the rest is bought.
            server._state.faults._met.clear()
            assert bench.open(server, TWELVE).reflectance.notnull().all()
            bought = [entry.date for entry in server.downloads() if entry.credits]
            assert len(bought) == len(set(bought)) == 12
    return {"sent after the first refusal": after}
