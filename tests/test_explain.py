"""Downloads that fail say what the free availability call knows, and ask it once."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import Availability, _account, _explain, _loop, errors
from clearsky_xr._geometry import outline, wkt
from clearsky_xr._pixels import PixelSet, Window
from clearsky_xr._request import Request
from clearsky_xr._settings import resolve_settings
from clearsky_xr.sandbox import Fault, Hole, Order, Server, faults

from .conftest import FARM, access, credits_of, paid

DAY = ["2025-04-01"]
# Enough dates for a dozen Dask chunks.
SEASON = ("2025-01-01", "2025-08-31")
WEST = "POLYGON ((15 46, 15.055 46, 15.055 47, 15 47, 15 46))"


def opened(server: Server, time: object = DAY, **options: object) -> xr.Dataset:
    return clearsky_xr.open_timeseries(FARM, time, **access(server), **options)


def questions(server: Server) -> int:
    return [entry.endpoint for entry in server.ledger()].count("available")


async def landed(owner: _account.Account) -> None:
    flights = [flight.task for some in owner.holdings._flights.values() for flight in some]
    await asyncio.gather(*flights, return_exceptions=True)


def test_no_credits(serve: Callable[..., Server]) -> None:
    server = serve(balance=0)
    with pytest.raises(errors.InsufficientCreditsError) as caught:
        opened(server).load()
    said = caught.value.details["availability"]
    assert isinstance(said, Availability)
    assert (said.date, said.ready) == (dt.date(2025, 4, 1), True)
    # What to do comes first, then what the service says.
    first, second = caught.value.hint.splitlines()
    assert "clearsky_xr.account() tells the balance" in first
    assert "availability call says of 2025-04-01: every part of the area has its image" in second
    assert clearsky_xr.account(**access(server)).credits == 0
    assert credits_of(server) == 0


def test_the_question_is_about_the_pixels_that_were_asked_for(
    serve: Callable[..., Server],
) -> None:
    server = serve(orders=[Order(WEST)])
    ds = opened(server)
    inside = ds.isel(x=slice(0, 5))
    inside.load()
    assert questions(server) == 0
    with pytest.raises(errors.NotOrderedError):
        ds.isel(x=slice(60, None)).load()
    refused, question = server.ledger()[-2:]
    assert (refused.wkt, refused.epsg, refused.bandnames, refused.date) == (
        question.wkt, question.epsg, question.bandnames, question.date,
    )  # fmt: skip


def test_a_part_that_is_missing_can_be_left_out(serve: Callable[..., Server]) -> None:
    server = serve(holes=[Hole("pending", WEST)])
    with pytest.raises(errors.NoImageryError, match="allow_partial=True") as caught:
        opened(server).load()
    assert caught.value.details["availability"].kind == "incomplete"
    values = opened(server, allow_partial=True).reflectance.values[0, 0]
    assert np.isnan(values[:, :30]).all()
    assert np.isfinite(values[5:-5, -30:]).all()
    assert questions(server) == 1
    assert len(paid(server)) == 1


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_a_burst_asks_once(
    serve: Callable[..., Server], chunks: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_explain, "LINGER", 3600)  # it ends when the threads have ended
    server = serve(orders=[Order(WEST)], memoize=True)
    days = [f"2025-{month:02d}-{day:02d}" for month in range(1, 8) for day in (3, 8, 13, 18, 23)]
    ds = opened(server, days, chunks=chunks)
    (owner,) = _account.process().accounts.values()
    for times in (1, 2):
        with (
            ThreadPoolExecutor(8) as pool,
            dask.config.set(scheduler="threads", pool=pool),
            pytest.raises(errors.NotOrderedError) as caught,
        ):
            ds.load()
        assert caught.value.details["availability"].kind == "not_ordered"
        assert questions(server) == times
        # Whoever comes while downloads of this burst are under way shares them, and their error.
        _loop.run(landed(owner))
        for burst in list(owner._bursts.values()):
            burst.over = True
    assert len(server.downloads()) > 2
    said = caught.value.details["availability"].date
    if str(said) != caught.value.details["date"]:
        assert f"{said}, which failed as well" in caught.value.hint


def test_a_store_changes_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(balance=0)
    days = ["2025-04-01", "2025-04-06", "2025-04-11"]
    with pytest.raises(errors.InsufficientCreditsError) as caught:
        opened(server, days, store=tmp_path / "field.zarr").load()
    assert caught.value.details["availability"].ready
    assert questions(server) == 1


def test_nothing_is_bought_while_it_is_asked(serve: Callable[..., Server]) -> None:
    day = dt.date(2025, 4, 11)
    server = serve(
        max_connections=1,
        faults=[
            Fault.status(400, code=1002, date=day),
            Fault.slow(first_byte=0.3, endpoint="available"),
        ],
    )
    days = [f"2025-04-{d:02d}" for d in (1, 6, 11, 16, 21, 26)]
    with pytest.raises(errors.NoImageryError) as caught:
        opened(server, days, chunks=None).load()
    assert (
        caught.value.details["date"] == str(caught.value.details["availability"].date) == str(day)
    )
    calls = [(entry.endpoint, entry.code) for entry in server.ledger()]
    assert calls[calls.index(("available", None)) - 1] == ("composite", 1002)
    assert len(server.downloads()) < 6


def test_a_burst_ends_soon_after_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while a download of it is still under way: what is begun later fails anew."""
    monkeypatch.setattr(_explain, "LINGER", 0.2)

    async def work() -> None:
        owner = await _account.account(
            resolve_settings(**access(server), concurrency=None, on_lost="retry")
        )
        first = owner.burst("a cube")
        assert owner.burst("a cube") is first
        assert owner.burst("another one") is not first
        request = a_request()
        told = await first.explain(errors.NotOrderedError("no"), request)
        assert told.details["availability"].date == request.date
        assert owner.burst("a cube") is first
        await asyncio.sleep(0.4)
        assert owner.burst("a cube") is not first
        # Who belonged to it still gets its answer.
        later = replace(request, date=dt.date(2025, 4, 6))
        again = await first.explain(errors.NotOrderedError("no"), later)
        assert again.details == told.details
        assert "2025-04-01, which failed as well" in again.hint

    _loop.run(work())
    assert questions(server) == 1


