"""Answers that are none, or not whole, or not what they seem."""

from __future__ import annotations

import gc
import gzip
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import clearsky_xr
from clearsky_xr import _geotiff, errors
from clearsky_xr.sandbox import Fault
from clearsky_xr.sandbox.faults import Answer, Delivery

from .bench import DAY, DAYS, Bench, credits_of, forget
from .board import row

LOUD = "\x1b[31mNo!\x00 <script>" + "A" * 10_000
DOWNLOAD = b"POST /api/satelliteimages/process/composite "


@row(
    5,
    "400/401/403/404, problem-document 400, 2xx with `Succeeded: false`",
    "one request; code, fields and a hint in the error, server text cut and escaped",
)
def refused_for_good(bench: Bench) -> dict[str, Any]:
    refusals: list[tuple[int, int, type[errors.ClearSkyError]]] = [
        (400, 992, errors.ValidationError),
        (400, 993, errors.ValidationError),
        (400, 994, errors.InsufficientCreditsError),
        (400, 1002, errors.NoImageryError),
        (400, 1004, errors.AreaLimitError),
        (400, 1005, errors.BandLimitError),
        (400, 1006, errors.NotOrderedError),
        (400, 1777, errors.ServiceError),
        (401, 401, errors.CredentialsError),
        (403, 403, errors.CredentialsError),
        (404, 404, errors.ServiceError),
        (200, 994, errors.InsufficientCreditsError),
    ]
    for status, code, kind in refusals:
        fields = {"Wkt": ["must be\x1b[31m fine"]}
        fault = Fault.status(status, code=code, message=LOUD, fields=fields, times=None)
        server = bench.serve(fault)
        with bench.raises(kind, "No! <script>A+", spent="no") as caught:
            bench.open(server).load()
        error = caught.value
        assert error.hint
        assert error.details["status"] == status
        assert error.details["date"] == DAY[0]
        assert "A" * 201 not in str(error)
        if kind is not errors.CredentialsError:
            assert error.details["code"] == code
            assert error.details["fields"] == {"Wkt": "must be [31m fine"}
        assert len(server.downloads()) == 1
    server = bench.serve(Fault.problem({"Resolution": ["not a number"]}, times=None))
    with bench.raises(errors.ValidationError, "Resolution: not a number", spent="no"):
        bench.open(server).load()
    assert len(server.downloads()) == 1
    return {"kinds of refusal": len(refusals) + 1}


@row(
    6,
    "reset before any answer; reset or short body after 200",
    "never decoded or stored; `on_lost`: repeated at most twice, within max(1 credit, 2 % of what "
    "was settled), or never; counted as lost",
)
def lost(bench: Bench) -> dict[str, Any]:
    bench.fake_pauses()
    truth = bench.truth()
    decoded = []
    genuine = _geotiff.opened

    def opening(content: bytes, request: Any) -> Any:
        decoded.append(len(content))
        return genuine(content, request)

    bench.patch.setattr(_geotiff, "opened", opening)
    ways = [Fault.lost(), Fault.lost(charged=False), Fault.reset()]
    ways += [Fault.short_body(n) for n in (0, 1, 8, 5000, 90_000)]
    short = Fault.short_body(5000)
    ways.append(replace(short, effect=replace(short.effect, chunked=True)))  # type: ignore[type-var]
    for k, fault in enumerate(ways):
        server = bench.serve(fault)
        store = bench.folder / f"{k}.zarr"
        before = clearsky_xr.spent()
        with bench.raises(errors.LostDownloadError, "its answer was lost", spent="maybe"):
            bench.open(server, on_lost="raise", store=store).load()
        assert len(server.downloads()) == 1
        price = clearsky_xr.spent().possibly - before.possibly
        assert price > 0
        assert not decoded
        assert not list(store.glob("reflectance/c/**/[0-9]"))
        assert not list(Path(f"{store}.clearsky").glob("spool/*/*"))

        server = bench.serve(fault)
        np.testing.assert_array_equal(bench.open(server).reflectance.values, truth)
        bench.hears("may be charged twice", 1)
        assert len(server.downloads()) == 2
        assert decoded == [server.downloads()[-1].bytes]
        after = clearsky_xr.spent()
        assert round(after.possibly - before.possibly - price, 2) == 0.09
        assert round(after.settled - before.settled, 2) == 0.09
        decoded.clear()
        if k == 7:  # the allowance of one credit is used up after eleven repeats of 0.09
            bench.patch.setattr(clearsky_xr._account.process().ledger, "_repeated", 0.0)
    bench.patch.setattr(clearsky_xr._account.process().ledger, "_repeated", 0.0)
    endless = bench.serve(Fault.lost(times=None))
    with bench.raises(errors.LostDownloadError, spent="maybe"):
        bench.open(endless).load()
    assert len(endless.downloads()) == 3
    # 1.7 credits are more than the allowance of who has spent little.
    dear = bench.serve(Fault.lost(times=None))
    with bench.raises(errors.LostDownloadError, spent="maybe"):
        bench.open(dear, area=(15.05, 46.05, 15.10, 46.10), clip=False).load()
    assert len(dear.downloads()) == 1
    assert clearsky_xr.spent().reserved == 0
    return {"ways to be lost": len(ways), "possibly charged": clearsky_xr.spent().possibly}


