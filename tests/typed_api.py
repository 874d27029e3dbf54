"""User code that mypy checks as strictly as it can; it is never run.

A call that the types must refuse carries an ignore: if they accepted it, mypy
would complain of an unused one.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any, assert_type

import pandas as pd
import shapely
import xarray as xr

import clearsky_xr
from clearsky_xr import (
    AccountStatus,
    ArrayAccessor,
    Availability,
    Budget,
    ClearSkyAccessor,
    Cube,
    Estimate,
    Plan,
    Spent,
    errors,
)
from clearsky_xr.sandbox import Account, Fault, Hole, LedgerEntry, Order, Server, serve

AREA = (15.05, 46.05, 15.06, 46.06)


def opening() -> None:
    ds = clearsky_xr.open_timeseries(AREA, ("2025-04-01", "2025-09-30"))
    assert_type(ds, xr.Dataset)
    clearsky_xr.open_timeseries(
        shapely.box(*AREA),
        [dt.date(2025, 4, 1), pd.Timestamp("2025-04-06")],
        bands=["red", "nir"],
        indices={"mine": ("B8", "B5")},
        resolution=20,
        crs=32633,
        model="Stratus2",
        constellations=["Sentinel2"],
        clip=False,
        pixels="contained",
        allow_partial=True,
        concurrency=2,
        on_lost="raise",
        max_credits=5,
        api_key="key",
        base_url="sandbox",
        store="s3://bucket/fields.zarr",
        storage_options={"anon": False},
        chunks={"time": 1},
        cache=False,
        drop_variables="mine",
        mask_and_scale=False,
    )
    clearsky_xr.open_timeseries(Path("field.geojson"), slice("2025-04", None), bands="rgb")
    clearsky_xr.open_timeseries(AREA, "2025-06", bands=None, indices="ndvi", chunks=None)
    assert_type(clearsky_xr.open_store(Path("fields.zarr"), indices="ndvi"), xr.Dataset)
    clearsky_xr.open_store("memory://fields.zarr", missing="nan", chunks=None)
    clearsky_xr.open_store("fields.zarr", missing="buy")  # type: ignore[arg-type]


def refused() -> None:
    clearsky_xr.open_timeseries(AREA)  # type: ignore[call-arg]
    clearsky_xr.open_timeseries(AREA, "2025-06", "rgb")  # type: ignore[call-arg]
    clearsky_xr.open_timeseries(AREA, "2025-06", band="rgb")  # type: ignore[call-arg]
    clearsky_xr.open_timeseries(AREA, "2025-06", bands=4)  # type: ignore[arg-type]
    clearsky_xr.open_timeseries(AREA, "2025-06", pixels="touching")  # type: ignore[arg-type]
    clearsky_xr.open_timeseries(AREA, "2025-06", on_lost="ignore")  # type: ignore[arg-type]
    clearsky_xr.open_timeseries(AREA, "2025-06", resolution="10m")  # type: ignore[arg-type]
    clearsky_xr.open_timeseries(AREA, "2025-06", clip="yes")  # type: ignore[arg-type]
    clearsky_xr.open_timeseries(AREA, "2025-06", api_key=b"key")  # type: ignore[arg-type]
    clearsky_xr.sample("dataset", [(15.052, 46.053)])  # type: ignore[type-var]


def cubes() -> None:
    cube = clearsky_xr.resolve(AREA, "2025-06", indices=["ndvi", "ndmi"])
    assert_type(cube, Cube)
    assert_type(cube.dates, tuple[dt.date, ...])
    assert_type(cube.bands, tuple[str, ...])
    assert_type(cube.layers, tuple[str, ...])
    assert_type(cube.fingerprint, str)
    cube.dates = ()  # type: ignore[misc]


def sampling(ds: xr.Dataset, table: pd.DataFrame) -> None:
    assert_type(clearsky_xr.sample(ds, table), xr.Dataset)
    assert_type(clearsky_xr.sample(ds["ndvi"], [(15.052, 46.053)]), xr.DataArray)


def money(ds: xr.Dataset) -> None:
    spent = clearsky_xr.spent()
    assert_type(spent, Spent)
    assert_type(spent.settled, float)
    assert_type(spent.requests, int)
    with clearsky_xr.budget(2.0) as purse:
        assert_type(purse, Budget)
        assert_type(purse.left, float)
    assert_type(purse.report(), Spent)
    with clearsky_xr.progress(leave=False) as nothing:
        assert_type(nothing, None)
    plan = clearsky_xr.plan(ds, ds["ndvi"].mean())
    assert_type(plan, Plan)
    assert_type(plan.credits, float)
    assert_type(plan.dates, tuple[dt.date, ...])
    assert_type(plan.to_dataframe(), pd.DataFrame)
    assert_type(plan.requests[0].bounds, tuple[float, float, float, float])
    clearsky_xr.budget("2")  # type: ignore[arg-type]


def accessors(ds: xr.Dataset) -> None:
    # xarray's own types know of no accessor: what it gives is Any, and an annotation names it.
    assert_type(ds.clearsky, Any)
    sky: ClearSkyAccessor = ds.clearsky
    assert_type(sky.plan(), Plan)
    assert_type(sky.estimate(most=None), Estimate)
    assert_type(sky.estimate().credits, float)
    assert_type(sky.estimate().table, pd.DataFrame)
    assert_type(sky.prefetch(progress=False), Spent)
    assert_type(sky.fetched(), xr.DataArray)
    assert_type(sky.receipts(), pd.DataFrame)
    assert_type(sky.with_receipts(), xr.Dataset)
    assert_type(sky.index("ndvi"), xr.DataArray)
    assert_type(sky.index({"mine": ("B8", "B5")}), xr.DataArray)
    assert_type(sky.rgb(("nir", "red", "green"), vmax=0.4), xr.DataArray)
    assert_type(sky.plot_rgb(col_wrap=3), Any)
    assert_type(sky.to_geotiff("out", stac=True), list[Path])
    sky.to_geotiff(Path("out"), overwrite=True, progress=False)
    array: ArrayAccessor = ds["ndvi"].mean("time").clearsky
    assert_type(array.plan().useful_fraction, float)
    sky.to_geotiff("out", "stac")  # type: ignore[arg-type, call-arg]
    array.prefetch()  # type: ignore[attr-defined]


def on_a_cluster() -> None:
    clearsky_xr.cluster.setup(api_key="key", concurrency=2)
    clearsky_xr.cluster.setup(concurrency="2")  # type: ignore[arg-type]


def reporting() -> None:
    clearsky_xr.show_versions()
    clearsky_xr.show_versions(sys.stderr)
    clearsky_xr.show_versions("report.txt")  # type: ignore[arg-type]


def asking() -> None:
    assert_type(clearsky_xr.dates(AREA, "2025-06"), pd.DataFrame)
    clearsky_xr.dates(shapely.box(*AREA), [dt.date(2025, 4, 1)], model="Stratus2", api_key="key")
    ready = clearsky_xr.availability(AREA, dt.date(2025, 6, 5), bands=["red"], crs=32633)
    assert_type(ready, Availability)
    assert_type(ready.ready, bool)
    assert_type(ready.why, str)
    assert_type(ready.fully_available, bool | None)
    if ready.kind == "incomplete":
        ready.ready = True  # type: ignore[misc]
    status = clearsky_xr.account(base_url="sandbox")
    assert_type(status, AccountStatus)
    assert_type(status.credits, float | None)
    assert_type(clearsky_xr.models(), pd.DataFrame)
    clearsky_xr.availability(AREA)  # type: ignore[call-arg]
    clearsky_xr.dates(AREA, "2025-06", "Stratus2")  # type: ignore[call-arg]


def handling() -> None:
    try:
        clearsky_xr.open_timeseries(AREA, "2025-06")
    except errors.InputError as error:
        assert_type(error.hint, str)
        _as_value_error: ValueError = error
    except errors.ClearSkyError as error:
        assert_type(error.kind, str)
        assert_type(error.spent, str)


def emulating() -> None:
    with serve(max_connections=2, orders=[Order(model="Stratus2")]) as server:
        assert_type(server, Server)
        assert_type(server.url, str)
        assert_type(server.api_key, str)
        assert_type(server.ledger(), list[LedgerEntry])
        assert_type(server.peak_in_flight, int)
        assert_type(server.ledger()[0].credits, float)
        server.inject(Fault.status(503, times=2))
        assert_type(server.downloads(), list[LedgerEntry])
        assert_type(server.regenerate(dt.date(2025, 6, 5)), int)
    with clearsky_xr.sandbox.serve(accounts=[Account()], faults=[Fault.lost().on(first=3)]):
        pass
    serve(holes=[Hole("pending", start=dt.date(2025, 4, 1))], orders=[Order(storage_months=2)])
    Hole("water")  # type: ignore[arg-type]
    serve(billing="weight")  # type: ignore[arg-type]
    serve(2)  # type: ignore[call-arg]
