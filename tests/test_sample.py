"""Values at points: the right pixels, for one small request a date."""

from __future__ import annotations

from collections.abc import Callable

import geopandas
import numpy as np
import pandas as pd
import pyproj
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.sandbox import Server

from .conftest import FARM, SPRING, access, credits_of, paid

TO_UTM = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
COUNT = 100


@pytest.fixture
def pairs() -> np.ndarray:
    """Give (lon, lat) of points in the field, some of them in one pixel."""
    rng = np.random.default_rng(11)
    west, south, east, north = FARM
    inside = rng.uniform((west + 1e-4, south + 1e-4), (east - 1e-4, north - 1e-4), (COUNT, 2))
    inside[-1] = inside[0]
    return inside


def lazy(server: Server, **options) -> xr.Dataset:
    return xr.open_dataset(FARM, engine="clearsky", time=SPRING, **access(server), **options)


def pixels(ds: xr.Dataset, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find rows and columns by plain arithmetic on the coordinates of the pixel centres."""
    x, y = TO_UTM.transform(pairs[:, 0], pairs[:, 1])
    cols = np.floor((x - (ds.x.values[0] - 5)) / 10).astype(int)
    rows = np.floor(((ds.y.values[0] + 5) - y) / 10).astype(int)
    return rows, cols


def truth(serve: Callable[..., Server], pairs: np.ndarray, name: str = "reflectance") -> np.ndarray:
    """Take the points from the whole cube of another sandbox, points first."""
    whole = lazy(serve(), indices="ndvi")[name].load()
    rows, cols = pixels(whole, pairs)
    return np.moveaxis(whole.values[..., rows, cols], -1, 0)


@pytest.mark.parametrize("chunks", [None, {}, {"y": 20, "x": 20}], ids=["lazy", "dask", "small"])
@pytest.mark.filterwarnings("ignore:The specified chunks separate:UserWarning")
@pytest.mark.filterwarnings("ignore:chunks of 20 x 20 px")
def test_values_dimensions_and_price(serve, pairs: np.ndarray, chunks: object) -> None:
    server = serve()
    ds = lazy(server, indices="ndvi", chunks=chunks)
    points = clearsky_xr.sample(ds, pairs)
    assert points.reflectance.dims == ("point", "time", "band")
    assert points.ndvi.dims == ("point", "time")
    assert dict(points.sizes) == {"point": COUNT, "time": 4, "band": 10}
    assert list(points.point.values) == list(range(COUNT))
    assert (points.reflectance.chunks is None) == (chunks is None)
    repr(points)
    points._repr_html_()
    assert not server.downloads()

    np.testing.assert_array_equal(points.reflectance.values, truth(serve, pairs))
    # One request a date, at the least price; the index came with the bands.
    np.testing.assert_array_equal(points.ndvi.values, truth(serve, pairs, "ndvi"))
    assert [entry.credits for entry in paid(server)] == [0.01] * 4
    assert len(server.downloads()) == 4

    rows, cols = pixels(ds, pairs)
    np.testing.assert_array_equal(points.x, ds.x.values[cols])
    np.testing.assert_array_equal(points.y, ds.y.values[rows])
    x, y = TO_UTM.transform(pairs[:, 0], pairs[:, 1])
    assert np.abs(points.x.values - x).max() <= 5
    assert np.abs(points.y.values - y).max() <= 5
    assert points.reflectance.attrs == ds.reflectance.attrs
    assert points.attrs == ds.attrs
    assert list(points.band.values) == list(ds.band.values)
    assert list(points.wavelength.values) == list(ds.wavelength.values)
    np.testing.assert_array_equal(points.time, ds.time)


def test_raw_numbers(serve, pairs: np.ndarray) -> None:
    ds = lazy(serve(), mask_and_scale=False, chunks={})
    points = clearsky_xr.sample(ds, pairs)
    assert points.reflectance.dtype == np.int16
    expected = truth(serve, pairs).astype(np.float64)
    np.testing.assert_array_equal(
        points.reflectance, np.where(np.isnan(expected), -32768, np.round(expected * 10000))
    )


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_every_kind_of_points(server: Server, pairs: np.ndarray, chunks: object) -> None:
    ds = lazy(server, chunks=chunks).isel(time=0)
    labels = [f"plot {k}" for k in range(COUNT)]
    lon, lat = pairs.T
    table = pd.DataFrame({"lat": lat, "lon": lon, "crop": "maize"}, index=labels)
    shapes = geopandas.GeoDataFrame(
        {"crop": "maize"}, index=labels, geometry=geopandas.points_from_xy(lon, lat), crs=4326
    )
    by_pairs = clearsky_xr.sample(ds, pairs).load()
    kinds = {
        "list": (pairs.tolist(), range(COUNT)),
        "tuples": ([tuple(pair) for pair in pairs], range(COUNT)),
        "lon/lat": (table, labels),
        "longitude/latitude": (table.set_axis(["latitude", "longitude", "crop"], axis=1), labels),
        "mapping": ({"lon": list(lon), "lat": list(lat)}, range(COUNT)),
        "GeoDataFrame": (shapes, labels),
        "GeoDataFrame in its UTM": (shapes.to_crs(32633), labels),
        "GeoDataFrame in the next UTM": (shapes.to_crs(32632), labels),
        "GeoSeries": (shapes.to_crs(3857).geometry, labels),
        "an index with a name": (shapes.rename_axis("plot"), labels),
    }
    for kind, (points, expected) in kinds.items():
        got = clearsky_xr.sample(ds, points)
        assert list(got.point.values) == list(expected), kind
        assert got.point.dims == ("point",), kind
        np.testing.assert_array_equal(got.reflectance, by_pairs.reflectance, err_msg=kind)
        np.testing.assert_array_equal(got.x, by_pairs.x, err_msg=kind)
    assert len(paid(server)) == 1


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_selected_before(serve, pairs: np.ndarray, chunks: object) -> None:
    expected = truth(serve, pairs)
    ds = lazy(serve(), chunks=chunks)
    selections: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], np.ndarray, int]] = {
        "one date": (lambda d: d.isel(time=0), expected[:, 0], 1),
        "two dates": (lambda d: d.isel(time=[3, 1]), expected[:, [3, 1]], 2),
        "a day": (lambda d: d.sel(time="2025-04-06"), expected[:, 1], 1),
        "one band": (lambda d: d.sel(band="B8"), expected[:, :, 6], 4),
        "bands": (lambda d: d.sel(band=["B8", "B4"]), expected[:, :, [6, 2]], 4),
        "both": (lambda d: d.isel(time=-1).sel(band="B2"), expected[:, 3, 0], 1),
        "twice": (lambda d: d.isel(time=[3, 1]).isel(time=1), expected[:, 1], 1),
        "steps": (lambda d: d.isel(time=slice(None, None, 2)), expected[:, ::2], 2),
    }
    if chunks is None:
        selections["turned"] = (
            lambda d: d.transpose("x", "y", "band", "time"), expected.swapaxes(1, 2), 4,
        )  # fmt: skip
    for name, (select, values, dates) in selections.items():
        server = serve()
        selected = select(lazy(server, chunks=chunks))
        got = clearsky_xr.sample(selected, pairs)
        assert not server.downloads()
        rest = [dim for dim in selected.reflectance.dims if dim not in ("x", "y")]
        assert got.reflectance.dims == ("point", *rest), name
        np.testing.assert_array_equal(got.reflectance.values, values, err_msg=name)
        assert [entry.credits for entry in paid(server)] == [0.01] * dates, name
    # A window of the cube has its own first row and column.
    window = ds.isel(y=slice(20, 80), x=slice(10, 70))
    rows, cols = pixels(ds, pairs)
    inside = (rows >= 20) & (rows < 80) & (cols >= 10) & (cols < 70)
    assert 10 < inside.sum() < COUNT
    got = clearsky_xr.sample(window, pairs[inside])
    np.testing.assert_array_equal(got.reflectance.values, expected[inside])


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_a_data_array(serve, pairs: np.ndarray, chunks: object) -> None:
    server = serve()
    ds = lazy(server, indices="ndvi", chunks=chunks)
    for name in ("ndvi", "reflectance"):
        got = clearsky_xr.sample(ds[name], pairs)
        assert isinstance(got, xr.DataArray)
        assert got.name == name
        np.testing.assert_array_equal(got.values, truth(serve, pairs, name))
    nameless = clearsky_xr.sample(ds.ndvi.rename(None), pairs[:3])
    assert nameless.name is None
    np.testing.assert_array_equal(nameless, truth(serve, pairs[:3], "ndvi"))
    assert credits_of(server) == 0.04


def test_after_arithmetic_whole_chunks_are_bought_with_a_warning(serve, pairs: np.ndarray) -> None:
    server = serve()
    ds = lazy(server, chunks={})
    red, nir = ds.reflectance.sel(band="B4"), ds.reflectance.sel(band="B8")
    ratio = ((nir - red) / (nir + red)).rename("ratio")
    with pytest.warns(errors.ClearSkyWarning, match="'ratio' was computed from the cube"):
        got = clearsky_xr.sample(ratio, pairs)
    assert not server.downloads()
    expected = truth(serve, pairs)
    with np.errstate(invalid="ignore"):
        wanted = (expected[:, :, 6] - expected[:, :, 2]) / (expected[:, :, 6] + expected[:, :, 2])
    np.testing.assert_array_equal(got.values, wanted)
    assert len(paid(server)) == 4
    assert min(entry.credits for entry in paid(server)) > 0.05


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("dim", ["time", "band"])
def test_values_follow_positions_whatever_they_are_called(
    serve, pairs: np.ndarray, dim: str, chunks: object
) -> None:
    server = serve()
    ds = lazy(server, chunks=chunks)
    turned = ds.assign_coords({dim: ds[dim].values[::-1]})
    got = clearsky_xr.sample(turned, pairs)
    np.testing.assert_array_equal(got.reflectance, truth(serve, pairs))
    np.testing.assert_array_equal(got[dim], ds[dim].values[::-1])
    assert [entry.credits for entry in paid(server)] == [0.01] * 4


def test_loaded_and_foreign_objects(server: Server, serve, pairs: np.ndarray) -> None:
    ds = lazy(server).load()
    got = clearsky_xr.sample(ds, pairs)
    np.testing.assert_array_equal(got.reflectance, truth(serve, pairs))
    ours = lazy(serve(), chunks={})
    summed = ours.reflectance.isel(time=0).load().sum("band").chunk({"x": 10})
    clearsky_xr.sample(summed, pairs[:2])  # paid already: nothing to warn of


def test_sampling_is_lazy_until_it_is_computed(server: Server, pairs: np.ndarray) -> None:
    points = clearsky_xr.sample(lazy(server, chunks={}), pairs)
    mean = points.reflectance.sel(band="B8").mean("point")
    before = len(server.ledger())
    assert not server.downloads()
    mean.compute()
    assert [entry.credits for entry in paid(server)] == [0.01] * 4
    assert len(server.ledger()) - before <= 5  # and an estimate, to learn how points are billed


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_what_cannot_be_sampled_is_an_input_error(
    server: Server, pairs: np.ndarray, chunks: object
) -> None:
    ds = lazy(server, chunks=chunks)
    before = len(server.ledger())
    lon, lat = pairs.T
    shapes = geopandas.GeoSeries(geopandas.points_from_xy(lon, lat), crs=4326)
    bad = {
        "3 of 100 points lie outside the grid: 0 at longitude 15.1014, latitude": np.where(
            np.arange(COUNT)[:, None] < 3, pairs + 0.05, pairs
        ),
        "2 of 2 points lie outside": pairs[:2, ::-1],  # (lat, lon)
        "1 of 1 points lie outside": [(np.nan, 46.05)],
        "points lie outside the grid: a": pd.DataFrame(
            {"lon": [15.2], "lat": [46.05]}, index=["a"]
        ),
        "cannot read the points": [(15.05, 46.05, 3.0)],
        "cannot read": "15.05, 46.05",
        "cannot read the": [("east", "north")],
        "cannot": None,
        "the points": (15.055, 46.055),  # one bare pair
        "no columns 'lon' and 'lat'": pd.DataFrame({"x": [15.05], "y": [46.05]}),
        "no columns": {"lon": [15.05]},
        "have no CRS": geopandas.GeoSeries(list(shapes)),
        "not all geometries are points": shapes.to_crs(32633).buffer(10),
    }
    for match, points in bad.items():
        with pytest.raises(errors.InputError, match=match):
            clearsky_xr.sample(ds, points)
    nowhere = xr.DataArray(np.zeros((3, 3)), {"y": [3, 2, 1], "x": [1, 2, 3]}, ("y", "x"))
    with pytest.raises(errors.InputError, match="no grid with a CRS"):
        clearsky_xr.sample(nowhere, pairs)
    assert len(server.ledger()) == before


def test_points_on_the_rim(server: Server) -> None:
    ds = lazy(server)
    to_degrees = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    left, top = float(ds.x[0]) - 5, float(ds.y[0]) + 5
    lon, lat = to_degrees.transform([left + 0.01, left - 0.01], [top - 0.01, top - 0.01])
    got = clearsky_xr.sample(ds, [(lon[0], lat[0])])
    assert (float(got.x[0]), float(got.y[0])) == (float(ds.x[0]), float(ds.y[0]))
    with pytest.raises(errors.InputError, match="1 of 2 points lie outside the grid: 1"):
        clearsky_xr.sample(ds, list(zip(lon, lat, strict=True)))
