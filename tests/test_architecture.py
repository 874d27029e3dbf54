"""The floors of the package: who may import whom, and what an import brings along."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clearsky_xr

ROOT = Path(clearsky_xr.__file__).parent

# From below. A module imports from lower floors, and of its own floor what stands before it; but
# the modules of floor 2, each a door to something outside, know nothing of each other.
FLOORS = [
    ["errors", "_pixels", "_blocks", "_bands", "_area", "_dates", "_grid", "_mask", "_geometry",
     "_request", "_cube"],
    ["_clock", "_location", "_budget", "_ledger", "_settings", "_retry", "_answers", "_body",
     "_versions", "_gate", "_selection", "_plan", "_layers", "_record", "_layout", "_notices",
     "_availability", "_explain"],
    ["_client", "_geotiff", "_cog", "_holdings", "_spool", "_sidecar", "_store", "_loop",
     "_link", "_scheduler", "_semaphore"],
    ["_account", "_purchase", "_output", "_service", "_stock", "_fills", "_stored", "_fetch",
     "_prefetch", "_array", "_hidden", "_graph", "_quote", "_planned", "_dataset",
     "_prepare", "_open", "_interrupt"],
    ["_api", "_catalogue", "_variable", "_picture", "_card", "_progress", "_shown", "_receipts",
     "_stac", "_packing", "_export", "_accessor", "_backend", "_sample", "_demo",
     "_show_versions", "cluster", "cli", "__init__"],
]  # fmt: skip
DOORS = 2
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
SIDEWAYS = {
    name: set() if number == DOORS else set(floor[: floor.index(name)])
    for number, floor in enumerate(FLOORS)
    for name in floor
}

#: Neither reads pixels, nor the network, nor a store.
PURE = (0, 1)
HEAVY = {"xarray", "dask", "distributed", "aiohttp", "zarr", "rasterio", "rioxarray"}

#: The switch, and the faces.
SANDBOX_USERS = {"_account", "__init__", "cli", "_demo"}

MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
SANDBOX = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("sandbox/**/*.py"))
#: A folder of its own on the top floor: it may import everything, and nothing imports it.
CLI = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("cli/*.py"))


def imports(path):
    """Names of imported modules, absolute ones as they are, own ones from "clearsky_xr" on."""
    package = ["clearsky_xr", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if ".".join(base) in ("clearsky_xr", "clearsky_xr.sandbox"):
                # What is imported may be a module itself.
                yield from (".".join([*base, alias.name]) for alias in node.names)
            else:
                yield ".".join(base)


def own(path):
    """Imported modules of the package, by their first name below it."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "clearsky_xr":
            yield parts[1] if len(parts) > 1 else "__init__"


