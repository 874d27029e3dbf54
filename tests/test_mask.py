"""The pixels of an area, against shapely pixel by pixel and against GDAL's rasteriser."""

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from clearsky_xr._grid import TOLERANCE
from clearsky_xr._mask import select
from clearsky_xr._pixels import PixelSet, Window

PROPERTY = settings(max_examples=70, deadline=None, derandomize=True)

# Far from the origin, as windows are: 46 N in zone 33, counted in pixels of 10 m.
ROW, COL = -509_900, 50_300


def squares(window, resolution, inset=0.0):
    """The square of each pixel of a window as (height, width) polygons, shrunk by `inset` px."""
    rows = np.arange(window.row0, window.row1)[:, None] + np.zeros(window.shape)
    cols = np.arange(window.col0, window.col1)[None, :] + np.zeros(window.shape)
    return shapely.box(
        (cols + inset) * resolution,
        -(rows + 1 - inset) * resolution,
        (cols + 1 - inset) * resolution,
        -(rows + inset) * resolution,
    )


def dense(found, window):
    """The selected pixels as a mask of the whole window."""
    mask = np.zeros(window.shape, bool)
    if found is not None:
        assert found.window in window
        mask[window.slices(found.window)] = found.dense
    return mask


def assert_between(found, least, most):
    assert not (least & ~found).any(), np.argwhere(least & ~found)
    assert not (found & ~most).any(), np.argwhere(found & ~most)


def brute_force(area, window, resolution, *, contained):
    """Masks of what must be selected and of what may be.

    `TOLERANCE` pixels are let pass, so squares shrunk by twice that decide what must, and whole
    ones what may.
    """
    whole = squares(window, resolution)
    core = squares(window, resolution, 2 * TOLERANCE)
    if contained:
        return shapely.covers(area, whole), shapely.covers(area, core)
    return shapely.relate_pattern(area, core, "T********"), shapely.relate_pattern(
        area, whole, "T********"
    )


