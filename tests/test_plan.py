"""Covers: what is wanted is bought once, within the bounds, and never dearer than need be."""

import math

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import clearsky_xr._plan as plan
from clearsky_xr._pixels import PixelSet, Window
from clearsky_xr._plan import Bounds, cover

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)

EPSG, ROW, COL = 32633, -512_000, 50_000
WIDE = Bounds(pixels=10**9)
BILLINGS = ("geometry", "bbox")

GEOD = pyproj.Geod(ellps="WGS84")


def price(km2):
    """The contract's formula, section 8.2."""
    return max(0.01, round(km2 * 0.1, 2))


def surface(geometry):
    """Geodesic surface, km2, ring by ring."""
    total = 0.0
    for part in shapely.get_parts(geometry):
        for sign, ring in [(1, part.exterior), *((-1, hole) for hole in part.interiors)]:
            lon, lat = shapely.get_coordinates(ring).T
            total += sign * abs(GEOD.polygon_area_perimeter(lon, lat)[0])
    return total / 1e6


def window_price(window, billing, resolution=10):
    """The price of a full window, its geometry drawn by ourselves."""
    left, right = (window.col0 + 0.25) * resolution, (window.col1 - 0.25) * resolution
    bottom, top = (-window.row1 + 0.25) * resolution, (-window.row0 - 0.25) * resolution
    way = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
    box = shapely.segmentize(shapely.box(left, bottom, right, top), 500)
    degrees = shapely.transform(box, lambda xy: np.column_stack(way.transform(*xy.T)))
    return price(surface(degrees if billing == "geometry" else shapely.box(*degrees.bounds)))


def pixel_set(mask, resolution=10):
    """Put a mask at 46 N in the middle of the zone, whatever the resolution."""
    row, col = ROW * 10 // resolution, COL * 10 // resolution
    window = Window(row, row + mask.shape[0], col, col + mask.shape[1])
    return PixelSet(window, np.asarray(mask, bool)).tight()


def total(pieces):
    return round(sum(piece.credits for piece in pieces), 2)


def assert_covers(pixels, pieces, bounds, billing):
    """Contain, do not overlap, respect the bounds, and are priced as they are sent."""
    window = pixels.window
    times = np.zeros(window.shape, int)
    for piece in pieces:
        assert piece.pixels.window in window
        times[window.slices(piece.pixels.window)] += piece.pixels.dense
        assert piece.pixels.window.size <= bounds.pixels
        sent = shapely.from_wkt(piece.wkt)
        billed = surface(sent if billing == "geometry" else shapely.box(*sent.bounds))
        assert piece.area_km2 == pytest.approx(billed, rel=1e-9, abs=1e-9)
        # A rounding of exactly half a cent of a credit may fall on either side.
        assert piece.credits == pytest.approx(price(billed), abs=0.0101 * (billed % 0.1 < 1e-9))
        if len(piece.pixels) > 1:
            assert piece.area_km2 <= bounds.area_km2
            assert piece.credits <= 2000
        if piece.pixels.mask is None:
            assert not piece.unsure
    assert times.max() <= 1
    assert (times[pixels.dense] == 1).all()


def assert_no_dearer_than_simple_ways(pixels, pieces, billing):
    assert total(pieces) <= window_price(pixels.window, billing) + 1e-9
    # A pixel of 10 m costs the minimum.
    assert total(pieces) <= 0.01 * len(pixels) + 1e-9


