"""A sandbox in the tests of those who use the package; opt-in.

In a ``conftest.py``::

    pytest_plugins = ["clearsky_xr.sandbox.pytest_plugin"]

and in a test::

    @pytest.mark.clearsky_sandbox(max_connections=2)
    def test_my_pipeline_survives_a_bad_day(clearsky_sandbox):
        clearsky_sandbox.inject(Fault.status(503, times=2))
        my_pipeline("field.geojson")  # finds the sandbox by its environment variables
        assert sum(entry.credits for entry in clearsky_sandbox.downloads()) < 1
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ._serve import serve
from ._server import Server

__all__ = ["clearsky_sandbox"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "clearsky_sandbox(**options): options of clearsky_xr.sandbox.serve for the fixture "
        "of the same name",
    )


@pytest.fixture
def clearsky_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """Run a sandbox for one test, and let everything that is opened without a URL use it.

    ``CLEARSKY_BASE_URL`` and ``CLEARSKY_API_KEY`` point to it until the test ends, also for
    child processes. The marker ``clearsky_sandbox`` has its options, those of
    `clearsky_xr.sandbox.serve`; of several markers the nearest to the test is taken.

    Yields
    ------
    Server
        With ``ledger()``, ``downloads()``, ``balance``, ``peak_in_flight`` and ``inject(fault)``.
    """
    marker = request.node.get_closest_marker("clearsky_sandbox")
    with serve(**(marker.kwargs if marker else {})) as server:
        monkeypatch.setenv("CLEARSKY_BASE_URL", server.url)
        monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
        yield server
