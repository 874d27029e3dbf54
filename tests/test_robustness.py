"""Interrupts, odd answers, full memory, swept folders: nothing is bought for nobody, or twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _geotiff, errors
from clearsky_xr.sandbox import Fault, Server
from clearsky_xr.sandbox.faults import Answer, Delivery

from .conftest import FARM, SPRING, access, paid

SERIES = ("2024-09-01", "2025-06-01")  # 55 dates, one Dask chunk


def lazy(server: Server, when: object = SPRING, **options) -> xr.Dataset:
    return xr.open_dataset(FARM, engine="clearsky", time=when, **access(server), **options)


def interrupt_when(server: Server, downloads: int) -> threading.Thread:
    """Press Ctrl-C as soon as so many downloads have arrived at the server."""

    def press() -> None:
        while len(server.downloads()) < downloads:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def settle(server: Server) -> None:
    """Wait until the server has nothing to do: what was sent has landed or is lost."""
    quiet = 0
    while quiet < 40:
        quiet = 0 if server.in_flight else quiet + 1
        time.sleep(0.005)


@pytest.mark.parametrize("chunks", [{}, None], ids=["dask", "lazy"])
def test_the_first_interrupt_stops_sending(serve, chunks: object) -> None:
    server = serve(latency=0.2)
    ds = lazy(server, SERIES, chunks=chunks)
    thread = interrupt_when(server, 4)
    with pytest.raises(KeyboardInterrupt):
        ds.reflectance.compute()
    thread.join()
    settle(server)
    # At most what was in flight, and what took its place while the interrupt was on its way.
    assert len(server.downloads()) <= 12
    assert ds.reflectance.compute().notnull().all()
    assert len(paid(server)) == len({e.date for e in paid(server)}) == 55


def test_a_failing_sibling_stops_the_rest_under_dask(serve) -> None:
    import datetime as dt

    server = serve(latency=0.1, faults=[Fault.status(400, code=1002, date=dt.date(2024, 9, 3))])
    ds = lazy(server, SERIES, chunks={}).chunk(time=28)
    with pytest.raises(errors.NoImageryError):
        ds.reflectance.compute()
    settle(server)
    assert len(server.downloads()) < 30


def test_nothing_is_repeated_when_nobody_waits(serve) -> None:
    lost = Fault("slow and lost", Delivery(before=0.4, cut=True), times=None)
    server = serve(faults=[lost])
    ds = lazy(server)
    thread = interrupt_when(server, 4)
    with pytest.raises(KeyboardInterrupt):
        ds.reflectance.load()
    thread.join()
    settle(server)
    assert len(server.downloads()) == 4


def account_says(**data: object) -> Fault:
    body = {"Data": data, "Succeeded": True, "Error": None}
    return Fault("account", Answer(200, json.dumps(body).encode()), endpoint="account", times=None)


@pytest.mark.parametrize("value", [-1, 0, 10**400, "4", None, [], True, 0.5])
@pytest.mark.parametrize(
    "name", ["MaxConcurrentConnections", "MaxCompositeAreaKm2", "MaxTotalBands"]
)
def test_odd_limits_neither_corrupt_nor_multiply(serve, name: str, value: object) -> None:
    if (name, value) == ("MaxTotalBands", 0.5):
        return  # a limit of less than one band is kept to: an error at open
    server = serve(faults=[account_says(**{name: value})])
    values = lazy(server, ["2025-04-01"]).reflectance.values
    assert np.isfinite(values).all()
    assert len(paid(server)) == (2 if (name, value) == ("MaxCompositeAreaKm2", 0.5) else 1)


def test_a_tiny_area_limit_is_refused_rather_than_bought_pixel_by_pixel(serve) -> None:
    server = serve(faults=[account_says(MaxCompositeAreaKm2=1e-6)])
    ds = lazy(server, ["2025-04-01"])
    with pytest.raises(errors.AreaLimitError, match="too small"):
        ds.load()
    assert not server.downloads()


HOSTILE = [
    b"",
    b"[]",
    b"null",
    b'{"Data": 5}',
    b'{"Data": {"ModelImageDates": 5}}',
    b'{"Data": {"ModelImageDates": [5]}}',
    b'{"Data": {"ModelImageDates": [{"Model": "Stratus2", "SatelliteConstellations": 5}]}}',
    b'{"Data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"Succeeded": false, "Error": {"Code": ' + b"9" * 400 + b'}, "Data": null}',
    b'{"Succeeded": false, "Error": 7, "Data": 7}',
    *(
        b'{"Data": {"ModelImageDates": [{"Model": "Stratus2", "SatelliteConstellations":'
        b'["Sentinel1", "Sentinel2", "Landsat89"], "DatesByGeog": ' + tail + b"}]}}"
        for tail in (b"5", b'[{"Dates": 5}]', b'[{"Dates": ["soon"]}]', b"[5]", b'"x"')
    ),
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("endpoint", ["account", "search", "composite"])
def test_hostile_json_is_a_typed_error(serve, endpoint: str, body: bytes) -> None:
    server = serve(faults=[Fault("hostile", Answer(200, body), endpoint=endpoint, times=None)])
    if endpoint == "account" and b"ModelImageDates" in body:
        return  # an account that says nothing of limits is a fine account
    with pytest.raises(errors.ClearSkyError):
        lazy(server).load()
    dates = [entry.date for entry in server.downloads()]
    assert len(dates) == len(set(dates))  # nothing was asked for twice


def test_control_characters_of_the_service_are_not_printed(serve) -> None:
    entry = {"Model": "\x1b[31m" + "A" * 5000, "SatelliteConstellations": ["x"], "DatesByGeog": []}
    body = json.dumps({"Data": {"ModelImageDates": [entry]}}).encode()
    server = serve(faults=[Fault("loud", Answer(200, body), endpoint="search", times=None)])
    with pytest.raises(errors.NoImageryError) as caught:
        lazy(server)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_long_pause_does_not_hold_up_what_comes_after(serve) -> None:
    server = serve(faults=[Fault.status(429, retry_after=86400)])
    ds = lazy(server, ["2025-04-01"])
    with pytest.raises(errors.RateLimitedError):
        ds.load()
    assert ds.reflectance.notnull().all()


def test_what_cannot_be_decoded_now_is_held(server: Server, monkeypatch) -> None:
    ds = lazy(server, ["2025-04-01"])
    genuine = _geotiff.opened

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_geotiff, "opened", exhausted)
    with pytest.raises(MemoryError):
        ds.load()
    monkeypatch.setattr(_geotiff, "opened", genuine)
    assert ds.reflectance.notnull().all()
    assert len(paid(server)) == 1


def test_a_swept_folder_is_told_and_bought_again_only_when_asked(serve, monkeypatch) -> None:
    from clearsky_xr import _spool

    monkeypatch.setattr(_spool, "_RECENT", 0)  # nothing stays in memory
    server = serve()
    ds = lazy(server)
    first = ds.reflectance.isel(band=0).values
    shutil.rmtree(_account.process().spool._folder)
    with pytest.raises(errors.SpoolError, match="no longer"):
        ds.reflectance.isel(band=1).load()
    assert len(paid(server)) == 4
    for _ in range(4):  # each date is met and forgotten by itself
        try:
            again = ds.reflectance.isel(band=0).copy(deep=True)
            again = lazy(server).reflectance.isel(band=0).values
            break
        except errors.SpoolError:
            continue
    np.testing.assert_array_equal(again, first)
    assert len(paid(server)) == 8


def test_finer_chunks_after_opening_cost_nothing_more(server: Server) -> None:
    ds = clearsky_xr.open_timeseries(FARM, ["2025-04-01"], **access(server))
    fine = ds.chunk(x=8, y=8)
    assert fine.reflectance.data.npartitions > 100
    fine.compute()
    assert len(paid(server)) == 1


def test_small_chunks_at_opening_are_warned_of(server: Server) -> None:
    with (
        pytest.warns(errors.ClearSkyWarning, match="requests of 0.01 credits each, 1.40"),
        pytest.warns(UserWarning, match="separate the stored chunks"),
    ):
        lazy(server, chunks={"x": 8, "y": 8})


def test_one_of_several_points_is_a_scalar_also_through_dask(server: Server) -> None:
    y, x = (xr.DataArray(v, dims="point") for v in ([3, 5, 7], [1, 2, 3]))
    ds = lazy(server, indices="ndvi", chunks={})
    value = ds.ndvi.isel(time=0, y=y, x=x).isel(point=2).load()
    assert value.shape == ()
    assert float(value) == float(lazy(server, indices="ndvi").ndvi[0, 7, 3])


def test_the_allowance_is_used_by_repeats_alone(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.lost(times=None)])
    with pytest.raises(errors.LostDownloadError):
        lazy(server, ["2025-04-01"]).load()
    sent = len(server.downloads())
    assert sent == 3
    price = _account.process().ledger.spent().possibly / sent
    assert _account.process().ledger._repeated == pytest.approx(2 * price)
