"""What lies at a store's path is trusted by nobody; what was paid for survives a broken disk."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import json
import os
import re
import shutil
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr._request import Request
from clearsky_xr._spool import DurableSpool
from clearsky_xr.errors import ClearSkyWarning
from clearsky_xr.sandbox import Fault, Server

from .conftest import FARM, credits_of, paid
from .test_canary import KEY, hidden
from .test_store_plain import LAKE, NODATA, Bought, block_file, forget, lazy, settle, tree

LATER = ("2025-04-01", "2025-05-10")
DAYS = ["2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16"]


@pytest.fixture(scope="module")
def shop() -> Iterator[Server]:
    with clearsky_xr.sandbox.serve(compression="none") as server:
        yield server


@pytest.fixture(scope="module")
def full(shop: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store that has everything; nobody may change it."""
    path = tmp_path_factory.mktemp("hostile") / "full.zarr"
    lazy(shop, path).load()
    forget()
    return path


@pytest.fixture(scope="module")
def values(full: Path) -> np.ndarray:
    return xr.open_zarr(full, mask_and_scale=False).reflectance.values


@pytest.fixture
def store(full: Path, tmp_path: Path) -> Path:
    """Give a full store that the test may change."""
    return Path(shutil.copytree(full, tmp_path / "fields.zarr"))


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.clearsky")


def refused(shop: Server, path: Path, *words: str) -> None:
    """Assert that a path is refused at every door, for a good reason and without any harm."""
    before, since = tree(path), Bought(shop)
    neighbours = set(path.parent.iterdir())
    for door in (
        lambda: clearsky_xr.open_store(path),
        lambda: lazy(shop, path, time=DAYS),
        lambda: lazy(shop, path, time=[*DAYS, "2025-04-21"], chunks={}),
    ):
        with pytest.raises((errors.StoreError, errors.StoreMismatchError)) as caught:
            door().isel(x=0, y=0).load()
        text = str(caught.value)
        assert not [word for word in words if word not in text], text
        assert caught.value.hint or "there is no store at" in text
        assert caught.value.spent == "no"
        forget()
    assert tree(path) == before
    assert since.downloads == []
    assert set(path.parent.iterdir()) - {beside(path)} == neighbours - {beside(path)}
    if beside(path).exists():
        assert [p for p in beside(path).rglob("*") if p.is_file() and p.name != "lock"] == []


# ---- foreign things


def a_file(path: Path) -> None:
    path.write_bytes(b"my thesis")


def an_empty_file(path: Path) -> None:
    path.touch()


def a_folder(path: Path) -> None:
    (path / "photos").mkdir(parents=True)
    (path / "photos" / "holiday.jpg").write_bytes(b"jpeg")


def zarr_2(path: Path) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("reflectance", shape=(3,), dtype="i2")[:] = 7


def zarr_3(path: Path) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("reflectance", shape=(3,), dtype="i2")[:] = 7


def a_cube(path: Path) -> None:
    values = np.ones((2, 10, 4, 4), np.float32)
    ds = xr.Dataset({"reflectance": (("time", "band", "y", "x"), values)})
    ds.to_zarr(path, zarr_format=3, consolidated=False)


def an_array(path: Path) -> None:
    zarr.create_array(path, shape=(4,), dtype="i2", zarr_format=3)[:] = 1


def netcdf(path: Path) -> None:
    # The classic format, by its definition: magic, no records, and no lists.
    path.write_bytes(b"CDF\x01" + bytes(28))


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_file(path: Path) -> None:
    path.with_name("target").write_bytes(b"mine")
    path.symlink_to("target")


def a_link_to_a_folder(path: Path) -> None:
    a_folder(path.with_name("target"))
    path.symlink_to("target", target_is_directory=True)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


FOREIGN: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        a_file, an_empty_file, a_folder, zarr_2, zarr_3, a_cube, an_array, netcdf, a_pipe,
        a_link_to_a_file, a_link_to_a_folder, a_link_to_nothing, a_link_to_itself,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_things(shop: Server, tmp_path: Path, name: str) -> None:
    path = tmp_path / "fields.zarr"
    FOREIGN[name](path)
    was = {p.name: tree(p) for p in tmp_path.iterdir()}
    refused(shop, path, "is not a store of clearsky_xr")
    assert {p.name: tree(p) for p in tmp_path.iterdir() if p != beside(path)} == was


# ---- changed metadata


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; a change that gives None has changed what it was given."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def edit_record(path: Path, change: Callable[[Any], Any]) -> None:
    def of_root(root: Any) -> None:
        record = json.loads(root["attributes"]["clearsky_store"])
        changed = change(record)
        record = record if changed is None else changed
        root["attributes"]["clearsky_store"] = json.dumps(record)

    edit(path / "zarr.json", of_root)