def clusters(rng, side):
    mask = np.zeros((side, side), bool)
    for _ in range(int(rng.integers(1, 8))):
        r, c = rng.integers(0, side, 2)
        h, w = rng.integers(1, max(2, side // 8), 2)
        mask[r : r + h, c : c + w] |= rng.random(mask[r : r + h, c : c + w].shape) < 0.7
    return mask


def strip(rng, side):
    rows, cols = np.indices((side, side))
    return np.abs(rows - cols) <= rng.integers(0, 6)


def corner(rng, side):
    mask = np.zeros((side, side), bool)
    thick = int(rng.integers(1, 20))
    mask[-thick:] = mask[:, :thick] = True
    return mask


def ring(rng, side):
    mask = np.ones((side, side), bool)
    thick = int(rng.integers(1, 12))
    mask[thick:-thick, thick:-thick] = False
    return mask


def points(rng, side):
    mask = np.zeros((side, side), bool)
    mask[tuple(rng.integers(0, side, (2, int(rng.integers(1, 60)))))] = True
    return mask


def disc(rng, side):
    rows, cols = np.indices((side, side)) - side / 2
    return rows**2 + cols**2 < (side * rng.uniform(0.2, 0.5)) ** 2


def full(rng, side):
    return np.ones((side, int(rng.integers(1, side + 1))), bool)


SHAPES = (clusters, strip, corner, ring, points, disc, full)


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    side=st.one_of(st.integers(1, 40), st.integers(40, 900)),
    billing=st.sampled_from(BILLINGS),
    seed=st.integers(0, 2**32 - 1),
)
def test_covers_without_bounds(shape, side, billing, seed):
    mask = shape(np.random.default_rng(seed), side)
    assume(mask.any())
    pixels = pixel_set(mask)
    pieces = cover(pixels, EPSG, 10, WIDE, billing)
    assert_covers(pixels, pieces, WIDE, billing)
    assert_no_dearer_than_simple_ways(pixels, pieces, billing)
    if billing == "geometry":
        assert len(pieces) == 1


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    side=st.integers(1, 300),
    billing=st.sampled_from(BILLINGS),
    resolution=st.sampled_from([10, 20, 160, 1280]),
    most=st.integers(1, 20_000),
    share=st.floats(0.01, 1.2),
    seed=st.integers(0, 2**32 - 1),
)
def test_covers_within_bounds(*, shape, side, billing, resolution, most, share, seed):
    mask = shape(np.random.default_rng(seed), side)
    assume(mask.any())
    pixels = pixel_set(mask, resolution)
    assume(len(pixels) * len(mask) < 40 * most * 40)  # not thousands of pieces
    bounds = Bounds(most, max(0.1, share * mask.size * resolution**2 / 1e6))
    pieces = cover(pixels, EPSG, resolution, bounds, billing)
    assert_covers(pixels, pieces, bounds, billing)


@pytest.mark.parametrize("billing", BILLINGS)
def test_one_pixel_is_one_request_for_the_minimum(billing):
    (piece,) = cover(pixel_set(np.ones((1, 1))), EPSG, 10, WIDE, billing)
    assert piece.credits == 0.01
    assert len(piece.pixels) == 1


@pytest.mark.parametrize("billing", BILLINGS)
def test_a_window_is_one_request_at_the_contract_s_price(billing):
    pixels = pixel_set(np.ones((512, 512)))
    (piece,) = cover(pixels, EPSG, 10, WIDE, billing)
    assert piece.pixels.same(pixels)
    assert piece.pixels.mask is None
    assert piece.credits == window_price(pixels.window, billing)
    # 26.21 km2 less a rim of a quarter pixel.
    assert piece.area_km2 == pytest.approx(26.2, abs=0.3)


def test_scattered_points_are_one_multipolygon_at_the_minimum():
    rng = np.random.default_rng(3)
    mask = np.zeros((300, 300), bool)
    mask[tuple(rng.integers(0, 300, (2, 100)))] = True
    pixels = pixel_set(mask)
    (piece,) = cover(pixels, EPSG, 10, WIDE)
    assert piece.credits == 0.01
    assert piece.pixels.same(pixels)
    assert piece.unsure  # by bounding box it would cost 0.83
    assert shapely.from_wkt(piece.wkt).geom_type == "MultiPolygon"
    by_box = cover(pixels, EPSG, 10, WIDE, "bbox")
    assert total(by_box) < window_price(pixels.window, "bbox") == 0.83
    assert not any(piece.unsure for piece in by_box)


