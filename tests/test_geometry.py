"""What is sent for a pixel set selects exactly that set, by a service of our own making.

The service reads the WKT with its own little parser, takes each vertex to UTM with a transformer
of its own, and finds the pixels that share interior with what lies between (contract, section 13).
"""

import json
import math
import re

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clearsky_xr._geometry import area_km2, bounds_km2, outline, wkt
from clearsky_xr._pixels import PixelSet, Window

PROPERTY = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

RESOLUTIONS = (10, 20, 40, 80, 160, 320, 640, 1280)
PLAIN = r"-?\d+(?:\.\d{1,7})?"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-\d+)?"
PAD = 3


def read_wkt(text):
    """Rings of each polygon, as arrays of (longitude, latitude)."""
    kind, _, body = text.partition(" ")
    assert kind in ("POLYGON", "MULTIPOLYGON")
    pairs = re.sub(rf"({NUMBER}) ({NUMBER})", r"[\1,\2]", body)
    polygons = json.loads(pairs.replace("(", "[").replace(")", "]"))
    polygons = [polygons] if kind == "POLYGON" else polygons
    return [[np.array(ring) for ring in rings] for rings in polygons]


def served(text, epsg, *, straight_in_degrees=False):
    """The geometry in UTM as the service draws it."""
    way = pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True)
    drawn = []
    for shell, *holes in read_wkt(text):
        shape = shapely.Polygon(shell, holes)
        if straight_in_degrees:
            shape = shapely.segmentize(shape, 0.001)
        drawn.append(shapely.transform(shape, lambda xy: np.column_stack(way.transform(*xy.T))))
    return drawn


def selected(polygons, window, resolution):
    """Which pixels of the window share interior with one of the polygons: exact, by shapely."""
    mask = np.zeros(window.shape, bool)
    for polygon in polygons:
        # Only the pixels in the bounding box of a part can be met by it.
        left, bottom, right, top = np.array(polygon.bounds) / resolution
        row0, row1 = math.floor(-top), math.floor(-bottom) + 1
        col0, col1 = math.floor(left), math.floor(right) + 1
        assert Window(row0, row1, col0, col1) in window, "drawn outside the padded window"
        cols, rows = np.meshgrid(np.arange(col0, col1), np.arange(row0, row1))
        squares = shapely.box(
            cols * resolution, -(rows + 1) * resolution, (cols + 1) * resolution, -rows * resolution
        )
        shapely.prepare(polygon)
        met = shapely.intersects(polygon, squares)
        # Touching is not sharing: decide the few that only might touch by their common surface.
        edge = met & ~shapely.contains_properly(polygon, squares)
        met[edge] = shapely.relate_pattern(polygon, squares[edge], "T********")
        mask[window.slices(Window(row0, row1, col0, col1))] |= met
    return mask


def burnt(polygons, window, resolution):
    """The same by GDAL, every touched pixel."""
    transform = Affine(
        resolution, 0, window.col0 * resolution, 0, -resolution, -window.row0 * resolution
    )
    return rasterio.features.rasterize(
        polygons, window.shape, transform=transform, all_touched=True, dtype="uint8"
    ).astype(bool)


def assert_selects_itself(pixels, epsg, resolution, *, exact=True):
    text = wkt(outline(pixels, epsg, resolution))
    window = pixels.window
    padded = Window(window.row0 - PAD, window.row1 + PAD, window.col0 - PAD, window.col1 + PAD)
    expected = np.pad(pixels.dense, PAD)
    for straight_in_degrees in (False, True):
        polygons = served(text, epsg, straight_in_degrees=straight_in_degrees)
        assert all(polygon.is_valid for polygon in polygons)
        assert (burnt(polygons, padded, resolution) == expected).all()
        if exact:
            assert (selected(polygons, padded, resolution) == expected).all()
    return polygons


@st.composite
def lattices(draw, resolutions=RESOLUTIONS):
    """A zone, a resolution, and the row and column of a place in it.

    Latitudes to 75 on both sides of the equator, longitudes to the zone's edge and 0.6 degrees
    beyond.
    """
    zone, north = draw(st.integers(1, 60)), draw(st.booleans())
    lat = draw(st.floats(0, 75)) * (1 if north else -1)
    lon = 6 * zone - 183 + draw(st.floats(-3.6, 3.6))
    epsg = (32600 if north else 32700) + zone
    resolution = draw(st.sampled_from(resolutions))
    proj = pyproj.Proj(proj="utm", zone=zone, south=not north, ellps="WGS84")
    x, y = proj(lon, lat)
    return epsg, resolution, round(-y / resolution), round(x / resolution)


