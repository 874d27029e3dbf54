"""The fixture that the package ships for other people's tests, run in a pytest of its own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["clearsky_xr.sandbox.pytest_plugin"]'

TESTS = """
import os
import pytest
import clearsky_xr
from clearsky_xr.sandbox import Fault
from clearsky_xr.sandbox.faults import in_turn

FIELD = (15.05, 45.985, 15.055, 45.99)

@pytest.mark.clearsky_sandbox(max_connections=2, faults=in_turn(Fault.status(503)))
def test_marked(clearsky_sandbox):
    ds = clearsky_xr.open_timeseries(FIELD, ["2025-04-01"]).load()
    assert [entry.status for entry in clearsky_sandbox.downloads()] == [503, 200]
    assert clearsky_xr.account().connections == 2
    assert ds.attrs["source"]

def test_plain(clearsky_sandbox):
    clearsky_sandbox.inject(Fault.status(401, endpoint="account"))
    with pytest.raises(clearsky_xr.errors.CredentialsError):
        clearsky_xr.open_timeseries(FIELD, ["2025-04-01"])
    assert not clearsky_sandbox.downloads()

def test_without():
    assert "CLEARSKY_BASE_URL" not in os.environ
    assert "CLEARSKY_API_KEY" not in os.environ
"""


def test_the_fixture_and_its_marker(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:cacheprovider")
    pytester.runpytest_subprocess("-v").assert_outcomes(passed=3)


def test_nothing_is_there_that_was_not_asked_for(pytester: pytest.Pytester) -> None:
    """The package has no entry point of pytest's: it changes nobody's tests by being there."""
    pytester.makepyfile("def test(clearsky_sandbox): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines("*fixture 'clearsky_sandbox' not found*")
