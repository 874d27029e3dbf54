"""What the booleans of the availability call mean: contract, section 10."""

from __future__ import annotations

import datetime as dt
import itertools
import pickle
from dataclasses import fields, replace

import pytest

from clearsky_xr import Availability
from clearsky_xr._availability import read_availability

DAY = dt.date(2025, 4, 1)
NAMES = [field.name for field in fields(Availability) if field.name != "date"]
ALL_TRUE = Availability(DAY, **dict.fromkeys(NAMES, True))

# The table's rows in its order: what is false, the state, and a word of the explanation.
ROWS = [
    ({"polygon_in_data_area": False}, "outside", "never|no image will ever"),
    ({"intersected_active_zones": False}, "outside", "outside the data"),
    ({"data_available_for_user": False}, "restricted", "does not allow"),
    ({"orders_cover_polygon": False}, "not_ordered", "ordered first"),
    ({"any_image_within_storage_months": False}, "expired", "storage time"),
    ({"data_on_zone_data_frequency_date": False}, "off_cadence", "rhythm"),
    ({"all_images_predicted": False}, "incomplete", "allow_partial=True"),
    ({"partially_available": True}, "incomplete", "ask again later"),
    ({"partially_available": False}, "not_produced", "not made yet"),
]


def test_all_true_is_ready() -> None:
    assert ALL_TRUE
    assert (ALL_TRUE.ready, ALL_TRUE.kind) == (True, "ready")
    assert "its image" in ALL_TRUE.why


@pytest.mark.parametrize(("told", "kind", "words"), ROWS)
def test_each_row_is_explained(told: dict[str, bool], kind: str, words: str) -> None:
    answer = replace(ALL_TRUE, fully_available=False, **told)
    assert not answer
    assert (answer.ready, answer.kind) == (False, kind)
    assert any(word in answer.why for word in words.split("|"))
    assert repr(answer) == (
        f"<clearsky_xr.Availability of 2025-04-01, not ready ({kind}): {answer.why}>"
    )


def test_of_two_reasons_the_earlier_row_counts() -> None:
    for (first, kind, _), (second, _, _) in itertools.combinations(ROWS, 2):
        answer = replace(ALL_TRUE, fully_available=False, **{**second, **first})
        assert answer.kind == kind, (first, second)


@pytest.mark.parametrize(
    ("lacking", "ready"),
    [("fully_available", False), ("orders_cover_polygon", False),
     ("data_available_for_user", False), ("all_images_predicted", True),
     ("any_image_within_storage_months", True), ("uncertainty_available", True)],
)  # fmt: skip
def test_ready_is_the_vendors_own_test(lacking: str, *, ready: bool) -> None:
    assert replace(ALL_TRUE, **{lacking: False}).ready is ready


def test_what_is_not_said_is_unknown_and_not_false() -> None:
    nothing = read_availability(DAY, {})
    assert nothing == Availability(DAY)
    assert (nothing.ready, nothing.kind) == (False, "unknown")
    # The answer of January 2024, contract, section 12.
    old = dict.fromkeys(
        ("IntersectedActiveZones", "FullyAvailable", "PolygonInDataArea", "DataAvailableForUser",
         "DataOnZoneDataFrequencyDate"), True,
    )  # fmt: skip
    answer = read_availability(DAY, old)
    assert answer.ready
    assert answer.orders_cover_polygon is None
    assert read_availability(DAY, old | {"FullyAvailable": False}).kind == "unknown"
    assert read_availability(DAY, old | {"FullyAvailable": None}).kind == "unknown"


def test_every_field_is_read_and_only_booleans_count() -> None:
    words = [
        "IntersectedActiveZones", "IntersectedActiveZonesUtmEpsg", "FullyAvailable",
        "PartiallyAvailable", "UncertaintyAvailable", "PartiallyUncertaintyAvailable",
        "PolygonInDataArea", "DataAvailableForUser", "DataOnZoneDataFrequencyDate",
        "AllImagesPredicted", "AnyImageWithinStorageMonths", "OrdersCoverPolygon",
    ]  # fmt: skip
    assert len(words) == len(NAMES) == 12
    assert read_availability(DAY, dict.fromkeys(words, True)) == ALL_TRUE
    for word in words:
        answer = read_availability(DAY, {word: False})
        assert [getattr(answer, name) for name in NAMES].count(None) == 11
    assert read_availability(DAY, dict.fromkeys(words, "true")) == Availability(DAY)


def test_it_is_an_immutable_value() -> None:
    assert pickle.loads(pickle.dumps(ALL_TRUE)) == ALL_TRUE
    assert len({ALL_TRUE, replace(ALL_TRUE)}) == 1
    with pytest.raises(AttributeError):
        ALL_TRUE.date = DAY