def a_request() -> Request:
    pixels = PixelSet(Window(-510072, -510062, 50386, 50396))
    outlined = wkt(outline(pixels, 32633, 10))
    return Request(
        dt.date(2025, 4, 1), pixels, outlined, 0.01, ("B4",), 32633, 10, "Stratus2",
        ("Sentinel1", "Sentinel2", "Landsat89"), allow_partial=False,
    )  # fmt: skip


def test_each_kind_of_failure_is_explained_by_its_own_answer(
    serve: Callable[..., Server],
) -> None:
    server = serve(orders=[Order(end=dt.date(2025, 4, 10))], latency=0.2)
    burst_of_two = opened(server, ["2025-04-02", "2025-04-11"], chunks=None)
    for day, kind in (("2025-04-02", "off_cadence"), ("2025-04-11", "not_ordered")):
        with pytest.raises(errors.ServiceError) as caught:
            burst_of_two.sel(time=day).load()
        assert caught.value.details["availability"].kind == kind
    with pytest.raises(errors.ServiceError) as caught:
        burst_of_two.load()
    error = caught.value
    expected = "off_cadence" if error.details["date"] == "2025-04-02" else "not_ordered"
    assert error.details["availability"].kind == expected


BROKEN = [
    Fault.status(500), Fault.status(401), Fault.status(429), Fault.status(400, code=992),
    Fault.html(), Fault.reset(),
    Fault("list", faults.Answer(200, b'{"Data": [], "Succeeded": true}')),
    Fault.stall(3, after_bytes=5),
]  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.kind)
def test_a_question_that_fails_does_not_hide_the_error(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(_explain, "PATIENCE", 0.5)
    server = serve(balance=0, faults=[replace(fault, endpoint="available", times=None)])
    ds = opened(server)
    began = time.monotonic()
    with pytest.raises(errors.InsufficientCreditsError, match="994") as caught:
        ds.load()
    # No repeats, and no pauses between them.
    assert time.monotonic() - began < 2
    assert questions(server) == 1
    assert "availability" not in caught.value.details
    assert "availability" not in caught.value.hint
    assert caught.value.__cause__ is None


def test_an_answer_that_says_nothing_is_said_to(serve: Callable[..., Server]) -> None:
    nothing = faults.Answer(200, b'{"Data": {}, "Succeeded": true, "Error": null}')
    server = serve(balance=0, faults=[Fault("nothing", nothing, endpoint="available")])
    with pytest.raises(errors.InsufficientCreditsError, match="neither that it is ready") as caught:
        opened(server).load()
    assert caught.value.details["availability"].kind == "unknown"


@pytest.mark.parametrize("code", [992, 1004, 1005, 1777])
def test_of_other_failures_it_is_not_asked(serve: Callable[..., Server], code: int) -> None:
    server = serve(faults=[Fault.status(400, code=code, times=None)])
    with pytest.raises(errors.ServiceError) as caught:
        opened(server).load()
    assert questions(server) == 0
    assert "availability" not in caught.value.details


def test_what_works_asks_nothing(server: Server) -> None:
    opened(server, SEASON).isel(x=slice(0, 3), y=slice(0, 3)).load()
    assert questions(server) == 0