def test_every_module_has_a_floor():
    assert set(MODULES) - {"__main__"} <= set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_imports_lead_downwards(name):
    if name == "__main__":
        pytest.skip("calls cli")
    for other in own(ROOT / f"{name}.py"):
        if other == "sandbox":
            assert name in SANDBOX_USERS
            continue
        module = other if other in MODULES else "__init__"  # else a name of the package itself
        assert FLOOR[module] < FLOOR[name] or module in SIDEWAYS[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", [n for n in MODULES if FLOOR.get(n) in PURE])
def test_the_pure_floors_import_nothing_heavy(name):
    found = list(imports(ROOT / f"{name}.py"))
    assert not {module.split(".")[0] for module in found} & HEAVY
    # odc.geo.xr brings xarray: only `like=`, inside a function, has use for it.
    assert "odc.geo.xr" not in found or name == "_grid"


def test_odc_geo_xr_is_imported_inside_a_function_only():
    tree = ast.parse((ROOT / "_grid.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            assert all(alias.name != "odc.geo.xr" for alias in node.names)


@pytest.mark.parametrize("path", SANDBOX)
def test_the_sandbox_stands_on_the_ground_floor(path):
    assert SANDBOX, "there is a sandbox"
    for other in own(ROOT / path):
        assert other == "sandbox" or other in FLOORS[0], f"{path} imports {other}"


def test_nothing_imports_the_command_line():
    assert CLI, "there is a command line"
    for path in [*(f"{name}.py" for name in MODULES if name != "__main__"), *SANDBOX]:
        assert "cli" not in own(ROOT / path), path


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    """Guards the tests above: one that sees nothing would always be green."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "a.py").write_text(
        "import os.path, numpy as np\nfrom . import _clock\nfrom ._grid import Grid\n"
        "from .sandbox import serve\nfrom xarray.core import indexing\n"
        "def f():\n    import dask\n    from clearsky_xr._fetch import fetch\n"
    )
    assert set(imports(tmp_path / "a.py")) == {
        "os.path", "numpy", "clearsky_xr._clock", "clearsky_xr._grid", "clearsky_xr.sandbox.serve",
        "xarray.core", "dask", "clearsky_xr._fetch",
    }  # fmt: skip
    (tmp_path / "sandbox" / "b.py").write_text(
        "from .._bands import STRATUS\nfrom . import _fields\nfrom ..errors import X\n"
        "from .. import _y\n"
    )
    assert set(own(tmp_path / "sandbox" / "b.py")) == {"_bands", "sandbox", "errors", "_y"}


def run(program, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CLEARSKY")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, env=environment, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = """
import os, sys
# What others wrote is loaded once; of ours each child has nothing until it imports its module.
import aiohttp, click, dask.array, numpy, odc.geo.xr, pandas, rasterio, shapely, xarray, zarr
try:
    import distributed
except ImportError:
    pass
assert not any(name.startswith("clearsky_xr") for name in sys.modules)
for name in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException as error:
            print(name, type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_can_be_imported_alone():
    names = [f"clearsky_xr.{name}" for name in MODULES if name not in ("__init__", "__main__")]
    names += ["clearsky_xr." + path[:-3].replace("/", ".") for path in [*SANDBOX, *CLI]]
    if importlib.util.find_spec("matplotlib") is None:
        names.remove("clearsky_xr._demo")
    assert run(ALONE, *names) == ""


LIGHT = """
import json, sys
import xarray
before = set(sys.modules)
import clearsky_xr, clearsky_xr._backend
dir(clearsky_xr)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_looking_for_engines_stays_light():
    """xarray imports the entry point whenever it looks for an engine, of any file."""
    brought = json.loads(run(LIGHT))
    assert "clearsky_xr._backend" in brought
    tops = {name.split(".")[0] for name in brought}
    heavy = {"aiohttp", "rasterio", "rioxarray", "odc", "shapely", "pyproj", "dask", "zarr"}
    assert not tops & heavy
    ours = {name for name in brought if name.startswith("clearsky_xr.")}
    assert ours <= {"clearsky_xr._backend", "clearsky_xr.errors", "clearsky_xr._bands"}


def test_the_public_names_are_sorted_and_resolve():
    assert clearsky_xr.__all__ == sorted(clearsky_xr.__all__)
    assert len(set(clearsky_xr.__all__)) == len(clearsky_xr.__all__)
    for name in clearsky_xr.__all__:
        assert getattr(clearsky_xr, name) is not None
        assert name in dir(clearsky_xr)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clearsky_xr.nothing  # noqa: B018


WITHOUT_DISTRIBUTED = """
import sys
sys.modules["distributed"] = None  # as if it were not installed
import clearsky_xr
from clearsky_xr import *
assert not hasattr(clearsky_xr, "cluster") and "cluster" not in dir(clearsky_xr)
try:
    clearsky_xr.cluster
except AttributeError as error:
    print(error)
"""


def test_without_distributed_all_else_can_be_had_and_cluster_says_what_it_needs():
    assert "pip install 'clearsky-xr[cluster]'" in run(WITHOUT_DISTRIBUTED)


def test_the_entry_point_is_there():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="xarray.backends", name="clearsky")
    assert entry.value == "clearsky_xr._backend:ClearSkyBackendEntrypoint"
    assert entry.load().__module__ == "clearsky_xr._backend"


def test_modules_stay_small():
    """At 400 lines something wants to leave."""
    for path in ROOT.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 450, f"{path.name} has {lines} lines"
