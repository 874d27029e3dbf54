"""README's Python runs as printed, on the sandbox."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import geopandas
import matplotlib as mpl
import pytest
import shapely

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def test_every_block_runs_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [textwrap.dedent(text) for _, text in BLOCK.findall(README.read_text("utf-8"))]
    assert len(blocks) == 7
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARSKY_BASE_URL", "sandbox")
    field = shapely.box(15.05, 45.985, 15.055, 45.99)
    geopandas.GeoSeries([field], crs=4326).to_file("field.geojson")
    geopandas.GeoSeries([field.centroid], crs=4326).to_file("plots.geojson")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace("plt.show()", ""), str(README), "exec"), names)  # noqa: S102
    mpl.pyplot.close("all")
    assert names["series"].reflectance.dims == ("point", "time", "band")
    assert (tmp_path / "field.zarr").is_dir()
    assert "2025-06-05" in capsys.readouterr().out