def fits(height, width, resolution):
    # A request may not cost more than 2000 credits, 20 000 km2; three times that is ample.
    return height * width * resolution**2 <= 60_000e6 and max(height, width) * resolution <= 700e3


SIDES = st.one_of(st.integers(1, 4), st.integers(1, 300), st.sampled_from([256, 512, 1024, 2048]))


@PROPERTY
@given(lattice=lattices(), height=SIDES, width=SIDES)
def test_any_rectangle_selects_itself(lattice, height, width):
    epsg, resolution, row, col = lattice
    assume(fits(height, width, resolution))
    pixels = PixelSet(Window(row, row + height, col, col + width))
    # Exactly on small ones; on large ones GDAL alone, which is stricter: it burns all it touches.
    assert_selects_itself(pixels, epsg, resolution, exact=height * width < 20_000)


def test_the_largest_rectangle_that_a_request_may_be():
    assert_selects_itself(
        PixelSet(Window(-512_000, -509_952, 50_000, 52_048)), 32633, 10, exact=False
    )


def star(rng, height, width):
    """Pixels of a ragged polygon with holes and slivers."""
    corners = int(rng.integers(4, 30))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.05, 0.5, corners)
    ring = np.column_stack([np.sin(angles), np.cos(angles)]) * radii[:, None] + 0.5
    shape = shapely.Polygon(ring).buffer(0)
    hole = shapely.transform(shape, lambda xy: (xy - 0.5) * rng.uniform(0.2, 0.7) + 0.5)
    strip = shapely.LineString(rng.uniform(0, 1, (2, 2))).buffer(0.3 / max(height, width))
    shape = (shape - hole) | strip
    shape = shapely.transform(shape, lambda xy: xy * [width, height])
    return rasterio.features.rasterize(
        [shape], (height, width), all_touched=bool(rng.integers(2)), dtype="uint8"
    ).astype(bool)


def scattered(rng, height, width):
    mask = np.zeros((height, width), bool)
    count = int(rng.integers(1, 60))
    mask[rng.integers(0, height, count), rng.integers(0, width, count)] = True
    return mask


def checkerboard(rng, height, width):
    rows, cols = np.indices((height, width))
    return (rows + cols) % 2 == rng.integers(2)


def diagonals(rng, height, width):
    """Strips whose pixels touch at corners, crossing each other."""
    rows, cols = np.indices((height, width))
    step = int(rng.integers(2, 9))
    return ((rows + cols) % step == 0) | ((rows - cols) % int(rng.integers(3, 11)) == 0)


def single_row(rng, height, width):
    mask = np.zeros((height, width), bool)
    mask[rng.integers(height)] = rng.random(width) < rng.choice([0.3, 0.9])
    return mask if rng.integers(2) else mask.T[:height, :width]


def noise(rng, height, width):
    return rng.random((height, width)) < rng.choice([0.1, 0.5, 0.6, 0.9, 0.98])


def rings(rng, height, width):
    """Frames inside each other, which touch at corners where they are broken."""
    rows, cols = np.indices((height, width))
    depth = np.minimum.reduce([rows, cols, height - 1 - rows, width - 1 - cols])
    mask = depth % 2 == 0
    mask[rng.random((height, width)) < 0.03] ^= True
    return mask


def steps(rng, height, width):
    mask = np.zeros((height, width), bool)
    mask[:: int(rng.integers(1, 5)), :: int(rng.integers(1, 5))] = True
    return mask


KINDS = (star, scattered, checkerboard, diagonals, single_row, noise, rings, steps)


@PROPERTY
@given(
    lattice=lattices(),
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 45),
    width=st.integers(1, 45),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_pixel_set_selects_itself(lattice, kind, height, width, seed):
    epsg, resolution, row, col = lattice
    mask = kind(np.random.default_rng(seed), height, width)
    pixels = PixelSet(Window(row, row + mask.shape[0], col, col + mask.shape[1]), mask).tight()
    assume(pixels is not None)
    assert_selects_itself(pixels, epsg, resolution)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lattice=lattices(resolutions=(10, 20)),
    kind=st.sampled_from((star, scattered, single_row)),
    seed=st.integers(0, 2**32 - 1),
)
def test_large_pixel_sets_select_themselves(lattice, kind, seed):
    epsg, resolution, row, col = lattice
    rng = np.random.default_rng(seed)
    height, width = rng.integers(300, 1500, 2)
    mask = kind(rng, height, width)
    pixels = PixelSet(Window(row, row + mask.shape[0], col, col + mask.shape[1]), mask).tight()
    assume(pixels is not None)
    assert_selects_itself(pixels, epsg, resolution, exact=False)


