"""What a computation buys, counted at the sandbox."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pyproj
import pytest
import shapely
import xarray as xr

import clearsky_xr
from clearsky_xr.sandbox import LedgerEntry, Server

from .conftest import FARM, SPRING, access, credits_of, paid

GEOD = pyproj.Geod(ellps="WGS84")


def formula(entry: LedgerEntry) -> float:
    """Price a download by the contract, from the geometry that was sent."""
    surface = abs(GEOD.geometry_area_perimeter(shapely.from_wkt(entry.wkt))[0]) / 1e6
    return max(0.01, round(surface * 0.1, 2))


def lazy(server: Server, area: object = FARM, time: object = SPRING, **options) -> xr.Dataset:
    return xr.open_dataset(area, engine="clearsky", time=time, **access(server), **options)


def test_the_whole_cube_is_one_request_a_date(server: Server) -> None:
    ds = lazy(server, indices=["ndvi", "ndmi"])
    ds.load()
    assert len(paid(server)) == 4
    assert {entry.bandnames for entry in paid(server)} == {
        "B2,B3,B4,B5,B6,B7,B8,B8A,B11,B12,[B8_B4],[B8_B11]"
    }
    assert credits_of(server) == pytest.approx(sum(formula(e) for e in paid(server)))
    # About 0.857 km2, plus what edge pixels reach over.
    assert all(0.08 <= entry.credits <= 0.09 for entry in paid(server))


@pytest.mark.parametrize("chunks", [None, {}])
def test_one_pixel_costs_a_hundredth_a_date(server: Server, chunks: object) -> None:
    ds = lazy(server, chunks=chunks)
    series = ds.reflectance.sel(band="B8").isel(y=40, x=30).load()
    assert series.dims == ("time",)
    assert [e.credits for e in server.downloads()] == [0.01] * 4
    assert clearsky_xr.spent().settled >= 0.04


@pytest.mark.parametrize("billing", ["geometry", "bbox"])
def test_scattered_points_cost_a_hundredth_a_date(serve, billing: str) -> None:
    server = serve(billing=billing)
    ds = lazy(server)
    rng = np.random.default_rng(3)
    y = xr.DataArray(rng.integers(0, ds.sizes["y"], 100), dims="point")
    x = xr.DataArray(rng.integers(0, ds.sizes["x"], 100), dims="point")
    got = ds.reflectance.isel(y=y, x=x).transpose("point", "time", "band").load()
    if billing == "geometry":
        assert [e.credits for e in server.downloads()] == [0.01] * 4
    else:
        own = max(0.01, round(bbox_km2(ds, y.values, x.values) * 0.1, 2))
        assert credits_of(server) <= 4 * own + 1e-9
    # Asked once, before the first purchase that is no rectangle.
    assert [e.endpoint for e in server.ledger()].count("estimate") == 1
    whole = ds.reflectance.load()
    np.testing.assert_array_equal(
        got.values, whole.values[:, :, y.values, x.values].transpose(2, 0, 1)
    )


def bbox_km2(ds: xr.Dataset, rows: np.ndarray, cols: np.ndarray) -> float:
    """Give the surface of the lon/lat bounding box of the pixels' own bounding window."""
    west, east = ds.x.values[cols.min()] - 5, ds.x.values[cols.max()] + 5
    south, north = ds.y.values[rows.max()] - 5, ds.y.values[rows.min()] + 5
    lon, lat = pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform(
        [west, west, east, east], [south, north, south, north]
    )
    box = shapely.box(min(lon), min(lat), max(lon), max(lat))
    return abs(GEOD.geometry_area_perimeter(box)[0]) / 1e6


def test_a_step_costs_no_more_than_its_window(serve) -> None:
    server = serve()
    ds = lazy(server, (15.05, 46.05, 15.09, 46.08), ["2025-04-01"], clip=False)
    every = ds.reflectance.isel(band=0, y=slice(0, 256, 10), x=slice(0, 256, 10)).load()
    assert every.shape == (1, 26, 26)
    assert credits_of(server) <= 0.66
    np.testing.assert_array_equal(
        every, ds.reflectance.isel(band=0, y=slice(0, 256), x=slice(0, 256)).values[:, ::10, ::10]
    )