@row(
    8,
    "endless or oversized body",
    "stops at a cap from the expected window; memory bounded",
)
def endless(bench: Bench) -> dict[str, Any]:
    tracemalloc.start()
    try:
        oversized = Fault.garble("oversized", lambda content: content + bytes(50_000_000))
        for fault in (oversized, Fault.endless()):
            # The sandbox lives in this process: the first, good answer is the one that it makes.
            server = bench.serve(fault.on(first=2), memoize=True)
            bench.open(server).load()
            forget()
            ds = bench.open(server)
            cap = 3 * 2 * 10 * ds.sizes["y"] * ds.sizes["x"] + 2**20
            before = bench.received
            gc.collect()
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            with bench.raises(errors.UnexpectedResponseError, f"more than the {cap:,} bytes"):
                try:
                    ds.load()
                finally:
                    peak = tracemalloc.get_traced_memory()[1] - held
            assert cap < bench.received - before <= cap + 2**20
            bench.until(lambda s=server: s.in_flight == 0)
            assert len(server.downloads()) == 2
    finally:
        tracemalloc.stop()
    # The oversized one was in this process, too; of an endless one the sandbox holds nothing.
    assert peak < 4 * cap, f"{peak:,} bytes for a cap of {cap:,}"
    return {
        "cap of bytes": cap,
        "received": bench.received - before,
        "memory below": f"{4 * cap:,}",
    }


@row(9, "HTML or JSON with 200", "typed error with a short excerpt; not stored")
def a_page(bench: Bench) -> dict[str, Any]:
    bodies = {
        "no TIFF: <!DOCTYPE html>": (b"<!DOCTYPE html><p>" + b"Sign in " * 10_000, "text/html"),
        "answered JSON": (b'{"Data": {"Url": "https://else.example/file.tif"}}', "image/tiff"),
        "no JSON": (b'{"Data": ', "application/json"),
        "no TIFF: .nothing.": (b"", "image/tiff"),
        "no TIFF: GIF89a": (b"GIF89a", "image/tiff"),
    }
    for words, (body, content_type) in bodies.items():
        server = bench.serve(Fault("page", Answer(200, body, content_type), times=None))
        store = bench.folder / f"{len(bench.servers)}.zarr"
        with bench.raises(errors.UnexpectedResponseError, words, spent="maybe") as caught:
            bench.open(server, store=store).load()
        assert len(caught.value.message) < 400
        assert len(server.downloads()) == 1
        assert not list(store.glob("reflectance/c/**/[0-9]"))
        forget()
        plain = xr.open_zarr(store, mask_and_scale=False, chunks=None)
        assert (plain.reflectance == -32768).all()
        plain.close()
    return {"pages": len(bodies)}


@row(
    24,
    "redirect to the same or another host",
    "not followed; the key is seen by the configured origin only",
)
def redirects(bench: Bench) -> dict[str, Any]:
    other = bench.serve()  # it knows the same key, and would answer well
    paths = {
        "account": "/api/account/info",
        "search": "/api/satelliteimages/search/available",
        "composite": "/api/satelliteimages/process/composite",
    }
    count = 0
    for endpoint, path in paths.items():
        for status in (301, 302, 303, 307, 308):
            for origin in (other.url, "", "//elsewhere.invalid", "https://elsewhere.invalid"):
                fault = Fault.redirect(f"{origin}{path}/", status, endpoint=endpoint, times=None)
                server = bench.serve(fault)
                with bench.raises(errors.UnexpectedResponseError, f"redirect .{status}."):
                    # A range, so that there is a date search.
                    bench.open(server, (DAYS[0], DAYS[1])).load()
                asked = [entry.endpoint for entry in server.ledger()]
                # Two dates are two downloads, if the second one has gone out by then.
                assert 1 <= asked.count(endpoint) <= (2 if endpoint == "composite" else 1)
                server.close()
                count += 1
    assert other.ledger() == []
    return {"redirects": count, "followed": 0}


