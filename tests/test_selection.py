"""Index keys: what they return, and what they ask for, against plain numpy."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xarray.core.nputils import NumpyVIndexAdapter

from clearsky_xr._selection import Pointwise, read_key

PROPERTY = settings(max_examples=400, deadline=None, derandomize=True)

SHAPE = (5, 4, 9, 11)
DATA = np.random.default_rng(0).integers(0, 10**9, SHAPE)
SIZES = st.sampled_from([1, 2, 3, 7, 30, 1000, 10**9])


def gather(selection, most, data=DATA):
    """Fill the gathered array tile by tile, and look after the promises about tiles."""
    gathered = np.full(selection.shape, -1)
    asked = Counter()
    for tile in selection.tiles(most):
        window = tile.pixels.window
        assert 0 <= window.row0 < window.row1 <= data.shape[2]
        assert 0 <= window.col0 < window.col1 <= data.shape[3]
        assert window.size <= max(most, 1)
        rows, cols = np.nonzero(tile.pixels.dense)
        for date, along in tile.dates:
            pixels = zip(rows + window.row0, cols + window.col0, strict=True)
            asked.update((date, int(r), int(c)) for r, c in pixels)
            frame = data[date][selection.layers][:, *np.s_[:, :]].copy()
            frame = frame[:, window.row0 : window.row1, window.col0 : window.col1]
            frame[:, ~tile.pixels.dense] = -2  # not asked for, so not there
            gathered[along][(slice(None), *tile.target)] = frame[(slice(None), *tile.source)]
    return gathered, asked


def wanted(key, data=DATA, *, pointwise):
    """The (date, row, column) that a key names, found by indexing an array of names."""
    names = np.arange(data.size).reshape(data.shape)
    found = NumpyVIndexAdapter(names)[key] if pointwise else outer(names, key)
    date, _, row, col = np.unravel_index(np.unique(found), data.shape)
    return set(zip(date.tolist(), row.tolist(), col.tolist(), strict=True))


def outer(data, key):
    """Orthogonal indexing by taking along one axis after the other."""
    for axis in reversed(range(data.ndim)):
        k = key[axis]
        if isinstance(k, slice):
            data = data[(slice(None),) * axis + (k,)]
        else:
            data = np.take(data, k, axis=axis)
    return data


def assert_reads(key, most, *, pointwise=False, data=DATA):
    expected = NumpyVIndexAdapter(data)[key] if pointwise else outer(data, key)
    selection = read_key(Pointwise(key) if pointwise else key, data.shape)
    gathered, asked = gather(selection, most, data)
    result = selection.finish(gathered)
    assert result.shape == expected.shape
    assert (result == expected).all()
    # No pixel is asked for twice on a date, and none that the key does not name.
    assert set(asked.values()) <= {1}
    assert set(asked) == wanted(key, data, pointwise=pointwise)
    assert (np.diff(selection.layers) > 0).all()
    return selection


def slices(size):
    ends = st.none() | st.integers(-size - 2, size + 2)
    return st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3, 5, -1, -2, -4]))


def positions(size, shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(-size, size - 1))


def outer_keys():
    return st.tuples(
        *(
            st.integers(-n, n - 1) | slices(n) | st.integers(0, 6).flatmap(
                lambda length, n=n: positions(n, length)
            )
            for n in SHAPE
        )
    )  # fmt: skip


@PROPERTY
@given(key=outer_keys(), most=SIZES)
def test_outer_keys(key, most):
    assert_reads(key, most)


@st.composite
def pointwise_keys(draw):
    """Arrays that broadcast against each other, in any of the axes; slices in the others."""
    points = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    key = []
    for size in SHAPE:
        if draw(st.booleans()):
            shape = [draw(st.sampled_from([n, 1])) if n != 1 else 1 for n in points]
            shape = shape[draw(st.integers(0, len(shape) - 1)) :]
            key.append(draw(positions(size, tuple(shape))))
        else:
            key.append(draw(slices(size)))
    return tuple(key)


@PROPERTY
@given(key=pointwise_keys(), most=SIZES)
def test_pointwise_keys(key, most):
    assume(any(isinstance(k, np.ndarray) for k in key))
    assert_reads(key, most, pointwise=True)


N = np.array
ALL = slice(None)
FIVE_ROWS, FIVE_COLS = N([8, 0, 3, 3, -1]), N([10, 2, 2, 7, -11])
POINTWISE = {
    "points": (ALL, ALL, FIVE_ROWS, FIVE_COLS),
    "points in two dimensions": (
        ALL, ALL, FIVE_ROWS[:4].reshape(2, 2), FIVE_COLS[:4].reshape(2, 2)),
    "rows only": (ALL, ALL, FIVE_ROWS, ALL),
    "rows only, columns with a step": (ALL, ALL, FIVE_ROWS, slice(9, 1, -3)),
    "columns only": (ALL, ALL, ALL, FIVE_COLS),
    "dates only": (N([4, 1, 1]), ALL, ALL, ALL),
    "layers only": (ALL, N([3, 0, 3]), ALL, ALL),
    "dates and layers": (N([4, 1, 1]), N([3, 0, 2]), ALL, ALL),
    "dates, rows and columns": (N([4, 1, 1, 0, 2]), ALL, FIVE_ROWS, FIVE_COLS),
    "layers and columns": (ALL, N([3, 0, 2, 2, 1]), ALL, FIVE_COLS),
    "dates and rows": (N([4, 1, 1, 0, 4]), ALL, FIVE_ROWS, ALL),
    "everything": (N([4, 1, 1, 0, 4]), N([3, 0, 2, 2, 1]), FIVE_ROWS, FIVE_COLS),
    "one point": (ALL, ALL, N([4]), N([5])),
    "no points": (ALL, ALL, N([], int), N([], int)),
    # As xarray writes points of a lazily indexed array: dates and layers along axes of their own.
    "broadcast": (np.arange(5)[:, None, None], np.arange(4)[:, None], FIVE_ROWS, FIVE_COLS),
    "broadcast, points first": (np.arange(5), N([2, 0])[:, None],
                                FIVE_ROWS[:, None, None], FIVE_COLS[:, None, None]),
    "broadcast rows": (np.arange(5)[:, None], ALL, FIVE_ROWS, slice(2, 9, 2)),
}  # fmt: skip


@pytest.mark.parametrize("most", [1, 7, 10**9])
@pytest.mark.parametrize("case", POINTWISE)
def test_ways_in_which_points_come(case, most):
    assert_reads(POINTWISE[case], most, pointwise=True)


OUTER = {
    "everything": (ALL, ALL, ALL, ALL),
    "one value": (0, -1, 8, -11),
    "one pixel's series": (ALL, ALL, 3, 4),
    "one pixel's series in reverse": (slice(None, None, -1), 2, 3, 4),
    "steps": (slice(None, None, 2), ALL, slice(1, None, 3), slice(None, None, -4)),
    "unsorted with repeats": (N([4, 0, 4]), N([3, 3]), N([8, 0, -1, 2]), N([5, -6, 5])),
    "nothing of one axis": (ALL, ALL, slice(3, 3), ALL),
    "no dates": (N([], int), ALL, ALL, ALL),
    "beyond the end": (slice(3, 99), ALL, slice(-99, 2), slice(5, 4)),
}


@pytest.mark.parametrize("most", [1, 7, 10**9])
@pytest.mark.parametrize("case", OUTER)
def test_ways_in_which_outer_keys_come(case, most):
    assert_reads(OUTER[case], most)


@pytest.mark.parametrize(
    "key", [(5, 0, 0, 0), (0, N([4]), 0, 0), (0, 0, N([0, -10]), 0), (0, 0, 0, 11)]
)
def test_positions_outside_are_refused(key):
    with pytest.raises(IndexError, match="out of range"):
        read_key(key, SHAPE)
    with pytest.raises(IndexError, match="out of range"):
        read_key(Pointwise(np.atleast_1d(k) for k in key), SHAPE)


def test_empty_keys_ask_for_nothing():
    for key in (OUTER["no dates"], OUTER["nothing of one axis"]):
        assert list(read_key(key, SHAPE).tiles(10)) == []
    assert list(read_key(Pointwise(POINTWISE["no points"]), SHAPE).tiles(10)) == []


def test_a_hundred_points_are_a_hundred_pixels():
    """And not the 100 x 100 of their rows and columns."""
    rng = np.random.default_rng(1)
    cells = rng.choice(10**6, 100, replace=False)
    rows, cols = np.unravel_index(cells, (1000, 1000))
    selection = read_key(Pointwise((ALL, ALL, rows, cols)), (20, 10, 1000, 1000))
    (tile,) = selection.tiles(10**7)
    assert len(tile.pixels) == 100
    assert len(tile.dates) == 20
    assert selection.shape == (20, 10, 100)


def test_points_on_dates_of_their_own_are_asked_for_on_those_dates():
    dates, rows, cols = N([3, 3, 0]), N([1, 2, 5]), N([1, 2, 5])
    tiles = list(read_key(Pointwise((dates, ALL, rows, cols)), SHAPE).tiles(100))
    assert [(tile.dates, len(tile.pixels)) for tile in tiles] == [(((0, 0),), 1), (((3, 0),), 2)]


def test_dates_and_layers_that_vary_on_their_own_are_not_multiplied_by_the_points():
    selection = read_key(Pointwise(POINTWISE["broadcast"]), SHAPE)
    assert selection.shape == (5, 4, 5)
    (tile,) = selection.tiles(10**9)
    assert len(tile.dates) == 5


def test_a_point_named_twice_is_asked_for_once():
    selection = read_key(Pointwise((ALL, ALL, N([3, 3, 3]), N([4, 4, 4]))), SHAPE)
    (tile,) = selection.tiles(100)
    assert len(tile.pixels) == 1


def test_a_step_asks_for_its_own_pixels_only():
    selection = read_key((0, ALL, slice(0, 9, 4), slice(0, 11, 5)), SHAPE)
    (tile,) = selection.tiles(100)
    assert len(tile.pixels) == 9
    assert tile.pixels.window.shape == (9, 11)


def test_a_window_is_copied_by_slices():
    selection = read_key((ALL, ALL, slice(2, 7), slice(3, 9)), SHAPE)
    (tile,) = selection.tiles(100)
    assert tile.pixels.mask is None
    assert all(isinstance(part, slice) for part in tile.source)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    share=st.floats(0.003, 1.5),
)
def test_large_windows_are_cut_into_few_tiles(height, width, share):
    most = max(1, int(height * width * share))
    tiles = list(read_key((0, 0, ALL, ALL), (1, 1, height, width)).tiles(most))
    assert sum(tile.pixels.window.size for tile in tiles) == height * width
    assert max(tile.pixels.window.size for tile in tiles) <= most
    # Halving keeps every tile above half of what it may be, but for odd sides.
    assert len(tiles) <= max(1, 4 * math.ceil(height * width / most))