def test_an_index_from_two_bands_without_dask_is_one_purchase(server: Server) -> None:
    ds = lazy(server)
    red, nir = ds.reflectance.sel(band="B4"), ds.reflectance.sel(band="B8")
    ndvi = (nir - red) / (nir + red)
    assert len(paid(server)) == 4
    assert -1 <= float(ndvi.min()) <= float(ndvi.max()) <= 1


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_an_index_from_two_bands_with_dask_is_one_purchase(server: Server, scheduler: str) -> None:
    ds = lazy(server, chunks={})
    red, nir = ds.reflectance.sel(band="B4"), ds.reflectance.sel(band="B8")
    ((nir - red) / (nir + red)).mean().compute(scheduler=scheduler)
    assert len(paid(server)) == 4


def test_a_window_inside_one_that_is_held_costs_nothing(server: Server) -> None:
    ds = lazy(server)
    whole = ds.reflectance.isel(x=slice(10, 60), y=slice(10, 60)).values
    before = len(server.ledger())
    inner = ds.reflectance.isel(x=slice(20, 40), y=slice(30, 35)).values
    again = lazy(server).reflectance.isel(x=slice(20, 40), y=slice(30, 35), band=[6, 2]).values
    assert [e.endpoint for e in server.ledger()[before:] if e.endpoint == "composite"] == []
    np.testing.assert_array_equal(inner, whole[:, :, 20:25, 10:30])
    np.testing.assert_array_equal(again, whole[:, [6, 2], 20:25, 10:30])


def test_fewer_layers_of_what_is_held_cost_nothing(server: Server) -> None:
    lazy(server).load()
    rgb = lazy(server, bands="rgb").load()
    assert list(rgb.band.values) == ["B4", "B3", "B2"]
    assert len(paid(server)) == 4


def test_an_overlapping_window_buys_only_the_rest(server: Server) -> None:
    ds = lazy(server, time=["2025-04-01"], clip=False)
    ds.reflectance.isel(x=slice(0, 40)).load()
    ds.reflectance.isel(x=slice(30, 70)).load()
    first, second = paid(server)
    columns = shapely.from_wkt(second.wkt).bounds
    assert columns[0] > shapely.from_wkt(first.wkt).bounds[2]
    assert second.area_km2 == pytest.approx(first.area_km2 * 30 / 40, rel=0.02)


def test_threads_that_want_the_same_share_one_purchase(serve) -> None:
    server = serve(latency=0.2)
    ds = lazy(server)
    results: list[np.ndarray] = []
    start = threading.Barrier(8)

    def read(k: int) -> None:
        start.wait()
        results.append(ds.copy().reflectance.isel(x=slice(k % 2, 50)).values[..., -30:])

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    # Every pixel once: the sum of what was billed is the larger window, by date.
    assert credits_of(server) <= sum(formula(e) for e in paid(server)) + 1e-9
    assert len(paid(server)) <= 8
    width = {e.date: 0.0 for e in paid(server)}
    for entry in paid(server):
        width[entry.date] += entry.area_km2
    assert max(width.values()) <= 50 * ds.sizes["y"] * 1e-4 * 1.01


def test_peak_in_flight_is_the_accounts_limit(serve) -> None:
    for limit in (1, 3):
        server = serve(max_connections=limit, latency=0.05)
        days = [f"2025-04-{d:02d}" for d in (1, 6, 11, 16, 21, 26)]
        lazy(server, time=days).load()
        assert server.peak_in_flight == limit
        assert {e.status for e in server.downloads()} == {200}


def test_concurrency_lowers_the_limit(serve) -> None:
    server = serve(max_connections=4, latency=0.05)
    lazy(server, concurrency=2).load()
    assert server.peak_in_flight == 2


def test_two_datasets_load_together(serve) -> None:
    server = serve(max_connections=4, latency=0.3)
    one = lazy(server, time=["2025-04-01", "2025-04-06"])
    two = lazy(server, (15.08, 46.05, 15.09, 46.06), ["2025-04-01", "2025-04-06"])

    async def both() -> None:
        await asyncio.gather(one.load_async(), two.load_async())

    asyncio.run(both())
    assert server.peak_in_flight == 4  # two dates of each at once
    assert len(paid(server)) == 4
    np.testing.assert_array_equal(
        one.reflectance, lazy(server, time=["2025-04-01", "2025-04-06"]).reflectance
    )


