"""The ``time`` option: ranges, lists of days, and what is neither."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearsky_xr._dates import DateRange, resolve_time
from clearsky_xr.errors import InvalidTimeError

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)

D = dt.date
JUNE = DateRange(D(2025, 6, 1), D(2025, 6, 30))

RANGES = {
    "pair of text": (("2025-06-01", "2025-06-30"), JUNE),
    "pair of months": (("2025-06", "2025-06"), JUNE),
    "pair of dates": ((D(2025, 6, 1), D(2025, 6, 30)), JUNE),
    "pair of datetimes": ((dt.datetime(2025, 6, 1), dt.datetime(2025, 6, 30)), JUNE),
    "pair of UTC": (
        (dt.datetime(2025, 6, 1, tzinfo=dt.UTC), pd.Timestamp("2025-06-30", tz="UTC")),
        JUNE,
    ),
    "pair of datetime64": ((np.datetime64("2025-06-01"), np.datetime64("2025-06-30", "ns")), JUNE),
    "mixed pair": ((pd.Timestamp("2025-06-01"), "2025-06-30T00:00:00Z"), JUNE),
    "slice": (slice("2025-06-01", "2025-06-30"), JUNE),
    "slice of months": (slice("2025-06", "2025-06"), JUNE),
    "text range": ("2025-06-01/2025-06-30", JUNE),
    "text range with spaces": (" 2025-06-01 / 2025-06-30 ", JUNE),
    "month": ("2025-06", JUNE),
    "month of one digit": ("2025-6", JUNE),
    "day": ("2025-06-30", DateRange(D(2025, 6, 30), D(2025, 6, 30))),
    "day without dashes": ("20250630", DateRange(D(2025, 6, 30), D(2025, 6, 30))),
    "day in full": ("2025-06-30T00:00:00Z", DateRange(D(2025, 6, 30), D(2025, 6, 30))),
    "date": (D(2025, 6, 30), DateRange(D(2025, 6, 30), D(2025, 6, 30))),
    "timestamp": (pd.Timestamp("2025-06-30"), DateRange(D(2025, 6, 30), D(2025, 6, 30))),
    "year": ("2025", DateRange(D(2025, 1, 1), D(2025, 12, 31))),
    "leap February": ("2024-02", DateRange(D(2024, 2, 1), D(2024, 2, 29))),
    "years": (("2023", "2024"), DateRange(D(2023, 1, 1), D(2024, 12, 31))),
    "open pair": (("2025-06-01", None), DateRange(D(2025, 6, 1), None)),
    "open slice": (slice("2025-06", None), DateRange(D(2025, 6, 1), None)),
    "open text": ("2025-06-01/", DateRange(D(2025, 6, 1), None)),
    "open STAC text": ("2025-06-01/..", DateRange(D(2025, 6, 1), None)),
    # A search in the future finds nothing, which is the true answer.
    "future": (("2999-01-01", "2999-01-31"), DateRange(D(2999, 1, 1), D(2999, 1, 31))),
}


@pytest.mark.parametrize("case", RANGES)
def test_ranges(case):
    time, expected = RANGES[case]
    assert resolve_time(time) == expected


DAYS = (D(2025, 5, 3), D(2025, 6, 1), D(2025, 6, 8))
LISTS = {
    "text": ["2025-06-01", "2025-05-03", "2025-06-08"],
    "repeated": ["2025-06-08", "2025-06-01", "2025-05-03", D(2025, 6, 8)],
    "three in a tuple": ("2025-05-03", "2025-06-01", "2025-06-08"),
    "dates": list(DAYS),
    "set": set(DAYS),
    "DatetimeIndex": pd.DatetimeIndex(DAYS),
    "DatetimeIndex in UTC": pd.DatetimeIndex(DAYS, tz="UTC"),
    "Series": pd.Series(pd.DatetimeIndex(DAYS)),
    "datetime64": np.array(DAYS, "datetime64[ns]"),
    "array of text": np.array(["2025-05-03", "2025-06-01", "2025-06-08"]),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_days_are_sorted_and_distinct(case):
    assert resolve_time(LISTS[case]) == DAYS


def test_other_iterables_are_lists_of_days():
    assert resolve_time(day for day in reversed(DAYS)) == DAYS
    assert resolve_time(["2025-06-01"]) == (D(2025, 6, 1),)
    assert resolve_time(["2025-06-01", "2025-06-08"]) == DAYS[1:]  # a list of two is no range


BAD = {
    "nothing": None,
    "reversed": ("2025-06-30", "2025-06-01"),
    "reversed months": ("2025-06", "2025-05"),
    "reversed text": "2025-06-30/2025-06-01",
    "reversed slice": slice("2025-06-30", "2025-06-01"),
    "slice with a step": slice("2025-06-01", "2025-06-30", 5),
    "open start": (None, "2025-06-30"),
    "open slice": slice(None),
    "open text": "/2025-06-30",
    "only a slash": "/",
    "impossible day": "2025-02-30",
    "impossible day in a range": ("2025-02-01", "2025-02-30"),
    "impossible day in a list": ["2025-02-28", "2025-02-30"],
    "no leap year": "2023-02-29",
    "month 13": "2025-13",
    "month 0": "2025-00",
    "day 0": "2025-06-00",
    "year 0": "0000",
    "time of day": "2025-06-01T12:00",
    "time of day in a datetime": (dt.datetime(2025, 6, 1, 12), dt.datetime(2025, 6, 2)),
    "a nanosecond": [np.datetime64("2025-06-01T00:00:00.000000001", "ns")],
    "aware text": "2025-06-01T00:00:00+02:00",
    "aware datetime": [dt.datetime(2025, 6, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))],
    "aware timestamp": (pd.Timestamp("2025-06-01", tz="Europe/Berlin"), "2025-06-30"),
    "future day": ["2999-01-01"],
    "month in a list": ["2025-06"],
    "year in a list": ["2025-06-01", "2025"],
    "empty list": [],
    "empty tuple": (),
    "empty index": pd.DatetimeIndex([]),
    "empty text": "",
    "spaces": "  ",
    "NaT": pd.NaT,
    "NaT in a range": ("2025-06-01", pd.NaT),
    "NaT in a list": [np.datetime64("NaT", "D")],
    "NaT as text": "NaT",
    "None in a list": ["2025-06-01", None],
    "NaN": [float("nan")],
    "garbage": "soon",
    "garbage range": "2025-06-01/soon",
    "two slashes": "2025-06-01/2025-06-08/2025-06-30",
    "now": "now",
    "number": 2025,
    "numbers": [2025, 2026],
    "number of days": [20250601],
    "zero": [0],
    "bytes": b"2025-06-01",
    "time": dt.time(12),
    "delta": dt.timedelta(days=3),
    "0-d array": np.array("2025-06-01", "datetime64[D]"),
    # These name spans, or days in an order that depends on the country: read as a single day,
    # or as a range from the year 1, they would silently ask for something else.
    "quarter": "2025Q2",
    "quarter with a dash": "2025-Q2",
    "month in words": "June 2025",
    "day of the year 1": "06-01",
    "American or not": "1.6.2025",
    "day/month/year": "01/06/2025",
    "month/year": "06/2025",
    "year/month": "2025/06",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_times_are_refused(case):
    with pytest.raises(InvalidTimeError) as caught:
        resolve_time(BAD[case])
    assert caught.value.kind == "time"
    assert caught.value.message


def test_a_listed_day_may_be_tomorrow_but_no_later():
    today = D(2025, 6, 30)
    assert resolve_time(["2025-07-01"], today=today) == (D(2025, 7, 1),)
    with pytest.raises(InvalidTimeError, match=r"2025-07-02 lies in the future"):
        resolve_time(["2025-06-01", "2025-07-02"], today=today)


def test_the_present_day_is_the_default():
    today = dt.datetime.now(dt.UTC).date()
    assert resolve_time([today]) == (today,)
    with pytest.raises(InvalidTimeError):
        resolve_time([today + dt.timedelta(days=3)])


@PROPERTY
@given(first=st.dates(D(2015, 1, 1), D(2026, 1, 1)), length=st.integers(0, 1000))
def test_ranges_hold_exactly_their_days(first, length):
    last = first + dt.timedelta(days=length)
    found = resolve_time((str(first), str(last)))
    assert (found.start, found.end) == (first, last)
    one = dt.timedelta(days=1)
    assert first in found
    assert last in found
    assert first - one not in found
    assert last + one not in found
    assert last + one in DateRange(first, None)
    assert first - one not in DateRange(first, None)
    assert resolve_time(f"{first}/{last}") == found
    assert resolve_time(slice(np.datetime64(first), pd.Timestamp(last))) == found


@PROPERTY
@given(year=st.integers(1990, 2090), month=st.integers(1, 12))
def test_a_month_ends_on_the_day_before_the_next(year, month):
    found = resolve_time(f"{year}-{month:02}")
    after = D(year + month // 12, month % 12 + 1, 1)
    assert (found.start, found.end) == (D(year, month, 1), after - dt.timedelta(days=1))


@PROPERTY
@given(st.lists(st.dates(D(2015, 1, 1), D(2025, 1, 1)), min_size=1, max_size=20))
def test_lists_keep_every_day_once(days):
    assert resolve_time([str(day) for day in days]) == tuple(sorted(set(days)))
