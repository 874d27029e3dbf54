"""Each fault does what it says, once, and is charged as it says."""

import asyncio
import gzip
import http.client
import json
import threading
import time
import urllib.request
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import aiohttp
import pytest
from click.testing import CliRunner
from rasterio.io import MemoryFile

from clearsky_xr import sandbox
from clearsky_xr.cli import main
from clearsky_xr.sandbox import Fault, serve
from clearsky_xr.sandbox.faults import Answer, Delivery, Together, in_turn, together

from .test_sandbox import COMPOSITE, Client, body


def opened(data):
    with MemoryFile(data) as memory, memory.open() as source:
        return SimpleNamespace(
            **source.profile, tags=source.tags(), left=source.bounds.left, top=source.bounds.top
        )


def test_a_status_strikes_as_often_as_told():
    faults = [
        Fault.status(503, times=2),
        Fault.status(429, code=1003, retry_after=7, first=2),
    ]
    with serve(faults=faults) as server:
        client = Client(server)
        seen = [client.call(COMPOSITE, body()) for _ in range(5)]
        assert [status for status, _, _ in seen] == [503, 503, 200, 429, 200]
        assert seen[3][1]["Retry-After"] == "7"
        assert json.loads(seen[3][2])["Error"]["Code"] == 1003
        assert [bool(e.credits) for e in server.ledger()] == [False, False, True, False, True]
        assert server.ledger()[0].fault == "status 503"
        server.inject(Fault.status(500, endpoint="account"))
        assert client.call("/api/account/info")[0] == 500
        assert client.call("/api/account/info")[0] == 200


def test_faults_wait_for_their_endpoint_and_date():
    fault = Fault.status(500).on("composite", date=date(2025, 4, 6), times=10)
    with serve(faults=[fault]) as server:
        client = Client(server)
        assert client.call(COMPOSITE, body())[0] == 200
        assert client.call(COMPOSITE, body(Date="2025-04-06"))[0] == 500
        assert client.call(COMPOSITE + "/estimate", body(Date="2025-04-06"))[0] == 200


def test_faults_come_in_turn():
    """The 3rd download of a date is cut after 1,000 bytes, the next answers 503 twice."""
    day = date(2025, 4, 6)
    steps = in_turn(Fault.short_body(1000, first=3), Fault.status(503, times=2), date=day)
    with serve(faults=steps) as server:
        client = Client(server)
        seen = []
        for _ in range(6):
            assert client.call(COMPOSITE, body())[0] == 200  # another date does not count
            try:
                seen.append(client.call(COMPOSITE, body(Date=str(day), Bandnames="all"))[0])
            except http.client.IncompleteRead as cut:
                seen.append(len(cut.partial))
        assert seen == [200, 200, 1000, 503, 503, 200]
    with pytest.raises(ValueError, match="only be the last"):
        in_turn(Fault.lost(times=None), Fault.status(503))


def test_steps_wait_for_their_turn():
    steps = in_turn(Fault.status(500, first=2), Fault.status(502, first=2), Fault.status(504))
    with serve(faults=steps) as server:
        client = Client(server)
        seen = [client.call(COMPOSITE, body())[0] for _ in range(6)]
    assert seen == [200, 500, 200, 502, 504, 200]


def test_faults_together():
    both = together(Fault.half_pixel(), Fault.tag("IMAGE_DATE", "19990101"), Fault.short_body(900))
    with serve(faults=[both]) as server:
        with pytest.raises(http.client.IncompleteRead) as cut:
            Client(server).call(COMPOSITE, body())
        assert len(cut.value.partial) == 900
        assert server.ledger()[0].fault == "half pixel + tag IMAGE_DATE + short body"
    both = together(Fault.half_pixel(), Fault.tag("IMAGE_DATE", "19990101"))
    with serve(faults=[both]) as server:
        bad = opened(Client(server).call(COMPOSITE, body())[2])
    assert (bad.left % 10, bad.tags["IMAGE_DATE"]) == (5, "19990101")


@pytest.mark.parametrize(
    "effects", [(Answer(200), Delivery()), (Delivery(), Delivery()), (Together(()),)]
)
def test_what_does_not_go_together(effects):
    with pytest.raises(ValueError, match=r"an answer is delivered once|goes together with nothing"):
        Together(effects)


@pytest.mark.parametrize("when", [{"first": 0}, {"times": -1}, {"share": 1.5}, {"share": -0.1}])
def test_a_fault_that_can_never_be(when):
    with pytest.raises(ValueError, match=r"first counts|share must"):
        Fault.status(503, **when)