def test_sync_reading_inside_a_running_loop(server: Server) -> None:
    async def notebook() -> float:
        return float(lazy(server).reflectance.mean())

    assert asyncio.run(notebook()) > 0


def test_what_misses_the_area_is_not_asked_for(server: Server) -> None:
    ring = shapely.box(*FARM) - shapely.box(15.052, 46.052, 15.058, 46.058)
    ds = lazy(server, ring)
    hole = ds.reflectance.isel(x=slice(30, 45), y=slice(45, 60)).load()
    assert np.isnan(hole).all()
    assert not server.downloads()
    ds.load()
    assert credits_of(server) == pytest.approx(sum(formula(e) for e in paid(server)))
    # The hole is 0.6 by 0.6 of the area; half a pixel more all round is bought.
    assert (
        paid(server)[0].area_km2
        < 0.7 * abs(GEOD.geometry_area_perimeter(shapely.box(*FARM))[0]) / 1e6
    )


def test_a_polygon_is_bought_as_a_polygon_or_as_its_rectangle(serve) -> None:
    triangle = shapely.Polygon([(15.05, 46.05), (15.07, 46.05), (15.05, 46.07)])
    own, rectangle = serve(), serve()
    clipped = lazy(own, triangle, ["2025-04-01"]).reflectance.load()
    whole = lazy(rectangle, triangle, ["2025-04-01"], clip=False).reflectance.load()
    assert clipped.shape == whole.shape
    inside = np.isfinite(clipped)
    np.testing.assert_array_equal(clipped.values[inside], whole.values[inside])
    assert 0.4 < float(inside.mean()) < 0.6
    assert credits_of(own) < 0.6 * credits_of(rectangle)


def test_bounding_box_billing_is_learnt_and_followed(serve) -> None:
    server = serve(billing="bbox")
    west, south = 15.05, 46.05
    l_shape = shapely.union(
        shapely.box(west, south, west + 0.03, south + 0.004),
        shapely.box(west, south, west + 0.005, south + 0.02),
    )
    ds = lazy(server, l_shape, ["2025-04-01"]).load()
    whole = abs(GEOD.geometry_area_perimeter(shapely.box(*l_shape.bounds))[0]) / 1e6 * 0.1
    assert len(paid(server)) > 1
    assert credits_of(server) < 0.6 * whole
    plain = serve()
    np.testing.assert_array_equal(ds.reflectance, lazy(plain, l_shape, ["2025-04-01"]).reflectance)


def test_requests_are_split_by_the_accounts_area(serve) -> None:
    server = serve(max_area_km2=1)
    ds = lazy(server, (15.05, 46.05, 15.07, 46.07), ["2025-04-01"]).load()
    assert len(paid(server)) >= 4
    assert all(entry.area_km2 <= 1 for entry in paid(server))
    assert {e.status for e in server.downloads()} == {200}
    # Pieces tile the area: no hole, and no pixel twice.
    pieces = [shapely.from_wkt(e.wkt) for e in paid(server)]
    assert shapely.union_all(pieces).area == pytest.approx(sum(p.area for p in pieces))
    reference = lazy(serve(), (15.05, 46.05, 15.07, 46.07), ["2025-04-01"])
    np.testing.assert_array_equal(ds.reflectance, reference.reflectance)


