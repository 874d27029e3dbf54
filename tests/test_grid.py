"""Grids: on the lattice, around the area, and no larger than that."""

import itertools

import numpy as np
import pyproj
import pytest
import rasterio.crs
import rioxarray  # noqa: F401  the .rio accessor
import shapely
import xarray as xr
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_zeros

from clearsky_xr._grid import RESOLUTIONS, TOLERANCE, Grid, covering, resolve_grid, utm_epsg
from clearsky_xr._pixels import Window
from clearsky_xr.errors import InvalidGridError

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)

AREA = shapely.box(15.05, 46.05, 15.06, 46.06)


def resolve(area=AREA, *, resolution=None, crs="auto", like=None):
    return resolve_grid(area, resolution=resolution, crs=crs, like=like)


def utm_points(area, epsg, step=0.002):
    """The outline of an area in UTM, finely cut, by a transformer of our own."""
    way = pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True)
    parts = [shapely.get_coordinates(shapely.segmentize(area, step))]
    return np.column_stack(way.transform(*np.concatenate(parts).T))


@st.composite
def areas(draw):
    """Boxes and triangles anywhere between the ends of UTM, from a metre to 150 km."""
    lon, lat = draw(st.floats(-177, 176)), draw(st.floats(-79, 82))
    size = draw(st.sampled_from([1e-5, 1e-3, 0.02, 0.3, 1.3]))
    width = size / np.cos(np.radians(lat)) * draw(st.floats(0.2, 1))
    height = size * draw(st.floats(0.2, 1))
    if draw(st.booleans()):
        return shapely.box(lon, lat, lon + width, lat + height)
    return shapely.Polygon([(lon, lat), (lon + width, lat + height / 3), (lon, lat + height)])


@PROPERTY
@given(area=areas(), resolution=st.sampled_from(RESOLUTIONS), beside=st.integers(-1, 1))
def test_any_area_gets_the_smallest_grid_of_the_lattice_that_covers_it(area, resolution, beside):
    epsg = utm_epsg(area)
    zone = epsg % 100 + beside
    assume(1 <= zone <= 60)
    crs = epsg // 100 * 100 + zone
    meridian = 6 * zone - 183
    west, _, east, _ = area.bounds
    assume(max(abs(west - meridian), abs(east - meridian)) < 9)
    grid = resolve(area, resolution=resolution, crs=crs)
    assert (grid.epsg, grid.resolution) == (crs, resolution)
    bounds = np.array(grid.bounds())
    assert (bounds % resolution == 0).all()
    assert grid.shape == (
        (bounds[3] - bounds[1]) / resolution,
        (bounds[2] - bounds[0]) / resolution,
    )
    assert min(grid.shape) >= 1
    x, y = utm_points(area, crs).T
    needed = np.array([x.min(), y.min(), x.max(), y.max()])
    # How far the grid reaches beyond the area: left, bottom, right, top, in pixels.
    slack = (needed - bounds) * [1, 1, -1, -1] / resolution
    # An edge bows by centimetres between the vertices that either side cuts it into.
    spare = TOLERANCE + 0.03 / resolution
    assert (slack >= -spare).all()
    assert (slack <= 1 + spare).all()


@pytest.mark.parametrize("lat", [-60.0, -46.0, 46.0, 60.0, 75.0])
def test_edges_across_the_meridian_bow_out_of_their_corners(lat):
    """By 300 m here: a grid around the projected corners alone would cut the area."""
    area = shapely.box(14.0, lat, 15.8, lat + 1)
    epsg = utm_epsg(area)
    grid = resolve(area)
    x, y = utm_points(area, epsg).T
    left, bottom, right, top = grid.bounds()
    assert left == np.floor(x.min() / 10) * 10
    assert bottom == np.floor(y.min() / 10) * 10
    assert right == np.ceil(x.max() / 10) * 10
    assert top == np.ceil(y.max() / 10) * 10
    corners = utm_points(area, epsg, step=10)
    assert y.min() < corners[:, 1].min() - 100 or y.max() > corners[:, 1].max() + 100