def test_a_share_is_hit_at_random_and_again_in_the_same_way():
    def seen(seed, share=0.2):
        fault = Fault.status(503, endpoint="account", times=None, share=share, seed=seed)
        with serve(faults=[fault]) as server:
            client = Client(server)
            return [client.call("/api/account/info")[0] for _ in range(100)]

    first = seen(1)
    assert 10 <= first.count(503) <= 30
    assert seen(1) == first != seen(2)
    assert 503 not in seen(1, share=0.0)


def test_a_gzipped_body_and_one_without_length():
    faults = [
        Fault("gzip", Delivery(gzip=True)),
        Fault("until close", Delivery(until_close=True)),
        Fault("cut", Delivery(until_close=True, after_bytes=50)),
    ]
    with serve(faults=faults, memoize=True) as server:
        client = Client(server)
        zipped, closed, cut, plain = (client.call(COMPOSITE, body()) for _ in range(4))
        assert zipped[1]["Content-Encoding"] == "gzip"
        assert gzip.decompress(zipped[2]) == plain[2] == closed[2]
        assert (closed[1]["Content-Length"], closed[1]["Transfer-Encoding"]) == (None, None)
        assert cut[2] == plain[2][:50]
        sizes = [len(zipped[2]), len(plain[2]), 50, len(plain[2])]
        assert [entry.bytes for entry in server.ledger()] == sizes
        assert [entry.status for entry in server.ledger()] == [200] * 4


