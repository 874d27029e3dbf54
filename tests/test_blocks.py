"""The blocks of a store against plain arrays that hold the number of each pixel's block."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clearsky_xr._blocks import SIDE, Blocks
from clearsky_xr._pixels import PixelSet, Window

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def grids(draw, most=1100):
    """Grids on both sides of the lattice's origin, some smaller than a block."""
    row0, col0 = draw(st.integers(-2000, 2000)), draw(st.integers(-2000, 2000))
    sides = st.one_of(
        st.integers(1, 40), st.integers(SIDE - 2, SIDE + 2), st.integers(2 * SIDE - 1, most)
    )
    return Window(row0, row0 + draw(sides), col0, col0 + draw(sides))


@st.composite
def windows_in(draw, grid):
    row0 = draw(st.integers(grid.row0, grid.row1 - 1))
    col0 = draw(st.integers(grid.col0, grid.col1 - 1))
    row1 = draw(st.integers(row0 + 1, grid.row1))
    col1 = draw(st.integers(col0 + 1, grid.col1))
    return Window(row0, row1, col0, col1)


@st.composite
def selections(draw):
    """A grid, and a pixel set in it: a full window, or a few scattered pixels and strips."""
    grid = draw(grids())
    window = draw(windows_in(grid))
    if draw(st.booleans()):
        return grid, PixelSet(window)
    mask = np.zeros(window.shape, bool)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(0, 4))):
        mask[rng.integers(window.shape[0]), rng.integers(window.shape[1])] = True
    if draw(st.booleans()):
        mask[rng.integers(window.shape[0])] = True
    return grid, PixelSet(window, mask)


@st.composite
def chosen(draw):
    """A grid and some of its blocks, in any order."""
    grid = draw(grids())
    found = [(int(i), int(j)) for i, j in np.argwhere(np.ones(Blocks(grid).shape, bool))]
    return grid, draw(st.lists(st.sampled_from(found), min_size=1, unique=True))


def block_of_pixels(grid):
    """Give the block's row and the block's column of each pixel of a grid, (2, y, x)."""
    return np.indices(grid.shape) // SIDE


def on(grid, pixels):
    """Give a pixel set as a mask of the whole grid."""
    mask = np.zeros(grid.shape, bool)
    mask[grid.slices(pixels.window)] = True if pixels.mask is None else pixels.mask
    return mask


@PROPERTY
@given(selections())
@example((Window(-300, -44, -256, 0), PixelSet(Window(-300, -44, -256, 0))))
@example((Window(-1, 1, -1, 1), PixelSet(Window(-1, 1, -1, 1), np.eye(2, dtype=bool))))
def test_touched_are_the_blocks_of_the_pixels(selection):
    grid, pixels = selection
    before = pixels.dense.copy()
    touched = Blocks(grid).touched(pixels)
    rows, cols = block_of_pixels(grid)[:, on(grid, pixels)]
    assert touched == sorted(set(zip(rows.tolist(), cols.tolist(), strict=True)))  # row by row
    assert all(type(number) is int for block in touched for number in block)  # they become keys
    assert (pixels.dense == before).all()


@PROPERTY
@given(grids())
def test_the_blocks_tile_the_grid(grid):
    blocks = Blocks(grid)
    expected = block_of_pixels(grid)
    assert blocks.shape == tuple(int(n) + 1 for n in expected[:, -1, -1])
    times = np.zeros(grid.shape, int)
    for block in np.ndindex(blocks.shape):
        window = blocks.window_of(block)
        assert window in grid
        assert window.size
        cut = grid.slices(window)
        times[cut] += 1
        assert (expected[(slice(None), *cut)] == np.array(block)[:, None, None]).all()
        # Only the lower and the right edge of the grid may cut a block.
        assert window.shape[0] == SIDE or window.row1 == grid.row1
        assert window.shape[1] == SIDE or window.col1 == grid.col1
    assert (times == 1).all()


@PROPERTY
@given(grids())
def test_numbers_count_the_blocks_row_by_row(grid):
    blocks = Blocks(grid)
    numbers = [blocks.number(block) for block in np.ndindex(blocks.shape)]
    assert numbers == list(range(blocks.shape[0] * blocks.shape[1]))


@PROPERTY
@given(chosen())
def test_whole_gives_all_pixels_of_the_blocks_and_no_others(choice):
    grid, found = choice
    blocks = Blocks(grid)
    pixels = blocks.whole(iter(found))
    numbers = block_of_pixels(grid)
    expected = np.zeros(grid.shape, bool)
    for row, col in found:
        expected |= (numbers[0] == row) & (numbers[1] == col)
    assert (on(grid, pixels) == expected).all()
    tight = pixels.tight()
    assert tight is not None
    assert tight.window == pixels.window
    # A rectangle has no mask: it is the form in which the plan knows one.
    assert (pixels.mask is None) == (len(pixels) == pixels.window.size)
    assert blocks.touched(pixels) == sorted(found)


def test_a_grid_smaller_than_a_block_is_one_block():
    grid = Window(-700, -690, 3, 5)
    blocks = Blocks(grid)
    assert blocks.shape == (1, 1)
    assert blocks.window_of((0, 0)) == grid
    assert blocks.touched(PixelSet(grid)) == [(0, 0)]
    assert blocks.whole([(0, 0)]).same(PixelSet(grid))


def test_blocks_are_counted_from_the_corner_of_the_grid_not_of_the_lattice():
    blocks = Blocks(Window(-10, 600, 250, 900))
    assert blocks.touched(PixelSet(Window(245, 247, 505, 507))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert blocks.window_of((1, 1)) == Window(246, 502, 506, 762)
    assert blocks.window_of((2, 2)) == Window(502, 600, 762, 900)
