"""Which pixels the sandbox gives, and what is in them."""

import tracemalloc
from datetime import date, timedelta

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from clearsky_xr.sandbox import serve
from clearsky_xr.sandbox._archive import Archive
from clearsky_xr.sandbox._errors import ApiError
from clearsky_xr.sandbox._imagery import Block, coarsen
from clearsky_xr.sandbox._landscape import Landscape
from clearsky_xr.sandbox._raster import Image, write
from clearsky_xr.sandbox._select import select, select_in

from .test_sandbox import TEN, Client, body

ZONE = 32632
DAY = date(2025, 6, 5)
ARCHIVE = Archive(date(2017, 1, 1), None, 5, date(2025, 1, 1))


@pytest.fixture(scope="module")
def landscape():
    return Landscape(ARCHIVE)


@pytest.fixture(scope="module")
def client():
    with serve() as server:
        yield Client(server)


def brute_force(geometry, block, mode, grow=0.0):
    """Ask shapely about every pixel square, `grow` metres larger on each side."""
    cols = block.col + np.arange(block.width)
    rows = block.row + np.arange(block.height)
    x, y = np.meshgrid(cols * block.resolution, -rows * block.resolution)
    size = block.resolution
    squares = shapely.box(x - grow, y - size - grow, x + size + grow, y + grow)
    if mode == "contained":
        return shapely.covers(geometry, squares)
    return shapely.relate_pattern(geometry, squares, "T********")