@PROPERTY
@given(
    lon=st.floats(9.1, 14.9),
    lat=st.floats(-70, 70),
    resolution=st.sampled_from(RESOLUTIONS),
    shift=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
)
def test_two_areas_of_one_zone_share_one_lattice(lon, lat, resolution, shift):
    one = shapely.box(lon, lat, lon + 0.03, lat + 0.03)
    other = shapely.transform(one, lambda xy: xy + shift)
    first, second = (
        resolve(area, resolution=resolution, crs=32633).geobox.affine for area in (one, other)
    )
    assert (first.a, first.b, first.d, first.e) == (second.a, second.b, second.d, second.e)
    assert (first.c - second.c) % resolution == 0
    assert (first.f - second.f) % resolution == 0


def test_the_zone_is_the_one_of_the_middle():
    for lon, zone in ((-180, 1), (-174.01, 1), (-173.9, 2), (-0.1, 30), (0.1, 31), (15, 33),
                      (179.9, 60)):  # fmt: skip
        for lat, hemisphere in ((46, 32600), (-46, 32700), (0.1, 32600), (-0.1, 32700)):
            area = shapely.box(lon, lat, lon + 0.01, lat + 0.01)
            assert utm_epsg(area) == hemisphere + zone
            assert pyproj.CRS(hemisphere + zone).name.endswith(
                f"UTM zone {zone}{'N' if lat > 0 else 'S'}"
            )
    assert utm_epsg(shapely.box(179.98, 1, 180, 2)) == 32660
    assert utm_epsg(shapely.box(11.9, -1, 12.3, 1.1)) == 32633


def test_a_known_grid():
    grid = resolve()
    # Corners by PROJ's plain projection, without its database of CRSs.
    proj = pyproj.Proj(proj="utm", zone=33, ellps="WGS84")
    x, y = proj([15.05, 15.06, 15.05, 15.06], [46.05, 46.05, 46.06, 46.06])
    assert grid.epsg == 32633
    assert grid.bounds() == (
        np.floor(min(x) / 10) * 10,
        np.floor(min(y) / 10) * 10,
        np.ceil(max(x) / 10) * 10,
        np.ceil(max(y) / 10) * 10,
    )
    box = grid.geobox
    assert box.crs.to_epsg() == 32633
    assert box.shape == grid.shape
    assert tuple(box.boundingbox.bbox) == grid.bounds()
    assert box.affine == Affine(10, 0, grid.bounds()[0], 0, -10, grid.bounds()[3])
    assert rasterio.transform.array_bounds(*grid.shape, box.affine) == grid.bounds()


def test_the_southern_hemisphere_grows_southwards_too():
    area = shapely.box(150.0, -34.0, 150.01, -33.99)
    grid = resolve(area)
    assert grid.epsg == 32756
    left, bottom, _, top = grid.bounds()
    assert 6_000_000 < bottom < top < 7_000_000
    assert grid.window.row0 == -top / 10
    assert grid.window.col0 == left / 10
    northern = resolve(area, crs=32656)
    assert northern.bounds()[3] < 0
    assert (northern.bounds()[3] + 10_000_000 - top) % 10 == 0


def test_an_area_drawn_along_pixel_edges_buys_no_rim():
    to_degrees = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    for left, top, width, height in itertools.product(
        (500_000, 460_590), (5_099_540,), (1, 7), (1, 3)
    ):
        right, bottom = left + width * 10, top - height * 10
        ring = [(left, top), (right, top), (right, bottom), (left, bottom)]
        corners = [to_degrees.transform(*corner) for corner in ring]
        exact = shapely.Polygon(corners)
        assert resolve(exact, crs=32633).bounds() == (left, bottom, right, top)
        # With ten decimals, a hundredth of a millimetre, too.
        rounded = shapely.Polygon(np.round(corners, 10))
        assert resolve(rounded, crs=32633).bounds() == (left, bottom, right, top)