def test_requests_are_split_by_memory(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from clearsky_xr import _service

    whole = lazy(server, time=["2025-04-01"]).reflectance.values
    monkeypatch.setattr(_service, "RASTER_BYTES", 2 * 10 * 2000)
    small = lazy(server, time=["2025-04-06"]).load()
    requests = [e for e in paid(server) if str(e.date) == "2025-04-06"]
    assert len(requests) >= 5
    assert whole.shape == small.reflectance.shape
    reference = lazy(server, time=["2025-04-06"], bands="all", allow_partial=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(small.reflectance, reference.reflectance)


KEYS: list[Callable[[xr.DataArray], xr.DataArray]] = [
    lambda a: a.isel(time=-1),
    lambda a: a.isel(band=[7, 0, 0]),
    lambda a: a.isel(y=slice(None, None, -7), x=[5, 3, 60]),
    lambda a: a.isel(time=[3, 0], band=2, x=slice(70, 10, -3)),
    lambda a: a.isel(y=xr.DataArray([3, 50, 3], dims="p"), x=xr.DataArray([1, 2, 1], dims="p")),
    lambda a: a.isel(
        time=xr.DataArray([0, 3], dims="p"),
        y=xr.DataArray([9, 8], dims="p"),
        x=xr.DataArray([7, 6], dims="p"),
    ),
    lambda a: a.isel(y=xr.DataArray([[3, 5], [8, 9]], dims=("q", "p")), x=4, band=slice(2, 4)),
    lambda a: a.isel(x=[]),
    lambda a: a.isel(time=1, band=1, y=1, x=1),
    lambda a: a.isel(band=slice(3)).isel(y=slice(10, 30)).isel(y=[4, 2]).transpose("x", ...),
]


@pytest.mark.parametrize("index", range(len(KEYS)))
def test_any_selection_equals_numpy(serve, index: int) -> None:
    server = serve()
    select = KEYS[index]
    loaded = lazy(server).reflectance.load()
    got = select(lazy(serve()).reflectance)
    expected = select(loaded)
    assert got.dims == expected.dims
    np.testing.assert_array_equal(got.values, expected.values)


def test_disk_full_keeps_paid_pixels(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from clearsky_xr import _spool

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_spool.Spool, "write", full)
    ds = lazy(server)
    with pytest.warns(clearsky_xr.errors.ClearSkyWarning, match="No space left"):
        first = ds.reflectance.isel(x=slice(0, 40)).values
    second = lazy(server).reflectance.isel(x=slice(0, 40)).values
    np.testing.assert_array_equal(first, second)
    assert len(paid(server)) == 4


def points(*values: int) -> xr.DataArray:
    return xr.DataArray(list(values), dims="point")


PUSHED: list[tuple[Callable[[xr.DataArray], xr.DataArray], int]] = [
    (lambda a: a.sel(band="B8").isel(y=40, x=30), 4),
    (lambda a: a.isel(time=slice(1, 3)).isel(y=40, x=slice(30, 32)).isel(time=-1), 1),
    (lambda a: a.isel(y=[40, 42], x=slice(30, 32)).isel(x=[1, 0, 1]), 4),
    (lambda a: a.isel(y=points(3, 40, 3), x=points(5, 6, 5)), 4),
    (lambda a: a.isel(time=points(0, 2), y=points(3, 40), x=points(5, 6)), 2),
    (lambda a: a.isel(band=[3, 1]).isel(y=points(3, 40), x=points(5, 6)).isel(point=[1, 0]), 4),
    (lambda a: a.chunk(time=1).isel(time=0, y=slice(3, 5), x=slice(2)), 1),
    (lambda a: a.isel(y=slice(20, 2, -4), x=3), 4),
]


@pytest.mark.parametrize("index", range(len(PUSHED)))
def test_dask_hands_every_selection_down(serve, index: int) -> None:
    select, requests = PUSHED[index]
    reference = select(lazy(serve()).reflectance.load())
    server = serve()
    selected = select(lazy(server, chunks={}).reflectance)
    assert type(selected.data).__module__.startswith("dask.array")
    assert not server.downloads()
    np.testing.assert_array_equal(selected.values, reference.values)
    assert [e.credits for e in server.downloads()] == [0.01] * requests


def test_a_changed_dask_array_is_not_looked_behind(server: Server) -> None:
    ds = lazy(server, chunks={})
    ds.reflectance[{"y": slice(0, 5)}] = 0.5
    assert (ds.reflectance.isel(y=2, x=slice(3)) == 0.5).all()
    kept = ds.reflectance.isel(y=7, x=3).persist()
    before = len(server.downloads())
    kept.isel(time=0).load()
    assert len(server.downloads()) == before


def test_plain_route_names_follow_the_dates(serve) -> None:
    import datetime as dt

    server = serve(end_date=dt.date(2025, 4, 12))

    def name() -> str:
        ds = xr.open_dataset(
            FARM, engine="clearsky", time=SPRING, chunks={}, base_url=server.url, api_key=key
        )
        return str(ds.reflectance.data.name)

    key, port = server.api_key, int(server.url.rpartition(":")[2])
    before = name()
    assert name() == before
    server.close()
    server = serve(port=port, api_key=key)  # the same place, where dates were added
    assert name() != before