# All sets of pixels in a window of 3 x 3: every way in which pixels can touch and enclose.
def test_every_set_of_three_by_three_pixels_selects_itself():
    for code in range(1, 2**9):
        mask = np.array([code >> bit & 1 for bit in range(9)], bool).reshape(3, 3)
        pixels = PixelSet(Window(-512_000, -511_997, 50_000, 50_003), mask)
        text = wkt(outline(pixels, 32633, 10))
        window = Window(-512_003, -511_994, 49_997, 50_006)
        assert (selected(served(text, 32633), window, 10) == np.pad(mask, 3)).all(), mask


def test_pixels_that_touch_at_a_corner_become_separate_polygons():
    corner = outline(PixelSet(Window(0, 2, 50_000, 50_002), np.eye(2, dtype=bool)), 32633, 10)
    assert corner.geom_type == "MultiPolygon"
    assert len(corner.geoms) == 2
    side = outline(PixelSet(Window(0, 2, 50_000, 50_001)), 32633, 10)
    assert side.geom_type == "Polygon"
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert len(outline(PixelSet(Window(0, 3, 50_000, 50_003), ring), 32633, 10).interiors) == 1


@pytest.mark.parametrize("lon", [0.0, 2e-5, -1.3e-5])
@pytest.mark.parametrize("lat", [0.0, 51.4778])
def test_numbers_near_zero_are_written_plainly(lon, lat):
    """At Greenwich and at the equator: readers of WKT differ about exponents such as 1e-05."""
    x, y = pyproj.Proj(proj="utm", zone=31, ellps="WGS84")(lon, lat)
    for shift in range(-2, 3):
        row, col = round(-y / 10), round(x / 10) + shift
        for window in (
            Window(row - 4, row + 4, col - 3, col + 3),
            Window(row, row + 1, col, col + 1),
        ):
            text = wkt(outline(PixelSet(window), 32631, 10))
            assert re.fullmatch(rf"POLYGON \(\({PLAIN} {PLAIN}(, {PLAIN} {PLAIN})+\)\)", text), text
            assert_selects_itself(PixelSet(window), 32631, 10)


def test_long_edges_are_cut_every_kilometre():
    text = wkt(outline(PixelSet(Window(-512_000, -511_000, 50_000, 50_900)), 32633, 10))
    ((ring,),) = read_wkt(text)
    way = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    metres = np.column_stack(way.transform(*ring.T))
    assert np.hypot(*np.diff(metres, axis=0).T).max() <= 1000.1
    assert len(ring) == 2 * (10 + 9) + 1


def ring_km2(ring):
    return abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*ring.T)[0]) / 1e6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lattice=lattices(),
    kind=st.sampled_from(KINDS),
    side=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_surface_is_that_of_the_ellipsoid(lattice, kind, side, seed):
    epsg, resolution, row, col = lattice
    mask = kind(np.random.default_rng(seed), side, side)
    pixels = PixelSet(Window(row, row + side, col, col + side), mask).tight()
    assume(pixels is not None)
    geometry = outline(pixels, epsg, resolution)
    rings = read_wkt(wkt(geometry))
    expected = sum(ring_km2(shell) - sum(map(ring_km2, holes)) for shell, *holes in rings)
    # 1e-5 km2 is 10 m2, a ten-thousandth of what the smallest charge covers.
    assert area_km2(geometry) == pytest.approx(expected, rel=1e-9, abs=1e-8)
    lon, lat = np.concatenate([shell for shell, *_ in rings]).T
    corners = np.array(
        [
            (lon.min(), lat.min()),
            (lon.max(), lat.min()),
            (lon.max(), lat.max()),
            (lon.min(), lat.max()),
        ]
    )
    assert bounds_km2(geometry) == pytest.approx(ring_km2(corners), rel=1e-9, abs=1e-8)


def test_the_surface_does_not_depend_on_how_rings_turn():
    shell = [(15, 46), (15.1, 46), (15.1, 46.1), (15, 46.1)]
    hole = [(15.02, 46.02), (15.04, 46.02), (15.04, 46.04), (15.02, 46.04)]
    areas = {
        round(area_km2(shapely.Polygon(shell[::a], [hole[::b]])), 9)
        for a in (1, -1)
        for b in (1, -1)
    }
    whole, gap = ring_km2(np.array(shell)), ring_km2(np.array(hole))
    assert len(areas) == 1
    assert areas.pop() == pytest.approx(whole - gap)


def test_the_rectangle_whose_bill_was_seen():
    """Contract, section 12: 997.94 km2."""
    seen = shapely.from_wkt(
        "POLYGON ((13.53241 57.370977, 13.53241 57.585087, 14.230042 57.585087, "
        "14.230042 57.370977, 13.53241 57.370977))"
    )
    assert round(area_km2(seen), 2) == 997.94
    assert round(bounds_km2(seen), 2) == 997.94
