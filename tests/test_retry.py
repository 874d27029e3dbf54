"""What follows a failure: a wait within bounds, or the failure's own error. Nothing sleeps."""

import datetime as dt
import email.utils
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearsky_xr import _retry
from clearsky_xr._retry import Failed, Outcome, Policy, Retry, retry_after
from clearsky_xr.errors import LostDownloadError, RateLimitedError, ServiceError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)

WED = "Wed, 21 Oct 2015 07:28:00 GMT"


def failed(outcome, **options):
    return Failed(outcome, ServiceError(f"it was {outcome.value}"), **options)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "86400000"}, 86_400_000.0),
        # A date counts from the response's own clock, which may be years off ours.
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": WED}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 09:28:00 +0200", "Date": WED}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 09:29:00 +0200", "Date": WED}, 60.0),
        ({"Retry-After": "Wednesday, 21-Oct-15 07:28:05 GMT", "Date": WED}, 5.0),
        ({"Retry-After": "Tue, 20 Oct 2015 07:28:00 GMT", "Date": WED}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),  # long past by our clock
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "-0.5", "nan", "inf", "-inf", "1e999", "soon", "1,5", "10 s", "0x10",
     "Wed, 99 Oct 2015 07:28:00 GMT", "Wed, 21 Oct", "99999999999999999999-01-01", ",", "\x00",
     "Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "Wed, 21 Oct 2015 99:28:00 GMT",
     "Wed, 21 Oct 2015 07:28:00 +99999999999999"],
)  # fmt: skip
def test_garbage_in_retry_after_counts_as_absent(text):
    assert retry_after({"Retry-After": text}) is None
    assert retry_after({"Retry-After": text, "Date": WED}) is None


@pytest.mark.parametrize("date", ["", "soon", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"])
def test_garbage_in_date_makes_a_date_unreadable(date):
    assert retry_after({"Retry-After": WED, "Date": date}) is None
    assert retry_after({"Retry-After": "5", "Date": date}) == 5.0


def test_no_retry_after():
    assert retry_after({}) is None
    assert retry_after({"Date": WED}) is None


def test_a_date_without_a_date_header_counts_from_now():
    then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    found = retry_after({"Retry-After": email.utils.format_datetime(then, usegmt=True)})
    assert 80 < found <= 90


@PROPERTY
@given(st.text(max_size=40), st.text(max_size=40) | st.none())
def test_any_text_is_seconds_or_nothing(text, date):
    found = retry_after({"Retry-After": text} | ({} if date is None else {"Date": date}))
    assert found is None or (math.isfinite(found) and found >= 0)


def waits(outcome, count, policy=None, **options):
    retry = Retry(policy or Policy())
    return [retry.wait(failed(outcome), 0.0, **options) for _ in range(count)]


@pytest.mark.parametrize("luck", [0.0, 0.5, 0.999])
def test_pauses_double_up_to_the_cap_and_are_jittered(monkeypatch, luck):
    monkeypatch.setattr(_retry.random, "uniform", lambda low, high: low + luck * (high - low))
    factor = 0.5 + luck / 2
    expected = [factor * min(60, 2**k) for k in range(10)]
    assert waits(Outcome.REFUSED, 10) == pytest.approx(expected)
    policy = Policy(base=0.25, cap=1.0)
    assert waits(Outcome.REFUSED, 4, policy) == pytest.approx(
        [factor * x for x in (0.25, 0.5, 1, 1)]
    )


def test_requests_that_failed_together_do_not_come_back_together():
    random.seed(0)
    assert len({waits(Outcome.TRANSIENT, 1)[0] for _ in range(50)}) > 40


@pytest.mark.parametrize("outcome", [Outcome.TRANSIENT, Outcome.UNREACHABLE])
@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_bounded(outcome, attempts):
    retry = Retry(Policy(transient=attempts))
    for _ in range(attempts - 1):
        assert retry.wait(failed(outcome), 0.0) > 0
    last = failed(outcome)
    with pytest.raises(ServiceError) as caught:
        retry.wait(last, 0.0)
    assert caught.value is last.error


def test_refusals_are_bounded_by_the_deadline_alone():
    """Nothing was charged, so waiting costs nothing but time."""
    assert len(waits(Outcome.REFUSED, 2000)) == 2000
    retry = Retry(Policy(deadline=100.0, base=8.0))
    assert retry.wait(failed(Outcome.REFUSED), 91.9) <= 8.0
    with pytest.raises(ServiceError):
        retry.wait(failed(Outcome.REFUSED), 99.0)


def test_endless_refusals_end_by_the_deadline():
    random.seed(1)
    retry, elapsed = Retry(Policy(deadline=900.0)), 0.0
    error = RateLimitedError("all connections in use")
    raised = None
    while raised is None:
        try:
            elapsed += retry.wait(Failed(Outcome.REFUSED, error), elapsed)
        except RateLimitedError as end:
            raised = end
        assert elapsed <= 900.0
    assert raised is error
    assert elapsed > 830.0  # it did not give up much too early


def test_lost_downloads_are_repeated_twice_and_only_if_allowed():
    assert len(waits(Outcome.LOST, 2, may_repeat_lost=True)) == 2
    with pytest.raises(ServiceError):
        waits(Outcome.LOST, 3, may_repeat_lost=True)
    with pytest.raises(ServiceError):
        waits(Outcome.LOST, 1)
    with pytest.raises(ServiceError):
        waits(Outcome.LOST, 1, Policy(lost=0), may_repeat_lost=True)
    with pytest.raises(LostDownloadError):
        Retry(Policy()).wait(Failed(Outcome.LOST, LostDownloadError("gone")), 0.0)


def test_rejected_requests_are_never_repeated():
    with pytest.raises(ServiceError):
        waits(Outcome.REJECTED, 1, may_repeat_lost=True)
    with pytest.raises(ServiceError):
        Retry(Policy()).wait(failed(Outcome.REJECTED, retry_after=1.0), 0.0)


@PROPERTY
@given(
    asked=st.floats(0, 1000),
    elapsed=st.floats(0, 1000),
    outcome=st.sampled_from([Outcome.REFUSED, Outcome.TRANSIENT]),
    seen=st.integers(0, 3),
)
def test_the_service_s_wish_is_a_lower_bound(asked, elapsed, outcome, seen):
    retry = Retry(Policy())
    for _ in range(seen):
        retry.wait(failed(outcome), 0.0)
    try:
        pause = retry.wait(failed(outcome, retry_after=asked), elapsed)
    except ServiceError:
        assert elapsed + asked + 2**seen / 2 > 900
    else:
        # And jittered, or all that were told the same moment would come back in it.
        assert asked + 2**seen / 4 <= pause <= asked + 2**seen / 2
        assert elapsed + pause <= 900


def test_outcomes_are_counted_apart():
    retry = Retry(Policy(transient=2))
    assert retry.wait(failed(Outcome.TRANSIENT), 0.0) <= 1
    assert retry.wait(failed(Outcome.UNREACHABLE), 0.0) <= 1
    assert retry.wait(failed(Outcome.LOST), 0.0, may_repeat_lost=True) <= 1
    with pytest.raises(ServiceError):
        retry.wait(failed(Outcome.TRANSIENT), 0.0)


def test_a_failure_keeps_what_it_was_told():
    failure = failed(Outcome.LOST, retry_after=3.0, charged=True)
    assert (failure.outcome, failure.retry_after, failure.charged) == (Outcome.LOST, 3.0, True)
    assert str(failure) == failure.error.message == "it was lost"
    assert failed(Outcome.REFUSED).charged is False
