"""The cube in the hands of others: rioxarray, odc-geo, geopandas, exactextract, xvec."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
import xvec  # noqa: F401  gives .xvec
from exactextract import exact_extract
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_reproject

import clearsky_xr
from clearsky_xr.sandbox import Server

from .conftest import FARM, SPRING, access, credits_of, paid

FIELD = shapely.Polygon([(15.051, 46.051), (15.058, 46.052), (15.056, 46.058)])


@pytest.fixture
def ds(server: Server) -> xr.Dataset:
    return clearsky_xr.open_timeseries(
        FARM, SPRING, bands=["red", "nir"], indices="ndvi", **access(server)
    )


@pytest.fixture
def parcels() -> geopandas.GeoDataFrame:
    boxes = [
        shapely.box(15.0505 + 0.03 * k, 46.0505, 15.0525 + 0.03 * k, 46.0523) for k in range(2)
    ]
    return geopandas.GeoDataFrame({"crop": ["maize", "wheat"]}, geometry=boxes, crs=4326)


def weighted_mean(image: xr.DataArray, parcel: shapely.Polygon) -> float:
    """Weigh pixels by the surface that they share with a parcel, one by one."""
    x, y = np.meshgrid(image.x.values, image.y.values)
    squares = shapely.box(x - 5, y - 5, x + 5, y + 5)
    weights = shapely.area(shapely.intersection(squares, parcel))
    there = np.isfinite(image.values)
    return float((image.values[there] * weights[there]).sum() / weights[there].sum())


def test_zonal_statistics_of_parcels(server: Server, parcels: geopandas.GeoDataFrame) -> None:
    ds = clearsky_xr.open_timeseries(parcels.to_crs(3035), SPRING, indices="ndvi", **access(server))
    ndvi = ds.ndvi.load()
    assert len(paid(server)) == ds.sizes["time"] == 4
    # The parcels are bought, and not what lies between them.
    rectangle = ds.sizes["y"] * ds.sizes["x"] * 10 * 10 / 1e6
    assert credits_of(server) < 0.5 * 4 * 0.1 * rectangle

    zones = parcels.to_crs(ds.rio.crs)
    expected = [[weighted_mean(ndvi[k], zone) for k in range(4)] for zone in zones.geometry]
    day = exact_extract(ndvi[0], zones, ["mean"], include_cols="crop", output="pandas")
    assert list(day.crop) == ["maize", "wheat"]
    np.testing.assert_allclose(day["mean"], [curve[0] for curve in expected], rtol=1e-6)
    curves = ndvi.xvec.zonal_stats(
        zones.geometry, x_coords="x", y_coords="y", stats="mean", method="exactextract"
    )
    assert curves.dims == ("geometry", "time")
    np.testing.assert_allclose(curves, expected, rtol=1e-6)
    assert len(paid(server)) == 4


def test_rioxarray_clips_reprojects_and_writes(
    ds: xr.Dataset, server: Server, tmp_path: Path
) -> None:
    assert ds.rio.crs.to_epsg() == 32633
    assert ds.rio.resolution() == (10, -10)
    image = ds.reflectance.isel(time=0).load()
    assert len(paid(server)) == 1
    clipped = image.rio.clip([FIELD], crs=4326)
    inside = shapely.contains_xy(
        geopandas.GeoSeries([FIELD], crs=4326).to_crs(32633)[0],
        *np.meshgrid(clipped.x.values, clipped.y.values),
    )
    np.testing.assert_array_equal(np.isfinite(clipped[0]), inside)

    degrees = clipped.rio.reproject("EPSG:4326")
    assert degrees.rio.crs.to_epsg() == 4326
    assert np.isnan(degrees).any()
    assert 0 < float(degrees.min()) < float(degrees.max()) < 1

    clipped.rio.to_raster(tmp_path / "clipped.tif", driver="COG")
    with rasterio.open(tmp_path / "clipped.tif") as file:
        # As int16 with a scale, since that is how the cube is encoded.
        counts = file.read()
        assert (file.scales, file.nodata) == ((1e-4, 1e-4), -32768)
        np.testing.assert_allclose(
            np.where(counts == -32768, np.nan, counts * 1e-4), clipped, rtol=1e-6
        )
        assert file.transform == clipped.rio.transform()
    assert len(paid(server)) == 1


@pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning")  # odc-geo's
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # odc-geo's
def test_odc_geo_reprojects_lazily(ds: xr.Dataset, server: Server) -> None:
    extent = ds.odc.geobox.extent.to_crs("EPSG:3035").boundingbox
    target = GeoBox.from_bbox(extent, resolution=20)
    warped = xr_reproject(ds, target, resampling="average")
    assert warped.clearsky.plan().credits > 0
    assert server.downloads() == []
    first = warped.isel(time=0).compute()
    assert first.odc.geobox == target
    # What lies outside is NaN, not the number that stands for it on disk.
    for values in (first.reflectance, first.ndvi):
        assert bool(values.isnull().any())
        assert float(values.min()) > -0.2
    own = ds.isel(time=0).load()
    np.testing.assert_allclose(first.ndvi.mean(), own.ndvi.mean(), rtol=0.02)


def test_odc_geo_knows_the_grid(ds: xr.Dataset, server: Server) -> None:
    rows, cols = ds.sizes["y"], ds.sizes["x"]
    assert ds.odc.geobox == GeoBox((rows, cols), ds.rio.transform(), "EPSG:32633")
    like = clearsky_xr.open_timeseries(FIELD, SPRING, like=ds.odc.geobox, **access(server))
    assert like.odc.geobox == ds.odc.geobox


def test_what_odc_geo_reads_is_not_written(ds: xr.Dataset, tmp_path: Path) -> None:
    ds.isel(time=[0]).to_zarr(tmp_path / "plain.zarr", zarr_format=3, consolidated=False)
    raw = xr.open_zarr(tmp_path / "plain.zarr", mask_and_scale=False, consolidated=False)
    assert raw.ndvi.dtype == np.int16
    assert raw.ndvi.attrs["_FillValue"] == -32768
    assert "nodata" not in raw.ndvi.attrs