def check_selection(geometry, resolution, mode, *, strict=False):
    west, south, east, north = (v / resolution for v in geometry.bounds)
    col, row = int(np.floor(west)) - 1, int(np.floor(-north)) - 1
    frame = Block(
        ZONE, resolution, col, row, int(np.ceil(east)) + 1 - col, int(np.ceil(-south)) + 1 - row
    )
    expected = brute_force(geometry, frame, mode)
    # Where an edge grazes a pixel by less than coordinates resolve, either answer is right.
    sure = np.ones(expected.shape, bool)
    if not strict:
        sure = brute_force(geometry, frame, mode, 1e-6) == brute_force(geometry, frame, mode, -1e-6)
    try:
        block, mask = select(geometry, ZONE, resolution, mode)
    except ApiError:
        assert not (expected & sure).any()
        return
    assert mask.shape == (block.height, block.width)
    # The raster is the bounding rectangle of what is selected.
    assert all(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    chosen = select_in(frame, geometry, mode)
    assert np.array_equal(chosen[sure], expected[sure])
    assert mask.sum() == chosen.sum()


coordinate = st.one_of(
    st.floats(0, 120, allow_nan=False, width=32),
    st.integers(0, 12).map(lambda v: v * 10.0),  # on pixel corners
)
point = st.tuples(coordinate, coordinate)


@st.composite
def polygons(draw):
    """Give valid polygons: hulls, stars, slivers, holes, several parts, lattice corners."""
    points = [(500000 + x, 6250000 + y) for x, y in draw(st.lists(point, min_size=3, max_size=9))]
    shape = shapely.Polygon(points).buffer(0)
    if draw(st.booleans()):
        x, y = draw(point)
        size = draw(st.floats(0.01, 40))
        shape = shape.difference(shapely.box(500000 + x, 6250000 + y, 500000 + x + size,
                                             6250000 + y + size))  # fmt: skip
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon" and p.area > 1e-3]
    return shapely.MultiPolygon(parts)


@settings(max_examples=400, deadline=None)
@given(polygons(), st.sampled_from([10, 20, 40]), st.sampled_from(["intersect", "contained"]))
def test_selection_agrees_with_shapely(geometry, resolution, mode):
    if not geometry.is_empty and geometry.is_valid:
        check_selection(geometry, resolution, mode)


@pytest.mark.parametrize("mode", ["intersect", "contained"])
@pytest.mark.parametrize(
    "geometry",
    [
        shapely.box(20, 20, 50, 40),
        shapely.box(20.001, 20.001, 49.999, 39.999),
        shapely.box(19.999, 19.999, 50.001, 40.001),
        shapely.box(20, 20, 80, 80) - shapely.box(30, 30, 50, 50),
        shapely.box(20, 20, 80, 80) - shapely.box(31, 31, 49, 49),
        shapely.Polygon([(0, 0), (60, 20), (60, 60)]),
        shapely.Polygon([(25, 25), (25.1, 25), (25, 25.1)]),
        shapely.Polygon([(0, 5), (100, 5), (100, 5.2), (0, 5.2)]),
        shapely.Polygon([(0, 0), (100, 100), (100, 100.3), (0, 0.3)]),
        shapely.union_all([shapely.box(0, 0, 10, 10), shapely.box(10, 10, 20, 20)]),
        shapely.union_all([shapely.box(1, 1, 2, 2), shapely.box(95, 55, 96, 56)]),
    ],
    ids=str,
)
def test_selection_on_lattice_lines_and_slivers(geometry, mode):
    check_selection(geometry, 10, mode, strict=True)


def window_body(block, **changes):
    """Ask for a block by the safe recipe of contract section 6.3."""
    size = block.resolution
    box = shapely.box(
        (block.col + 0.25) * size,
        -(block.row + block.height - 0.25) * size,
        (block.col + block.width - 0.25) * size,
        -(block.row + 0.25) * size,
    )
    back = Transformer.from_crs(block.epsg, 4326, always_xy=True)
    lonlat = shapely.transform(
        shapely.segmentize(box, 1000), lambda c: np.stack(back.transform(*c.T), axis=1)
    )
    return body(
        Wkt=shapely.to_wkt(lonlat, rounding_precision=7),
        EpsgProjection=block.epsg,
        Resolution=size,
        **{"Date": str(DAY), "Bandnames": "all", **changes},
    )


def fetch(client, block, **changes):
    status, _, data = client.call(
        "/api/satelliteimages/process/composite", window_body(block, **changes)
    )
    assert status == 200, data
    with MemoryFile(data) as memory, memory.open() as source:
        return source.read(), source.transform, source.profile


@pytest.mark.parametrize("resolution", [10, 20, 80, 160])
def test_a_window_is_where_it_was_asked_and_is_part_of_any_larger_one(client, resolution):
    whole = Block(ZONE, resolution, 500000 // resolution, -6250000 // resolution, 60, 50)
    part = Block(ZONE, resolution, whole.col + 13, whole.row + 7, 21, 30)
    large, transform, _ = fetch(client, whole)
    small, corner, _ = fetch(client, part)
    assert large.shape == (10, 50, 60)
    assert small.shape == (10, 30, 21)
    size = float(resolution)
    assert transform == Affine(size, 0, whole.col * size, 0, -size, -whole.row * size)
    assert (corner.c, corner.f) == (transform.c + 13 * size, transform.f - 7 * size)
    assert np.array_equal(small, large[:, 7:37, 13:34])


@pytest.mark.parametrize("resolution", [10, 40, 1280])
def test_windows_agree_across_the_lattice_of_tiles(landscape, resolution):
    # A tile is 256 pixels of 10 m, 64 of 40 m, 32 of 1280 m.
    whole = landscape.read(Block(ZONE, resolution, 250, -620, 60, 130), DAY, 1)
    for col, row, width, height in [(251, -619, 1, 1), (255, -600, 3, 100), (260, -520, 50, 30)]:
        part = landscape.read(Block(ZONE, resolution, col, row, width, height), DAY, 1)
        inside = whole[:, row + 620 : row + 620 + height, col - 250 : col - 250 + width]
        assert np.array_equal(part, inside, equal_nan=True)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_coarse_pixels_are_means_of_the_valid_ones(landscape, factor):
    fine = landscape.read(Block(ZONE, 10, 40000, -620000, 320, 160), DAY, 1)
    coarse = landscape.read(
        Block(ZONE, 10 * factor, 40000 // factor, -620000 // factor, 320 // factor, 160 // factor),
        DAY,
        1,
    )
    groups = fine.astype(float).reshape(10, 160 // factor, factor, 320 // factor, factor)
    mean = np.ma.masked_invalid(groups).mean(axis=(2, 4)).filled(np.nan)
    assert np.allclose(coarse, mean, rtol=1e-6, equal_nan=True)


def test_coarsen_leaves_out_no_data():
    pixels = np.array([[[1, 3, np.nan, np.nan], [5, np.nan, np.nan, np.nan]]], np.float32)
    assert np.array_equal(coarsen(pixels, 2), [[[3, np.nan]]], equal_nan=True)


def test_very_coarse_rasters_stay_small(landscape):
    tracemalloc.start()
    pixels = landscape.read(Block(ZONE, 1280, 400, -4900, 110, 110), DAY, 1)  # 19,825 km2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (10, 110, 110)
    assert peak < 150e6
    assert 1000 < np.nanmean(pixels[6]) < 5000


def test_zones_days_and_versions_differ_and_nothing_else(landscape):
    block = Block(ZONE, 10, 45000, -620000, 64, 64)
    first = landscape.read(block, DAY, 1)
    assert np.array_equal(Landscape(ARCHIVE).read(block, DAY, 1), first, equal_nan=True)
    other = Block(ZONE + 1, 10, 45000, -620000, 64, 64)
    assert not np.allclose(landscape.read(other, DAY, 1), first, rtol=0.02)
    newer = landscape.read(block, DAY, 2)
    assert not np.array_equal(newer, first)
    assert np.allclose(newer, first, rtol=0.05)


def ndvi_year(landscape, epsg, block=None):
    block = block or Block(epsg, 10, 45000, -620000, 256, 256)
    days = [date(2025, 1, 1) + timedelta(days=10 * i) for i in range(36)]
    images = [landscape.read(block, day, 1) for day in days]
    return days, np.stack([(i[6] - i[2]) / (i[6] + i[2]) for i in images])


def test_the_year_looks_like_farmland(landscape):
    days, ndvi = ndvi_year(landscape, ZONE)
    assert 0 <= np.isnan(ndvi).mean() < 0.1
    valid = ndvi[:, ~np.isnan(ndvi[0])]
    assert valid.min() > 0.05
    assert valid.max() < 0.95
    means = dict(zip(days, valid.mean(axis=1), strict=True))
    assert means[date(2025, 5, 31)] > means[date(2025, 1, 1)] + 0.15
    peak = np.array([day.month for day in days])[valid.argmax(axis=0)]
    # Winter crops peak in spring, maize and beet in high summer; both are there.
    assert (np.isin(peak, (4, 5, 6))).mean() > 0.2
    assert (np.isin(peak, (7, 8, 9))).mean() > 0.1
    fields = np.ptp(valid, axis=0) > 0.4
    assert fields.mean() > 0.4


def test_the_south_is_half_a_year_off(landscape):
    days, ndvi = ndvi_year(landscape, 32732)
    by_month = {day.month: value for day, value in zip(days, np.nanmean(ndvi, axis=(1, 2)))}  # noqa: B905
    assert by_month[11] > by_month[7] + 0.1


def test_water_is_a_modest_share(landscape):
    wide = landscape.read(Block(ZONE, 640, 690, -9700, 120, 120), DAY, 1)
    fine = landscape.read(Block(ZONE, 10, 44000, -620000, 1024, 1024), DAY, 1)
    assert np.isnan(wide[0]).mean() < 0.02
    assert np.isnan(fine[0]).mean() < 0.1
    # No-data is the same in all bands.
    assert np.array_equal(np.isnan(fine).any(axis=0), np.isnan(fine).all(axis=0))


def test_indices_come_from_unrounded_reflectance(client, landscape):
    block = Block(ZONE, 10, 45000, -625000, 40, 30)
    both, _, _ = fetch(client, block, Bandnames="B8, [B8_B4],B4")
    truth = landscape.read(block, DAY, 1).astype(float)
    nir, red = truth[TEN.index("B8")], truth[TEN.index("B4")]
    index = np.where(np.isnan(nir), -32768, (nir - red) / (nir + red) * 32767)
    # Off by one at most where float32 sits between two counts.
    assert np.abs(both[1] - index).max() < 0.6
    assert np.abs(both[0] - np.where(np.isnan(nir), -32768, nir)).max() <= 0.501


def test_all_and_rgb_are_what_the_contract_says(client):
    block = Block(ZONE, 10, 45000, -625000, 5, 5)
    ten, _, _ = fetch(client, block, Bandnames="all")
    listed, _, _ = fetch(client, block, Bandnames=",".join(TEN))
    rgb, _, _ = fetch(client, block, Bandnames="rgb")
    assert np.array_equal(ten, listed)
    assert np.array_equal(rgb, ten[[2, 1, 0]])


def test_without_harmonising_counts_are_a_thousand_higher(client):
    block = Block(ZONE, 10, 45000, -625000, 5, 5)
    plain, _, _ = fetch(client, block)
    shifted, _, _ = fetch(client, block, Harmonize=False)
    assert np.array_equal(shifted, plain + 1000)


def test_unselected_pixels_are_no_data(client):
    triangle = "POLYGON ((9.87 56.37, 9.89 56.37, 9.87 56.36, 9.87 56.37))"
    pixels, profile, _, _ = client.image(Wkt=triangle, Bandnames="B8")
    assert profile["nodata"] == -32768
    assert 0.3 < (pixels == -32768).mean() < 0.6
    inner, *_ = client.image(Wkt=triangle, Bandnames="B8", PixelSelectionMode="contained")
    assert (inner != -32768).sum() < (pixels != -32768).sum()


def test_47000_takes_the_zone_of_the_centre(client):
    assert client.image(EpsgProjection=47000)[1]["crs"].to_epsg() == 32632
    south = "POLYGON ((25 -29, 25.01 -29, 25.01 -28.99, 25 -28.99, 25 -29))"
    assert client.image(EpsgProjection=47000, Wkt=south)[1]["crs"].to_epsg() == 32735


def test_versions_grow_and_show():
    with serve() as server:
        client = Client(server)
        before, _, tags, _ = client.image()
        assert tags["IMAGE_VERSION"] == "1"
        assert server.regenerate(date(2025, 4, 1)) == 2
        after, _, tags, _ = client.image()
        assert tags["IMAGE_VERSION"] == "2"
        assert not np.array_equal(before, after)
        assert client.image(Date="2025-04-06")[2]["IMAGE_VERSION"] == "1"


@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd", "none"])
@pytest.mark.parametrize("plain", [False, True])
def test_layouts_hold_the_same_pixels(compression, plain):
    rng = np.random.default_rng(1)
    image = Image(
        rng.integers(-500, 9000, (3, 300, 260), dtype=np.int16),
        ZONE,
        Affine(10, 0, 500000, 0, -10, 6250000),
        -32768,
        {"IMAGE_DATE": "20250605"},
        ("B2", "[B8_B4]", "B8A"),
    )
    data = write(image, plain=plain, compression=compression)
    with MemoryFile(data) as memory, memory.open() as source:
        assert np.array_equal(source.read(), image.pixels)
        assert source.profile["tiled"] is not plain
        assert source.descriptions == ((None,) * 3 if plain else image.layers)
        assert source.tags()["IMAGE_DATE"] == "20250605"
        assert source.profile.get("compress", "none") == compression


def test_rasters_without_end_are_refused(client):
    far = (
        "MULTIPOLYGON (((7 50, 7.01 50, 7.01 50.01, 7 50)), ((11 60, 11.01 60, 11.01 60.01, "
        "11 60)))"
    )
    status, envelope = client.json("/api/satelliteimages/process/composite", body(Wkt=far))
    assert (status, list(envelope["Data"])) == (400, ["Geometry"])


def test_the_archive_counts_from_its_anchor():
    archive = Archive(date(2025, 1, 2), date(2025, 1, 31), 7, date(2025, 1, 1))
    assert [day.day for day in archive.days()] == [8, 15, 22, 29]
    assert date(2025, 1, 8) in archive
    assert date(2025, 1, 9) not in archive
    assert date(2025, 2, 5) not in archive
    assert Archive(date(2025, 1, 2), date(2025, 1, 3), 7, date(2025, 1, 1)).days() == []


def test_rasterio_has_no_say_in_the_grid():
    # A file's own creation must not depend on the caller's GDAL settings.
    with rasterio.Env(GTIFF_POINT_GEO_IGNORE="YES"), serve() as server:
        assert Client(server).image()[1]["transform"].c % 10 == 0
