"""The public door: names, signatures, documentation, types."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr._backend import ClearSkyBackendEntrypoint

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["clearsky_xr", "clearsky_xr.sandbox", "clearsky_xr.sandbox.faults"]

# The names that were promised, in the order of the promise.
OPTIONS = [
    "time", "bands", "indices", "resolution", "crs", "like", "model", "constellations", "clip",
    "pixels", "allow_partial", "concurrency", "on_lost", "max_credits", "api_key", "base_url",
    "store", "storage_options", "drop_variables",
]  # fmt: skip
# What belongs to xarray itself, and is not handed to a backend.
XARRAYS_OWN = {
    "filename_or_obj", "engine", "chunks", "cache", "decode_cf", "inline_array",
    "chunked_array_type", "from_array_kwargs", "backend_kwargs", "create_default_indexes", "kwargs",
}  # fmt: skip


def decoders() -> set[str]:
    return set(inspect.signature(xr.open_dataset).parameters) - XARRAYS_OWN - {"drop_variables"}


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)
    # Classes before functions, as ruff sorts them.
    assert module.__all__ == sorted(module.__all__, key=lambda n: (n[0].islower(), n))
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for member in module.__all__:
        assert getattr(module, member) is not None


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_timeserie'"):
        _ = clearsky_xr.open_timeserie


def test_every_error_is_public_and_in_the_drawn_tree() -> None:
    from clearsky_xr import errors

    tree = errors.__doc__
    assert tree is not None
    drawn = set(re.findall(r"\b([A-Z]\w+Error)\b", tree)) - {"ValueError"}
    defined = {n for n, v in vars(errors).items() if inspect.isclass(v) and n.endswith("Error")}
    assert drawn == defined
    for name in defined - {"ClearSkyError"}:
        assert issubclass(getattr(errors, name), errors.ClearSkyError)
        assert getattr(errors, name).__doc__


def test_the_options_of_opening_are_those_promised() -> None:
    parameters = inspect.signature(clearsky_xr.open_timeseries).parameters
    assert list(parameters)[:2] == ["area", "time"]
    assert set(parameters) == {"area", *OPTIONS, *decoders(), "chunks", "cache"}
    assert parameters["chunks"].default == {}
    assert [n for n in parameters if n in OPTIONS] == OPTIONS
    for name, parameter in parameters.items():
        own = inspect.Parameter.POSITIONAL_OR_KEYWORD
        keyword = inspect.Parameter.KEYWORD_ONLY
        assert parameter.kind == (own if name in ("area", "time") else keyword)


def test_the_engine_takes_the_same_options_with_the_same_defaults() -> None:
    ours = dict(inspect.signature(clearsky_xr.open_timeseries).parameters)
    theirs = dict(inspect.signature(ClearSkyBackendEntrypoint.open_dataset).parameters)
    for name in ("area", "chunks", "cache"):
        del ours[name]
    for name in ("self", "filename_or_obj"):
        del theirs[name]
    assert set(ours) == set(theirs)
    # A resolved cube needs no time=, so the engine cannot ask for it.
    assert ours.pop("time").default is inspect.Parameter.empty
    assert theirs.pop("time").default is None
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}
    assert {n: p.annotation for n, p in ours.items()} == {
        n: p.annotation for n, p in theirs.items()
    }


def test_xarray_hands_every_decoder_argument_over() -> None:
    engine = xr.backends.plugins.list_engines()["clearsky"]
    assert type(engine) is ClearSkyBackendEntrypoint
    assert decoders() | {"drop_variables"} <= set(engine.open_dataset_parameters or ())


def test_resolve_takes_what_makes_a_cube() -> None:
    opening = inspect.signature(clearsky_xr.open_timeseries).parameters
    resolving = inspect.signature(clearsky_xr.resolve).parameters
    without = {
        "concurrency",
        "on_lost",
        "max_credits",
        "store",
        "storage_options",
        "drop_variables",
    }
    without |= {"chunks", "cache", *decoders()}
    assert set(resolving) == set(opening) - without
    assert [p.default for p in resolving.values()] == [opening[n].default for n in resolving]


def test_the_free_questions_take_what_opening_takes() -> None:
    opening = inspect.signature(clearsky_xr.open_timeseries).parameters
    promised = {
        "dates": ["area", "time", "model", "constellations", "api_key", "base_url"],
        "availability": [
            "area", "date", "bands", "crs", "model", "constellations", "api_key", "base_url",
        ],
        "account": ["api_key", "base_url"],
        "models": ["api_key", "base_url"],
    }  # fmt: skip
    for name, options in promised.items():
        parameters = inspect.signature(getattr(clearsky_xr, name)).parameters
        assert list(parameters) == options
        for option in set(options) & set(opening) - {"area", "time"}:
            assert parameters[option].kind == inspect.Parameter.KEYWORD_ONLY
            # Of which model to list the dates is for once not to be said.
            if (name, option) != ("dates", "model"):
                assert parameters[option].default == opening[option].default


def public() -> Iterator[tuple[str, Any]]:
    """Give every public function, class and method with its full name."""
    for name in (*MODULES, "clearsky_xr.errors"):
        module = importlib.import_module(name)
        members = getattr(module, "__all__", [n for n in vars(module) if n.endswith("Error")])
        for member in members:
            value = getattr(module, member)
            if inspect.ismodule(value):
                continue
            yield f"{name}.{member}", value
            if inspect.isclass(value):
                for attribute, function in vars(value).items():
                    if attribute.startswith("_"):
                        continue
                    plain = getattr(function, "__func__", getattr(function, "fget", function))
                    if inspect.isfunction(plain):
                        yield f"{name}.{member}.{attribute}", plain


PUBLIC = dict(public())


def section(doc: str, title: str) -> str | None:
    """Give the text of a section of a numpydoc docstring."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", doc, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def documented(doc: str) -> list[str]:
    """List the names that are described: what begins a line of the section, up to its colon."""
    names: list[str] = []
    # What the package makes and its users only read has attributes rather than parameters.
    text = section(doc, "Parameters") or section(doc, "Attributes") or ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            names += [n.strip().lstrip("*") for n in line.partition(" : ")[0].split(",")]
    return names


