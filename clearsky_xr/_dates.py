"""The ``time`` option: a range to be searched, or days to be taken as given."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from .errors import InvalidTimeError

#: CF units of dates in datasets and stores. Whole seconds in int64 can be appended to; days
#: since the first date cannot.
TIME_UNITS: Final = "seconds since 1970-01-01"

_ISO: Final = re.compile(r"\d{4}(-\d{1,2}(-\d{1,2})?)?|\d{8}")
_ISO_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}\S*")
_FORMS: Final = (
    'Give ("2025-04-01", "2025-09-30"), slice("2025-04", "2025-09"), "2025-06", '
    '"2025-04-01/2025-09-30" or a list of days.'
)


@dataclass(frozen=True, slots=True)
class DateRange:
    """Days from `start` to `end`, both inclusive; `end` None means until now."""

    start: dt.date
    end: dt.date | None

    def __str__(self) -> str:
        if self.start == self.end:
            return f"on {self.start}"
        return f"from {self.start} to {self.end or 'now'}"

    def __contains__(self, day: dt.date) -> bool:
        return self.start <= day and (self.end is None or day <= self.end)


def resolve_time(time: Any, *, today: dt.date | None = None) -> DateRange | tuple[dt.date, ...]:
    """Turn the ``time`` option into a range or into sorted, distinct days.

    Parameters
    ----------
    time : tuple, slice, str, date-like, or list of date-likes
        A pair (tuple) or a slice is an inclusive range; a string is a day, a
        month, a year, or ``"start/end"``; any other iterable is a list of days.
        Days are UTC (contract, section 1).
    today : datetime.date, optional
        The present UTC day; a listed day may not lie behind the one after it.

    Returns
    -------
    DateRange or tuple of datetime.date
        A range is to be resolved by the date search; days are taken as given.

    Raises
    ------
    InvalidTimeError
        Missing, unreadable, reversed or impossible, with a time of day, in a
        time zone other than UTC, or listed in the future.
    """
    if time is None:
        raise InvalidTimeError("no time was given", hint=_FORMS)
    if isinstance(time, str) and "/" in time:
        start, _, end = time.partition("/")
        return _range(start.strip() or None, end.strip() if end.strip() not in ("", "..") else None)
    if isinstance(time, slice):
        if time.step is not None:
            raise InvalidTimeError("a time slice takes no step", hint=_FORMS)
        return _range(time.start, time.stop)
    if isinstance(time, tuple) and len(time) == 2:
        return _range(*time)
    if isinstance(time, str | dt.date | np.datetime64):
        return _range(time, time)
    if hasattr(time, "dims"):
        time = time.values  # a time coordinate
    if not isinstance(time, Iterable) or (isinstance(time, np.ndarray) and time.ndim == 0):
        raise InvalidTimeError(f"cannot read a {type(time).__name__} as time", hint=_FORMS)
    days = tuple(sorted({_listed(value) for value in time}))
    if not days:
        raise InvalidTimeError("the list of days is empty", hint=_FORMS)
    today = today or dt.datetime.now(dt.UTC).date()
    # One day of grace: this machine's clock may be behind the service's.
    if days[-1] > today + dt.timedelta(days=1):
        raise InvalidTimeError(
            f"{days[-1]} lies in the future", hint="Imagery exists only up to the present day."
        )
    return days


def _range(start: Any, end: Any) -> DateRange:
    if start is None:
        raise InvalidTimeError("the time range has no start", hint=_FORMS)
    first = _span(start)[0]
    last = None if end is None else _span(end)[1]
    if last is not None and last < first:
        raise InvalidTimeError(f"the time range ends ({last}) before it starts ({first})")
    return DateRange(first, last)


def _listed(value: Any) -> dt.date:
    first, last = _span(value)
    if first != last:
        raise InvalidTimeError(
            f"{value!r} in a list of days is not one day",
            hint='For a whole month pass the text alone, time="2025-06".',
        )
    return first


def _span(value: Any) -> tuple[dt.date, dt.date]:
    """Give the first and the last day that a value names."""
    if isinstance(value, np.datetime64):
        value = str(value)  # its unit says whether it is a day or a month
    text = value.strip() if isinstance(value, str) else value
    readable = (
        _ISO.fullmatch(text) or _ISO_TIME.fullmatch(text)
        if isinstance(text, str)
        else isinstance(text, dt.date)
    )
    if not readable:
        raise InvalidTimeError(f"cannot read {value!r} as a date", hint=_FORMS)
    try:
        if isinstance(text, str) and _ISO.fullmatch(text):
            period = pd.Period(text)
            first, last = (period.asfreq("D", how) for how in ("start", "end"))
            return dt.date(first.year, first.month, first.day), dt.date(
                last.year, last.month, last.day
            )
        moment = pd.Timestamp(text)
    except (ValueError, TypeError, OverflowError):
        raise InvalidTimeError(f"cannot read {value!r} as a date", hint=_FORMS) from None
    if pd.isna(moment):
        raise InvalidTimeError("NaT is not a date", hint=_FORMS)
    if moment.tzinfo is not None:
        if moment.utcoffset() != dt.timedelta(0):
            raise InvalidTimeError(
                f"{value!r} is in a time zone other than UTC",
                hint="The service counts UTC days: pass plain dates.",
            )
        moment = moment.tz_localize(None)
    if moment != moment.normalize():
        raise InvalidTimeError(
            f"{value!r} has a time of day", hint="Images stand for whole UTC days: pass dates."
        )
    return moment.date(), moment.date()
