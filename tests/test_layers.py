"""Indices out of stored bands, as the service would have computed them (contract, section 7.3)."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clearsky_xr._bands import INDICES, STRATUS
from clearsky_xr._layers import NODATA, bands_for, derive

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)

# Any int16, and more often those that matter: nodata, zeros, sums of zero, ends of the range.
NUMBERS = st.one_of(
    st.sampled_from([NODATA, 0, 1, -1, 2, 9999, 10000, 32767, -32767]),
    st.integers(0, 12000),
    st.integers(-32768, 32767),
)
BANDS = st.lists(st.sampled_from(STRATUS), min_size=2, unique=True)


@st.composite
def wishes(draw):
    """Stored bands, their values, and layers that can be made from them."""
    bands = tuple(draw(BANDS))
    pairs = st.permutations(bands).map(lambda order: f"[{order[0]}_{order[1]}]")
    layers = draw(st.lists(st.one_of(st.sampled_from(bands), pairs), min_size=1, max_size=5))
    shape = (len(bands), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return bands, tuple(layers), draw(hnp.arrays(np.int16, shape, elements=NUMBERS))


def counts(x, y):
    """Give the contract's counts of an index in whole numbers, both neighbours at a half."""
    if NODATA in (x, y) or x + y == 0:
        return {NODATA}
    exact = min(max(Fraction(x - y, x + y), Fraction(-1)), Fraction(1)) * 32767
    return {math.ceil(exact - Fraction(1, 2)), math.floor(exact + Fraction(1, 2))}


@PROPERTY
@given(wishes())
def test_layers_are_bands_as_they_are_and_indices_by_the_contract(wish):
    bands, layers, values = wish
    before = values.copy()
    made = derive(values, bands, layers)
    assert made.dtype == np.int16
    assert made.shape == (len(layers), *values.shape[1:])
    for layer, got in zip(layers, made, strict=True):
        if layer in bands:
            assert (got == before[bands.index(layer)]).all()
            continue
        x, y = (before[bands.index(name)] for name in layer[1:-1].split("_"))
        for place in np.ndindex(got.shape):
            assert int(got[place]) in counts(int(x[place]), int(y[place])), (x[place], y[place])
    assert (values == before).all()


@PROPERTY
@given(NUMBERS, NUMBERS)
@example(NODATA, NODATA)
@example(NODATA, 0)
@example(1, -1)
@example(-5, 6)
@example(3, 32766)
def test_an_index_of_two_numbers(x, y):
    (((got,),),) = derive(np.array([[[x]], [[y]]], np.int16), ("B8", "B4"), ("[B8_B4]",))
    assert int(got) in counts(x, y)
    # The other way round it is the negative.
    (((other,),),) = derive(np.array([[[x]], [[y]]], np.int16), ("B8", "B4"), ("[B4_B8]",))
    assert int(other) == (-int(got) if got != NODATA else NODATA)


def test_every_sum_of_reflectances_is_rounded_to_the_nearest_count():
    """All pairs on a diagonal cut through the range, against whole numbers."""
    x = np.arange(0, 10001, dtype=np.int16)
    for y in (1, 7, 3333, 9973, 10000):
        (got,) = derive(
            np.stack([x, np.full_like(x, y)])[:, None], ("B8", "B4"), ("[B8_B4]",)
        )  # fmt: skip
        total = x.astype(np.int64) + y
        twice = 2 * 32767 * (x.astype(np.int64) - y)
        # |got - exact| <= 1/2, in whole numbers.
        assert (np.abs(2 * total * got[0].astype(np.int64) - twice) <= total).all()


def test_no_warning_and_no_invention_where_there_is_nothing():
    values = np.array([[[NODATA, 0, 500, NODATA]], [[NODATA, 0, -500, 700]]], np.int16)
    (got,) = derive(values, ("B8", "B4"), ("[B8_B4]",))
    assert got.tolist() == [[NODATA] * 4]


def test_what_leaves_the_range_is_clipped():
    values = np.array([[[500, -100, 5]], [[-100, 500, 0]]], np.int16)
    (got,) = derive(values, ("B8", "B4"), ("[B8_B4]",))
    assert got.tolist() == [[32767, -32767, 32767]]


def test_the_order_of_layers_is_that_asked_for():
    values = np.arange(3, dtype=np.int16)[:, None, None] + 1
    bands = ("B2", "B8", "B4")
    assert derive(values, bands, ("B4", "B2"))[:, 0, 0].tolist() == [3, 1]
    assert derive(values, bands, ("B4", "[B8_B4]", "B2", "B4"))[:, 0, 0].tolist() == [
        3, round(-1 / 5 * 32767), 1, 3,
    ]  # fmt: skip


def test_the_very_same_layers_are_not_copied():
    """What is read most is handed on as it is."""
    values = np.zeros((2, 2, 2), np.int16)
    assert derive(values, ("B8", "B4"), ("B8", "B4")) is values
    assert derive(values, ["B8", "B4"], ["B8", "B4"]) is values
    assert derive(values, ("B8", "B4"), ("B4", "B8")) is not values


@pytest.mark.parametrize("pair", INDICES.values(), ids=INDICES.keys())
def test_the_catalogue_can_be_made_from_the_bands_of_the_model(pair):
    x, y = pair
    values = np.arange(1, len(STRATUS) + 1, dtype=np.int16)[:, None, None] * 100
    (got,) = derive(values, STRATUS, (f"[{x}_{y}]",))
    first, second = STRATUS.index(x) + 1, STRATUS.index(y) + 1
    assert int(got[0, 0]) == pytest.approx(32767 * (first - second) / (first + second), abs=0.51)


@PROPERTY
@given(wishes())
def test_bands_for_names_each_band_once_and_none_in_vain(wish):
    _, layers, _ = wish
    names = bands_for(layers)
    needed = [name for layer in layers for name in layer.strip("[]").split("_")]
    assert sorted(names) == sorted(set(needed))
    assert list(names) == sorted(set(needed), key=needed.index)  # in the order of first use


def test_bands_for_knows_bands_with_letters():
    assert bands_for(["[B8A_B11]", "B8", "B8A"]) == ("B8A", "B11", "B8")
    assert bands_for([]) == ()