def test_bounds_of_a_window():
    grid = Grid(32633, 20, Window(-250_000, -249_990, 25_000, 25_030))
    assert grid.shape == (10, 30)
    assert grid.bounds() == (500_000, 4_999_800, 500_600, 5_000_000)
    assert grid.bounds(Window(-249_999, -249_998, 25_001, 25_003)) == (
        500_020, 4_999_960, 500_060, 4_999_980)  # fmt: skip


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_offered_resolutions(resolution):
    assert resolve(resolution=resolution).resolution == resolution
    assert resolve(resolution=float(resolution)).resolution == resolution
    assert resolve(resolution=np.int64(resolution)).resolution == resolution
    assert isinstance(resolve(resolution=float(resolution)).resolution, int)


@pytest.mark.parametrize(
    "resolution", [0, 1, 5, 30, -10, 2560, 10.5, "10", "10m", float("nan"), [10], (10, 10), True]
)
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(InvalidGridError, match="not offered") as caught:
        resolve(resolution=resolution)
    assert "10, 20, 40, 80, 160, 320, 640, 1280" in caught.value.hint


@pytest.mark.parametrize(
    "crs",
    [
        32633,
        np.int32(32633),
        "EPSG:32633",
        "epsg:32633",
        pyproj.CRS(32633),
        rasterio.crs.CRS.from_epsg(32633),
        GeoBox.from_bbox((0, 0, 10, 10), "EPSG:32633", resolution=10).crs,
        pyproj.CRS(32633).to_wkt(),
    ],
    ids=lambda crs: type(crs).__name__,
)
def test_forms_of_a_crs(crs):
    assert resolve(crs=crs).epsg == 32633


@pytest.mark.parametrize("crs", [None, "auto", "AUTO"])
def test_automatic_crs(crs):
    assert resolve(crs=crs).epsg == 32633


@pytest.mark.parametrize(
    "crs", [4326, 3857, 47000, 23033, 32600, 32661, 32761, 32700, 0, -32633, "EPSG:3035", True]
)
def test_what_is_no_utm_zone_is_refused(crs):
    with pytest.raises(InvalidGridError, match="UTM zone"):
        resolve(crs=crs)


@pytest.mark.parametrize("crs", ["somewhere", "EPSG:999999", "", b"32633", 32633.5, object(), []])
def test_what_is_no_crs_is_refused(crs):
    with pytest.raises(InvalidGridError, match="CRS"):
        resolve(crs=crs)


@pytest.mark.parametrize("crs", [32601, 32631, 32635, 32660])
def test_a_zone_far_from_the_area_is_refused(crs):
    with pytest.raises(InvalidGridError, match="9 degrees") as caught:
        resolve(crs=crs)
    assert "auto" in caught.value.hint


def test_a_neighbouring_zone_and_the_other_hemisphere_are_allowed():
    assert resolve(crs=32632).epsg == 32632
    assert resolve(crs=32634).epsg == 32634
    assert resolve(crs=32733).bounds()[1] > 10_000_000


def test_too_wide_an_area_is_refused():
    with pytest.raises(InvalidGridError, match="split"):
        resolve(shapely.box(-10, 45, 10, 46))


LIKE = GeoBox.from_bbox((503_860, 5_099_540, 504_660, 5_100_670), "EPSG:32633", resolution=10)


def as_rio(box):
    xs = box.affine.c + (np.arange(box.width) + 0.5) * box.affine.a
    ys = box.affine.f + (np.arange(box.height) + 0.5) * box.affine.e
    array = xr.DataArray(np.zeros(box.shape), coords={"y": ys, "x": xs}, dims=("y", "x"))
    return array.rio.write_crs(box.crs.to_epsg())


@pytest.mark.parametrize(
    "like",
    [
        lambda: LIKE,
        lambda: xr_zeros(LIKE),
        lambda: xr_zeros(LIKE).to_dataset(name="a"),
        lambda: as_rio(LIKE),
        lambda: as_rio(LIKE).to_dataset(name="a"),
        lambda: as_rio(LIKE).expand_dims(time=2),
    ],
    ids=["GeoBox", "odc array", "odc dataset", "rio array", "rio dataset", "rio series"],
)
def test_like_takes_exactly_its_grid(like):
    grid = resolve(like=like())
    assert grid.bounds() == (503_860, 5_099_540, 504_660, 5_100_670)
    assert (grid.epsg, grid.resolution, grid.shape) == (32633, 10, (113, 80))
    assert grid.geobox == LIKE
    assert resolve(like=like(), resolution=10, crs=32633) == grid


