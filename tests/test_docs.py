"""The documentation: every block of Python runs, every public name is described, nothing is stale.

Pages with ``{code-cell}`` and the notebooks are executed where the site is built (.ci/run). Here
run the blocks of plain pages, in turn and on the sandbox.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import geopandas
import matplotlib.pyplot as plt
import pytest
import shapely

import clearsky_xr
from clearsky_xr import sandbox
from clearsky_xr._accessor import ArrayAccessor, ClearSkyAccessor
from clearsky_xr.sandbox import faults

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FIELD = shapely.box(15.05, 45.985, 15.06, 45.992)

BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

# What a page takes for granted, as its text says.
BEFORE = {
    "errors.md": """
import clearsky_xr

ds = clearsky_xr.open_timeseries("field.geojson", "2025-06")
""",
    "plan.md": """
import clearsky_xr
import xarray as xr

field = "fields.geojson"
ds = clearsky_xr.open_timeseries(field, "2025-06", store="fields.zarr")
""",
    "scaling.md": "import clearsky_xr\nimport xarray as xr\n\narea = 'field.geojson'\n",
    "store.md": "import clearsky_xr\nimport xarray as xr\n",
}

# Addresses of the reader's own, and what stands for them here.
HERE = {
    '"tls://scheduler:8786"': 'processes=False, dashboard_address=":0"',
    "s3://bucket/": "",
}


def pages() -> list[Path]:
    found = [page for page in DOCS.glob("**/*.md") if not page.is_relative_to(DOCS / "notebooks")]
    return sorted(page for page in found if BLOCK.search(page.read_text("utf-8")))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_blocks_of_a_page_run_in_turn(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLEARSKY_BASE_URL", "sandbox")
    for name in ("field.geojson", "fields.geojson"):
        geopandas.GeoSeries([FIELD], crs=4326).to_file(name)
    name = page.relative_to(DOCS).as_posix()
    names: dict[str, Any] = {"__name__": "page"}
    text = page.read_text("utf-8")
    for there, here in HERE.items():
        text = text.replace(there, here)
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall(text)]
    for block in [BEFORE.get(name, ""), *blocks]:
        if "def test_" in block:
            passes_as_a_test_file(block, tmp_path)
        else:
            exec(compile(block, name, "exec"), names)  # noqa: S102
    plt.close("all")
    if "client" in names:
        names["client"].close()


def passes_as_a_test_file(block: str, folder: Path) -> None:
    (folder / "test_page.py").write_text(block, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_page.py"],
        capture_output=True, text=True, check=False, cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_reference_is_complete() -> None:
    errors = clearsky_xr.errors
    wanted = {f"clearsky_xr.{name}" for name in clearsky_xr.__all__} - {
        "clearsky_xr.errors", "clearsky_xr.sandbox", "clearsky_xr.cluster",
    }  # fmt: skip
    wanted |= {f"clearsky_xr.cluster.{name}" for name in clearsky_xr.cluster.__all__}
    wanted |= {f"clearsky_xr.sandbox.{name}" for name in sandbox.__all__}
    wanted |= {f"clearsky_xr.sandbox.faults.{name}" for name in faults.__all__ if name != "Fault"}
    wanted |= {
        f"clearsky_xr.errors.{name}" for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }  # fmt: skip
    wanted |= {f"xarray.Dataset.clearsky.{name}" for name in public(ClearSkyAccessor)}
    wanted |= {f"xarray.DataArray.clearsky.{name}" for name in public(ArrayAccessor)}
    assert described() == wanted


def described() -> set[str]:
    """Give the names that the reference lists."""
    found, module, listing = set(), "", False
    for line in (DOCS / "api.rst").read_text("utf-8").splitlines():
        if line.startswith(".. currentmodule::"):
            module = line.split()[-1]
        if line.startswith(".. autosummary::"):
            listing = True
        elif line and not line.startswith(" "):
            listing = False
        elif listing and line.strip() and not line.strip().startswith(":"):
            found.add(f"{module}.{line.strip()}")
    return found


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "mystnb"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert "SYNTHETIC" in text, "a picture must say what it shows"