@pytest.mark.parametrize("billing", BILLINGS)
def test_a_window_that_costs_the_minimum_is_asked_for_whole(billing):
    mask = np.zeros((30, 30), bool)
    mask[[0, 29, 5], [3, 29, 0]] = True
    (piece,) = cover(pixel_set(mask), EPSG, 10, WIDE, billing)
    assert piece.pixels.mask is None
    assert (piece.credits, piece.unsure) == (0.01, False)


def test_two_far_points_are_two_requests_by_bounding_box():
    mask = np.zeros((500, 500), bool)
    mask[0, 0] = mask[-1, -1] = True
    assert total(cover(pixel_set(mask), EPSG, 10, WIDE, "bbox")) == 0.02
    assert total(cover(pixel_set(mask), EPSG, 10, WIDE, "geometry")) == 0.01


def test_an_l_is_two_rectangles_by_bounding_box():
    mask = np.zeros((600, 600), bool)
    mask[-50:] = mask[:, :50] = True
    pieces = cover(pixel_set(mask), EPSG, 10, WIDE, "bbox")
    assert len(pieces) == 2
    # 57,500 pixels of 1e-4 km2, plus what a box in degrees has beyond one in UTM.
    assert 0.57 <= total(pieces) <= 0.65
    assert total(pieces) < window_price(Window(ROW, ROW + 600, COL, COL + 600), "bbox") / 5


def test_a_ring_is_not_bought_with_its_middle():
    mask = np.ones((600, 600), bool)
    mask[30:-30, 30:-30] = False
    exact = mask.sum() * 1e-4 * 0.1
    assert total(cover(pixel_set(mask), EPSG, 10, WIDE)) == pytest.approx(exact, rel=0.03)
    by_box = cover(pixel_set(mask), EPSG, 10, WIDE, "bbox")
    assert exact * 0.9 <= total(by_box) <= exact * 1.1
    # Four would do; parts that the service rounds down are cut off too.
    assert len(by_box) <= 30


def test_a_diagonal_strip_is_cut_into_steps():
    rows, cols = np.indices((1000, 1000))
    mask = np.abs(rows - cols) < 20
    pixels = pixel_set(mask)
    pieces = cover(pixels, EPSG, 10, WIDE, "bbox")
    assert_covers(pixels, pieces, WIDE, "bbox")
    # The window is 10 credits, the strip itself 0.39.
    assert 0.39 <= total(pieces) <= 0.9


def test_a_step_over_a_window_costs_no_more_than_the_window():
    mask = np.zeros((256, 256), bool)
    mask[::10, ::10] = True
    pixels = pixel_set(mask)
    for billing in BILLINGS:
        pieces = cover(pixels, EPSG, 10, WIDE, billing)
        assert_covers(pixels, pieces, WIDE, billing)
        assert total(pieces) <= window_price(pixels.window, billing)


def test_splits_of_a_full_window_fall_on_the_common_lattice():
    window = Window(ROW + 100, ROW + 1100, COL + 70, COL + 870)
    bounds = Bounds(300_000)
    pieces = cover(PixelSet(window), EPSG, 10, bounds)
    assert_covers(PixelSet(window), pieces, bounds, "geometry")
    inner = {
        edge
        for piece in pieces
        for edge in (piece.pixels.window.row0, piece.pixels.window.row1)
        if window.row0 < edge < window.row1
    }
    assert inner
    assert all(edge % 256 == 0 for edge in inner)
    assert len(pieces) <= 6


