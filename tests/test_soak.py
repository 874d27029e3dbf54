"""A minute of random faults; ``python -m tests.soak`` goes on for ten."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed")

from . import soak


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_minute_of_random_faults() -> None:
    figures = soak.run(60.0)
    soak.check(figures)
    # It was a soak, and not a dry run.
    assert figures["reads"] > 30
    assert len(figures["faults"]) >= 4
    assert 0.01 < figures["struck"] / figures["requests"] < 0.12


@pytest.mark.parametrize(
    ("name", "value"),
    [("wrong", ["threads: other values than the service's"]), ("peak", 5),
     ("bought without need", 0.01)],
)  # fmt: skip
def test_what_must_not_be_is_seen(name: str, value: object) -> None:
    good = {
        "wrong": [], "peak": 4, "bought without need": 0.0,
        "warm": dict.fromkeys(("rss", "threads", "sockets", "files", "tasks", "temporary"), 9),
    }  # fmt: skip
    soak.check({**good, "end": good["warm"]})
    with pytest.raises(AssertionError):
        soak.check({**good, "end": good["warm"], name: value})
    for leak in ("threads", "sockets", "files", "tasks", "temporary"):
        with pytest.raises(AssertionError, match=leak):
            soak.check({**good, "end": {**good["warm"], leak: 50}})
    with pytest.raises(AssertionError, match="then"):
        soak.check({**good, "end": {**good["warm"], "rss": 10**9}})
