"""``clearsky-xr demo``: the main job in small."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

import clearsky_xr
from clearsky_xr._demo import AREA, SEASON
from clearsky_xr.cli import main


def test_demo_draws_and_tells_what_it_would_have_cost(tmp_path: Path) -> None:
    server = clearsky_xr.sandbox.embedded()
    before = len(server.ledger())
    path = tmp_path / "folder with blanks" / "demo.png"
    path.parent.mkdir()
    result = CliRunner().invoke(main, ["demo", "--output", str(path)], catch_exceptions=False)
    assert result.exit_code == 0

    entries = server.ledger()[before:]
    bought = [entry for entry in entries if entry.endpoint == "composite"]
    assert {entry.status for entry in bought} == {200}
    days = [entry.date for entry in bought]
    assert len(set(days)) == len(days) > 20
    assert (str(min(days)) >= SEASON[0], str(max(days)) <= SEASON[1]) == (True, True)

    told = re.search(r"^(\d+) requests, (\d+\.\d\d) credits", result.stdout, re.MULTILINE)
    assert told is not None
    assert int(told[1]) == len(bought)
    assert float(told[2]) == pytest.approx(sum(entry.credits for entry in entries))
    assert float(told[2]) > 5
    assert "<xarray.Dataset>" in result.stdout
    assert "reflectance" in result.stdout
    assert "synthetic" in result.stdout
    assert f"Picture: {path}" in result.stdout
    # The bar counts every date to the end.
    assert f"{len(bought)}/{len(bought)}" in result.stderr

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = matplotlib.image.imread(path)[..., :3]
    height, width = picture.shape[:2]
    assert 800 <= width <= 2400
    assert 800 <= height <= 2400
    assert 100_000 < path.stat().st_size < 5_000_000
    # Panels of fields above, curves below: green there, and much white paper here.
    above, below = picture[: height // 2], picture[-height // 3 :]
    green = (above[..., 1] > above[..., 0]) & (above[..., 1] > above[..., 2])
    assert green.mean() > 0.1
    assert (below.min(axis=-1) > 0.99).mean() > 0.5
    assert len(np.unique((above * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 1000


def test_the_area_is_about_four_square_kilometres() -> None:
    import pyproj
    import shapely

    area = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.box(*AREA))[0]
    assert 3.5e6 < abs(area) < 4.5e6


def test_demo_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    server = clearsky_xr.sandbox.embedded()
    before = len(server.ledger())
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "demo.png")])
    assert result.exit_code == 1
    assert "pip install 'clearsky-xr[plot]'" in result.output
    assert "Traceback" not in result.output
    # Told before the work, not after it.
    assert len(server.ledger()) == before
    assert list(tmp_path.iterdir()) == []


def test_demo_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    server = clearsky_xr.sandbox.embedded()
    before = len(server.downloads())
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "none" / "demo.png")])
    assert result.exit_code != 0
    assert "Error" in result.output
    # Told before the work, too.
    assert len(server.downloads()) == before