def test_what_costs_more_than_2000_credits_is_split():
    window = Window(ROW // 128, ROW // 128 + 130, COL // 128, COL // 128 + 130)
    pieces = cover(PixelSet(window), EPSG, 1280, WIDE)
    assert window_price(window, "geometry", 1280) > 2000
    assert len(pieces) == 2
    assert all(piece.credits <= 2000 for piece in pieces)
    assert sum(len(piece.pixels) for piece in pieces) == window.size


def test_the_area_limit_splits():
    bounds = Bounds(10**9, area_km2=10.0)
    pixels = pixel_set(np.ones((640, 640)))
    pieces = cover(pixels, EPSG, 10, bounds)
    assert_covers(pixels, pieces, bounds, "geometry")
    assert math.ceil(40.96 / 10) <= len(pieces) <= 8


def test_a_single_pixel_is_asked_for_even_beyond_the_limits():
    # 1.6 km2: the service's own error says what is wrong, instead of an endless division.
    speck = pixel_set(np.ones((1, 1)), 1280)
    (piece,) = cover(speck, EPSG, 1280, Bounds(1, area_km2=0.1))
    assert len(piece.pixels) == 1


def counted(monkeypatch):
    calls = []
    real = plan.outline

    def outline(*args):
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(plan, "outline", outline)
    return calls


@pytest.mark.parametrize("billing", BILLINGS)
def test_large_sparse_sets_stay_manageable(monkeypatch, billing):
    rng = np.random.default_rng(0)
    mask = np.zeros((5000, 5000), bool)
    mask[tuple(rng.integers(0, 5000, (2, 300)))] = True
    pixels = pixel_set(mask)
    calls = counted(monkeypatch)
    bounds = Bounds(1_600_000)
    pieces = cover(pixels, EPSG, 10, bounds, billing)
    assert_covers(pixels, pieces, bounds, billing)
    # Each point alone would cost 3 credits in 300 requests.
    assert total(pieces) <= 3.0
    assert len(pieces) <= 300
    assert len(calls) <= 6 * len(pixels)


def test_clusters_part_at_their_gap():
    """Three fields in 60 km: three requests, although one of them lies across the middle."""
    mask = np.zeros((6000, 6000), bool)
    mask[10:60, 20:90] = True
    mask[2950:3150, 2900:3100] = True
    mask[5900:5990, 5800:5900] = True
    pieces = cover(pixel_set(mask), EPSG, 10, Bounds(1_600_000))
    assert sorted(piece.pixels.window.shape for piece in pieces) == [
        (50, 70),
        (90, 100),
        (200, 200),
    ]
    assert all(piece.pixels.mask is None for piece in pieces)


def test_many_single_pixels_do_not_exhaust_the_stack():
    """Every cut by bounding box might take off a single pixel."""
    side = 1400
    mask = np.zeros((side, side), bool)
    rows = np.unique((np.geomspace(1, side, 700) - 1).astype(int))
    mask[rows, rows[::-1] % side] = True
    mask[rows, rows] = True
    pixels = pixel_set(mask)
    pieces = cover(pixels, EPSG, 10, WIDE, "bbox")
    assert_covers(pixels, pieces, WIDE, "bbox")
    assert_no_dearer_than_simple_ways(pixels, pieces, "bbox")


@pytest.mark.parametrize(
    ("km2", "price_of_it"),
    [(0, 0.01), (0.05, 0.01), (0.1, 0.01), (0.16, 0.02), (1, 0.1), (10, 1.0), (997.939, 99.79),
     (20_000, 2000.0)],
)  # fmt: skip
def test_the_price_of_a_surface(km2, price_of_it):
    assert plan.credits_for(km2) == price_of_it


def test_the_rectangle_whose_bill_was_seen():
    """Contract, section 12: 99.79 credits, and a rectangle in degrees by either rule."""
    seen = shapely.box(13.53241, 57.370977, 14.230042, 57.585087)
    assert plan.credits_for(plan.billed_km2(seen, "geometry")) == 99.79
    assert plan.credits_for(plan.billed_km2(seen, "bbox")) == 99.79
    triangle = shapely.Polygon([(13, 57), (14, 57), (14, 58)])
    assert plan.billed_km2(triangle, "geometry") == pytest.approx(surface(triangle))
    assert plan.billed_km2(triangle, "bbox") == pytest.approx(surface(shapely.box(13, 57, 14, 58)))


def test_pieces_are_unsure_only_where_the_rule_matters():
    disc_mask = disc(np.random.default_rng(1), 400)
    (exact,) = cover(pixel_set(disc_mask), EPSG, 10, WIDE)
    assert exact.unsure
    (small,) = cover(pixel_set(disc_mask[::20, ::20]), EPSG, 10, WIDE)
    assert not small.unsure
