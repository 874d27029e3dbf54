"""A plan says what a computation then buys: request by request, to the cent."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import pickle
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyproj
import pytest
import shapely
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _loop, _plan, _planned
from clearsky_xr._planned import Plan
from clearsky_xr.errors import InputError, InvalidOptionError, PlanIncomplete
from clearsky_xr.sandbox import LedgerEntry, Server

from .conftest import FARM, access, paid

# 112 x 79 pixels: chunks of 64 and 48 rows by 64 and 15 columns, of two dates each.
ROWS, COLS = 112, 79
CHUNKS = {"time": 2, "y": 64, "x": 64}
TIME = ("2025-04-21", "2025-05-10")  # four images in two months
DATES = (dt.date(2025, 4, 21), dt.date(2025, 4, 26), dt.date(2025, 5, 1), dt.date(2025, 5, 6))
TRIANGLE = "POLYGON ((15.05 46.05, 15.06 46.05, 15.05 46.06, 15.05 46.05))"
# Contract, section 12: 997.94 km2, 99.79 credits.
SEEN = shapely.box(13.53241, 57.370977, 14.230042, 57.585087)

GEOD = pyproj.Geod(ellps="WGS84")

pytestmark = [
    pytest.mark.filterwarnings("ignore:chunks of .* px are requests"),
    pytest.mark.filterwarnings("ignore:The specified chunks separate"),
    # Corners outside the area are NaN; numpy's own guards do not hold between threads.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def forget() -> None:
    """Forget what this process holds, as a new one would."""
    shared = _account.process()

    async def close() -> None:
        for owner in shared.accounts.values():
            await owner.client.close()

    _loop.run(close())
    shared.accounts.clear()
    shared.stocks.clear()


def opener(server: Server, folder: Path) -> SimpleNamespace:
    """Give cubes of a server, and short names for the usual one."""

    def cube(area: Any = FARM, when: Any = TIME, **options: Any) -> xr.Dataset:
        usual = {"bands": ["red", "nir"], "indices": "ndvi", "chunks": CHUNKS}
        return clearsky_xr.open_timeseries(area, when, **{**usual, **options}, **access(server))

    ds = cube()
    return SimpleNamespace(
        cube=cube, ds=ds, r=ds.reflectance, nir=ds.reflectance.sel(band="B8"),
        red=ds.reflectance.sel(band="B4"), store=folder / "fields.zarr", server=server,
    )  # fmt: skip


@pytest.fixture
def c(server: Server, tmp_path: Path) -> SimpleNamespace:
    return opener(server, tmp_path)


def compute(objects: tuple[Any, ...]) -> None:
    """Compute together, as a user would."""
    if len(objects) == 1:
        objects[0].compute()
    else:
        # Dask leaves alone what is lazy without it.
        for obj in dask.compute(*objects):
            getattr(obj, "load", int)()


def planned(plan: Plan) -> Counter[tuple[dt.date, float]]:
    return Counter((request.date, request.credits) for request in plan.requests)


def charged(entries: list[LedgerEntry]) -> Counter[tuple[dt.date | None, float]]:
    return Counter((entry.date, entry.credits) for entry in entries)


def total(entries: list[LedgerEntry]) -> float:
    return round(sum(entry.credits for entry in entries), 2)


def calls(server: Server) -> Counter[str]:
    return Counter(entry.endpoint for entry in server.ledger())


def points(number: int) -> dict[str, xr.DataArray]:
    rng = np.random.default_rng(5)
    return {
        "y": xr.DataArray(rng.integers(0, ROWS, number), dims="p"),
        "x": xr.DataArray(rng.integers(0, COLS, number), dims="p"),
    }


def ndvi(ds: xr.Dataset) -> xr.DataArray:
    nir, red = (ds.reflectance.sel(band=band) for band in ("B8", "B4"))
    index: xr.DataArray = (nir - red) / (nir + red)
    return index


def metres_km2(left: float, bottom: float, right: float, top: float, epsg: int = 32633) -> float:
    """Give the geodesic surface of a rectangle on a grid, less the quarter pixel all around."""
    way = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    box = shapely.segmentize(shapely.box(left + 2.5, bottom + 2.5, right - 2.5, top - 2.5), 500)
    lon, lat = way.transform(*shapely.get_coordinates(box).T)
    return float(abs(GEOD.polygon_area_perimeter(lon, lat)[0]) / 1e6)


def beside(c: SimpleNamespace) -> xr.Dataset:
    """Give a cube whose grid begins where the second chunks of the usual one begin."""
    return c.cube((15.05, 46.04, 15.07, 46.06), like=c.ds.isel(y=slice(64, None)))


def stored(c: SimpleNamespace, **options: Any) -> xr.Dataset:
    return c.cube(**{"store": c.store, **options})


def loaded_first(part: xr.Dataset, whole: Any) -> Any:
    """Hold a part of what is planned afterwards."""
    part.load()
    return whole


def reopened(c: SimpleNamespace, **options: Any) -> xr.Dataset:
    """Open a store again in what might be another process."""
    forget()
    return stored(c, **options)


# A name, and what is computed; several objects are computed together.
EXPRESSIONS: dict[str, Callable[[SimpleNamespace], Any]] = {
    # --- selections of a fresh cube
    "a cube of two variables": lambda c: c.ds,
    "one chunk": lambda c: c.cube(chunks={}),
    "a point's series": lambda c: c.r.isel(x=70, y=30),
    "a point's series from the whole": lambda c: c.ds.isel(x=3).isel(y=100),
    "a window": lambda c: c.r.isel(x=slice(50, 70), y=slice(18, 100)),
    "a date": lambda c: c.ds.sel(time="2025-05-01"),
    "bands": lambda c: c.r.sel(band=["B8", "B4"]).isel(x=slice(0, 20)),
    "all bands": lambda c: c.cube(bands="all", indices=None).isel(time=[1], y=slice(60, 70)),
    "an index of the service": lambda c: c.ds.ndvi.isel(time=slice(1, 3)),
    "lists": lambda c: c.r.isel(time=[3, 0, 3], x=[78, 1], y=[3, 3, 90]),
    "backwards, by steps": lambda c: c.r.isel(x=slice(None, None, -9), y=slice(60, 2, -7)),
    "points": lambda c: c.r.isel(points(9)),
    "a polygon": lambda c: c.cube(TRIANGLE),
    "a polygon's rectangle": lambda c: c.cube(TRIANGLE, clip=False).isel(time=[0, 2]),
    "pixels within a polygon": lambda c: c.cube(TRIANGLE, pixels="contained").ndvi.isel(time=0),
    "coarse pixels": lambda c: c.cube(resolution=40, chunks={}),
    # --- arithmetic, reductions
    "ndvi": lambda c: ndvi(c.ds),
    "a corner of ndvi": lambda c: ndvi(c.ds).isel(time=1, x=slice(3, 5)),
    "points of ndvi": lambda c: ndvi(c.ds).isel(points(3)),
    "both variables": lambda c: c.ds.ndvi.isel(time=1) - c.red.isel(time=3),
    "means of months": lambda c: c.r.groupby("time.month").mean(),
    "one mean of months": lambda c: c.ds.ndvi.groupby("time.month").mean().sel(month=5),
    "resampled": lambda c: c.r.resample(time="10D").max(),
    "a resampled month": lambda c: c.ds.ndvi.resample(time="1MS").mean().isel(time=1),
    "coarsened": lambda c: c.ds.ndvi.coarsen(x=4, y=4, boundary="trim").mean(),
    "rolling": lambda c: c.ds.ndvi.rolling(time=2).mean().isel(time=slice(2, 4)),
    "rolling in space": lambda c: c.ds.ndvi.isel(time=[0]).rolling(x=3).mean(),
    "differences": lambda c: c.ds.ndvi.diff("time").isel(time=1),
    # --- other shapes
    "where": lambda c: c.r.where(c.ds.ndvi > 0.5).isel(time=0),
    "stacked": lambda c: c.ds.ndvi.stack(z=("y", "x")).isel(z=slice(30, 90)),
    "rechunked": lambda c: c.r.chunk(time=3, x=-1).isel(y=0),
    "finer chunks": lambda c: (c.ds.ndvi + 1).chunk(x=4, y=4, time=1).isel(x=0, y=0),
    "concatenated": lambda c: xr.concat(
        [c.ds.ndvi, c.cube(when=["2025-07-05", "2025-07-10"]).ndvi], "time", join="override"
    ).isel(time=[1, 5]),
    "map_blocks": lambda c: xr.map_blocks(lambda x: 2 * x, c.ds.ndvi, template=c.ds.ndvi),
    "map_overlap": lambda c: c.ds.ndvi[:1].data.map_overlap(lambda x: x, depth={1: 2, 2: 2}),
    "an xarray.Variable": lambda c: c.ds.ndvi.variable[:2],
    # --- several objects
    "several": lambda c: (ndvi(c.ds).mean("time"), c.ds.ndvi.mean(("y", "x")), 5 * c.red),
    "Dask and not": lambda c: c.cube(chunks={}).ndvi.isel(time=slice(2)).to_dataset().assign(
        lazy=c.cube(chunks=None).reflectance.isel(time=slice(2))
    ),
    "cubes of areas that overlap": lambda c: (c.ds.ndvi, beside(c).ndvi),
    "cubes of other layers": lambda c: (c.ds.isel(time=[0]), c.cube(bands="rgb").isel(time=[0])),
    "cubes of fewer layers": lambda c: loaded_first(c.ds, c.cube(bands=["red"], indices=None)),
    # --- loaded, or held in part
    "loaded": lambda c: c.ds.isel(time=0).load(),
    "persisted": lambda c: c.r.isel(time=0).persist() + 1,
    "persisted in part": lambda c: (c.red[:2].persist() + 1, c.nir.isel(x=slice(4))),
    "held": lambda c: loaded_first(c.ds, c.cube(chunks=None)),
    "dates of it held": lambda c: loaded_first(c.ds.isel(time=[1, 2]), c.ds),
    "a hole of it held": lambda c: loaded_first(
        c.ds.isel(x=slice(20, 60), y=slice(20, 60), time=slice(1, 3)), ndvi(c.ds)
    ),
    # --- without Dask
    "lazy": lambda c: c.cube(chunks=None),
    "a lazy window": lambda c: c.cube(chunks=None).reflectance.isel(x=slice(5, 15))[:, :, 3:9],
    "lazy points": lambda c: c.cube(chunks=None).isel(points(9)),
    "lazy, then Dask": lambda c: c.cube(chunks=None).isel(x=slice(3, 9)).chunk(time=2, y=50),
    "a lazy polygon": lambda c: c.cube(TRIANGLE, chunks=None).isel(time=[0, 3]),
    # --- with a store
    "a point in an empty store": lambda c: stored(c).isel(x=3, y=4),
    "an empty store": lambda c: ndvi(stored(c)),
    "a polygon in an empty store": lambda c: stored(c, area=TRIANGLE).isel(time=0),
    "blocks of an empty store": lambda c: stored(
        c, area=(15.05, 46.05, 15.09, 46.06), chunks={"y": 128, "x": 128}
    ).ndvi.isel(time=[2], x=slice(200, 300)),
    "partly in a store": lambda c: loaded_first(
        stored(c).isel(time=[0, 3], x=0), reopened(c).ndvi
    ),
    "a block of it in a store": lambda c: loaded_first(
        stored(c, area=(15.05, 46.05, 15.09, 46.06)).isel(time=slice(3), x=300),
        reopened(c, area=(15.05, 46.05, 15.09, 46.06), chunks={}).reflectance,
    ),
    "all in a store": lambda c: loaded_first(stored(c), reopened(c, chunks=None)),
    "a store alone": lambda c: loaded_first(stored(c), clearsky_xr.open_store(c.store)),
}  # fmt: skip

NOTHING = {"loaded", "persisted", "held", "cubes of fewer layers", "all in a store",
           "a store alone"}  # fmt: skip


def assert_foretold(build: Callable[[], Any], server: Server, scheduler: str) -> Plan:
    """Plan, compute and compare with what the sandbox has charged; gives the plan."""
    with dask.config.set(scheduler=scheduler):
        built = build()
        objects = built if isinstance(built, tuple) else (built,)
        before, sent = len(paid(server)), len(server.downloads())
        if len(objects) == 1 and hasattr(objects[0], "clearsky"):
            plan = objects[0].clearsky.plan()
        else:
            plan = clearsky_xr.plan(*objects)
        assert len(server.downloads()) == sent, "planning bought something"
        compute(objects)
        bought = paid(server)[before:]
        assert len(bought) == len(plan.requests)
        assert planned(plan) == charged(bought)
        assert plan.credits == total(bought) <= plan.credits_at_most
        billed = sum(entry.area_km2 for entry in bought)  # type: ignore[misc]
        assert plan.area_km2 == pytest.approx(billed, abs=0.006 * max(1, len(bought)))
        assert plan.exact
        assert clearsky_xr.plan(*objects).requests == ()
        assert clearsky_xr.plan(*objects).credits == 0.0
    return plan


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_plan_is_what_is_bought(
    name: str, scheduler: str, server: Server, tmp_path: Path
) -> None:
    c = opener(server, tmp_path)
    plan = assert_foretold(lambda: EXPRESSIONS[name](c), server, scheduler)
    assert bool(plan.requests) == (name not in NOTHING)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize("name", ["a polygon", "points", "a hole of it held", "lazy points"])
def test_a_plan_is_what_is_bought_by_bounding_boxes(
    name: str, scheduler: str, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(billing="bbox")
    c = opener(server, tmp_path)
    plan = assert_foretold(lambda: EXPRESSIONS[name](c), server, scheduler)
    assert plan.requests


def test_what_bounding_boxes_cost_is_asked_once_and_planned(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    plans = {}
    for billing in ("geometry", "bbox"):
        server = serve(billing=billing)
        far = opener(server, tmp_path).r.isel(
            x=xr.DataArray([0, 78], dims="p"), y=xr.DataArray([0, 111], dims="p"), time=[0, 1]
        )
        far = far.chunk(p=-1)
        plans[billing] = assert_foretold(lambda far=far: far, server, "threads")
        # The one question that tells which of both it is.
        assert calls(server)["estimate"] == 1
    # Two pixels of the smallest price each, or both for it as one geometry.
    assert plans["geometry"].credits == 0.02
    assert plans["bbox"].credits == 0.04
    assert len(plans["bbox"].requests) == 2 * len(plans["geometry"].requests) == 4


def test_what_is_too_large_for_a_request_is_planned_in_pieces(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(max_area_km2=1)
    ds = opener(server, tmp_path).cube((15.05, 46.05, 15.07, 46.07), ["2025-05-01"], chunks={})
    plan = assert_foretold(lambda: ds, server, "threads")
    assert len(plan.requests) >= 4
    assert all(request.area_km2 <= 1 for request in plan.requests)


def test_two_accounts_are_planned_together(serve: Callable[..., Server], tmp_path: Path) -> None:
    one, other = serve(), serve()
    objects = tuple(opener(server, tmp_path).ds.isel(time=0, x=0) for server in (one, other))
    plan = clearsky_xr.plan(*objects)
    assert not one.downloads() + other.downloads()
    dask.compute(*objects)
    assert planned(plan) == charged(paid(one) + paid(other))
    assert len(paid(one)) == len(paid(other)) == 2  # two chunks along y


def overlaps(c: SimpleNamespace) -> dict[str, Any]:
    """Give expressions that read windows which overlap in part: what is bought hangs on order."""
    left, right = c.r.isel(x=slice(0, 40)), c.r.isel(x=slice(20, 60))
    return {
        "neighbours": c.ds.ndvi.diff("x"),
        "shifted": c.ds.ndvi.diff("y"),
        "a part, and the whole": (c.r.isel(time=[0]), c.r.isel(time=[0], x=slice(0, 40))),
        "overlapping": (left, right, c.r.isel(x=slice(10, 50))),
    }


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize("name", ["neighbours", "shifted", "a part, and the whole", "overlapping"])
def test_windows_that_overlap_never_cost_more_than_without_sharing(
    name: str, scheduler: str, c: SimpleNamespace, server: Server
) -> None:
    expression = overlaps(c)[name]
    objects = expression if isinstance(expression, tuple) else (expression,)
    plan = clearsky_xr.plan(*objects)
    with dask.config.set(scheduler=scheduler):
        compute(objects)
    assert {request.date for request in plan.requests} == {entry.date for entry in paid(server)}
    assert 0 < total(paid(server)) < plan.credits_at_most
    # Where they overlap in part it depends on who comes first, and the plan says so.
    assert plan.exact == (name == "a part, and the whole")
    assert not plan.exact or planned(plan) == charged(paid(server))
    assert clearsky_xr.plan(*objects).requests == ()


def test_lazy_variables_are_planned_after_those_of_dask(c: SimpleNamespace, server: Server) -> None:
    lazy = c.cube(chunks=None).reflectance
    assert_foretold(lambda: c.ds[["ndvi"]].assign(lazy=lazy), server, "synchronous")


# --- on a cluster


def test_on_a_cluster_of_processes_the_price_has_a_bound(
    c: SimpleNamespace, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    ds = clearsky_xr.open_timeseries(
        FARM, TIME, bands=["red", "nir"], indices="ndvi", chunks=CHUNKS, base_url=server.url
    )
    expressions = {
        "ndvi": ndvi(ds.isel(time=slice(0, 2))).mean(),
        "both variables": ds.ndvi.isel(time=2).mean() - ds.reflectance.isel(time=2).mean(),
        "months": ds.ndvi.isel(x=3).groupby("time.month").mean(),
    }
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        for name, expression in expressions.items():
            before = len(paid(server))
            plan = expression.clearsky.plan()
            assert len(paid(server)) == before, name
            assert not plan.exact
            assert "cluster" in repr(plan)
            expression.compute()
            assert 0 < total(paid(server)[before:]) <= plan.credits_at_most, name


def test_on_a_cluster_in_this_process_what_is_held_is_not_planned(
    c: SimpleNamespace, server: Server
) -> None:
    distributed = pytest.importorskip("distributed")
    assert c.ds.clearsky.plan().exact
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        series = c.ds.isel(x=3, y=[4, 70])
        plan = series.clearsky.plan()
        assert not plan.exact
        # Whoever names another scheduler does not compute on the cluster.
        for scheduler in ("threads", "synchronous", "sync", "single-threaded"):
            with dask.config.set(scheduler=scheduler):
                assert series.clearsky.plan().exact
        series.compute()
        assert 0 < total(paid(server)) <= plan.credits_at_most
        assert series.clearsky.plan().requests == ()
    assert c.ds.clearsky.plan().exact


# --- how much of it is used


def useful(expression: Any) -> tuple[float, str]:
    plan = expression.clearsky.plan()
    return plan.useful_fraction, plan.advice


def test_a_selection_before_arithmetic_is_all_used(c: SimpleNamespace) -> None:
    for part in (
        c.ds.isel(x=3, y=30),
        c.ds.isel(x=3, y=30, time=0),
        c.ds.isel(x=slice(60, 70), y=[1, 2]),
        c.ds.isel(x=slice(30, 79, 2)),
    ):
        assert useful(ndvi(part)) == (1.0, "")
        assert "every pixel bought" in repr(part.clearsky.plan())


def test_a_selection_after_arithmetic_is_advised_against(c: SimpleNamespace) -> None:
    index = ndvi(c.ds)
    # Of the four chunks in space the one with 64 x 64 pixels, of one chunk's two dates.
    fraction, advice = useful(index.isel(x=3, y=30, time=0))
    assert fraction == 1 / (2 * 64 * 64)
    assert "Select before you compute" in advice
    # The lower right chunk, all dates.
    assert useful(index.isel(x=70, y=100))[0] == 1 / (48 * 15)
    plan = index.isel(x=3, y=30, time=0).clearsky.plan()
    assert sum(request.pixels for request in plan.requests) == 2 * 64 * 64
    assert [request.useful for request in plan.requests] == [1, 0]
    assert "Select before you compute" in repr(plan)
    assert "Select before you compute" in plan._repr_html_()


def test_advice_begins_below_a_tenth(c: SimpleNamespace) -> None:
    index = ndvi(c.ds)
    assert useful(index.isel(x=slice(0, 7))) == (7 / 64, "")
    fraction, advice = useful(index.isel(x=slice(0, 6)))
    assert fraction == 6 / 64
    assert advice
    assert "9.4% of the pixels bought" in repr(index.isel(x=slice(0, 6)).clearsky.plan())
    # By steps, over both chunks: 10 of 79 columns.
    assert useful(index.isel(x=slice(0, None, 8)))[0] == 10 / 79


def test_a_point_in_a_store_is_advised_against(c: SimpleNamespace) -> None:
    plan = stored(c).isel(x=3, y=4).clearsky.plan()
    assert plan.whole_blocks
    assert plan.useful_fraction == 1 / (ROWS * COLS)  # all of one block
    assert "whole blocks" in plan.advice
    assert "Select" not in plan.advice
    assert "whole blocks" in repr(plan)
    assert useful(stored(c, chunks={})) == (1.0, "")


def test_what_several_chunks_use_of_a_block_is_used(c: SimpleNamespace) -> None:
    assert useful(stored(c)) == (1.0, "")
    assert useful(stored(c, chunks={"y": 10, "x": 10})) == (1.0, "")


def test_points_that_cost_no_more_than_one_are_not_advised_against(c: SimpleNamespace) -> None:
    places = {name: xr.DataArray([0, 20, 29], dims="p") for name in ("y", "x")}
    part = c.cube(chunks=None).ndvi.isel(places)
    assert part.clearsky.plan().credits == 4 * 0.01  # less is not to be had
    assert not part.clearsky.plan().advice


def test_pixels_of_a_polygon_that_come_along_are_not_used(c: SimpleNamespace) -> None:
    ds = c.cube(TRIANGLE, chunks={})
    plan = ds.clearsky.plan()
    wanted = int(ds.ndvi.isel(time=0).notnull().sum())
    assert 0.5 < wanted / (ROWS * COLS) < 0.52
    assert [request.useful for request in plan.requests] == [wanted] * 4
    assert [request.pixels for request in plan.requests] == [wanted] * 4
    # A small one comes as its window, which costs no more: the smallest price.
    small = c.cube("POLYGON ((15.05 46.05, 15.051 46.05, 15.05 46.051, 15.05 46.05))", chunks={})
    plan = small.clearsky.plan()
    wanted = int(small.ndvi.isel(time=0).notnull().sum())
    window = small.sizes["y"] * small.sizes["x"]
    assert wanted < 0.7 * window
    assert {request.useful for request in plan.requests} == {wanted}
    assert {request.pixels for request in plan.requests} == {window}
    assert plan.useful_fraction == wanted / window


@pytest.mark.parametrize(
    "reduce",
    [
        lambda ds: ds.mean(("y", "x")),
        lambda ds: ds.mean(),
        lambda ds: ds.ndvi.max("time"),
        lambda ds: ds.ndvi.groupby("time.month").mean(),
        lambda ds: ds.ndvi.resample(time="1MS").mean(),
        lambda ds: ds.ndvi.coarsen(x=4, y=4, time=2, boundary="trim").mean(),
        lambda ds: ds.ndvi.rename(x="lon", y="lat").sum("lon"),
        lambda ds: ds.ndvi.drop_vars(("x", "y", "time")).sum("y"),
    ],
)
def test_reductions_use_all(reduce: Callable[[xr.Dataset], Any], c: SimpleNamespace) -> None:
    assert useful(reduce(c.ds)) == (1.0, "")


@pytest.mark.parametrize(
    "reduce",
    [
        lambda ds: ds.ndvi.coarsen(x=5, y=5, boundary="trim").mean(),
        lambda ds: ds.ndvi.coarsen(time=3, boundary="trim").mean(),
        lambda ds: ds.ndvi.resample(time="10D").mean(),
        lambda ds: ds.ndvi.cumsum("time").isel(time=3),
    ],
)
def test_reductions_onto_pixels_use_all(
    reduce: Callable[[xr.Dataset], Any], c: SimpleNamespace
) -> None:
    assert useful(reduce(c.ds)) == (1.0, "")


def test_points_after_arithmetic_are_counted_one_by_one(c: SimpleNamespace) -> None:
    diagonal = {name: xr.DataArray(np.arange(60), dims="p") for name in ("y", "x")}
    fraction, advice = useful(ndvi(c.ds).isel(diagonal))
    assert fraction == 60 / 64**2
    assert advice


# --- the plan as an object


def test_a_plan_as_a_table(c: SimpleNamespace) -> None:
    plan = c.ds.clearsky.plan()
    table = plan.to_dataframe()
    assert list(table.columns) == [
        "date", "credits", "area_km2", "pixels", "useful", "left", "bottom", "right", "top",
        "epsg", "bytes",
    ]  # fmt: skip
    assert len(table) == len(plan.requests) == 16  # two chunks along y by two along x
    assert table["date"].dtype.kind == "M"
    assert sorted(set(table["date"])) == [pd.Timestamp(date) for date in DATES]
    assert (table.groupby("date").size() == 4).all()
    assert round(table["credits"].sum(), 2) == plan.credits == 0.36
    assert table["area_km2"].sum() == pytest.approx(plan.area_km2)
    assert table["bytes"].sum() == plan.bytes
    assert set(table["epsg"]) == {32633}
    # Pixel centres are half a pixel inside, metres.
    x, y = c.ds.x.values, c.ds.y.values
    wide, high = [(x[0] - 5, x[63] + 5), (x[64] - 5, x[78] + 5)], [(0, 63), (64, 111)]
    assert {(row.left, row.bottom, row.right, row.top) for row in table.itertuples()} == {
        (left, y[last] - 5, right, y[first] + 5) for left, right in wide for first, last in high
    }
    for row, request in zip(table.itertuples(), plan.requests, strict=True):
        assert request.bounds == (row.left, row.bottom, row.right, row.top)
        assert row.pixels == row.useful == (row.right - row.left) * (row.top - row.bottom) / 100
        # B4, B8 and the index, two bytes each.
        assert row.bytes == request.bytes == 2 * 3 * row.pixels
        # Degrees are written with seven decimals.
        assert row.area_km2 == pytest.approx(metres_km2(*request.bounds), rel=1e-4)
        assert row.credits == max(0.01, round(row.area_km2 * 0.1, 2))


def test_a_window_of_a_plan(c: SimpleNamespace) -> None:
    part = c.ds.isel(x=slice(10, 30), y=slice(100, 110), time=2)
    (request,) = part.clearsky.plan().requests
    x, y = part.x.values, part.y.values
    assert request.bounds == (x[0] - 5, y[-1] - 5, x[-1] + 5, y[0] + 5)
    assert (request.date, request.credits, request.pixels) == (DATES[2], 0.01, 200)


def test_bytes_are_of_the_raster_not_of_the_polygon(c: SimpleNamespace) -> None:
    plan = c.cube(TRIANGLE, bands="all", indices=None, chunks={}).clearsky.plan()
    assert {request.bytes for request in plan.requests} == {2 * 10 * ROWS * COLS}
    assert all(request.pixels < ROWS * COLS for request in plan.requests)


def test_coarse_pixels_have_bounds_in_metres(c: SimpleNamespace) -> None:
    ds = c.cube(resolution=40, chunks={})
    (request,) = ds.isel(time=0).clearsky.plan().requests
    x, y = ds.x.values, ds.y.values
    assert request.bounds == (x[0] - 20, y[-1] - 20, x[-1] + 20, y[0] + 20)
    assert request.pixels == ds.sizes["y"] * ds.sizes["x"]


def test_totals_of_a_plan(c: SimpleNamespace) -> None:
    plan = c.ds.isel(time=[3, 1]).clearsky.plan()
    assert plan.dates == (DATES[1], DATES[3])
    assert plan.credits == round(sum(request.credits for request in plan.requests), 2)
    # Chunks of 64 and 48 by 64 and 15 pixels; of 0.01 km2 each, but for a rim.
    assert plan.credits == 2 * (0.04 + 0.03 + 0.01 + 0.01)
    assert sum(request.pixels for request in plan.requests) == 2 * ROWS * COLS
    assert plan.area_km2 == pytest.approx(2 * ROWS * COLS * 1e-4, rel=0.03)
    assert plan.bytes == 2 * 3 * 2 * ROWS * COLS


def test_what_is_shared_is_told(c: SimpleNamespace) -> None:
    first = c.ds.isel(time=0, x=0, y=slice(64))
    alone = first.reflectance.clearsky.plan()
    assert alone.credits == alone.credits_at_most == 0.01
    # The index is read beside the bands: for nothing, or a second time if nothing is shared.
    both = first.clearsky.plan()
    assert (both.credits, both.credits_at_most) == (0.01, 0.02)
    first.load()
    again = c.ds.isel(time=0, x=0, y=slice(64)).clearsky.plan()
    assert (again.credits, again.credits_at_most) == (0.0, 0.02)
    several = clearsky_xr.plan(c.ds.ndvi.isel(time=1, x=0), c.red.isel(time=1, x=0))
    assert (several.credits, several.credits_at_most) == (0.02, 0.04)


def fits(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= 20 and max(map(len, lines)) <= 100


def test_a_plan_fits_one_screen(c: SimpleNamespace) -> None:
    whole = repr(c.ds.clearsky.plan())
    assert fits(whole)
    assert whole.startswith("<clearsky_xr Plan>\n")
    for word in ("16", "0.36", "0.72 credits", "4, 2025-04-21 to 2025-05-06", "km2", "MB"):
        assert word in whole
    assert "2025-05-01\n" in repr(c.ds.sel(time="2025-05-01").clearsky.plan())
    assert fits(repr(c.ds.isel(time=0).load().clearsky.plan()))
    # However many requests there are.
    assert fits(repr(c.cube(chunks={"time": 1, "y": 10, "x": 10}).clearsky.plan()))
    assert fits(
        repr(Plan(c.ds.clearsky.plan().requests, 123456.78, exact=False, whole_blocks=False))
    )


def test_advice_fits_one_screen(c: SimpleNamespace) -> None:
    assert fits(repr(ndvi(c.ds).isel(x=3, y=4).clearsky.plan()))
    assert fits(repr(stored(c).isel(x=3, y=4).clearsky.plan()))


def test_a_plan_in_a_notebook(c: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ndvi(c.ds).isel(x=3, y=4).clearsky.plan()
    tree = ET.fromstring(plan._repr_html_())  # noqa: S314  our own
    text = " ".join(tree.itertext())
    assert plan.advice in text
    assert f"{plan.credits:.2f}" in text
    assert "2025-04-21 to 2025-05-06" in text
    monkeypatch.setattr(Plan, "advice", property(lambda _: "a <b> & 'c'"))
    monkeypatch.setattr(Plan, "_lines", lambda _: [("<i>", "x & <script>")])
    tree = ET.fromstring(plan._repr_html_())  # noqa: S314
    assert not list(tree.iter("script")) + list(tree.iter("i")) + list(tree.iter("b"))
    assert [part.text for part in tree.iter("p")] == ["a <b> & 'c'"]
    assert [part.text for part in tree.iter("td")] == ["x & <script>"]
    assert [part.text for part in tree.iter("th")] == ["<i>"]


def test_what_is_loaded_costs_nothing(c: SimpleNamespace, server: Server) -> None:
    part = c.ds.isel(time=0, x=0).load()
    for obj in (part, part.ndvi, part.ndvi + 1, xr.Dataset(), xr.DataArray([1, 2])):
        plan = obj.clearsky.plan()
        assert plan.requests == plan.dates == ()
        assert (plan.credits, plan.credits_at_most) == (0.0, 0.0)
        assert (plan.area_km2, plan.bytes) == (0, 0)
        assert isinstance(plan.credits, float)
        assert plan.useful_fraction == 1.0
        assert not plan.advice
        assert "none" in repr(plan)
        ET.fromstring(plan._repr_html_())  # noqa: S314
        assert len(plan.to_dataframe()) == 0
        assert "credits" in plan.to_dataframe()
    assert clearsky_xr.plan().requests == ()
    # What is loaded is no more than what it is: the rest costs.
    assert c.ds.isel(time=0).clearsky.plan().credits > 0


def test_what_cannot_be_told_is_no_plan(c: SimpleNamespace, server: Server) -> None:
    lazy = c.cube(chunks=None)
    hidden = xr.DataArray(
        dask.array.from_delayed(dask.delayed(lambda: lazy.ndvi.values)(), (4, ROWS, COLS), "f4")
    )
    for obj in (hidden, hidden + 1, hidden.to_dataset(name="a")):
        with pytest.raises(PlanIncomplete):
            obj.clearsky.plan()
        with pytest.raises(PlanIncomplete):
            obj.clearsky.estimate()
    with pytest.raises(PlanIncomplete):
        clearsky_xr.plan(c.ds, hidden)
    with pytest.raises(InputError, match="str"):
        clearsky_xr.plan("cube")
    assert not server.downloads()
    assert not calls(server)["estimate"]


def test_a_plan_can_be_pickled(c: SimpleNamespace) -> None:
    for obj in (c.ds, c.cube(TRIANGLE), c.ds.isel(time=0).load()):
        plan = obj.clearsky.plan()
        content = pickle.dumps(plan)
        assert pickle.loads(content) == plan
        assert c.server.api_key.encode() not in content
        with pytest.raises(AttributeError):
            plan.requests = ()


def test_a_plan_is_the_same_twice(c: SimpleNamespace) -> None:
    index = ndvi(c.ds)
    assert index.clearsky.plan() == index.clearsky.plan() == clearsky_xr.plan(index)


def test_plans_inside_a_running_loop(c: SimpleNamespace) -> None:
    async def cell() -> Plan:
        plan: Plan = c.ds.clearsky.plan()
        return plan

    assert asyncio.run(cell()) == c.ds.clearsky.plan()


# --- what the service says


def test_the_service_prices_a_plan(c: SimpleNamespace, server: Server) -> None:
    estimate = c.ds.clearsky.estimate()
    # Four windows of four dates each.
    assert calls(server)["estimate"] == 4
    assert not server.downloads()
    assert list(estimate.table.columns) == ["requests", "formula", "service"]
    assert list(estimate.table["requests"]) == [4] * 4
    assert sorted(estimate.table["service"]) == [0.01, 0.01, 0.03, 0.04]
    assert (estimate.table["service"] == estimate.table["formula"]).all()
    assert estimate.agrees
    assert estimate.credits == estimate.plan.credits == 0.36
    assert estimate.plan == c.ds.clearsky.plan()
    assert "0.36 credits" in repr(estimate)
    assert "as the formula says" in repr(estimate)
    # Each plan is priced anew; a variable by itself, too.
    assert c.ds.ndvi.isel(x=slice(0, 9), y=slice(0, 9)).clearsky.estimate().credits == 0.04
    assert calls(server)["estimate"] == 5


def test_a_polygon_is_priced_by_the_service(c: SimpleNamespace, server: Server) -> None:
    ds = c.cube(TRIANGLE, chunks={})
    estimate = ds.clearsky.estimate()
    # And once to learn how polygons are billed.
    assert calls(server)["estimate"] == 2
    assert estimate.agrees
    ds.load()
    assert estimate.credits == total(paid(server))


def test_many_estimates_are_asked_for_on_request_only(c: SimpleNamespace, server: Server) -> None:
    many = c.cube(chunks={"y": 23, "x": 16})  # 5 x 5 windows
    with pytest.raises(InvalidOptionError, match="25 distinct geometries") as caught:
        many.clearsky.estimate()
    assert "most=25" in caught.value.hint
    with pytest.raises(InvalidOptionError):
        many.clearsky.estimate(most=24)
    assert not calls(server)["estimate"]
    assert many.clearsky.estimate(most=25).agrees
    assert calls(server)["estimate"] == 25
    assert many.ndvi.clearsky.estimate(most=None).agrees
    assert calls(server)["estimate"] == 50
    # Twenty are asked without a word: 5 x 4 windows.
    assert many.isel(x=slice(0, 64)).clearsky.estimate().agrees
    assert calls(server)["estimate"] == 70
    assert not server.downloads()


def test_a_service_that_bills_otherwise_is_flagged(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(billing="bbox")
    ds = opener(server, tmp_path).cube(TRIANGLE, chunks={})
    (owner,) = _account.process().accounts.values()
    owner.billing = "geometry"
    plan = ds.clearsky.plan()
    assert plan.credits == 4 * 0.04
    estimate = ds.clearsky.estimate()
    assert calls(server)["estimate"] == 1
    assert not estimate.agrees
    # The triangle's box has twice its surface.
    assert estimate.credits == 4 * 0.09
    assert list(estimate.table["formula"]) == [0.04]
    assert list(estimate.table["service"]) == [0.09]
    assert "0.36 credits by the service" in repr(estimate)
    assert "the formula says 0.16" in repr(estimate)
    ds.isel(time=0).load()
    assert total(paid(server)) == 0.09


def test_a_cent_more_is_flagged(c: SimpleNamespace) -> None:
    exact = c.ds.isel(time=0).clearsky.estimate()
    for cents, agrees in [(0.0, True), (0.004, True), (0.01, False), (-0.01, False)]:
        table = exact.table.copy()
        table.loc[2, "service"] += cents
        assert _planned.Estimate(exact.plan, table).agrees == agrees


def test_nothing_is_priced_without_a_call(c: SimpleNamespace, server: Server) -> None:
    part = c.ds.isel(time=0, x=0).load()
    for obj in (part, c.ds.isel(time=0, x=0)):
        estimate = obj.clearsky.estimate()
        assert estimate.credits == 0.0
        assert estimate.agrees
        assert "0.00 credits" in repr(estimate)
    assert not calls(server)["estimate"]


# --- real sizes


def test_the_rectangle_whose_bill_was_seen(server: Server) -> None:
    """Contract, section 12: 997.94 km2 and 99.79 credits."""
    assert round(_plan.billed_km2(SEEN, "geometry"), 2) == 997.94
    assert _plan.credits_for(_plan.billed_km2(SEEN, "geometry")) == 99.79
    # As pixels its rim is drawn along their edges, a quarter of one inside; in several requests,
    # since one raster would be too large.
    ds = clearsky_xr.open_timeseries(SEEN, ["2023-06-02"], **access(server))
    plan = ds.chunk(x=-1, y=-1).clearsky.plan()
    assert plan.area_km2 == pytest.approx(997.94, rel=5e-4)
    assert plan.credits == pytest.approx(99.79, abs=0.05)
    assert plan.dates == (dt.date(2023, 6, 2),)
    # As chunks of 1024 px, each with a rim of its own.
    plan = ds.clearsky.plan()
    assert plan.area_km2 == pytest.approx(997.94, rel=2e-3)
    assert plan.credits == pytest.approx(99.79, abs=0.2)
    assert not server.downloads()


def test_a_year_over_sixty_kilometres(server: Server) -> None:
    weeks = [str(day.date()) for day in pd.date_range("2025-01-06", periods=52, freq="7D")]
    area = (14.6, 45.9, 15.37, 46.44)
    ds = clearsky_xr.open_timeseries(area, weeks, **access(server))
    plan = ds.clearsky.plan()
    # A list of days needs no search. The account's limits are asked for once; and, since the
    # area is no rectangle on the grid, how polygons are billed.
    assert not server.downloads()
    assert calls(server) == Counter(account=1, estimate=1)
    assert plan.dates == tuple(dt.date.fromisoformat(week) for week in weeks)
    rows, cols = -(-ds.sizes["y"] // 1024), -(-ds.sizes["x"] // 1024)
    assert len(plan.requests) == 52 * rows * cols
    # Requests are rounded to the cent.
    assert plan.credits == pytest.approx(plan.area_km2 / 10, abs=0.005 * len(plan.requests))
    # The sides of a chunk of 1024 px are 5 m shorter as they are billed.
    lon, lat = shapely.get_coordinates(shapely.segmentize(shapely.box(*area), 0.01)).T
    km2 = abs(GEOD.polygon_area_perimeter(lon, lat)[0]) / 1e6
    assert plan.area_km2 == pytest.approx(52 * km2 * (1 - 5 / 10240) ** 2, rel=1e-3)
    full = [r for r in plan.requests[: rows * cols * 4] if r.pixels == 1024 * 1024]
    for request in itertools.islice(full, 8):
        # What is billed is the polygon as it is written, whose edges have few corners.
        assert request.area_km2 == pytest.approx(metres_km2(*request.bounds), rel=1e-6)
    assert plan.useful_fraction > 0.999
    assert fits(repr(plan))