def test_an_endless_body_ends_with_the_client():
    with serve(faults=[Fault.endless()]) as server:
        request = urllib.request.Request(  # noqa: S310  our own
            server.url + COMPOSITE, json.dumps(body()).encode(), {"x-api-key": server.api_key}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310  as above
            assert len(answer.read(1_000_000)) == 1_000_000
        while server.in_flight:
            time.sleep(0.01)
        assert server.ledger()[0].bytes >= 1_000_000


def test_requests_on_one_connection_are_told_from_others():
    with serve() as server:
        for client in (Client(server), Client(server)):
            client.call("/api/account/info")

        async def run():
            headers = {"x-api-key": server.api_key}
            async with aiohttp.ClientSession(server.url, headers=headers) as session:
                for _ in range(2):
                    async with session.get("/api/account/info") as answer:
                        await answer.read()  # or the connection is of no use any more

        asyncio.run(run())
        first, second, third, fourth = (entry.peer for entry in server.ledger())
        assert len({first, second, third}) == 3
        assert third == fourth


def test_answers_that_are_no_images():
    faults = [Fault.html(), Fault.problem({"Wkt": ["bad"]}), Fault.status(200, code=1002)]
    with serve(faults=faults) as server:
        client = Client(server)
        status, headers, data = client.call(COMPOSITE, body())
        assert (status, headers.get_content_type()) == (200, "text/html")
        assert b"<html>" in data
        status, document = client.json(COMPOSITE, body())
        assert (status, document["errors"]) == (400, {"Wkt": ["bad"]})
        assert client.code(payload=body()) == (200, 1002)
        assert not any(entry.credits for entry in server.ledger())


@pytest.mark.parametrize("charged", [True, False])
def test_a_short_body_is_charged_as_told(charged):
    with serve(faults=[Fault.short_body(100, charged=charged)], balance=1) as server:
        client = Client(server)
        with pytest.raises(http.client.IncompleteRead) as caught:
            client.call(COMPOSITE, body())
        assert len(caught.value.partial) == 100
        (entry,) = server.ledger()
        assert (entry.status, entry.bytes) == (200, 100)
        assert (entry.credits > 0) is charged
        assert (server.balance < 1) is charged


@pytest.mark.parametrize(("fault", "charged"), [(Fault.reset(), False), (Fault.lost(), True)])
def test_a_reset_leaves_no_answer(fault, charged):
    with serve(faults=[fault]) as server:
        client = Client(server)
        with pytest.raises(ConnectionError):
            client.call(COMPOSITE, body())
        (entry,) = server.ledger()
        assert (entry.status, entry.bytes, entry.credits > 0) == (0, 0, charged)
        assert server.in_flight == 0
        assert client.image()[0].size


def test_a_chunked_body_can_be_cut_too():
    short = Fault.short_body(100)
    chunked = replace(short, effect=replace(short.effect, chunked=True))
    with serve(faults=[chunked]) as server, pytest.raises(http.client.IncompleteRead):
        Client(server).call(COMPOSITE, body())


TAMPERED = {
    "half pixel": (Fault.half_pixel(), lambda i: (i.left % 10, i.top % 10) == (5, 5)),
    "one band less": (Fault.band_count(-1), lambda i: i.count == 2),
    "two bands more": (Fault.band_count(2), lambda i: i.count == 5),
    "dtype": (Fault.dtype("float32"), lambda i: i.dtype == "float32"),
    "crs": (Fault.crs(32633), lambda i: i.crs.to_epsg() == 32633),
    "nodata": (Fault.nodata(0), lambda i: i.nodata == 0),
    "date": (Fault.tag("IMAGE_DATE", "19990101"), lambda i: i.tags["IMAGE_DATE"] == "19990101"),
    "own": (
        Fault.image("no first row", lambda image: replace(image, pixels=image.pixels[:, 1:])),
        lambda i: i.height > 1,
    ),
}


@pytest.mark.parametrize(("fault", "shows"), TAMPERED.values(), ids=TAMPERED)
@pytest.mark.parametrize("plain", [False, True])
def test_rasters_are_tampered_with_once_and_charged(fault, shows, plain):
    with serve(faults=[fault], plain=plain, memoize=True) as server:
        client = Client(server)
        bad = opened(client.call(COMPOSITE, body())[2])
        good = opened(client.call(COMPOSITE, body())[2])
        assert shows(bad)
        assert bad != good
        assert good.count == 3
        assert [entry.credits > 0 for entry in server.ledger()] == [True, True]
        assert server.ledger()[0].fault == fault.kind


def test_bytes_can_be_garbled():
    with serve(faults=[Fault.garble("cut", lambda data: data[:50])]) as server:
        status, headers, data = Client(server).call(COMPOSITE, body())
        assert (status, len(data), headers["Content-Length"]) == (200, 50, "50")


def test_a_stall_comes_after_its_bytes():
    with serve(faults=[Fault.stall(0.2, after_bytes=10)]) as server:

        async def run():
            headers = {"x-api-key": server.api_key}
            async with (
                aiohttp.ClientSession(server.url, headers=headers) as session,
                session.post(COMPOSITE, json=body()) as answer,
            ):
                first = await answer.content.readexactly(10)
                begin = time.perf_counter()
                rest = await answer.content.read()
                return first + rest, time.perf_counter() - begin

        data, waited = asyncio.run(run())
        assert waited > 0.15
        assert opened(data).count == 3


def test_bandwidth_is_kept():
    with serve(bandwidth=80_000) as server:
        client = Client(server)
        begin = time.perf_counter()
        size = len(client.call(COMPOSITE, body(Bandnames="all"))[2])
        # A busy machine may take longer.
        assert time.perf_counter() - begin > 0.9 * size / 80_000


def test_a_fault_that_fails_itself_is_a_500_and_costs_nothing():
    def broken(_image):
        raise ZeroDivisionError

    with serve(faults=[Fault.image("broken", broken)], balance=1) as server:
        assert Client(server).call(COMPOSITE, body())[0] == 500
        assert server.balance == 1
        assert (server.ledger()[0].status, server.ledger()[0].credits) == (500, 0)
        assert server.in_flight == 0


def test_memory_gives_the_same_bytes_and_charges():
    with serve(memoize=True) as server:
        client = Client(server)
        first, second = (client.call(COMPOSITE, body())[2] for _ in range(2))
        assert first == second
        assert server.ledger()[0].credits == server.ledger()[1].credits > 0
        server.regenerate(date(2025, 4, 1))
        assert client.call(COMPOSITE, body())[2] != first


def test_the_command_serves_until_interrupted(monkeypatch):
    seen = {}

    def wait(self, timeout=None):
        if threading.current_thread() is not threading.main_thread() or timeout is not None:
            return original(self, timeout)
        if "url" not in seen:
            return original(self, timeout)
        with urllib.request.urlopen(seen["url"] + "/sandbox/ledger") as answer:  # noqa: S310  # our own
            seen["ledger"] = json.load(answer)
        raise KeyboardInterrupt

    original = threading.Event.wait

    def serving(**options):
        server = serve(**options)
        seen["url"] = server.url
        return server

    monkeypatch.setattr(sandbox, "serve", serving)
    monkeypatch.setattr(threading.Event, "wait", wait)
    result = CliRunner().invoke(main, ["sandbox", "--api-key", "abc", "--billing", "bbox"])
    monkeypatch.undo()
    assert result.exit_code == 0, result.output
    assert seen["url"] in result.output
    assert "CLEARSKY_API_KEY=abc" in result.output
    assert seen["ledger"]["requests"] == 0


def test_the_command_says_what_is_wrong():
    result = CliRunner().invoke(main, ["sandbox", "--latency", "-1"])
    assert result.exit_code == 1
    assert "latency must not be negative" in result.output
