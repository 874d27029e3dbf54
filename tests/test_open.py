"""What opening gives, and that it buys nothing."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import dask.base
import numpy as np
import pandas as pd
import pytest
import rioxarray
import xarray as xr
from odc.geo.geobox import GeoBox

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.sandbox import Order, Server

from .conftest import FARM, SPRING, access, credits_of, paid


@pytest.fixture
def ds(server: Server) -> xr.Dataset:
    return xr.open_dataset(FARM, engine="clearsky", time=SPRING, chunks={}, **access(server))


def test_dims_coordinates_and_attributes(ds: xr.Dataset) -> None:
    assert ds.reflectance.dims == ("time", "band", "y", "x")
    assert ds.reflectance.dtype == np.float32
    assert ds.time.dtype.kind == "M"
    assert [str(t)[:10] for t in ds.time.values] == [
        "2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16",
    ]  # fmt: skip
    assert ",".join(ds.band.values) == "B2,B3,B4,B5,B6,B7,B8,B8A,B11,B12"
    assert list(ds.common_name.values[[0, 6, 7]]) == ["blue", "nir", "nir08"]
    assert ds.wavelength.sel(band="B4") == 664
    assert ds.bandwidth.sel(band="B8") == 106
    assert ds.wavelength.units == "nm"
    # Pixel centres on a lattice of 10 m, north up.
    assert (np.diff(ds.y) == -10).all()
    assert (np.diff(ds.x) == 10).all()
    assert (ds.x.values % 10 == 5).all()
    assert (ds.y.values % 10 == 5).all()
    assert ds.Conventions == "CF-1.11"
    for name in ("title", "source", "institution", "references", "history", "geospatial_bounds"):
        assert ds.attrs[name]
    assert "SYNTHETIC" in ds.source
    assert ds.title.startswith("SANDBOX")
    assert ds.encoding["source"].startswith("clearsky:")
    assert ds.x.standard_name == "projection_x_coordinate"


def test_georeference_for_rioxarray_and_odc(ds: xr.Dataset) -> None:
    assert ds.rio.crs.to_epsg() == 32633
    assert ds.odc.geobox.crs.to_epsg() == 32633
    affine = ds.rio.transform()
    assert (affine.a, affine.e) == (10, -10)
    assert (affine.c, affine.f) == (float(ds.x[0]) - 5, float(ds.y[0]) + 5)
    assert tuple(ds.odc.geobox.affine)[:6] == tuple(affine)[:6]
    assert ds.reflectance.rio.crs.to_epsg() == 32633


def test_opening_downloads_nothing_and_makes_two_free_calls(server: Server) -> None:
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, **access(server))
    repr(ds)
    ds._repr_html_()
    pickle.loads(pickle.dumps(ds))
    ds.copy()
    ds.chunk()
    ds.isel(time=0).sel(band="B4")
    assert [e.endpoint for e in server.ledger()] in (["account", "search"], ["search", "account"])
    assert credits_of(server) == 0


def test_listed_days_and_known_limits_need_no_call(server: Server) -> None:
    clearsky_xr.resolve(FARM, ["2025-04-01"], **access(server))
    before = len(server.ledger())
    ds = clearsky_xr.open_timeseries(FARM, ["2025-04-06", "2025-04-01"], **access(server))
    assert len(server.ledger()) == before == 1
    assert [str(t)[:10] for t in ds.time.values] == ["2025-04-01", "2025-04-06"]


def test_a_resolved_cube_opens_without_a_call(server: Server) -> None:
    cube = clearsky_xr.resolve(FARM, SPRING, indices="ndvi", **access(server))
    before = len(server.ledger())
    ds = xr.open_dataset(pickle.loads(pickle.dumps(cube)), engine="clearsky", **access(server))
    guessed = xr.open_dataset(cube, **access(server))
    assert set(ds) == set(guessed) == {"reflectance", "ndvi"}
    assert len(server.ledger()) == before
    for settled in ({"time": SPRING}, {"bands": ["B4"]}, {"clip": False}, {"like": ds}):
        with pytest.raises(errors.InvalidOptionError, match=f"has its {next(iter(settled))}"):
            xr.open_dataset(cube, engine="clearsky", **settled, **access(server))


def test_dask_names_follow_the_content(server: Server) -> None:
    def name(**options: object) -> str:
        return clearsky_xr.open_timeseries(
            FARM, SPRING, **access(server), **options
        ).reflectance.data.name

    assert name() == name()
    assert name() != name(bands="rgb")
    assert name() != name(clip=False)
    cube = clearsky_xr.resolve(FARM, SPRING, **access(server))
    other = clearsky_xr.resolve(FARM, ("2025-04-01", "2025-04-15"), **access(server))
    assert dask.base.tokenize(cube) == dask.base.tokenize(pickle.loads(pickle.dumps(cube)))
    assert dask.base.tokenize(cube) != dask.base.tokenize(other)


def test_tokenizing_a_dask_dataset_buys_nothing(ds: xr.Dataset, server: Server) -> None:
    assert dask.base.tokenize(ds) == dask.base.tokenize(ds)
    assert not server.downloads()


def test_bands_indices_and_dropped_variables(server: Server) -> None:
    ds = clearsky_xr.open_timeseries(
        FARM, SPRING, bands=["nir", "B04"], indices={"mine": ("B8", "B5")}, **access(server)
    )
    assert list(ds.band.values) == ["B8", "B4"]
    assert ds.mine.dims == ("time", "y", "x")
    assert "(B8 - B5) / (B8 + B5)" in ds.mine.long_name
    ds.isel(time=0, x=0, y=0).compute()
    (request,) = paid(server)
    assert request.bandnames == "B8,B4,[B8_B5]"
    only = clearsky_xr.open_timeseries(FARM, SPRING, bands=None, indices="ndvi", **access(server))
    assert set(only) == {"ndvi"}
    dropped = clearsky_xr.open_timeseries(
        FARM, SPRING, indices="ndvi", drop_variables="ndvi", **access(server)
    )
    assert set(dropped) == {"reflectance"}


def test_raw_numbers_and_undecoded_times(server: Server) -> None:
    raw = xr.open_dataset(
        FARM, engine="clearsky", time=SPRING, mask_and_scale=False, decode_times=False,
        indices="ndvi", **access(server),
    )  # fmt: skip
    assert raw.reflectance.dtype == raw.ndvi.dtype == np.int16
    assert raw.reflectance.attrs["_FillValue"] == -32768
    assert raw.reflectance.attrs["scale_factor"] == pytest.approx(1e-4)
    assert raw.time.dtype == np.int64
    assert raw.time.units == "seconds since 1970-01-01"
    assert raw.time.values[0] == pd.Timestamp("2025-04-01").timestamp()
    scaled = xr.open_dataset(FARM, engine="clearsky", time=SPRING, indices="ndvi", **access(server))
    # xarray's own decoding of the raw numbers is the independent way.
    ours, theirs = scaled.load(), xr.decode_cf(raw).load()
    np.testing.assert_allclose(ours.reflectance, theirs.reflectance, rtol=1e-6)
    np.testing.assert_allclose(ours.ndvi, theirs.ndvi, rtol=1e-6)
    assert len(paid(server)) == 4


def test_zarr_round_trip_keeps_numbers_and_crs(server: Server, tmp_path: Path) -> None:
    ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    ds.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    raw = xr.open_zarr(tmp_path / "cube.zarr", mask_and_scale=False, consolidated=False)
    assert raw.reflectance.dtype == np.int16
    expected = np.round(ds.reflectance.values.astype(np.float64) * 10000)
    expected[np.isnan(expected)] = -32768
    np.testing.assert_array_equal(raw.reflectance.values, expected)
    np.testing.assert_allclose(back.reflectance, ds.reflectance, atol=1e-7)
    assert back.rio.crs.to_epsg() == 32633
    assert "spatial_ref" in back.coords
    assert (back.time == ds.time).all()
    assert list(back.common_name.values) == list(ds.common_name.values)


def test_band_names_that_xarray_chunked_are_stored_as_text(ds: xr.Dataset, tmp_path: Path) -> None:
    # xarray.open_dataset(chunks={}) turns even these few words into Dask arrays.
    with pytest.warns(xr.SerializationWarning, match="loaded into memory"):
        ds.drop_vars("reflectance").to_zarr(tmp_path / "cube.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    assert list(back.common_name.values) == list(ds.common_name.values)


def test_lazy_dataset_goes_to_zarr_as_well(server: Server, tmp_path: Path) -> None:
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, indices="ndvi", **access(server))
    ds.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    np.testing.assert_allclose(back.ndvi, ds.ndvi, atol=2e-5)
    assert len(paid(server)) == 4


def test_raster_plot_and_concat(ds: xr.Dataset, tmp_path: Path) -> None:
    image = ds.reflectance.isel(time=0)
    image.rio.to_raster(tmp_path / "image.tif")
    with rioxarray.open_rasterio(tmp_path / "image.tif", mask_and_scale=True) as back:
        assert back.rio.crs.to_epsg() == 32633
        np.testing.assert_allclose(back.values, image.values, atol=1e-7)
    import matplotlib as mpl

    mpl.use("Agg")
    (image.sel(band=["B4", "B3", "B2"]) * 4).clip(0, 1).plot.imshow(rgb="band")
    mpl.pyplot.close("all")
    both = xr.concat([ds.isel(time=slice(0, 2)), ds.isel(time=slice(2, 4))], "time")
    np.testing.assert_array_equal(both.reflectance.values, ds.reflectance.values)


def test_two_areas_in_a_zone_share_the_lattice(server: Server) -> None:
    one = clearsky_xr.open_timeseries(FARM, SPRING, resolution=40, **access(server))
    two = clearsky_xr.open_timeseries(
        (15.0517, 46.0533, 15.0719, 46.0631), SPRING, resolution=40, **access(server)
    )
    joined = xr.align(one, two, join="inner")[0]
    assert joined.sizes["x"] > 10
    assert joined.sizes["y"] > 10
    assert (one.x.values % 40 == 20).all()


def test_like_takes_exactly_that_grid(server: Server) -> None:
    ours = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    window = ours.isel(x=slice(10, 40), y=slice(5, 25))
    for like in (window, window.reflectance, window.odc.geobox):
        same = clearsky_xr.open_timeseries(FARM, SPRING, like=like, **access(server))
        assert (same.x.values == window.x.values).all()
        assert (same.y.values == window.y.values).all()
    far = GeoBox.from_bbox((600000, 5300000, 601000, 5301000), "EPSG:32633", resolution=10)
    with pytest.raises(errors.InvalidGridError, match="beside the area"):
        clearsky_xr.open_timeseries(FARM, SPRING, like=far, **access(server))


def test_a_cube_of_a_million_blocks_stays_small(serve) -> None:
    # 600 x 600 km of 10 m, 73 dates.
    server = serve(max_area_km2=10**6)
    began = time.perf_counter()
    ds = xr.open_dataset(
        (11.0, 44.0, 18.6, 49.4), engine="clearsky", time=("2024-01-01", "2024-12-31"),
        crs=32633, **access(server),
    )  # fmt: skip
    text = repr(ds)
    size = len(pickle.dumps(ds.reflectance.variable._data))
    assert ds.reflectance.size / (256 * 256 * 10) > 10**5
    assert time.perf_counter() - began < 5  # a guard against work per block, not a benchmark
    assert len(text) < 5000
    assert size < 50_000
    assert not server.downloads()


def test_preferred_chunks_suit_a_field_and_a_region(server: Server) -> None:
    days = [str(d)[:10] for d in pd.date_range("2020-01-01", "2022-12-31", freq="7D")]
    field = clearsky_xr.open_timeseries((15.05, 46.05, 15.063, 46.059), days, **access(server))
    assert {c[0] for c in field.reflectance.chunks[2:]} == {field.sizes["y"], field.sizes["x"]}
    assert field.reflectance.chunks[0][0] == 4
    region = clearsky_xr.open_timeseries((15.0, 45.7, 15.77, 46.24), days, **access(server))
    chunk = [c[0] for c in region.reflectance.chunks]
    assert chunk[1:] == [10, 1024, 1024]  # a request a date, as large as they are without Dask
    assert 2 * chunk[0] >= 4  # two threads keep four connections busy
    assert 4 * np.prod(chunk) <= 128 * 2**20


@pytest.mark.parametrize(("connections", "dates"), [(1, 4), (5, 4), (8, 6), (16, 12), (64, 12)])
def test_two_chunks_keep_the_connections_busy(serve, connections: int, dates: int) -> None:
    days = [str(d)[:10] for d in pd.date_range("2020-01-01", "2022-12-31", freq="7D")]
    server = serve(max_connections=connections)
    # A field has as many dates as that takes; a region, and many layers, what fits into 128 MiB.
    layers = {"indices": "ndvi,gndvi,ndre,ndwi,mndwi,ndmi"}
    for area, options, fits in [
        ((15.05, 46.05, 15.063, 46.059), {}, 99),
        ((15.0, 45.7, 15.77, 46.24), {}, 3),
        ((15.0, 45.7, 15.77, 46.24), layers, 2),
    ]:
        ds = clearsky_xr.open_timeseries(area, days, **access(server), **options)
        chunk = [c[0] for c in ds.reflectance.chunks]
        assert chunk[0] == min(dates, fits)
        assert 4 * np.prod(chunk) <= 128 * 2**20


def test_centres_are_whole_metres_and_weigh_nothing(serve) -> None:
    server = serve(max_area_km2=10**6)
    for size in (10, 20, 1280):
        ds = clearsky_xr.open_timeseries(
            (14.0, 45.4, 16.6, 47.4), SPRING, resolution=size, **access(server)
        )
        for axis, centres in ds.odc.geobox.coordinates.items():
            assert ds[axis].dtype == np.float64
            np.testing.assert_array_equal(ds[axis].values, centres.values)
        assert float(ds.x[0]) % size == size / 2
        assert len(pickle.dumps(ds.drop_vars("reflectance").coords)) < 12_000


def test_no_dates_says_what_there_is(serve) -> None:
    server = serve(orders=[Order(model="Stratus3")])
    with pytest.raises(errors.NoImageryError, match="no image of the whole area") as caught:
        clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    assert "order" in caught.value.hint


def test_a_day_without_an_image_says_that_not_every_day_has_one(server: Server) -> None:
    with pytest.raises(errors.NoImageryError, match="on 2025-04-02") as caught:
        clearsky_xr.open_timeseries(FARM, "2025-04-02", **access(server))
    assert "a range shows which" in caught.value.hint


def test_dates_are_those_of_the_whole_area(serve) -> None:
    import shapely

    west, south, east, north = FARM
    middle = (west + east) / 2
    days = {"a": ["2025-04-01", "2025-04-06"], "b": ["2025-04-06", "2025-04-11"]}
    server = serve(
        orders=[
            Order(wkt=shapely.box(west - 1, south - 1, middle, north + 1).wkt,
                  start=pd.Timestamp(days["a"][0]).date(), end=pd.Timestamp(days["a"][1]).date()),
            Order(wkt=shapely.box(middle, south - 1, east + 1, north + 1).wkt,
                  start=pd.Timestamp(days["b"][0]).date(), end=pd.Timestamp(days["b"][1]).date()),
        ]
    )  # fmt: skip

    def dates(**options: object) -> list[str]:
        ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(server), **options)
        return [str(t)[:10] for t in ds.time.values]

    assert dates() == ["2025-04-06"]
    assert dates(allow_partial=True) == ["2025-04-01", "2025-04-06", "2025-04-11"]


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"area": (15.06, 46.05, 15.05, 46.06)}, errors.InvalidAreaError, "west"),
    ({"area": "POINT (15 46)"}, errors.InvalidAreaError, "Point"),
    ({"area": (46.05, 115.05, 46.06, 115.06)}, errors.InvalidAreaError, "swapped"),
    ({"area": "nowhere.geojson"}, errors.InvalidAreaError, "cannot read"),
    ({"time": None}, errors.InvalidTimeError, "no time"),
    ({"time": ("2025-05-01", "2025-04-01")}, errors.InvalidTimeError, "ends"),
    ({"time": ["2999-01-01"]}, errors.InvalidTimeError, "future"),
    ({"time": "2025-02-30"}, errors.InvalidTimeError, "cannot read"),
    ({"bands": ["B4", "red"]}, errors.InvalidBandError, "more than once"),
    ({"bands": "B44"}, errors.InvalidBandError, "no band"),
    ({"bands": ["B1"]}, errors.InvalidBandError, "does not offer"),
    ({"bands": None}, errors.InvalidBandError, "neither"),
    ({"indices": "ndvy"}, errors.InvalidBandError, "ndvi"),
    ({"resolution": 15}, errors.InvalidGridError, "not offered"),
    ({"crs": 4326}, errors.InvalidGridError, "not a UTM zone"),
    ({"crs": "EPSG:32601"}, errors.InvalidGridError, "degrees from the middle"),
    ({"crs": "nonsense"}, errors.InvalidGridError, "cannot read"),
    ({"like": 3}, errors.InvalidGridError, "grid and CRS"),
    ({"pixels": "touched"}, errors.InvalidOptionError, "unknown"),
    ({"clip": "yes"}, errors.InvalidOptionError, "True or False"),
    ({"concurrency": 0}, errors.InvalidOptionError, "above 0"),
    ({"on_lost": "ignore"}, errors.InvalidOptionError, "unknown"),
    ({"constellations": []}, errors.InvalidOptionError, "must be names"),
    ({"constellations": 5}, errors.InvalidOptionError, "must be names"),
    ({"model": " "}, errors.InvalidOptionError, "model"),
    ({"model": None}, errors.InvalidOptionError, "model"),
    ({"model": " Stratus2 ", "bands": "B1"}, errors.InvalidBandError, "does not offer"),
    ({"base_url": "http://example.org"}, errors.InvalidOptionError, "clear text"),
    ({"api_key": "two\nlines"}, errors.CredentialsError, "one line"),
]


@pytest.mark.parametrize(("wrong", "error", "match"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_told_before_anything_is_sent(
    server: Server, wrong: dict[str, object], error: type[Exception], match: str
) -> None:
    arguments = {"area": FARM, "time": SPRING, **access(server), **wrong}
    with pytest.raises(error, match=match):
        clearsky_xr.open_timeseries(arguments.pop("area"), arguments.pop("time"), **arguments)
    assert server.ledger() == []


def test_too_many_layers_is_an_error_at_open(serve) -> None:
    server = serve(max_bands=10)
    with pytest.raises(errors.BandLimitError, match="11 layers"):
        clearsky_xr.open_timeseries(FARM, SPRING, indices="ndvi", **access(server))


def test_no_key_says_where_to_get_one_and_how_to_try_without() -> None:
    with pytest.raises(errors.CredentialsError) as caught:
        xr.open_dataset(FARM, engine="clearsky", time=SPRING)
    assert "CLEARSKY_API_KEY" in str(caught.value)
    assert 'base_url="sandbox"' in str(caught.value)


def test_the_embedded_sandbox_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARSKY_BASE_URL", "sandbox")
    ds = xr.open_dataset(FARM, engine="clearsky", time=["2025-04-01"])
    assert float(ds.reflectance.mean()) > 0.01


def test_old_account_endpoint(serve) -> None:
    from clearsky_xr.sandbox import Fault

    server = serve(max_connections=2, faults=[Fault.status(404, endpoint="account", times=None)])
    ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    ds.load()
    assert "apikey" in {e.endpoint for e in server.ledger()}
    assert server.peak_in_flight == 2


def test_contained_pixels_and_too_small_areas(server: Server) -> None:
    tiny = (15.05, 46.05, 15.05004, 46.05004)  # 3 x 4 m
    with pytest.raises(errors.InvalidAreaError, match="no pixel"):
        clearsky_xr.open_timeseries(tiny, SPRING, pixels="contained", **access(server))
    ds = clearsky_xr.open_timeseries(tiny, SPRING, **access(server))
    assert ds.reflectance.sizes["x"] in (1, 2)


def test_engine_is_listed_without_heavy_imports() -> None:
    code = (
        "import sys, xarray as xr; before = set(sys.modules);"
        "assert 'clearsky' in xr.backends.list_engines();"
        "new = set(sys.modules) - before;"
        "heavy = {'aiohttp', 'rasterio', 'pyproj', 'shapely', 'odc.geo'} & new;"
        "ours = {m for m in new if m.startswith('clearsky_xr')};"
        "print(sorted(ours));"
        "assert ours <= {'clearsky_xr', 'clearsky_xr._backend'}, ours"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_saved_cube_can_be_extended(server: Server, tmp_path: Path) -> None:
    for month, more in (("2025-04", {}), ("2025-05", {"append_dim": "time"})):
        ds = clearsky_xr.open_timeseries(FARM, month, **access(server)).load()
        ds.to_zarr(tmp_path / "cube.zarr", consolidated=False, **more)
    back = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    whole = clearsky_xr.open_timeseries(FARM, ("2025-04-01", "2025-05-31"), **access(server))
    assert (back.time == whole.time).all()
    np.testing.assert_allclose(back.reflectance, whole.reflectance, atol=1e-7)
    assert len(paid(server)) == whole.sizes["time"]
