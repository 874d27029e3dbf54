"""Bands and indices: spellings, catalogues, refusals and the ``Bandnames`` grammar."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearsky_xr._bands import (
    BANDS,
    INDICES,
    RGB,
    STRATUS,
    band_id,
    model_bands,
    parse_bandnames,
    resolve_bands,
    resolve_indices,
)
from clearsky_xr.errors import InvalidBandError

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)

MODEL = "Stratus2"
TEN = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
ALL = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

SPELLINGS = {
    "B8A": ["B8A", "b8a", "B8a", "B08A", "b08a", "nir08", "NIR08", " B8A "],
    "B8": ["B8", "b8", "B08", "b08", "nir", "NIR"],
    "B4": ["B4", "B04", "red", "Red"],
    "B3": ["green"],
    "B2": ["blue"],
    "B1": ["B01", "coastal"],
    "B9": ["nir09"],
    "B10": ["B10", "cirrus"],
    "B11": ["B11", "b11", "swir16", "swir1"],
    "B12": ["B12", "swir22", "swir2"],
    "B5": ["rededge1", "rededge071", "rededge"],
    "B6": ["rededge2", "rededge074"],
    "B7": ["rededge3", "rededge078", "RedEdge3"],
}


@pytest.mark.parametrize(
    ("spelling", "expected"), [(s, i) for i, many in SPELLINGS.items() for s in many]
)
def test_spellings(spelling, expected):
    assert band_id(spelling) == expected


# Contract, section 7.1: centre and half-width of the Stratus bands; 832 for B8's slip.
PRINTED = {
    "B2": (492, 33), "B3": (559, 18), "B4": (664, 15), "B5": (704, 8), "B6": (740, 7),
    "B7": (782, 10), "B8": (832, 53), "B8A": (864, 11), "B11": (1613, 47), "B12": (2200, 92),
}  # fmt: skip


def test_the_catalogue_is_the_contract_s():
    assert tuple(BANDS) == ALL
    assert STRATUS == TEN
    assert RGB == ("B4", "B3", "B2")
    for name, (centre, half) in PRINTED.items():
        assert (BANDS[name].wavelength, BANDS[name].bandwidth) == (centre, 2 * half)
    centres = [BANDS[name].wavelength for name in ALL]
    assert centres == sorted(centres)
    assert len({band.common_name for band in BANDS.values()}) == len(ALL)


def test_models_bound_the_bands():
    for model in ("Stratus2", "stratus2fast", "STRATUS3"):
        assert model_bands(model) == TEN
    assert model_bands("Nimbus") == ALL
    assert resolve_bands("B1, B9", "Nimbus") == ("B1", "B9")
    with pytest.raises(InvalidBandError, match=r"Stratus2 does not offer B1, B10") as caught:
        resolve_bands(["B1", "B10", "B4"], MODEL)
    assert "B8A" in caught.value.hint


def test_forms_of_the_option():
    assert resolve_bands("all", MODEL) == TEN
    assert resolve_bands(" ALL ", MODEL) == TEN
    assert resolve_bands("all", "Nimbus") == ALL
    assert resolve_bands("rgb", MODEL) == ("B4", "B3", "B2")
    assert resolve_bands("RGB", MODEL) == ("B4", "B3", "B2")
    assert resolve_bands("nir", MODEL) == ("B8",)
    assert resolve_bands("red, B08,b12", MODEL) == ("B4", "B8", "B12")
    assert resolve_bands(("B12", "red"), MODEL) == ("B12", "B4")
    assert resolve_bands((name for name in ["B12", "red"]), MODEL) == ("B12", "B4")
    assert resolve_bands(None, MODEL) == ()
    assert resolve_bands([], MODEL) == ()


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        (["B4", "B04"], "more than once: B4"),
        (["B4", "red", "nir", "B8"], "more than once: B4, B8"),
        ("B4,B4", "more than once"),
        (["B13"], "B12"),
        (["B0"], "there is no band 'B0'"),
        (["B8B"], "B8A"),
        (["rededge4"], "rededge1"),
        (["rred"], "red"),
        (["b4", "Gren"], "green"),
        (["ultraviolet"], "common names"),
        (["all", "B4"], "there is no band 'all'"),
        ("", "there is no band ''"),
        ("B4,", "there is no band ''"),
        ([None], "there is no band None"),
        ([4], "there is no band 4"),
        (["[B8_B4]"], "there is no band"),
        (5, "got int"),
    ],
)
def test_bad_bands(bands, words):
    with pytest.raises(InvalidBandError) as caught:
        resolve_bands(bands, MODEL)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("typo", ["B8B", "rededge4", "rred", "NIRR", "swir15"])
def test_near_matches_are_named(typo):
    with pytest.raises(InvalidBandError, match=r"did you mean \w+"):
        band_id(typo)


def test_indices_of_the_catalogue():
    assert resolve_indices("ndvi", MODEL) == (("ndvi", "[B8_B4]"),)
    assert resolve_indices("NDVI, ndwi", MODEL) == (("ndvi", "[B8_B4]"), ("ndwi", "[B3_B8]"))
    assert resolve_indices(["nbr", "ndmi", "ndre"], MODEL) == (
        ("nbr", "[B8_B12]"),
        ("ndmi", "[B8_B11]"),
        ("ndre", "[B8_B5]"),
    )
    assert resolve_indices(None, MODEL) == ()
    for name, pair in INDICES.items():
        assert resolve_indices([name], MODEL) == ((name, f"[{pair[0]}_{pair[1]}]"),)


def test_indices_of_one_s_own():
    mine = {"mine": ("B8", "B5"), "yours": ["nir08", "swir22"]}
    assert resolve_indices(mine, MODEL) == (("mine", "[B8_B5]"), ("yours", "[B8A_B12]"))


def test_only_what_the_model_offers_is_suggested():
    with pytest.raises(InvalidBandError) as caught:
        resolve_bands("B99", MODEL)
    assert "B9" not in caught.value.hint.replace("B99", "")
    with pytest.raises(InvalidBandError, match="did you mean B9"):
        resolve_bands("B99", "Nimbus")


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ("nvdi", "ndvi"),
        (["ndv"], "did you mean ndvi"),
        (["xyzzy"], "Known: ndvi"),
        ([None], "None"),
        ({"mine": ("B8",)}, "pair"),
        ({"mine": ("B8", "B5", "B4")}, "pair"),
        ({"mine": "B8"}, "pair"),
        ({"mine": 5}, "pair"),
        ({"mine": ("B8", "B8")}, "more than once"),
        ({"mine": ("B8", "nir")}, "more than once"),
        ({"mine": ("B8", "B99")}, "there is no band 'B99'"),
        ({"mine": ("B8", "B1")}, "does not offer B1"),
        ({"my index": ("B8", "B5")}, "name"),
        ({"": ("B8", "B5")}, "name"),
        ({5: ("B8", "B5")}, "name"),
        ({"reflectance": ("B8", "B5")}, "reflectance"),
        (5, "5"),
    ],
)
def test_bad_indices(indices, words):
    with pytest.raises(InvalidBandError) as caught:
        resolve_indices(indices, MODEL)
    assert words in str(caught.value)
    assert caught.value.hint


# These are coordinates of what is opened: a variable of that name would not build, and the
# failure would come only after the date search.
@pytest.mark.parametrize("name", ["time", "band", "y", "x", "spatial_ref"])
def test_an_index_cannot_have_the_name_of_a_coordinate(name):
    with pytest.raises(InvalidBandError, match="name"):
        resolve_indices({name: ("B8", "B4")}, MODEL)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("B8,B4,[B8_B4]", ("B8", "B4", "[B8_B4]")),
        (" B8 , b8a , [ b8_B4 ] ", ("B8", "B8A", "[B8_B4]")),
        ("[B8A_B12]", ("[B8A_B12]",)),
        ("all", ("all",)),
        (" RGB ", ("rgb",)),
        ("B10", ("B10",)),
    ],
)
def test_the_grammar_of_bandnames(text, layers):
    assert parse_bandnames(text) == layers


@pytest.mark.parametrize(
    "text",
    ["", ",", "B4,", "B04", "red", "ndvi", "all,B4", "B4,rgb", "[B8]", "[B8_B4_B3]", "[B8-B4]",
     "B8_B4", "[B8_B4", "[[B8_B4]]", "[B8_red]", "[_B4]", "B4 B3", "B4;B3", "[all_B4]", "B13"],
)  # fmt: skip
def test_what_is_not_in_the_grammar(text):
    with pytest.raises(InvalidBandError):
        parse_bandnames(text)


LAYERS = st.one_of(
    st.sampled_from(ALL),
    st.tuples(st.sampled_from(ALL), st.sampled_from(ALL)).map(lambda pair: "[{}_{}]".format(*pair)),
)


@PROPERTY
@given(
    st.lists(LAYERS, min_size=1, max_size=8), st.sampled_from([",", ", ", " ,  "]), st.booleans()
)
def test_the_grammar_reads_what_is_written(layers, comma, lower):
    text = comma.join(layers)
    assert parse_bandnames(text.lower() if lower else text) == tuple(layers)


@PROPERTY
@given(st.permutations(TEN), st.integers(1, 10), st.randoms(use_true_random=False))
def test_bands_keep_the_order_that_was_asked(order, count, random):
    asked = [random.choice(SPELLINGS[name]) for name in order[:count]]
    assert resolve_bands(asked, MODEL) == tuple(order[:count])
    assert parse_bandnames(",".join(resolve_bands(asked, MODEL))) == tuple(order[:count])