def edit_array(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the metadata of an array, its own and those in the root."""
    edit(path / name / "zarr.json", change)

    def of_root(root: Any) -> None:
        content = root["consolidated_metadata"]["metadata"]
        changed = change(content[name])
        content[name] = content[name] if changed is None else changed

    edit(path / "zarr.json", of_root)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (2, ("layout 2", "Update clearsky_xr")),
        (10**30, ("Update clearsky_xr",)),
        (0, ("record",)),
        (-1, ("record",)),
        ("1", ("record",)),
        (None, ("record",)),
        (1.5, ("record",)),
    ],
)
def test_the_version_of_the_record(
    shop: Server, store: Path, version: object, words: tuple[str, ...]
) -> None:
    edit_record(store, lambda record: {**record, "version": version})
    refused(shop, store, *words)
    # What it has can be read all the same.
    assert xr.open_zarr(store).reflectance.notnull().any()


DEEP = "[" * 100_000

RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda _: [],
    "a number": lambda _: 7,
    "nothing": lambda _: {},
    **{
        f"without {name}": (lambda record, name=name: {k: record[k] for k in record if k != name})
        for name in (
            "version", "origin", "area", "epsg", "resolution", "window", "bands", "model",
            "constellations", "clip", "pixels", "allow_partial",
        )
    },
    "origin": lambda r: {**r, "origin": "my camera"},
    "origin of another kind": lambda r: {**r, "origin": ["service"]},
    "area": lambda r: {**r, "area": "no WKB"},
    "area cut off": lambda r: {**r, "area": r["area"][:-6]},
    "area a point": lambda r: {**r, "area": "0101000000000000000000F03F000000000000F03F"},
    "epsg": lambda r: {**r, "epsg": 4326},
    "epsg no zone": lambda r: {**r, "epsg": 32600},
    "epsg no zone either": lambda r: {**r, "epsg": 32699},
    "epsg text": lambda r: {**r, "epsg": "32633"},
    "resolution": lambda r: {**r, "resolution": 11},
    "window of text": lambda r: {**r, "window": ["0", "1", "2", "3"]},
    "window of three": lambda r: {**r, "window": r["window"][:3]},
    "window turned": lambda r: {**r, "window": r["window"][::-1]},
    "window empty": lambda r: {**r, "window": [0, 0, 0, 0]},
    "window huge": lambda r: {**r, "window": [-(10**12), 10**12, -(10**12), 10**12]},
    "window larger": lambda r: {**r, "window": [r["window"][0] - 1, *r["window"][1:]]},
    "window of fractions": lambda r: {**r, "window": [v + 0.0 for v in r["window"]]},
    "bands none": lambda r: {**r, "bands": []},
    "bands fewer": lambda r: {**r, "bands": r["bands"][:9]},
    "bands twice": lambda r: {**r, "bands": ["B2"] * 10},
    "bands unknown": lambda r: {**r, "bands": [*r["bands"][:9], "B99"]},
    "bands text": lambda r: {**r, "bands": "B2"},
    "model": lambda r: {**r, "model": None},
    "constellations": lambda r: {**r, "constellations": [1, 2]},
    "clip": lambda r: {**r, "clip": 1},
    "pixels": lambda r: {**r, "pixels": "some"},
    "allow_partial": lambda r: {**r, "allow_partial": "no"},
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_changed_record(shop: Server, store: Path, name: str) -> None:
    edit_record(store, RECORDS[name])
    refused(shop, store, "store")


NO_RECORDS: dict[str, Any] = {
    "empty": "", "text": "no JSON", "nan": "nan", "deep": DEEP, "number": 7, "null": None,
    "object": {"version": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_RECORDS)
def test_a_record_that_is_none(shop: Server, store: Path, name: str) -> None:
    value = NO_RECORDS[name]
    edit(store / "zarr.json", lambda root: root["attributes"].update(clearsky_store=value))
    refused(shop, store, "store")


# The grid of the record against that of the coordinates, which others read.
SHIFTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "window": lambda r: {
        **r, "window": [r["window"][0] + 7, r["window"][1] + 7, *r["window"][2:]]
    },
    "zone": lambda r: {**r, "epsg": 32632},
    "resolution": lambda r: {**r, "resolution": 20},
    "bands": lambda r: {**r, "bands": r["bands"][::-1]},
}  # fmt: skip


@pytest.mark.parametrize("name", SHIFTED)
def test_a_record_that_contradicts_the_coordinates(shop: Server, store: Path, name: str) -> None:
    """Else pixels would be read, and bought, for other places than plain Zarr shows."""
    edit_record(store, SHIFTED[name])
    refused(shop, store, "store")


def resized(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda path: edit_array(path, name, lambda array: array.update(shape=list(shape)))


def chunked(name: str, *shape: int) -> Callable[[Path], None]:
    def change(array: Any) -> None:
        array["chunk_grid"]["configuration"]["chunk_shape"] = list(shape)

    return lambda path: edit_array(path, name, change)


def having(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_array(path, name, lambda array: array.update(changes))


def coded(name: str, *codecs: dict[str, Any]) -> Callable[[Path], None]:
    return lambda path: edit_array(path, name, lambda array: array.update(codecs=list(codecs)))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
TEN, HIGH, WIDE = 10, 112, 79

# What is changed, and what the error has to name.
ARRAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "dtype of pixels": (having("reflectance", data_type="uint16"), "uint16"),
    "dtype of times": (having("time", data_type="float64", fill_value=0.0), "float64"),
    "fill value": (having("reflectance", fill_value=0), "fill value"),
    "pixels fewer": (resized("reflectance", 4, TEN, HIGH, WIDE - 1), "reflectance"),
    "dates fewer": (resized("reflectance", 3, TEN, HIGH, WIDE), "reflectance"),
    "dimensions fewer": (resized("time"), "shape"),
    "receipts fewer": (resized("receipts/receipt", 3, 1, 1), "receipt"),
    "a date more": (resized("time", 5), ""),
    "chunks smaller": (chunked("reflectance", 1, TEN, 128, 128), "reflectance"),
    "chunks of two dates": (chunked("reflectance", 2, TEN, 256, 256), "reflectance"),
    "chunks of receipts": (chunked("receipts/receipt", 4, 1, 1), "receipt"),
    "chunks of nothing": (chunked("reflectance", 0, TEN, 256, 256), ""),
    "dimensions in another order": (
        having("reflectance", dimension_names=["time", "band", "x", "y"]), "reflectance",
    ),
    "dimensions without names": (having("reflectance", dimension_names=None), "reflectance"),
    "shape in another order": (resized("reflectance", 4, TEN, WIDE, HIGH), "reflectance"),
    "a codec of numcodecs": (
        coded("reflectance", BYTES, {"name": "numcodecs.zlib", "configuration": {"level": 1}}),
        "codec",
    ),
    "a pickle codec": (
        coded("receipts/receipt", {"name": "numcodecs.pickle", "configuration": {}}), "",
    ),
    "an unknown codec": (coded("reflectance", BYTES, {"name": "mine", "configuration": {}}), ""),
    "a transposing codec": (
        coded(
            "reflectance", {"name": "transpose", "configuration": {"order": [0, 1, 3, 2]}}, BYTES
        ),
        "reflectance",
    ),
    "shards": (
        coded("reflectance", {"name": "sharding_indexed", "configuration": {
            "chunk_shape": [1, 1, 256, 256], "codecs": [BYTES], "index_codecs": [BYTES],
            "index_location": "end",
        }}),
        "reflectance",
    ),
    "no codecs": (coded("reflectance"), ""),
    "separator": (
        having("reflectance", chunk_key_encoding={
            "name": "default", "configuration": {"separator": "."}
        }),
        "reflectance",
    ),
    "keys of version 2": (
        having("reflectance", chunk_key_encoding={
            "name": "v2", "configuration": {"separator": "/"}
        }),
        "reflectance",
    ),
    "another scale": (
        lambda path: edit_array(
            path, "reflectance", lambda a: a["attributes"].update(scale_factor=0.001)
        ),
        "reflectance",
    ),
    "other units of time": (
        lambda path: edit_array(
            path, "time", lambda a: a["attributes"].update(units="days since 1970-01-01")
        ),
        "time",
    ),
    "a group for an array": (
        lambda path: edit_array(
            path, "reflectance",
            lambda _: {"zarr_format": 3, "node_type": "group", "attributes": {}},
        ),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_changed_arrays(shop: Server, store: Path, name: str) -> None:
    change, word = ARRAYS[name]
    change(store)
    refused(shop, store, str(store), word)


OWN_ONLY = ["dtype of pixels", "pixels fewer", "chunks smaller", "a codec of numcodecs",
            "a group for an array", "chunks of receipts", "fill value"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("name", OWN_ONLY)
def test_arrays_that_contradict_the_consolidated_metadata(
    shop: Server, store: Path, name: str
) -> None:
    """Dates are added to the arrays themselves: what they say must fit, too."""
    root = (store / "zarr.json").read_bytes()
    ARRAYS[name][0](store)
    (store / "zarr.json").write_bytes(root)
    before, since = tree(store), Bought(shop)
    with pytest.raises(errors.StoreError) as caught:
        lazy(shop, store, time=LATER)
    assert str(store) in str(caught.value)
    assert tree(store) == before
    assert since.downloads == []


def write_times(path: Path, *seconds: int) -> None:
    zarr.open_group(path, mode="r+")["time"][:] = np.array(seconds, np.int64)


DAY = 86400
FIRST = int(dt.datetime(2025, 4, 1, tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    "seconds",
    [
        (FIRST, FIRST + DAY, FIRST + 2 * DAY, FIRST + 2 * DAY),
        (FIRST, FIRST + DAY, FIRST + 2 * DAY, FIRST + 3 * DAY + 1),
        (FIRST, FIRST + DAY, FIRST + 2 * DAY, 2**62),
        (FIRST, FIRST + DAY, FIRST + 2 * DAY, -(2**63)),
        (FIRST, FIRST + DAY, FIRST + 2 * DAY, DAY * 10**9),
    ],
    ids=["twice", "no day", "huge", "NaT", "far"],
)
def test_times_that_are_not_distinct_days(
    shop: Server, store: Path, seconds: tuple[int, ...]
) -> None:
    write_times(store, *seconds)
    refused(shop, store, "times")


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_damaged_object_of_times(shop: Server, store: Path, place: int) -> None:
    path = store / "time/c/0"
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)
    refused(shop, store, str(store))


@pytest.mark.parametrize("name", ["time/c/0", "time/c"])
def test_times_that_are_gone(shop: Server, store: Path, name: str) -> None:
    path = store / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(shop, store, "times")


ROOTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "no JSON": lambda _: b"<html>",
    "no text": lambda _: b"\xff\xfe\x00" * 9,
    "deep": lambda _: DEEP.encode(),
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "an object": lambda _: b"{}",
    "zarr 4": lambda content: content.replace(b'"zarr_format": 3', b'"zarr_format": 4'),
    "attributes null": lambda content: json.dumps(
        {**json.loads(content), "attributes": None}
    ).encode(),
    "attributes a list": lambda content: json.dumps(
        {**json.loads(content), "attributes": ["clearsky_store"]}
    ).encode(),
    "attributes text": lambda content: json.dumps(
        {**json.loads(content), "attributes": "clearsky_store"}
    ).encode(),
    "consolidated nothing": lambda content: json.dumps(
        {**json.loads(content), "consolidated_metadata": {
            "kind": "inline", "must_understand": False, "metadata": {}
        }}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", ROOTS)
def test_a_broken_root(shop: Server, store: Path, name: str) -> None:
    path = store / "zarr.json"
    path.write_bytes(ROOTS[name](path.read_bytes()))
    refused(shop, store, str(store))


def test_a_root_that_is_gone(shop: Server, store: Path) -> None:
    (store / "zarr.json").unlink()
    refused(shop, store, str(store))


@pytest.mark.parametrize("name", ["reflectance", "time", "receipts/receipt", "receipts"])
def test_an_array_without_metadata(shop: Server, store: Path, name: str) -> None:
    def forgotten(root: Any) -> None:
        for known in list(root["consolidated_metadata"]["metadata"]):
            if known == name or known.startswith(f"{name}/"):
                del root["consolidated_metadata"]["metadata"][known]

    edit(store / "zarr.json", forgotten)
    shutil.rmtree(store / name)
    refused(shop, store, str(store))


def test_without_consolidated_metadata(shop: Server, store: Path, values: np.ndarray) -> None:
    """They are no part of Zarr's specification: others may leave them out."""
    edit(store / "zarr.json", lambda root: root.pop("consolidated_metadata") and None)
    since = Bought(shop)
    ds = lazy(shop, store, mask_and_scale=False)
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert since.downloads == []


# ---- sizes


def test_huge_shapes_cost_no_memory(shop: Server, store: Path) -> None:
    many = 10**12
    for name, shape in (
        ("reflectance", (many, TEN, HIGH, WIDE)),
        ("receipts/receipt", (many, 1, 1)),
        ("time", (many,)),
    ):
        resized(name, *shape)(store)
    tracemalloc.start()
    try:
        refused(shop, store, str(store))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_huge_chunks_of_times_cost_no_memory(shop: Server, store: Path) -> None:
    chunked("time", 40_000_000)(store)
    tracemalloc.start()
    try:
        refused(shop, store, "time")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


# ---- another cube than the store's


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "a larger area": ({"area": (15.05, 46.05, 15.07, 46.06)}, "area"),
    "another area": ({"area": (15.1, 46.05, 15.11, 46.06)}, "area"),
    "resolution": ({"resolution": 20}, "resolution"),
    "crs": ({"crs": 32632}, "CRS"),
    "model": ({"model": "Stratus2Fast"}, "model"),
    "constellations": ({"constellations": ["Sentinel2"]}, "constellations"),
    "allow_partial": ({"allow_partial": True}, "allow_partial"),
    "not clipped": ({"clip": False}, "area"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_cube_that_does_not_fit(shop: Server, store: Path, name: str) -> None:
    changes, word = MISMATCHES[name]
    before, since = tree(store), Bought(shop)
    options = {"area": FARM, "time": LATER, **changes}
    with pytest.raises(errors.StoreMismatchError, match=word) as caught:
        lazy(shop, store, **options)
    assert isinstance(caught.value, errors.InputError)
    assert "another store" in caught.value.hint
    assert f"[store {store}]" in str(caught.value)
    assert tree(store) == before
    assert since.downloads == []


def test_scenes_do_not_go_into_a_synthetic_store(
    serve: Callable[..., Server], store: Path, scenes: Path
) -> None:
    server = serve(scenes=scenes)
    before = tree(store)
    with pytest.raises(errors.StoreMismatchError, match=r"origin.*synthetic.*scenes"):
        lazy(server, store, time=["2015-07-11"])
    assert tree(store) == before
    assert server.downloads() == []


HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 7, 1.5, 10**12, 10**30, "", "x", "int32", "\0", "../..", [], {}, [[]],
    [-1], {"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}},
    {"name": "numcodecs.zlib", "configuration": {}}, float("nan"), "A" * 10_000,
]  # fmt: skip


def places(node: Any) -> list[tuple[Any, Any]]:
    """Give all places in a JSON value, as containers and keys."""
    if not isinstance(node, dict | list):
        return []
    keys = list(node) if isinstance(node, dict) else range(len(node))
    return [place for key in keys for place in ((node, key), *places(node[key]))]


def test_random_changes_of_the_metadata(store: Path, values: np.ndarray) -> None:
    """Each is refused as a store, or does not matter."""
    root = json.loads((store / "zarr.json").read_bytes())
    for name in ("band_name", "bandwidth", "common_name", "wavelength"):
        del root["consolidated_metadata"]["metadata"][name]  # not what is read of a store
    random = np.random.default_rng(20260)
    outcomes: dict[str, list[str]] = {"refused": [], "harmless": [], "wrong": []}
    for _ in range(150):
        content = json.loads(json.dumps(root))
        spots = [spot for spot in places(content) if spot[0] is not content["attributes"]]
        node, key = spots[random.integers(len(spots))]
        value = HOSTILE[random.integers(len(HOSTILE))]
        before = json.dumps(node)[:100]
        node[key] = value
        (store / "zarr.json").write_text(json.dumps(content))
        forget()
        try:
            ds = clearsky_xr.open_store(store, chunks=None, mask_and_scale=False)
            got = ds.reflectance.isel(x=slice(0, 3)).values
            outcome = "harmless" if np.array_equal(got, values[..., :3]) else "wrong"
        except errors.StoreError as error:
            outcome = "refused" if str(store) in str(error) else "wrong"
        except Exception as error:  # noqa: BLE001  what must not come
            outcome, before = "wrong", f"{before}: {error!r}"
        outcomes[outcome].append(f"{key} = {str(value)[:50]!r} in {before}")
    assert outcomes["wrong"] == []
    assert len(outcomes["refused"]) > 30
    assert len(outcomes["harmless"]) > 10


# ---- a disk that is full


def fill_up(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Let the disk refuse objects whose key has one of some words in it; "" is all of them."""
    real = LocalStore.set

    async def put(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> None:
        if any(word in key for word in words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await real(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "set", put)


def fill_up_spools(monkeypatch: pytest.MonkeyPatch, *suffixes: str) -> None:
    for name in ("write_bytes", "write_text"):
        real = getattr(Path, name)

        def write(self: Path, *args: Any, real: Any = real, **kwargs: Any) -> int:
            if "spool" in self.parts and self.suffix in suffixes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, write)


def spooled(path: Path) -> list[Path]:
    return sorted(p for p in (beside(path) / "spool").rglob("*") if p.suffix in (".tif", ".json"))


SPACE = r"cannot be written.*No space left"


@pytest.mark.parametrize("words", [("reflectance/c",), ("receipts/receipt/c",)], ids=str)
def test_a_full_disk(
    shop: Server, tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    ds = lazy(shop, path, mask_and_scale=False, chunks={})
    before = tree(path)
    with monkeypatch.context() as broken:
        fill_up(broken, *words)
        with pytest.warns(ClearSkyWarning, match=SPACE) as heard:
            np.testing.assert_array_equal(ds.reflectance.values, values)
        assert str(path) in str(heard[0].message)
        assert str(beside(path)) in str(heard[0].message)
        assert len(since.downloads) == 4
        # Whoever asks again gets it from what was paid for.
        with pytest.warns(ClearSkyWarning, match=SPACE):
            np.testing.assert_array_equal(ds.isel(time=[2, 0]).reflectance, values[[2, 0]])
    assert len(since.downloads) == 4
    # Others can read the store, which has nothing; the answers lie beside it.
    plain = xr.open_zarr(path, mask_and_scale=False)
    assert plain.sizes["time"] == 4
    assert (plain.reflectance == NODATA).all()
    if words == ("reflectance/c",):
        assert tree(path).keys() - before.keys() <= {
            name for name in tree(path) if name.startswith("receipts")
        }
    assert len([p for p in spooled(path) if p.suffix == ".tif"]) == 4
    # The next process puts them in, and buys nothing.
    forget()
    again = lazy(shop, path, mask_and_scale=False)
    assert spooled(path) == []
    assert again.clearsky.fetched().values.all()
    table = again.clearsky.receipts()
    assert len(table) == 4
    assert table["credits"].sum() == pytest.approx(since.credits)
    np.testing.assert_array_equal(again.reflectance.values, values)
    np.testing.assert_array_equal(
        xr.open_zarr(path, mask_and_scale=False).reflectance.values, values
    )
    assert len(since.downloads) == 4


def test_a_disk_with_room_again_in_the_same_process(
    shop: Server, tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    ds = lazy(shop, path, mask_and_scale=False)
    with monkeypatch.context() as broken:
        fill_up(broken, "reflectance/c")
        with pytest.warns(ClearSkyWarning, match=SPACE):
            ds.isel(time=[0, 1]).load()
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert len(since.downloads) == 4
    assert spooled(path) == []
    np.testing.assert_array_equal(
        xr.open_zarr(path, mask_and_scale=False).reflectance.values, values
    )


@pytest.mark.parametrize(
    "suffixes",
    [(".part", ".tif"), (".json",), (".json", ".part")],
    ids=["answers", "asked", "both"],
)
def test_a_spool_on_a_full_disk(
    shop: Server, tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    suffixes: tuple[str, ...],
) -> None:  # fmt: skip
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    ds = lazy(shop, path, mask_and_scale=False)
    with monkeypatch.context() as broken:
        fill_up_spools(broken, *suffixes)
        with pytest.warns(ClearSkyWarning, match=r"spool.*refuses.*No space left"):
            np.testing.assert_array_equal(ds.reflectance.values, values)
    # The store took them all the same.
    forget()
    np.testing.assert_array_equal(
        clearsky_xr.open_store(path, mask_and_scale=False).reflectance.values, values
    )
    assert len(since.downloads) == 4
    assert [p for p in spooled(path) if p.suffix == ".tif"] == []


def test_a_spool_on_a_full_disk_is_no_lost_download(
    shop: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fields.zarr"
    ds = lazy(shop, path)
    with monkeypatch.context() as broken:
        fill_up_spools(broken, ".part")
        with pytest.warns(ClearSkyWarning, match="spool"):
            ds.load()
    assert ds.clearsky.fetched().values.all()
    forget()
    lazy(shop, path)  # warns of nothing
    assert spooled(path) == []


@pytest.mark.parametrize("true", [False, True])
def test_a_disk_without_room_for_anything(
    shop: Server, tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, true: bool
) -> None:
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    ds = lazy(shop, path, mask_and_scale=False, chunks={})
    fill_up(monkeypatch, "")
    fill_up_spools(monkeypatch, ".json", ".part")
    for expected in ("held in memory", SPACE):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(ds.reflectance.values, values)
        said = [str(warning.message) for warning in heard]
        assert any(re.search(expected, text) for text in said)
        if true:
            assert not [text for text in said if f"What was paid for is in {beside(path)}" in text]
    assert len(since.downloads) == 4
    assert (xr.open_zarr(path, mask_and_scale=False).reflectance == NODATA).all()


def test_a_store_that_cannot_be_made(
    shop: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    with monkeypatch.context() as broken:
        fill_up(broken, "time")
        with pytest.raises(errors.StoreError, match=r"cannot be made.*No space left") as caught:
            lazy(shop, path)
        assert str(path) in str(caught.value)
    assert not path.exists()
    assert since.downloads == []
    lazy(shop, path).load()
    # What the first attempt had left is gone.
    assert {p.name for p in beside(path).iterdir()} == {"lock", "claims", "spool"}


@pytest.mark.parametrize(
    "word", ["time/c", "reflectance/zarr.json", "receipt/zarr.json", "zarr.json"]
)
def test_dates_that_cannot_be_added(
    shop: Server, store: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    since = Bought(shop)
    with monkeypatch.context() as broken:
        fill_up(broken, word)
        with pytest.raises(errors.StoreError, match=r"dates cannot be added.*No space left"):
            lazy(shop, store, time=LATER)
    assert since.downloads == []
    # It is as readable as it was, for us and for others.
    plain = xr.open_zarr(store, mask_and_scale=False)
    np.testing.assert_array_equal(plain.reflectance.isel(time=slice(0, 4)).values, values)
    forget()
    offline = clearsky_xr.open_store(store, mask_and_scale=False)
    np.testing.assert_array_equal(offline.reflectance.sel(time=DAYS).values, values)
    # And the next opening brings it to an end.
    forget()
    ds = lazy(shop, store, time=LATER)
    assert ds.sizes["time"] == 8
    plain = xr.open_zarr(store, mask_and_scale=False)
    assert plain.time.values.tolist() == ds.time.values.tolist()
    np.testing.assert_array_equal(plain.reflectance.isel(time=slice(0, 4)).values, values)


# ---- damaged blocks


def flip(place: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        k = min(int(place * len(content)), len(content) - 1)
        return content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"bit at {place}": flip(place) for place in (0, 0.5, 1)},
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "text": lambda _: b"<html>nothing here</html>",
}


def damage(store: Path, name: str, date: int = 1) -> None:
    path = block_file(store, date)
    path.write_bytes(DAMAGES[name](path.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_block_is_seen_by_everybody(store: Path, values: np.ndarray, name: str) -> None:
    damage(store, name)
    before = tree(store)
    plain = xr.open_zarr(store, mask_and_scale=False)
    with pytest.raises((ValueError, RuntimeError)):
        plain.reflectance.isel(time=1, x=0, y=0, band=0).load()
    for missing in ("raise", "nan"):
        ds = clearsky_xr.open_store(store, missing=missing, mask_and_scale=False)
        with pytest.raises(errors.StoreError) as caught:
            ds.reflectance.isel(x=[0], y=[0]).load()
        assert caught.value.kind == "damaged"
        assert caught.value.details["date"] == DAYS[1]
        for word in (str(store), DAYS[1], caught.value.details["window"], "damaged"):
            assert word in str(caught.value)
        np.testing.assert_array_equal(ds.reflectance.isel(time=[0, 2, 3]).values, values[[0, 2, 3]])
    assert tree(store) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_block_is_bought_again_within_the_allowance(
    shop: Server, store: Path, values: np.ndarray, name: str
) -> None:
    damage(store, name)
    since = Bought(shop)
    ds = lazy(shop, store, mask_and_scale=False)
    with pytest.warns(ClearSkyWarning, match=rf"damaged.*{DAYS[1]}.*bought again: 0\.09 credits"):
        np.testing.assert_array_equal(ds.reflectance.isel(x=[0, 9]).values, values[..., [0, 9]])
    assert [entry.date.isoformat() for entry in since.downloads] == [DAYS[1]]
    np.testing.assert_array_equal(ds.reflectance.values, values)
    forget()
    np.testing.assert_array_equal(
        clearsky_xr.open_store(store, mask_and_scale=False).reflectance.values, values
    )
    np.testing.assert_array_equal(
        xr.open_zarr(store, mask_and_scale=False).reflectance.values, values
    )
    assert len(since.downloads) == 1


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_beyond_the_allowance_nothing_is_bought(
    shop: Server, store: Path, values: np.ndarray, chunks: object
) -> None:
    """A store on a rotten disk must not cost as much as a new one without a word."""
    assert _account.process().ledger.repeat_lost(0.85)
    for date in (1, 2):
        damage(store, "bit at 0.5", date)
    since = Bought(shop)
    ds = lazy(shop, store, mask_and_scale=False, chunks=chunks)
    with pytest.warns(ClearSkyWarning, match="bought again"):
        np.testing.assert_array_equal(ds.reflectance.isel(time=2).values, values[2])
    assert len(since.downloads) == 1
    before = tree(store)
    with pytest.raises(errors.StoreError) as caught:
        ds.load()
    assert caught.value.kind == "damaged"
    assert caught.value.details["date"] == DAYS[1]
    assert "0.09" in caught.value.hint
    assert len(since.downloads) == 1
    assert tree(store) == before
    # As the hint says: who deletes the file wants it to be bought.
    block_file(store, 1).unlink()
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert len(since.downloads) == 2


def test_prefetch_and_fetched_with_a_damaged_block(shop: Server, store: Path) -> None:
    """They look at what is there, not at what is in it."""
    damage(store, "empty")
    ds = lazy(shop, store)
    since = Bought(shop)
    assert ds.clearsky.fetched().values.all()
    ds.clearsky.prefetch(progress=False)
    assert since.downloads == []


def test_a_block_that_is_a_link(
    shop: Server, store: Path, values: np.ndarray, tmp_path: Path
) -> None:
    """What it points to is not ours to write."""
    outside = tmp_path / "mine.txt"
    outside.write_bytes(b"not a block")
    block_file(store, 1).unlink()
    block_file(store, 1).symlink_to(outside)
    with pytest.warns(ClearSkyWarning, match="bought again"):
        got = lazy(shop, store, mask_and_scale=False).reflectance.values
    np.testing.assert_array_equal(got, values)
    assert outside.read_bytes() == b"not a block"
    np.testing.assert_array_equal(
        xr.open_zarr(store, mask_and_scale=False).reflectance.values, values
    )


RECEIPTS: dict[str, bytes | str] = {
    "empty": b"", "garbage": b"garbage", "numbers": "[1, 2]", "an object": '{"a": 1}',
    "no JSON": "[[", "deep": DEEP,
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    RECEIPTS,
)
def test_damaged_receipts(shop: Server, store: Path, values: np.ndarray, name: str) -> None:
    """They are no reason not to read pixels; asking for them is an error, or leaves them out."""
    content = RECEIPTS[name]
    if isinstance(content, bytes):
        (store / "receipts/receipt/c/1/0/0").write_bytes(content)
    else:
        array = zarr.open_group(store, mode="r+")["receipts/receipt"]
        array[1, 0, 0] = content
    since = Bought(shop)
    for ds in (
        clearsky_xr.open_store(store, mask_and_scale=False),
        lazy(shop, store, mask_and_scale=False),
    ):
        np.testing.assert_array_equal(ds.reflectance.values, values)
        with contextlib.suppress(errors.StoreError):
            table = ds.clearsky.receipts()
            assert sorted(table.time.dt.strftime("%Y-%m-%d")) == [DAYS[0], DAYS[2], DAYS[3]]
    assert since.downloads == []


# ---- answers that are not the image asked for


REFUSED: dict[str, Fault] = {
    "half pixel": Fault.half_pixel(),
    "crs": Fault.crs(32632),
    "bands": Fault.band_count(),
    "date": Fault.tag("IMAGE_DATE", "20250402"),
    "corrupt": Fault.garble("corrupt", lambda content: content[:200] + bytes(len(content) - 200)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_answer_lies_beside_the_store(
    serve: Callable[..., Server], tmp_path: Path, values: np.ndarray, name: str
) -> None:
    server = serve(faults=[REFUSED[name]])
    path = tmp_path / "fields.zarr"
    ds = lazy(server, path, time=DAYS[:1], mask_and_scale=False)
    before = tree(path)
    with pytest.raises(errors.UnexpectedImageError) as caught:
        ds.load()
    kept = Path(caught.value.details["kept"])
    assert str(kept) in str(caught.value)
    assert kept.parent == beside(path) / "refused"
    assert path not in kept.parents
    assert kept.stat().st_size == server.downloads()[0].bytes
    assert spooled(path) == []
    assert tree(path) == before
    # Neither this process nor the next one takes it for the image.
    forget()
    again = lazy(server, path, time=DAYS[:1], mask_and_scale=False)
    assert not again.clearsky.fetched().values.any()
    np.testing.assert_array_equal(again.reflectance.values, values[:1])
    assert len(server.downloads()) == 2
    assert kept.exists()
    assert not [name for name in tree(path) if "tif" in name or "refused" in name]


def test_a_spooled_answer_that_was_changed(
    shop: Server, tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    with monkeypatch.context() as broken:
        fill_up(broken, "reflectance/c")
        with pytest.warns(ClearSkyWarning, match=SPACE):
            lazy(shop, path).load()
    first, second, *_ = (p for p in spooled(path) if p.suffix == ".tif")
    first.write_bytes(first.read_bytes()[:300])
    # Of another date, as good an image as it may be.
    second.write_bytes(spooled(path)[-1].read_bytes())
    folder = first.parent
    (folder / "junk.json").write_text("{")
    (folder / "00000099-2025-04-01.json").write_text(json.dumps({"date": "2025-04-01"}))
    forget()
    with pytest.warns(ClearSkyWarning, match="kept at") as heard:
        ds = lazy(shop, path, mask_and_scale=False)
    assert len([w for w in heard if "kept at" in str(w.message)]) == 2
    assert ds.clearsky.fetched().values.sum() == 2
    assert len(list((beside(path) / "refused").iterdir())) == 2
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert len(since.downloads) == 6


def test_a_spool_of_another_store(
    shop: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was removed, and another one made at its path: its answers are still paid for."""
    path = tmp_path / "fields.zarr"
    with monkeypatch.context() as broken:
        fill_up(broken, "reflectance/c")
        with pytest.warns(ClearSkyWarning, match=SPACE):
            lazy(shop, path, time=DAYS[:2]).load()
    answers = [p.read_bytes() for p in spooled(path) if p.suffix == ".tif"]
    forget()
    shutil.rmtree(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClearSkyWarning)
        ds = lazy(shop, path, LAKE, time=DAYS[:2]).load()
    assert ds.reflectance.isnull().all()
    kept = [p.read_bytes() for p in beside(path).rglob("*.tif")]
    assert sorted(kept) == sorted(answers)


# ---- a store that goes away


def test_a_store_that_is_removed_while_it_is_open(
    shop: Server, tmp_path: Path, values: np.ndarray
) -> None:
    path = tmp_path / "fields.zarr"
    since = Bought(shop)
    ds = lazy(shop, path, mask_and_scale=False)
    ds.reflectance.isel(time=0).load()
    shutil.rmtree(path)
    with pytest.warns(ClearSkyWarning, match="cannot be written.*removed"):
        np.testing.assert_array_equal(ds.reflectance.isel(time=[1, 2]).values, values[1:3])
    assert len(since.downloads) == 3
    assert not path.exists()
    # It is made anew by the next opening, with what was bought since.
    forget()
    again = lazy(shop, path, mask_and_scale=False)
    assert again.clearsky.fetched().values[:, 0].tolist() == [False, True, True, False]
    np.testing.assert_array_equal(again.reflectance.isel(time=[1, 2]).values, values[1:3])
    assert len(since.downloads) == 3


def test_an_offline_store_that_is_removed_while_it_is_open(store: Path) -> None:
    ds = clearsky_xr.open_store(store)
    shutil.rmtree(store)
    with pytest.raises(errors.StoreError) as caught:
        ds.load()
    assert str(store) in str(caught.value)


@pytest.mark.parametrize("bought", [False, True], ids=["empty", "full"])
def test_a_store_that_is_replaced_while_it_is_open(
    shop: Server, tmp_path: Path, values: np.ndarray, *, bought: bool
) -> None:
    """Another area's pixels must not come out for ours, nor ours go in for theirs."""
    path, other = tmp_path / "fields.zarr", tmp_path / "other.zarr"
    # As many pixels, in another place.
    there = (15.05, 46.066, 15.06, 46.076)
    theirs = lazy(shop, other, there)
    if bought:
        theirs.load()
    forget()
    ds = lazy(shop, path, mask_and_scale=False)
    assert theirs.sizes == ds.sizes
    shutil.rmtree(path)
    other.rename(path)
    before = tree(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClearSkyWarning)
        with contextlib.suppress(errors.StoreError):
            np.testing.assert_array_equal(ds.reflectance.isel(time=1).values, values[1])
    assert tree(path) == before


# ---- a service that fails


@pytest.mark.usefixtures("fake_time")
def test_refusals_and_bursts_of_errors(
    serve: Callable[..., Server], tmp_path: Path, values: np.ndarray
) -> None:
    server = serve(
        faults=[Fault.status(400, code=1003, times=3), Fault.status(503, times=2)],
        compression="none",
    )
    path = tmp_path / "fields.zarr"
    np.testing.assert_array_equal(
        lazy(server, path, mask_and_scale=False).reflectance.values, values
    )
    assert len(paid(server)) == 4
    assert len(server.downloads()) == 9
    forget()
    ds = lazy(server, path, mask_and_scale=False)
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert ds.clearsky.receipts()["credits"].sum() == pytest.approx(credits_of(server))
    assert len(server.downloads()) == 9
    assert spooled(path) == []


@pytest.mark.usefixtures("fake_time")
@pytest.mark.parametrize("fault", [Fault.lost(), Fault.short_body(500)], ids=["lost", "short"])
def test_a_lost_download(
    serve: Callable[..., Server], tmp_path: Path, values: np.ndarray, fault: Fault
) -> None:
    server = serve(faults=[fault], compression="none")
    path = tmp_path / "fields.zarr"
    with pytest.warns(ClearSkyWarning, match="was lost and is asked for again"):
        got = lazy(server, path, mask_and_scale=False).reflectance.values
    np.testing.assert_array_equal(got, values)
    assert len(server.downloads()) == 5
    # The receipts tell of what came; the ledger of what may have been paid besides.
    ds = lazy(server, path)
    assert ds.clearsky.receipts()["credits"].sum() == pytest.approx(0.36)
    assert clearsky_xr.spent().possibly == 0.09
    assert credits_of(server) == pytest.approx(0.45)
    assert spooled(path) == []
    forget()
    lazy(server, path).load()
    assert len(server.downloads()) == 5


@pytest.mark.usefixtures("fake_time")
def test_a_run_that_ends_without_credits(
    serve: Callable[..., Server], tmp_path: Path, values: np.ndarray
) -> None:
    """What came before the end is kept; the next run goes on there."""
    account = clearsky_xr.sandbox.Account(key="short", balance=0.2, max_connections=1)
    server = serve(accounts=[account])
    path = tmp_path / "fields.zarr"
    with pytest.raises(errors.InsufficientCreditsError):
        lazy(server, path).load()
    assert len(paid(server)) == 2
    forget()
    # Of an account that has credits.
    rich = serve(compression="none")
    ds = lazy(rich, path, mask_and_scale=False)
    assert ds.clearsky.fetched().values.sum() == 2
    np.testing.assert_array_equal(ds.reflectance.values, values)
    assert len(rich.downloads()) == 2
    assert spooled(path) == []


def test_who_gives_up_before_anything_is_sent_leaves_nothing(
    shop: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fields.zarr"
    ds = lazy(shop, path, time=DAYS[:1], chunks=None)
    since = Bought(shop)
    begins, given_up, begun = (threading.Event() for _ in range(3))
    real = DurableSpool.begin

    def slowly(self: DurableSpool, request: Request) -> Path:
        begins.set()
        assert given_up.wait(30)
        try:
            return real(self, request)
        finally:
            begun.set()

    async def give_up() -> None:
        reading = asyncio.create_task(ds.load_async())
        await asyncio.to_thread(begins.wait)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    with monkeypatch.context() as slow:
        slow.setattr(DurableSpool, "begin", slowly)
        asyncio.run(give_up())
        given_up.set()
        assert begun.wait(30)
    settle()
    assert spooled(path) == []
    assert since.downloads == []
    assert clearsky_xr.spent().reserved == 0
    forget()
    # It warns of nothing that might have been charged.
    lazy(shop, path, time=DAYS[:1]).load()
    assert len(since.downloads) == 1


def test_a_lost_download_that_is_not_repeated(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(faults=[Fault.lost()], compression="none")
    path = tmp_path / "fields.zarr"
    with pytest.raises(errors.LostDownloadError):
        lazy(server, path, time=DAYS[:1], on_lost="raise").load()
    assert spooled(path) == []
    assert not lazy(server, path, time=DAYS[:1]).clearsky.fetched().values.any()


# ---- the key


def test_the_key_is_in_no_file(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(api_key=KEY, faults=[Fault.half_pixel()])
    path = tmp_path / "fields.zarr"
    ds = lazy(server, path, indices="ndvi")
    with pytest.raises(errors.GridMismatchError):
        ds.isel(time=[0]).load()
    with monkeypatch.context() as broken:
        fill_up(broken, "reflectance/c/1", "reflectance/c/2")
        with pytest.warns(ClearSkyWarning, match=SPACE) as heard:
            ds.load()
    hidden(*(warning.message for warning in heard))
    found = [p for p in tmp_path.rglob("*") if p.is_file()]
    # Answers that are in the store, beside it, and refused; with what was asked for.
    assert {".tif", ".json", ""} <= {p.suffix for p in found}
    assert any("refused" in p.parts for p in found)
    assert len(paid(server)) == 5
    for p in found:
        hidden(str(p), p.read_bytes())
