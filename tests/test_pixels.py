"""Windows and pixel sets against plain sets of (row, column)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clearsky_xr._pixels import PixelSet, Window

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def windows(draw, most=9):
    row0, col0 = draw(st.integers(-6, 6)), draw(st.integers(-6, 6))
    return Window(row0, row0 + draw(st.integers(1, most)), col0, col0 + draw(st.integers(1, most)))


@st.composite
def pixel_sets(draw):
    window = draw(windows())
    mask = draw(st.none() | hnp.arrays(bool, window.shape))
    return PixelSet(window, mask)


def in_window(window):
    return {
        (row, col)
        for row in range(window.row0, window.row1)
        for col in range(window.col0, window.col1)
    }


def members(pixels):
    if pixels is None:
        return set()
    if pixels.mask is None:
        return in_window(pixels.window)
    assert pixels.mask.shape == pixels.window.shape
    rows, cols = np.nonzero(pixels.mask)
    return {
        (int(r) + pixels.window.row0, int(c) + pixels.window.col0)
        for r, c in zip(rows, cols, strict=True)
    }


def bounding(pixels):
    rows, cols = zip(*pixels, strict=True)
    return Window(min(rows), max(rows) + 1, min(cols), max(cols) + 1)


@PROPERTY
@given(windows(), windows())
def test_windows_are_sets_of_pixels(one, other):
    assert one.size == len(in_window(one))
    assert (one & other).size == len(in_window(one) & in_window(other))
    if (one & other).size:
        assert in_window(one & other) == in_window(one) & in_window(other)
    assert (other in one) == (in_window(other) <= in_window(one))
    assert in_window(one.shifted(2, -3)) == {(r + 2, c - 3) for r, c in in_window(one)}


@PROPERTY
@given(windows(), windows())
def test_slices_cut_a_window_out_of_an_array(outer, other):
    inner = outer & other
    array = np.empty(outer.shape, object)
    for row, col in in_window(outer):
        array[row - outer.row0, col - outer.col0] = (row, col)
    if inner.size:
        cut = array[outer.slices(inner)]
        assert cut.shape == inner.shape
        assert set(cut.ravel()) == in_window(inner)


@PROPERTY
@given(windows(most=40), st.sampled_from([1, 2, 4, 16, 256]))
def test_halves_tile_the_window(window, lattice):
    first, second = window.halves(lattice)
    assert in_window(first) | in_window(second) == in_window(window)
    assert not in_window(first) & in_window(second)
    height, width = window.shape
    if window.size > 1:
        assert first.size
        assert second.size
        # The longer side is cut.
        across = (first.shape[1] == width) if height >= width else (first.shape[0] == height)
        assert across
        cut = first.row1 if height >= width else first.col1
        start, stop = (window.row0, window.row1) if height >= width else (window.col0, window.col1)
        middle = (start + stop) // 2
        near = round(middle / lattice) * lattice
        assert cut == (near if start < near < stop else middle)


@PROPERTY
@given(pixel_sets())
def test_length_and_dense(pixels):
    assert len(pixels) == len(members(pixels))
    assert members(PixelSet(pixels.window, pixels.dense)) == members(pixels)


@PROPERTY
@given(pixel_sets())
def test_tight_shrinks_the_window_to_the_pixels(pixels):
    tight = pixels.tight()
    assert members(tight) == members(pixels)
    assert (tight is None) == (not members(pixels))
    if tight is not None:
        assert tight.window == bounding(members(pixels))
        # A full window has no mask: it is the form in which the plan knows a rectangle.
        assert (tight.mask is None) == (len(tight) == tight.window.size)


def test_an_empty_window_has_no_pixels():
    empty = Window(3, 3, 0, 5)
    assert empty.size == 0
    assert PixelSet(empty).tight() is None
    assert Window(5, 3, 7, 2).size == 0


@PROPERTY
@given(pixel_sets(), windows())
def test_crop_keeps_what_lies_in_the_window(pixels, window):
    inner = pixels.window & window
    if inner.size:
        cropped = pixels.crop(inner)
        assert cropped.window == inner
        assert members(cropped) == members(pixels) & in_window(inner)


@PROPERTY
@given(pixel_sets(), pixel_sets())
def test_without_is_the_difference(one, other):
    before = members(one), members(other)
    rest = one.without(other)
    assert members(rest) == before[0] - before[1]
    assert (members(one), members(other)) == before  # neither is written to
    if one.tight() is not None:
        assert (rest is None) == (not before[0] - before[1])
    if rest is not None and before[0] & before[1]:
        assert rest.window == bounding(members(rest))


@PROPERTY
@given(pixel_sets(), st.sampled_from([1, 4]))
def test_split_parts_are_disjoint_and_tight(pixels, lattice):
    parts = list(pixels.split(lattice))
    found = [members(part) for part in parts]
    assert set().union(*found) == members(pixels)
    assert sum(map(len, found)) == len(pixels)
    for part, pixels_of_part in zip(parts, found, strict=True):
        assert pixels_of_part
        assert part.window == bounding(pixels_of_part)
    if pixels.tight() is not None and len(pixels) > 1:
        again = list(pixels.tight().split(lattice))
        assert len(again) == 2


@PROPERTY
@given(pixel_sets(), pixel_sets())
def test_same(one, other):
    equal = one.window == other.window and members(one) == members(other)
    assert one.same(other) == equal
    assert one.same(PixelSet(one.window, one.dense.copy()))


def test_windows_say_where_they_are():
    assert str(Window(-3, 4, 5, 6)) == "rows -3:4, columns 5:6"