@row(
    31,
    "server closes an idle keep-alive socket under a POST",
    "short keep-alive; counted as lost; one budgeted repeat",
)
def hung_up(bench: Bench) -> dict[str, Any]:
    jump = bench.jumping_clock()
    server = bench.serve(max_connections=1)
    closing = [True]

    def allows(number: int, head: bytes) -> bool:
        """Close under the first download that comes on a connection that was idle."""
        if number > 1 and head.startswith(DOWNLOAD) and closing:
            closing.clear()
            return False
        return True

    relay = bench.relay(server, allows)
    ds = bench.open(server, DAYS[:3], base_url=relay.url, concurrency=1)
    assert ds.reflectance.notnull().all()
    bench.hears("may be charged twice", 1)
    assert not closing
    on_the_wire = sum(head.startswith(DOWNLOAD) for head in relay.heads)
    assert on_the_wire == 4  # three dates, and one repeat: the HTTP library repeats nothing
    assert len(bench.sent) == 4
    assert len(server.downloads()) == 3
    spent = clearsky_xr.spent()
    assert spent.settled == credits_of(server.downloads())
    assert spent.possibly == server.downloads()[0].credits
    # A connection is used again at once, and let go after ten idle seconds.
    reused = relay.connections
    bench.open(server, DAYS[4:5], base_url=relay.url).load()
    assert relay.connections == reused
    jump(11)
    bench.open(server, DAYS[5:6], base_url=relay.url).load()
    assert relay.connections == reused + 1
    return {"on the wire": on_the_wire, "possibly charged": spent.possibly}


@row(
    34,
    "gzip body, chunked, no length",
    "`Accept-Encoding: identity` sent; decompressed size capped; unfinished framing is lost; "
    "a close-delimited body must hold all its TIFF offsets",
)
def framing(bench: Bench) -> dict[str, Any]:
    truth = bench.truth()
    server = bench.serve()
    relay = bench.relay(server, lambda _number, _head: True)
    bench.open(server, base_url=relay.url).load()
    assert all(b"\r\nAccept-Encoding: identity\r\n" in head for head in relay.heads)
    size = server.downloads()[0].bytes

    whole = [Delivery(gzip=True), Delivery(chunked=True), Delivery(until_close=True)]
    whole += [Delivery(gzip=True, chunked=True), Delivery(gzip=True, until_close=True)]
    for how in whole:
        server = bench.serve(Fault("whole", how))
        np.testing.assert_array_equal(bench.open(server).reflectance.values, truth)
        assert len(server.downloads()) == 1

    cut = [Delivery(after_bytes=n, cut=True, chunked=True) for n in (0, 5000, size - 1)]
    cut += [Delivery(after_bytes=n, cut=True, gzip=True) for n in (5, 5000)]
    cut += [Delivery(after_bytes=n, until_close=True, gzip=True) for n in (5, 5000)]
    for how in cut:
        server = bench.serve(Fault("cut", how))
        with bench.raises(errors.LostDownloadError, spent="maybe"):
            bench.open(server, on_lost="raise").load()
        assert len(server.downloads()) == 1

    # Here nothing but the file itself tells that it is not whole.
    count = 0
    for plain in (False, True):
        server = bench.serve(plain=plain)
        bench.open(server).load()
        size = server.downloads()[0].bytes
        for end in (8, *range(1000, size, size // 12), size - 1):
            count += 1
            fault = Fault("cut", Delivery(after_bytes=end, until_close=True))
            server = bench.serve(fault, plain=plain)
            with bench.raises(errors.LostDownloadError, "not whole", spent="maybe"):
                bench.open(server, on_lost="raise").load()
            server.close()

    # A gigabyte of zeros in a megabyte.
    bomb = gzip.compress(b"II*\0" + bytes(2**30), 9)
    stop = bench.received
    for content in (bomb, zlib.compress(b"II*\0" + bytes(2**28), 9)):
        encoding = "gzip" if content is bomb else "deflate"
        answer = Answer(200, content, "image/tiff", {"Content-Encoding": encoding})
        server = bench.serve(Fault("bomb", answer, times=None))
        ds = bench.open(server)
        tracemalloc.start()
        with bench.raises(errors.UnexpectedResponseError, "more than the", spent="maybe"):
            try:
                ds.load()
            finally:
                swollen = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        assert swollen < 20 * 2**20, f"{swollen:,}"
    answer = Answer(200, b"II*\0", "image/tiff", {"Content-Encoding": "br"})
    with bench.raises(errors.UnexpectedResponseError, "encoding 'br'", spent="maybe"):
        bench.open(bench.serve(Fault("brotli", answer))).load()
    assert bench.received - stop < 4 * 2**20
    return {"cut close-delimited bodies": count, "bomb of bytes": len(bomb)}
