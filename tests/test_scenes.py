"""The main job on real pixels: what is opened equals the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import xarray as xr
from pyproj import Transformer

from clearsky_xr.sandbox import Server

from .conftest import access, paid


@pytest.fixture
def files(scenes: Path) -> dict[str, tuple[np.ndarray, rasterio.Affine]]:
    found = {}
    for path in sorted(scenes.glob("*.tif")):
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32633
            found[path.stem] = (file.read(), file.transform)
    assert len(found) == 2
    return found


@pytest.fixture
def real(serve, scenes: Path) -> Server:
    return serve(scenes=scenes)


def footprint(files: dict[str, tuple[np.ndarray, rasterio.Affine]]) -> shapely.Polygon:
    """Give the scenes' outline in degrees, a hair inside their edge."""
    values, affine = next(iter(files.values()))
    height, width = values.shape[1:]
    west, north = affine.c + 2, affine.f - 2
    east, south = affine.c + 10 * width - 2, affine.f - 10 * height + 2
    box = shapely.segmentize(shapely.box(west, south, east, north), 200)
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    return shapely.transform(box, lambda xy: np.column_stack(to_degrees.transform(*xy.T)))


def stack(files: dict[str, tuple[np.ndarray, rasterio.Affine]]) -> np.ndarray:
    return np.stack([values for values, _ in files.values()])


def test_whole_area_blocks_and_pixels(real: Server, files) -> None:
    ds = xr.open_dataset(
        footprint(files), engine="clearsky", time="2015", mask_and_scale=False, **access(real)
    )
    expected = stack(files)
    affine = next(iter(files.values()))[1]
    assert ds.reflectance.shape == expected.shape
    assert tuple(ds.rio.transform())[:6] == tuple(affine)[:6]
    assert [str(t)[:10].replace("-", "") for t in ds.time.values] == list(files)
    # Blocks and single pixels first, so that they come from requests of their own.
    for rows, cols in ((slice(10, 42), slice(5, 60)), (slice(70, 101), slice(80, 100))):
        block = ds.reflectance.isel(y=rows, x=cols).values
        np.testing.assert_array_equal(block, expected[:, :, rows, cols])
    for row, col in ((0, 0), (50, 71), (100, 99)):
        pixel = ds.reflectance.isel(y=row, x=col).values
        np.testing.assert_array_equal(pixel, expected[:, :, row, col])
    np.testing.assert_array_equal(ds.reflectance.values, expected)
    # The scenes' 1.01 km2, each pixel once (rounded up for the few pieces).
    assert sum(entry.area_km2 for entry in paid(real)) <= 2 * 1.01 * 1.01
    assert "scenes" in ds.source


def test_reflectance_is_dn_over_ten_thousand(real: Server, files) -> None:
    ds = xr.open_dataset(
        footprint(files), engine="clearsky", time=["2015-07-11", "2015-08-30"], chunks={},
        indices="ndvi", **access(real),
    )  # fmt: skip
    numbers = stack(files).astype(np.float64)
    numbers[numbers == -32768] = np.nan
    loaded = ds.load()
    np.testing.assert_allclose(loaded.reflectance, numbers / 10000, rtol=1e-6)
    red, nir = numbers[:, 2], numbers[:, 6]
    np.testing.assert_allclose(loaded.ndvi, (nir - red) / (nir + red), atol=1 / 32767)


@pytest.mark.parametrize("pixels", ["intersect", "contained"])
def test_a_polygon_against_rasterio_masks(real: Server, files, pixels: str) -> None:
    expected = stack(files)
    affine = next(iter(files.values()))[1]
    x0, y0 = affine.c, affine.f
    # A star with a hole, off the pixel edges.
    field = shapely.Polygon(
        [(x0 + x, y0 - y) for x, y in (
            (103.3, 807.1), (296.4, 513.2), (211.7, 102.9), (497.2, 333.8), (911.6, 57.3),
            (702.1, 488.4), (936.9, 952.2), (511.3, 741.6),
        )],
        holes=[[(x0 + x, y0 - y) for x, y in ((431.1, 401.7), (541.9, 455.2), (463.3, 552.8))]],
    )  # fmt: skip
    everything = rasterio.features.rasterize(
        [field], expected.shape[2:], transform=affine, all_touched=True
    ).astype(bool)
    edges = rasterio.features.rasterize(
        [field.boundary], expected.shape[2:], transform=affine, all_touched=True
    ).astype(bool)
    inside = everything if pixels == "intersect" else everything & ~edges
    dense = shapely.segmentize(field, 100)
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    area = shapely.transform(dense, lambda xy: np.column_stack(to_degrees.transform(*xy.T)))
    ds = xr.open_dataset(
        area, engine="clearsky", time="2015", pixels=pixels, mask_and_scale=False, **access(real)
    )
    got = ds.reflectance.load()
    rows = ((y0 - ds.y.values) // 10).astype(int)
    cols = ((ds.x.values - x0) // 10).astype(int)
    wanted = np.where(inside, expected, -32768)[:, :, rows[:, None], cols]
    np.testing.assert_array_equal(got.values, wanted)
    assert inside.sum() == (got.values[0, 0] != -32768).sum()


def test_coarser_pixels_are_block_means(real: Server, files) -> None:
    ds = xr.open_dataset(
        footprint(files), engine="clearsky", time=["2015-07-11"], resolution=20, **access(real)
    ).load()
    values, affine = files["20150711"]
    row = round((affine.f - (float(ds.y[3]) + 10)) / 10)
    col = round((float(ds.x[3]) - 10 - affine.c) / 10)
    means = values[:, row : row + 20, col : col + 20].reshape(10, 10, 2, 10, 2).mean((2, 4))
    np.testing.assert_allclose(ds.reflectance.values[0, :, 3:13, 3:13], means / 10000, atol=0.51e-4)
