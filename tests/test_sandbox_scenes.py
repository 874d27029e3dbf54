"""Real or local scenes, served pixel for pixel."""

import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from clearsky_xr.sandbox import serve
from clearsky_xr.sandbox._imagery import Block

from .test_sandbox import COMPOSITE, SEARCH, TEN, Client, body
from .test_sandbox_pixels import fetch

DATA = Path(
    os.environ.get("CLEARSKY_TEST_DATA")
    or Path(__file__).resolve().parents[2] / "shared/data/s2-slovenia"
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real scenes are not here")


@pytest.fixture(scope="module")
def slovenia():
    with serve(scenes=DATA) as server:
        yield Client(server)


@needs_data
@pytest.mark.parametrize("name", ["20150711", "20150830"])
def test_a_real_scene_comes_back_pixel_for_pixel(slovenia, name):
    with rasterio.open(DATA / f"{name}.tif") as source:
        truth, transform, profile = source.read(), source.transform, source.profile
    block = Block(
        33 + 32600, 10, int(transform.c // 10), int(-transform.f // 10),
        profile["width"], profile["height"],
    )  # fmt: skip
    pixels, corner, served = fetch(slovenia, block, Date=name)
    assert (corner, served["crs"], served["nodata"]) == (transform, profile["crs"], -32768)
    assert np.array_equal(pixels, truth)
    part = Block(block.epsg, 10, block.col + 31, block.row + 17, 40, 23)
    pixels, _, _ = fetch(slovenia, part, Date=name)
    assert np.array_equal(pixels, truth[:, 17:40, 31:71])
    nir, red = truth[6].astype(float), truth[2].astype(float)
    index, _, _ = fetch(slovenia, block, Date=name, Bandnames="[B8_B4],B8A")
    assert np.array_equal(index[0], np.rint((nir - red) / (nir + red) * 32767))
    assert np.array_equal(index[1], truth[TEN.index("B8A")])


@needs_data
def test_the_search_knows_the_real_dates(slovenia):
    inside = "POLYGON ((14.5 45.8, 17 45.8, 17 47, 14.5 47, 14.5 45.8))"
    with rasterio.open(DATA / "20150711.tif") as source:
        box = shapely.box(*source.bounds)
        to_degrees = Transformer.from_crs(source.crs.to_epsg(), 4326, always_xy=True)
    inside = shapely.transform(box, lambda c: np.stack(to_degrees.transform(*c.T), axis=1)).wkt
    (entry,) = slovenia.data(SEARCH, {"Wkt": inside})["ModelImageDates"]
    assert entry["DatesByGeog"][0]["Dates"] == ["2015-07-11", "2015-08-30"]
    far = "POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))"
    (entry,) = slovenia.data(SEARCH, {"Wkt": far})["ModelImageDates"]
    assert entry["DatesByGeog"][0]["Dates"] == []
    ready = slovenia.data(COMPOSITE + "/available", body(Wkt=far, EpsgProjection=32631))
    assert not ready["PolygonInDataArea"]
    assert slovenia.code(payload=body(Wkt=inside, EpsgProjection=32633)) == (400, 1002)
    assert slovenia.call("/api/account/info")[1]["X-Clearsky-Sandbox"] == "scenes"


def write_scene(path, pixels, *, epsg=32632, left=500000, top=6250000, size=10, names=None):
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
        crs=f"EPSG:{epsg}", transform=Affine(size, 0, left, 0, -size, top), nodata=-32768,
    ) as target:  # fmt: skip
        target.write(pixels)
        if names:
            target.descriptions = names


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(3).integers(0, 10000, (10, 40, 50), dtype=np.int16)


WINDOW = Block(32632, 10, 50000, -625000, 50, 40)


def test_bands_are_found_by_description_and_gaps_are_no_data(tmp_path, noise):
    noise = noise.copy()
    noise[:, 3:5, 7:9] = -32768
    names = ("B1", *TEN[::-1])
    shuffled = np.concatenate([noise[:1] * 0, noise[::-1]])
    write_scene(tmp_path / "S2_20250605_x.tif", shuffled, names=names)
    with serve(scenes=tmp_path) as server:
        pixels, _, _ = fetch(Client(server), WINDOW)
        assert np.array_equal(pixels, noise)
        wider = Block(32632, 10, 49990, -625010, 70, 60)
        pixels, _, _ = fetch(Client(server), wider)
        assert np.array_equal(pixels[:, 10:50, 10:60], noise)
        pixels[:, 10:50, 10:60] = -32768
        assert (pixels == -32768).all()


def test_files_of_one_date_are_laid_over_each_other(tmp_path, noise):
    hole = noise.copy()
    hole[:, :20] = -32768
    write_scene(tmp_path / "a_20250605.tif", noise)
    write_scene(tmp_path / "b_20250605.tif", hole // 2)
    write_scene(tmp_path / "b_20250606.tif", hole)
    expected = noise.copy()
    expected[:, 20:] = noise[:, 20:] // 2
    expected[:, :20] = np.where(hole[:, :20] // 2 == -32768, noise[:, :20], hole[:, :20] // 2)
    with serve(scenes=tmp_path) as server:
        pixels, _, _ = fetch(Client(server), WINDOW)
        assert np.array_equal(pixels[:, 20:], noise[:, 20:] // 2)
        pixels, _, _ = fetch(Client(server), WINDOW, Date="2025-06-06")
        assert np.array_equal(pixels, hole)


def test_coarse_pixels_are_means(tmp_path, noise):
    noise = noise.copy()
    noise[:, :4, :4] = -32768
    noise[:, 0, 4] = -32768
    write_scene(tmp_path / "20250605.tif", noise)
    with serve(scenes=tmp_path) as server:
        pixels, _, _ = fetch(Client(server), Block(32632, 20, 25000, -312500, 25, 20))
    groups = np.ma.masked_equal(noise.reshape(10, 20, 2, 25, 2), -32768)
    mean = groups.astype(float).mean(axis=(2, 4)).filled(-32768)
    assert np.abs(pixels - mean).max() <= 0.5
    assert (pixels[:, :2, :2] == -32768).all()
    assert (pixels[:, 0, 2] != -32768).all()


def test_another_grid_is_reprojected_by_the_nearest_pixel(tmp_path, noise):
    write_scene(tmp_path / "20250605.tif", noise, left=500004, top=6250003)
    with serve(scenes=tmp_path) as server:
        client = Client(server)
        pixels, _, _ = fetch(client, WINDOW)
        inner = (slice(None), slice(1, -1), slice(1, -1))
        assert np.array_equal(pixels[inner], noise[inner])
        # The same ground in the neighbouring zone.
        to_33 = Transformer.from_crs(32632, 32633, always_xy=True)
        x, y = to_33.transform(500250, 6249800)
        block = Block(32633, 10, int(x // 10) - 5, int(-y // 10) - 5, 10, 10)
        pixels, transform, _ = fetch(client, block)
    expected = np.full((10, 10, 10), -32768, np.int16)
    reproject(
        noise, expected, src_transform=Affine(10, 0, 500004, 0, -10, 6250003), src_crs=32632,
        dst_transform=transform, dst_crs=32633, src_nodata=-32768, dst_nodata=-32768,
        resampling=Resampling.nearest,
    )  # fmt: skip
    assert (expected != -32768).all()
    assert (pixels == expected).mean() > 0.98


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nothing.tif", {}, "no GeoTIFF"),
        ("20251399.tif", {}, "not a date"),
        ("20250605.tif", {"bands": 3}, "bands"),
        ("20250605.tif", {"dtype": "float32"}, "int16"),
        ("20250605.tif", {"names": ("X", *("B1",) * 9)}, "bands"),
    ],
)
def test_folders_that_cannot_be_served_say_why(tmp_path, noise, name, change, message):
    pixels = noise[: change.get("bands", 10)].astype(change.get("dtype", "int16"))
    write_scene(tmp_path / name, pixels, names=change.get("names"))
    with pytest.raises(ValueError, match=message):
        serve(scenes=tmp_path)


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        serve(scenes=tmp_path / "nowhere")


def test_dates_are_those_of_the_scenes_that_meet_the_area(tmp_path, noise):
    write_scene(tmp_path / "20250605.tif", noise)
    write_scene(tmp_path / "20250607.tif", noise, left=600000)
    with serve(scenes=tmp_path) as server:
        imagery = server._state.imagery
        back = Transformer.from_crs(32632, 4326, always_xy=True)
        lon, lat = back.transform(500250, 6249800)
        assert imagery.dates(shapely.Point(lon, lat).buffer(1e-4)) == [date(2025, 6, 5)]
