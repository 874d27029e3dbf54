"""The bar: what it says is what the sandbox has charged."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import clearsky_xr
from clearsky_xr import _account
from clearsky_xr.sandbox import Server

from .conftest import FARM, SPRING, access, credits_of, paid


@pytest.mark.parametrize("chunks", [{}, None])
def test_it_counts_what_is_bought(
    server: Server, chunks: object, capsys: pytest.CaptureFixture[str]
) -> None:
    ds = clearsky_xr.open_timeseries(FARM, SPRING, chunks=chunks, **access(server))
    ds.reflectance.isel(time=0).load()
    with clearsky_xr.progress():
        ds.reflectance.mean().compute()
    last = capsys.readouterr().err.split("\r")[-1]
    shown = re.search(
        r"^(\d+) requests \[.*, ([\d.]+) MB, ([\d.]+) credits, (\d+) dates, 0 in flight\]", last
    )
    assert shown is not None, last
    assert int(shown[1]) == int(shown[4]) == 3
    now = paid(server)[1:]
    assert float(shown[3]) == round(sum(entry.credits for entry in now), 2) > 0
    assert float(shown[2]) == pytest.approx(sum(entry.bytes for entry in now) / 1e6, abs=0.05)
    assert credits_of(server) == _account.process().ledger.spent().settled
    assert not _account.process().ledger.watchers


def test_it_ends_with_an_error(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), clearsky_xr.progress(leave=False):
        raise RuntimeError
    assert not _account.process().ledger.watchers


BARE_NOTEBOOK = """
import sys, types
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")  # what tqdm looks for
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=object)
sys.modules["ipywidgets"] = None
import clearsky_xr
clearsky_xr.progress
"""


def test_a_notebook_without_widgets_hears_no_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE_NOTEBOOK],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
