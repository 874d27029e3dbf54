"""Questions that cost nothing: dates, availability, account, models."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr.sandbox import Account, Fault, Hole, Order, Server, faults

from .conftest import FARM, SPRING, access, credits_of

FOUR = [dt.date(2025, 4, day) for day in (1, 6, 11, 16)]
WEST = "POLYGON ((15 46, 15.055 46, 15.055 47, 15 47, 15 46))"
EAST = "POLYGON ((15.055 46, 16 46, 16 47, 15.055 47, 15.055 46))"
FAST = ("Sentinel1", "Sentinel2")


def asked(server: Server) -> list[str]:
    """Give the endpoints that were called, and make sure that none of them cost anything."""
    assert credits_of(server) == 0
    assert not server.downloads()
    return [entry.endpoint for entry in server.ledger()]


def days(frame: pd.DataFrame) -> list[dt.date]:
    return [moment.date() for moment in frame.date]


def answered(endpoint: str, data: object, status: int = 200) -> Fault:
    """Answer with this ``Data`` instead of what is true."""
    body = json.dumps({"Data": data, "Succeeded": True, "Error": None}).encode()
    return Fault("answered", faults.Answer(status, body), endpoint=endpoint, times=None)


# --- dates ---


def test_dates_of_a_field(server: Server) -> None:
    frame = clearsky_xr.dates(FARM, SPRING, **access(server))
    assert days(frame) == FOUR
    assert list(frame.columns) == [
        "date", "model", "constellations", "subarea", "area_km2", "whole", "geometry",
    ]  # fmt: skip
    assert frame.date.dtype == "datetime64[ns]"
    assert set(frame.model) == {"Stratus2"}
    assert set(frame.constellations) == {("Sentinel1", "Sentinel2", "Landsat89")}
    assert frame.whole.all()
    assert frame.geometry[0].equals(shapely.box(*FARM))
    # A degree of latitude has 111.2 km here, one of longitude 77.4.
    assert frame.area_km2[0] == pytest.approx(1.112 * 0.774, rel=2e-3)
    assert asked(server) == ["search"]


def test_dates_are_those_that_opening_finds(serve: Callable[..., Server]) -> None:
    server = serve(orders=[Order(WEST, frequency=2), Order(EAST, frequency=3)], cadence_days=1)
    time = ("2025-01-01", "2025-01-07")
    frame = clearsky_xr.dates(FARM, time, **access(server))
    parts = frame.groupby("subarea")
    assert [[day.day for day in days(part)] for _, part in parts] == [[1, 3, 5, 7], [1, 4, 7]]
    assert {day.day for day in days(frame[frame.whole])} == {1, 7}
    whole = clearsky_xr.resolve(FARM, time, **access(server))
    assert whole.dates == tuple(sorted(set(days(frame[frame.whole]))))
    partial = clearsky_xr.resolve(FARM, time, allow_partial=True, **access(server))
    assert partial.dates == tuple(sorted(set(days(frame))))
    outlines = parts.geometry.first()
    rest = shapely.union_all(list(outlines)).symmetric_difference(shapely.box(*FARM))
    assert rest.area < 1e-12
    # A map of it is one call away.
    chart = geopandas.GeoDataFrame(frame, crs=4326)
    assert chart.to_crs(32633).area.sum() / 1e6 == pytest.approx(frame.area_km2.sum(), rel=2e-3)


def test_dates_of_a_place_that_is_partly_missing(serve: Callable[..., Server]) -> None:
    holes = [
        Hole("pending", WEST, start=dt.date(2025, 4, 10)),
        Hole("outside", "POLYGON ((15.058 46, 16 46, 16 47, 15.058 47, 15.058 46))"),
        Hole("restricted"),
    ]
    server = serve(holes=holes, orders=[Order(storage_months=0)])
    frame = clearsky_xr.dates(FARM, SPRING, **access(server))
    assert [len(part) for _, part in frame.groupby("subarea")] == [2, 4]
    assert days(frame[frame.whole & (frame.subarea == 1)]) == FOUR[:2]
    assert max(g.bounds[2] for g in frame.geometry) == pytest.approx(15.058)


def test_dates_of_all_models_or_of_one(serve: Callable[..., Server]) -> None:
    server = serve(orders=[Order(), Order(model="Stratus2Fast", constellations=FAST, frequency=2)])
    frame = clearsky_xr.dates(FARM, SPRING, **access(server))
    assert list(frame.groupby("model").size().items()) == [("Stratus2", 4), ("Stratus2Fast", 2)]
    assert frame.whole.all()

    def of(**options: Any) -> set[str]:
        return set(clearsky_xr.dates(FARM, SPRING, **access(server), **options).model)

    assert of(model="stratus2fast") == {"Stratus2Fast"}
    assert of(constellations=["sentinel2", "SENTINEL1"]) == {"Stratus2Fast"}
    assert of(model="Stratus2", constellations=FAST) == set()
    assert of(model="Stratus3") == set()
    with pytest.raises(errors.ValidationError, match="Model must"):
        of(model="Cirrus")


def test_a_service_that_does_not_filter_is_filtered_here(serve: Callable[..., Server]) -> None:
    part = {"Wkt": WEST, "Dates": ["2025-03-31", "2025-04-06T00:00:00Z", "2025-04-05"]}
    entries = [
        {"Model": model, "SatelliteConstellations": list(FAST), "DatesByGeog": [part]}
        for model in ("Stratus2", "Stratus2Fast")
    ]
    server = serve(faults=[answered("search", {"ModelImageDates": entries})])
    frame = clearsky_xr.dates(FARM, SPRING, model="stratus2fast", **access(server))
    assert list(frame.model) == ["Stratus2Fast"] * 2
    assert [str(day) for day in days(frame)] == ["2025-04-05", "2025-04-06"]
    assert clearsky_xr.dates(
        FARM, SPRING, constellations=["Sentinel1"], **access(server)
    ).empty  # fmt: skip


def test_no_dates_are_an_empty_table_of_the_same_shape(server: Server) -> None:
    full = clearsky_xr.dates(FARM, SPRING, **access(server))
    empty = clearsky_xr.dates(FARM, "1999", **access(server))
    assert len(empty) == 0
    assert dict(empty.dtypes) == dict(full.dtypes)


TIMES = [
    slice("2025-04-01", "2025-04-20"),
    "2025-04-01/2025-04-20",
    (dt.date(2025, 4, 1), pd.Timestamp("2025-04-20")),
    ["2025-04-16", "2025-04-01", "2025-04-03", "2025-04-06", "2025-04-11"],
    np.array(FOUR, dtype="datetime64[D]"),
]


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_a_time_has_the_forms_that_opening_takes(server: Server, time: object) -> None:
    assert days(clearsky_xr.dates(FARM, time, **access(server))) == FOUR


def areas(folder: Path) -> list[object]:
    box = shapely.box(*FARM)
    file = folder / "field.geojson"
    file.write_text(shapely.to_geojson(box))
    return [
        box, box.wkt, shapely.to_geojson(box), box.__geo_interface__, file,
        geopandas.GeoSeries([box], crs=4326).to_crs(32633), np.array(FARM),
    ]  # fmt: skip


def test_an_area_has_the_forms_that_opening_takes(server: Server, tmp_path: Path) -> None:
    for area in areas(tmp_path):
        assert days(clearsky_xr.dates(area, SPRING, **access(server))) == FOUR
        assert clearsky_xr.availability(area, FOUR[0], **access(server)).ready
    assert set(asked(server)) == {"search", "available"}


BROKEN = [
    {},
    {"ModelImageDates": "none"},
    {"ModelImageDates": [{"SatelliteConstellations": "Sentinel1"}]},
    {"ModelImageDates": [{"DatesByGeog": 7}]},
    *(
        {"ModelImageDates": [{"DatesByGeog": [part]}]}
        for part in (
            "text", {"Wkt": WEST, "Dates": ["soon"]}, {"Wkt": WEST, "Dates": "2025"},
            {"Dates": ["2025-04-01"]}, {"Wkt": "POLYGON", "Dates": []},
            {"Wkt": 7, "Dates": ["2025-04-01"]},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=str)
def test_unreadable_dates_are_said_to_be(serve: Callable[..., Server], data: object) -> None:
    server = serve(faults=[answered("search", data)])
    with pytest.raises(errors.UnexpectedResponseError):
        clearsky_xr.dates(FARM, SPRING, **access(server))


# --- availability ---

# Contract, section 10: each row of the table of what is not ready, how to reach it on the
# sandbox, and what a download is then refused with.
NOT_READY: dict[str, tuple[dict[str, Any], str, str, type[errors.ServiceError]]] = {
    "outside": (
        {"holes": [Hole("outside")]}, "2025-04-01", "outside", errors.NoImageryError),
    "restricted": (
        {"holes": [Hole("restricted", EAST)]}, "2025-04-01", "restricted", errors.NoImageryError),
    "ordered in part": (
        {"orders": [Order(WEST)]}, "2025-04-01", "not_ordered", errors.NotOrderedError),
    "ordered another time": (
        {"orders": [Order(end=dt.date(2025, 3, 31))]}, "2025-04-01", "not_ordered",
        errors.NotOrderedError),
    "ordered another model": (
        {"orders": [Order(model="Stratus3")]}, "2025-04-01", "not_ordered",
        errors.NotOrderedError),
    "expired": (
        {"orders": [Order(storage_months=0)]}, "2025-04-01", "expired", errors.NoImageryError),
    "off the archive's rhythm": ({}, "2025-04-02", "off_cadence", errors.NoImageryError),
    "off the order's rhythm": (
        {"orders": [Order(frequency=7)]}, "2025-04-01", "off_cadence", errors.NoImageryError),
    "to be predicted": (
        {"holes": [Hole("pending", WEST)]}, "2025-04-01", "incomplete", errors.NoImageryError),
    "one half in rhythm": (
        {"orders": [Order(WEST, frequency=2), Order(EAST, frequency=5)], "cadence_days": 1},
        "2025-01-06", "incomplete", errors.NoImageryError),
    "not made yet": (
        {"end_date": dt.date(2025, 3, 31)}, "2025-04-01", "not_produced", errors.NoImageryError),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READY)
def test_each_row_of_the_contract_is_reached_and_agrees_with_the_download(
    serve: Callable[..., Server], name: str
) -> None:
    options, day, kind, error = NOT_READY[name]
    server = serve(**options)
    said = clearsky_xr.availability(FARM, day, **access(server))
    assert (said.ready, said.kind) == (False, kind)
    assert len(said.why.split()) > 5
    assert asked(server) == ["available"]
    with pytest.raises(error) as caught:
        clearsky_xr.open_timeseries(FARM, [day], **access(server)).load()
    told = caught.value.details["availability"]
    assert told == said
    assert said.why in caught.value.hint
    assert credits_of(server) == 0
    assert [e.endpoint for e in server.ledger()] == ["available", "account", "composite",
                                                     "available"]  # fmt: skip


def test_all_rows_are_there() -> None:
    kinds = {kind for _, _, kind, _ in NOT_READY.values()}
    assert kinds == {
        "outside", "restricted", "not_ordered", "expired", "off_cadence", "incomplete",
        "not_produced",
    }  # fmt: skip


def test_what_is_ready_can_be_bought(server: Server) -> None:
    said = clearsky_xr.availability(FARM, "2025-04-01", **access(server))
    assert said
    assert repr(said).startswith("<clearsky_xr.Availability of 2025-04-01, ready: ")
    assert asked(server) == ["available"]
    clearsky_xr.open_timeseries(FARM, ["2025-04-01"], **access(server)).load()
    assert credits_of(server) > 0


@pytest.mark.parametrize(
    "date",
    [dt.date(2025, 4, 1), pd.Timestamp("2025-04-01"), np.datetime64("2025-04-01"), "20250401",
     ["2025-04-01"], ("2025-04-01", "2025-04-01"), slice("2025-04-01", "2025-04-01")],
    ids=repr,
)  # fmt: skip
def test_a_date_has_the_forms_of_a_time(server: Server, date: object) -> None:
    said = clearsky_xr.availability(FARM, date, **access(server))
    assert (said.date, said.ready) == (FOUR[0], True)


def test_the_question_is_that_of_the_download(serve: Callable[..., Server]) -> None:
    server = serve(orders=[Order(model="Stratus2Fast", constellations=FAST)])
    options = {"bands": "red,nir", "crs": 32633, "model": "Stratus2Fast", "constellations": FAST}
    edge = (11.9, 46.05, 11.91, 46.06)  # in zone 32, near 33
    assert clearsky_xr.availability(edge, "2025-04-01", **options, **access(server)).ready
    assert not clearsky_xr.availability(edge, "2025-04-01", **access(server))
    first, second = server.ledger()
    assert (first.bandnames, first.epsg) == ("B4,B8", 32633)
    assert (second.bandnames, second.epsg) == ("B2,B3,B4,B5,B6,B7,B8,B8A,B11,B12", 32632)
    assert shapely.from_wkt(first.wkt).equals(shapely.box(*edge))


WRONG: list[tuple[type[errors.InputError], Callable[..., object]]] = [
    (errors.InvalidAreaError, lambda **to: clearsky_xr.dates((15, 46, 14, 47), "2025-06", **to)),
    (errors.InvalidAreaError, lambda **to: clearsky_xr.availability("POINT (1 2)", FOUR, **to)),
    (errors.InvalidTimeError, lambda **to: clearsky_xr.dates(FARM, None, **to)),
    (errors.InvalidTimeError, lambda **to: clearsky_xr.dates(FARM, ("2025-06", "2024"), **to)),
    (errors.InvalidTimeError, lambda **to: clearsky_xr.availability(FARM, "2025-06", **to)),
    (errors.InvalidTimeError, lambda **to: clearsky_xr.availability(FARM, FOUR, **to)),
    (errors.InvalidTimeError,
     lambda **to: clearsky_xr.availability(FARM, slice("2025-06-01", None), **to)),
    (errors.InvalidOptionError, lambda **to: clearsky_xr.dates(FARM, "2025", model=" ", **to)),
    (errors.InvalidOptionError,
     lambda **to: clearsky_xr.dates(FARM, "2025", constellations=[], **to)),
    (errors.InvalidOptionError,
     lambda **to: clearsky_xr.availability(FARM, FOUR[0], model=None, **to)),
    (errors.InvalidBandError,
     lambda **to: clearsky_xr.availability(FARM, FOUR[0], bands="B99", **to)),
    (errors.InvalidBandError, lambda **to: clearsky_xr.availability(FARM, FOUR[0], bands=[], **to)),
    (errors.InvalidGridError, lambda **to: clearsky_xr.availability(FARM, FOUR[0], crs=3857, **to)),
    (errors.InvalidGridError,
     lambda **to: clearsky_xr.availability(FARM, FOUR[0], crs=32610, **to)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "call"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_told_before_anything_is_sent(
    server: Server, error: type[errors.InputError], call: Callable[..., object]
) -> None:
    with pytest.raises(error) as caught:
        call(**access(server))
    assert caught.value.hint or error is errors.InvalidOptionError or "ends" in str(caught.value)
    assert server.ledger() == []


def test_no_key_no_question() -> None:
    for call in (clearsky_xr.account, clearsky_xr.models):
        with pytest.raises(errors.CredentialsError, match="no API key"):
            call()
    with pytest.raises(errors.CredentialsError, match="no API key"):
        clearsky_xr.dates(FARM, "2025-06")


@pytest.mark.parametrize("name", ["account", "models"])
def test_a_wrong_key_is_told(server: Server, name: str) -> None:
    with pytest.raises(errors.CredentialsError, match="refuses the API key"):
        getattr(clearsky_xr, name)(base_url=server.url, api_key="wrong")
    assert len(server.ledger()) == 1


# --- account ---


def test_limits_and_balance_as_they_are_now(serve: Callable[..., Server]) -> None:
    own = Account(max_connections=3, max_area_km2=700, max_bands=12, balance=50, credit_limit=5)
    server = serve(accounts=[own])
    status = clearsky_xr.account(**access(server))
    assert (status.connections, status.area_km2, status.bands) == (3, 700, 12)
    assert (status.credits, status.credit_limit) == (50, 5)
    assert (status.euros, status.euro_limit) == (0, 0)
    assert status.sandbox == "synthetic"
    assert asked(server) == ["account", "apikey"]
    assert repr(status) == (
        "<clearsky_xr.AccountStatus of a sandbox, credits left: 50.00; 3 connections, 700 km2 and "
        "12 layers in a download>"
    )
    assert own.key not in repr(status) + str(pickle.dumps(status))
    clearsky_xr.open_timeseries(FARM, ["2025-04-01"], **access(server)).load()
    price = credits_of(server)
    assert price > 0
    assert clearsky_xr.account(**access(server)).credits == pytest.approx(50 - price)


def test_new_limits_hold_from_then_on(serve: Callable[..., Server]) -> None:
    once = {"MaxConcurrentConnections": 1, "MaxCompositeAreaKm2": 50, "MaxTotalBands": 11}
    server = serve(faults=[answered("account", once).on(times=1)])
    ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    owner = _account.process().accounts[server.url, server.api_key]
    assert owner.gate.limit == 1
    assert clearsky_xr.account(**access(server)).connections == 4
    assert owner.gate.limit == 4
    ds.load()
    assert [e.endpoint for e in server.ledger()].count("account") == 2


def test_asking_does_not_widen_a_gate_that_has_narrowed(server: Server) -> None:
    clearsky_xr.account(**access(server))
    owner = _account.process().accounts[server.url, server.api_key]
    owner.gate.refused(None)
    clearsky_xr.account(**access(server))
    assert owner.gate._narrowed == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
def test_a_service_that_does_not_tell_the_balance(
    serve: Callable[..., Server], status: int
) -> None:
    server = serve(faults=[Fault.status(status, endpoint="apikey", times=None)])
    found = clearsky_xr.account(**access(server))
    assert (found.credits, found.credit_limit, found.euros) == (None, None, None)
    assert found.connections == 4
    assert "credits left: unknown" in repr(found)
    assert asked(server) == ["account", "apikey"]


def test_a_service_that_cannot_be_asked_for_the_balance_is_an_error(
    serve: Callable[..., Server], fake_time: list[float]
) -> None:
    server = serve(faults=[Fault.status(503, endpoint="apikey", times=None)])
    with pytest.raises(errors.ServiceUnavailableError):
        clearsky_xr.account(**access(server))


def test_the_old_account_call_alone_tells_all(serve: Callable[..., Server]) -> None:
    server = serve(balance=7, faults=[Fault.status(404, endpoint="account", times=None)])
    status = clearsky_xr.account(**access(server))
    assert (status.connections, status.credits) == (4, 7)


def test_limits_that_are_not_told(serve: Callable[..., Server]) -> None:
    server = serve(faults=[answered("account", {"MaxTotalBands": 0})])
    status = clearsky_xr.account(**access(server))
    assert (status.connections, status.area_km2, status.bands) == (None, None, None)
    assert "an unknown number of connections" in repr(status)


# --- models ---


def test_models_and_what_they_read(server: Server) -> None:
    frame = clearsky_xr.models(**access(server))
    assert frame.to_dict("records") == [
        {"model": "Stratus2", "required": ("Sentinel1", "Sentinel2", "Landsat89"), "optional": ()},
        {"model": "Stratus2Fast", "required": FAST, "optional": ("Landsat89",)},
        {"model": "Stratus3", "required": ("Sentinel1", "Sentinel2", "Landsat89"), "optional": ()},
    ]
    assert asked(server) == ["models"]


@pytest.mark.parametrize(
    "data",
    [{}, {"TaskingModels": {}}, {"TaskingModels": ["Stratus2"]},
     {"TaskingModels": [{"Model": "A", "SupportedSatelliteConstellations": "all"}]},
     {"TaskingModels": [{"Model": "A", "SupportedSatelliteConstellations": ["Sentinel1"]}]}],
    ids=str,
)  # fmt: skip
def test_unreadable_models_are_said_to_be(serve: Callable[..., Server], data: object) -> None:
    server = serve(faults=[answered("models", data)])
    with pytest.raises(errors.UnexpectedResponseError):
        clearsky_xr.models(**access(server))


def test_passing_faults_of_free_questions_are_waited_out(
    serve: Callable[..., Server], fake_time: list[float]
) -> None:
    names = ("account", "apikey", "models", "search", "available")
    server = serve(faults=[Fault.status(503, endpoint=name, times=2) for name in names])
    clearsky_xr.account(**access(server))
    clearsky_xr.models(**access(server))
    clearsky_xr.dates(FARM, SPRING, **access(server))
    clearsky_xr.availability(FARM, FOUR[0], **access(server))
    assert sorted(asked(server)) == sorted(names * 3)