def test_the_parser_of_docstrings_reads_them() -> None:
    doc = inspect.getdoc(clearsky_xr.open_timeseries)
    assert doc is not None
    assert documented(doc)[:3] == ["area", "time", "bands"]
    assert documented(doc)[-2:] == ["use_cftime", "decode_timedelta"]
    assert documented("Do.\n\nParameters\n----------\na, *b : int\n    Text: more.\nc\n") == list(
        "abc"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert doc
    assert doc.splitlines()[0].endswith((".", ":"))
    if name.startswith("clearsky_xr.errors.") or name.endswith("sandbox.Server"):
        return  # made by the package, never by its users
    if inspect.isclass(value) or not name.rsplit(".", 2)[-2][0].isupper():
        # Functions and classes; methods say in their text what they take.
        wanted = [
            n for n, p in inspect.signature(value).parameters.items()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]  # fmt: skip
        listed = [n for n in documented(doc) if n in wanted]
        assert sorted(listed) == sorted(wanted)
        assert set(documented(doc)) <= {*inspect.signature(value).parameters}
    returns = inspect.signature(value).return_annotation
    if inspect.isfunction(value) and name.count(".") == 1 and returns not in (None, "None"):
        assert section(doc, "Returns")


@pytest.mark.parametrize(
    "name",
    [
        "clearsky_xr",
        "clearsky_xr._api",
        "clearsky_xr._catalogue",
        "clearsky_xr._sample",
        "clearsky_xr._show_versions",
        "clearsky_xr.sandbox._serve",
    ],
)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"clearsky_xr": clearsky_xr})
    assert result.failed == 0
    assert result.attempted > 0


def test_versions_tell_what_is_needed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARSKY_API_KEY", "canary")
    out = io.StringIO()
    clearsky_xr.show_versions(out)
    told = dict(line.split(": ") for line in out.getvalue().splitlines())
    assert told["clearsky-xr"] == importlib.metadata.version("clearsky-xr")
    assert told["xarray"] == xr.__version__
    assert told["GDAL (rasterio)"].count(".") == 2
    assert {"distributed", "matplotlib", "pystac", "python", "zarr"} <= set(told)
    assert not {"pytest", "ruff", "mypy"} & set(told)
    assert "canary" not in out.getvalue()
    assert str(Path.home()) not in out.getvalue()
    assert "/" not in out.getvalue()


def test_the_package_is_marked_as_typed() -> None:
    assert clearsky_xr.__file__ is not None
    assert (Path(clearsky_xr.__file__).parent / "py.typed").is_file()


def test_user_code_passes_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml",
            # Not the project's own: two runs at once would spoil it.
            "--cache-dir", tmp_path, ROOT / "tests" / "typed_api.py",
        ],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