def polygon(rng, points, size, resolution):
    """A star-shaped polygon with a hole, in the middle of a window of `size` pixels."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(0.15, 0.49, points) * size
    ring = np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None]
    # A smaller copy of the ring lies inside it, since it is star-shaped around its centre.
    centre = np.array([COL + size / 2, -ROW - size / 2])
    hole = [ring * rng.uniform(0.1, 0.8) + centre] if rng.random() < 0.6 else []
    shape = shapely.Polygon(ring + centre, hole).buffer(0)
    return shapely.transform(shape, lambda xy: xy * resolution)


def slivers(rng, size, resolution):
    """Strips thinner than a pixel, some of them along pixel edges."""
    ends = rng.uniform(0, size, (4, 2, 2)) + np.array([COL, -ROW - size])
    ends[0] = np.round(ends[0])
    ends[1, :, 0] = np.round(ends[1, 0, 0])
    lines = [shapely.LineString(end) for end in ends]
    shape = shapely.union_all(
        [line.buffer(rng.uniform(0.01, 0.4), cap_style="flat") for line in lines]
    )
    return shapely.transform(shape, lambda xy: xy * resolution)


def snapped(rng, size, resolution):
    """Unions of whole pixels: every edge lies on a pixel edge."""
    window = Window(ROW, ROW + size, COL, COL + size)
    chosen = rng.random((size, size)) < rng.choice([0.1, 0.5, 0.9])
    chosen[rng.integers(size), rng.integers(size)] = True
    return shapely.union_all(squares(window, resolution)[chosen])


@PROPERTY
@given(
    kind=st.sampled_from(["star", "stars", "slivers", "snapped"]),
    size=st.integers(1, 40),
    resolution=st.sampled_from([10, 20, 160, 1280]),
    contained=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_pixel_is_decided_as_shapely_would(kind, size, resolution, contained, seed):
    rng = np.random.default_rng(seed)
    if kind == "star":
        area = polygon(rng, int(rng.integers(3, 14)), size, resolution)
    elif kind == "stars":
        parts = [polygon(rng, 5, size, resolution) for _ in range(3)]
        away = [(0, 0), (size * resolution / 2, 0), (0, -size * resolution)]
        area = shapely.union_all(
            [shapely.transform(p, lambda xy, d=d: xy + d) for p, d in zip(parts, away, strict=True)]
        )
    elif kind == "slivers":
        area = slivers(rng, size, resolution)
    else:
        area = snapped(rng, min(size, 12), resolution)
    # The window need not match the area.
    shift = rng.integers(-3, 4, 4)
    window = Window(
        ROW + shift[0], ROW + shift[0] + size + 3, COL + shift[1], COL + shift[1] + size + 5
    )
    found = dense(select(area, window, resolution, contained=contained), window)
    assert_between(found, *brute_force(area, window, resolution, contained=contained))
    if not contained:
        transform = Affine(
            resolution, 0, window.col0 * resolution, 0, -resolution, -window.row0 * resolution
        )
        # GDAL's rasteriser, which also burns pixels that the outline merely touches.
        touched = rasterio.features.rasterize(
            [area], window.shape, transform=transform, all_touched=True, dtype="uint8"
        ).astype(bool)
        shared = shapely.area(shapely.intersection(area, squares(window, resolution)))
        # A pixel on which the two disagree has next to nothing of the area.
        assert (shared[touched != found] <= 3 * TOLERANCE * resolution**2).all()


@pytest.mark.parametrize("contained", [False, True])
@pytest.mark.parametrize(
    ("height", "width"), [(700, 530), (513, 512), (512, 64), (65, 1100), (1, 600), (9, 8), (1, 1)]
)
def test_windows_of_every_size_class(contained, height, width):
    # The window is searched in squares of 512, 64, 8 and 1 pixels: sizes around those.
    window = Window(ROW, ROW + height, COL, COL + width)
    x0, y0 = COL * 10, -ROW * 10
    ring = np.array([(0.02, 0.1), (0.97, 0.02), (0.7, 0.9), (0.4, 0.6), (0.1, 0.98)])
    hole = (ring - 0.5) * 0.3 + [0.55, 0.4]
    corner, scale = np.array([x0, y0]), np.array([width * 10, -height * 10])
    area = shapely.Polygon(corner + ring * scale, [corner + hole * scale])
    assert area.is_valid
    found = dense(select(area, window, 10, contained=contained), window)
    core, whole = squares(window, 10, 2 * TOLERANCE), squares(window, 10)
    shapely.prepare(area)
    if contained:
        assert_between(found, shapely.covers(area, whole), shapely.covers(area, core))
    else:
        assert_between(found, shapely.intersects(area, core), shapely.intersects(area, whole))
    if height * width > 1000:
        # The share of selected pixels is that of the area, but for the rim.
        share = area.area / (height * width * 100)
        rim = area.length / 10 / (height * width)
        assert found.mean() == pytest.approx(share, abs=rim)


def test_the_two_modes_differ_by_the_rim():
    window = Window(ROW, ROW + 10, COL, COL + 10)
    x0, y0 = COL * 10, -ROW * 10
    area = shapely.box(x0 + 15, y0 - 75, x0 + 85, y0 - 15)
    assert select(area, window, 10).window == Window(ROW + 1, ROW + 8, COL + 1, COL + 9)
    inside = select(area, window, 10, contained=True)
    assert inside.window == Window(ROW + 2, ROW + 7, COL + 2, COL + 8)
    assert inside.mask is None


def test_pixels_that_are_only_touched_do_not_count():
    window = Window(ROW - 2, ROW + 4, COL - 2, COL + 4)
    x0, y0 = COL * 10, -ROW * 10
    exact = shapely.box(x0, y0 - 20, x0 + 20, y0)
    hair, finger = TOLERANCE * 10 / 2, TOLERANCE * 10 * 5  # metres
    for outset in (0, hair):
        found = select(exact.buffer(outset, join_style="mitre"), window, 10)
        assert found.window == Window(ROW, ROW + 2, COL, COL + 2)
        assert found.mask is None
    assert len(select(exact.buffer(finger, join_style="mitre"), window, 10)) == 16
    for inset in (0, hair):
        assert (
            len(select(exact.buffer(-inset, join_style="mitre"), window, 10, contained=True)) == 4
        )
    assert select(exact.buffer(-finger, join_style="mitre"), window, 10, contained=True) is None


def test_what_lies_beside_the_window_selects_nothing():
    window = Window(ROW, ROW + 100, COL, COL + 100)
    x0, y0 = COL * 10, -ROW * 10
    assert select(shapely.box(x0 - 50, y0, x0, y0 + 50), window, 10) is None
    inside = shapely.box(x0 + 12, y0 - 18, x0 + 18, y0 - 12)
    assert select(inside, window, 10, contained=True) is None
    only = select(inside, window, 10)
    assert (only.window, only.mask) == (Window(ROW + 1, ROW + 2, COL + 1, COL + 2), None)


def test_a_hole_of_one_pixel_is_left_out():
    window = Window(ROW, ROW + 5, COL, COL + 5)
    x0, y0 = COL * 10, -ROW * 10
    shell = shapely.box(x0, y0 - 50, x0 + 50, y0)
    found = select(shell - shapely.box(x0 + 20, y0 - 30, x0 + 30, y0 - 20), window, 10)
    assert isinstance(found, PixelSet)
    assert np.argwhere(~found.dense).tolist() == [[2, 2]]
    smaller = select(shell - shapely.box(x0 + 21, y0 - 29, x0 + 29, y0 - 21), window, 10)
    assert smaller.mask is None