def test_like_at_another_resolution_and_in_the_south():
    # 1280 m x (170 .. 180, 4875 .. 4885); the area lies near (222 900, 6 245 000).
    box = GeoBox((10, 10), Affine(1280, 0, 217_600, 0, -1280, 6_252_800), "EPSG:32756")
    area = shapely.box(150.0, -33.9, 150.01, -33.89)
    assert resolve(area, like=box).geobox == box


def geobox(bounds, crs="EPSG:32633", **options):
    return GeoBox.from_bbox(bounds, crs, **options)


BAD_LIKE = {
    "half a pixel off": (
        geobox((503_865, 5_099_545, 504_665, 5_100_675), resolution=10, tight=True),
        "multiples",
    ),
    "off in x": (
        GeoBox((10, 10), Affine(10, 0, 503_864, 0, -10, 5_100_000), "EPSG:32633"),
        "multiples",
    ),
    "off in y": (
        GeoBox((10, 10), Affine(10, 0, 503_860, 0, -10, 5_100_004), "EPSG:32633"),
        "multiples",
    ),
    "30 m": (geobox((503_850, 5_099_520, 504_660, 5_100_660), resolution=30), "not offered"),
    "not square": (
        GeoBox((10, 10), Affine(10, 0, 503_860, 0, -20, 5_100_000), "EPSG:32633"),
        "square",
    ),
    "south up": (
        GeoBox((10, 10), Affine(10, 0, 503_860, 0, 10, 5_099_000), "EPSG:32633"),
        "north-up",
    ),
    "rotated": (
        GeoBox((10, 10), Affine(10, 1, 503_860, 1, -10, 5_100_000), "EPSG:32633"),
        "north-up",
    ),
    "degrees": (geobox((15.05, 46.05, 15.06, 46.06), "EPSG:4326", resolution=0.001), "UTM"),
    "Mercator": (geobox((0, 0, 100, 100), "EPSG:3857", resolution=10), "UTM"),
    "no CRS": (
        GeoBox((113, 80), Affine(10, 0, 503_860, 0, -10, 5_100_670), None),
        "its grid and CRS",
    ),
    "beside the area": (geobox((600_000, 5_099_540, 600_100, 5_099_640), resolution=10), "beside"),
    "another zone": (
        geobox((503_860, 5_099_540, 504_660, 5_100_670), "EPSG:32632", resolution=10),
        "beside",
    ),
    "far zone": (geobox((0, 0, 100, 100), "EPSG:32601", resolution=10), "degrees"),
    "array without CRS": (
        xr.DataArray(
            np.zeros((3, 3)), dims=("y", "x"), coords={"y": [25.0, 15, 5], "x": [5.0, 15, 25]}
        ),
        "CRS",
    ),
    "array without coordinates": (xr.DataArray(np.zeros((3, 3)), dims=("y", "x")), "CRS"),
    "table": (xr.Dataset({"a": ("time", [1, 2])}), "CRS"),
    "number": (5, "CRS"),
    "text": ("EPSG:32633", "CRS"),
}


@pytest.mark.parametrize("case", BAD_LIKE)
def test_bad_likes_are_refused(case):
    like, words = BAD_LIKE[case]
    with pytest.raises(InvalidGridError) as caught:
        resolve(like=like)
    assert words in str(caught.value)


def test_like_contradicts_nothing():
    with pytest.raises(InvalidGridError, match=r"resolution=20 contradicts like=, which has 10 m"):
        resolve(like=LIKE, resolution=20)
    with pytest.raises(InvalidGridError, match=r"crs=32632 contradicts like=.* EPSG:32633"):
        resolve(like=LIKE, crs=32632)


def test_covering_of_a_speck_is_one_pixel():
    speck = shapely.box(15.0500001, 46.0500001, 15.0500002, 46.0500002)
    assert covering(speck, 32633, 10).shape == (1, 1)
