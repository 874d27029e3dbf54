"""Stores that are killed, crowded, full, damaged, or somebody else's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import clearsky_xr
from clearsky_xr import errors

from .._nursery import TWO, Sweep, bought, kept, neat, once
from .._store_child import DAYS as CHILD_DAYS
from ..test_store_hostile import FOREIGN, NO_RECORDS, RECORDS, SHIFTED, edit, edit_record
from ..test_store_plain import LAKE, NODATA, block_file, tree
from ..test_store_processes import allow, content, forbid
from .bench import DAY, DAYS, FARM, KEY, Bench, forget
from .board import row

FILLING = (
    "open .clearsky/claims",
    "open .clearsky/spool/*/*-2025-04-06.json",
    "os.rename .clearsky/spool/*/*-2025-04-06.part",
    "os.rename /receipts/receipt/c/1/0/1.*.partial",
    "os.rename /reflectance/c/1/0/0/1.*.partial",
    "os.remove .clearsky/spool/*/*-2025-04-06.json",
    "os.remove .clearsky/spool/*/*-2025-04-06.tif",
    "os.rmdir .clearsky/spool/*",
    "os.remove .clearsky/spool/*.alive",
)
ADDING = (
    "os.rename /time/zarr.*.partial",
    "os.rename /time/c/0.*.partial",
    "os.rename /reflectance/zarr.*.partial",
    "os.rename /receipts/receipt/zarr.*.partial",
    "os.rename /zarr.*.partial",
)
PUTTING_AWAY = (
    "os.rename /receipts/receipt/c/0/0/1.*.partial",
    "os.rename /reflectance/c/0/0/0/1.*.partial",
    "os.remove .clearsky/spool/*/*-2025-04-01.tif",
    "os.remove .clearsky/spool/*.alive",
)


@row(
    14,
    "`kill -9` at the k-th open, rename or remove (audit events) of a store write, for every k",
    "reopen finds complete blocks or misses, never a torn one; orphans are swept",
)
def killed(bench: Bench) -> dict[str, Any]:
    family, kills = bench.family(), 0

    def sweep(name: str) -> Sweep:
        folder = bench.folder / name
        folder.mkdir()
        return Sweep(family, bench.serve, folder, KEY)

    # Each is killed at each of its steps, and once more with the file of the step half written.
    filling = sweep("filling")
    filling.child("open", TWO).finish()
    # What the sweeps are there for is among their steps.
    assert set(FILLING) <= set(filling.run("open load", TWO))

    adding = sweep("adding dates")
    adding.child("open load", TWO[1:]).finish()
    # Whoever comes next wants less, and finds arrays that are too long already.
    assert set(ADDING) <= set(adding.run("open", CHILD_DAYS[:4], TWO))

    away = sweep("putting away what another left")
    away.child("open", TWO).finish()
    step = "open /receipts/receipt/c/0/0/0.*.partial"
    away.child("open load", TWO[:1], die_at=step).killed()
    assert kept(away.store) == set(TWO[:1])
    assert set(PUTTING_AWAY) <= set(away.run("open", TWO))
    # One is enough for all: whoever comes finds it in the spool or in the store.
    assert TWO[0] not in [day for heir in away.heirs for day in bought(away.server, heir)]

    kills = filling.kills + adding.kills + away.kills
    assert kills > 60
    return {"kills": kills, "torn blocks": 0, "bought twice": 0}


@row(
    15,
    "two processes fill the same store",
    "one purchase per block on one host; both read right",
)
def crowded(bench: Bench) -> dict[str, Any]:
    family, days = bench.family(), CHILD_DAYS[:4]
    for second in ("load", "left"):
        server = bench.serve(latency=0.3)  # so that they meet
        store = bench.folder / f"{second}.zarr"
        both = [family.child(f"open meet {v}", store, server, days) for v in ("load", second)]
        for child in both:
            child.expect("ready")
        for child in both:
            child.go()
        for child in both:
            assert child.finish()["warnings"] == []
        once(server, days)  # each pixel of each day, and none twice
        family.run("open load look receipts plain", store, server, days)
        once(server, days)
        neat(store)

    # Workers of a cluster that see the same store.
    client = bench.cluster()
    server = bench.serve(max_connections=8, latency=0.1)
    clearsky_xr.cluster.setup(client, api_key=KEY)
    ds = clearsky_xr.open_timeseries(
        FARM, DAYS[:6], base_url=server.url, api_key=KEY, store=bench.folder / "shared.zarr",
        chunks={"time": 6, "x": 20},  # four tasks, all of which want the same blocks
    )  # fmt: skip
    assert ds.reflectance.notnull().all().compute(scheduler=client)
    assert sorted(str(entry.date) for entry in server.downloads()) == DAYS[:6]
    return {"processes": 2, "workers": 2}


@row(
    16,
    "disk full, read-only store",
    "the paid pixels are returned, with a warning; the store stays readable",
)
def no_room(bench: Bench) -> dict[str, Any]:
    family = bench.family()
    # The kernel refuses files beyond 4 kB, in the spool and in the store. `load` compares.
    server, store = bench.serve(), bench.folder / "full.zarr"
    family.run("open", store, server, TWO)
    report = family.run("open cram load load", store, server, TWO)
    said = report["warnings"]
    assert any("refuses paid answers" in text for text in said), said
    assert any("cannot be written" in text for text in said), said
    assert bought(server) == TWO  # the second time they came from memory
    family.run("look", store, server, TWO)
    assert xr.open_zarr(store, chunks=None).sizes["time"] == 2

    # Nobody may write into the folder of the store.
    server = bench.serve()
    data, home = bench.folder / "data", bench.folder / "home"
    data.mkdir()
    home.mkdir()
    allow(home)
    store = data / "fields.zarr"
    family.run("open", store, server, TWO)
    family.run("open load", store, server, TWO[:1])
    forbid(data)
    for folder in (bench.folder, *bench.folder.parents):
        if folder.owner() == Path.home().owner() and folder.name:
            folder.chmod(folder.stat().st_mode | 0o055)
    before = content(data)
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    for _ in range(2):  # the second process finds what the first one has kept elsewhere
        report = family.run("open load", store, server, TWO, humble=True, environment=where)
        assert report["warnings"]
        assert all("cannot be written: PermissionError" in text for text in report["warnings"])
        assert all(str(home) in text for text in report["warnings"])
        assert bought(server) == TWO
        assert content(data) == before
    family.run("look", store, server, TWO)
    allow(data)
    verbs = "open look load receipts plain"
    report = family.run(verbs, store, server, TWO, humble=True, environment=where)
    assert report["warnings"] == []
    assert bought(server) == TWO
    neat(store)
    return {"bought twice": 0}


@row(
    17,
    "bit flip in a stored block",
    "checksum error, treated as a miss only inside the budget",
)
def flipped(bench: Bench) -> dict[str, Any]:
    server, store = bench.serve(), bench.folder / "fields.zarr"
    ds = bench.open(server, DAYS[:3], store=store)
    values = ds.reflectance.values
    flips = 0
    size = block_file(store, 1).stat().st_size
    for place in (0, size // 3, size // 2, size - 1):
        flip(block_file(store, 1), place)
        forget()
        before = len(server.downloads())
        again = bench.open(server, DAYS[:3], store=store)
        np.testing.assert_array_equal(again.reflectance.values, values)
        bench.hears("damaged.*2025-04-06.*bought again: 0.09 credits", 1)
        assert [str(e.date) for e in server.downloads()[before:]] == ["2025-04-06"]
        flips += 1
    # The allowance of one credit is used up: now it is an error, and nothing is bought.
    assert clearsky_xr._account.process().ledger.repeat_lost(0.6)
    flip(block_file(store, 2), size // 2)
    forget()
    before = len(server.downloads())
    was = tree(store)
    with bench.raises(errors.StoreError, "damaged", spent="no") as caught:
        bench.open(server, DAYS[:3], store=store).load()
    assert caught.value.kind == "damaged"
    # Offline nothing can be bought anyway.
    with bench.raises(errors.StoreError, "damaged", spent="no"):
        clearsky_xr.open_store(store).load()
    assert len(server.downloads()) == before
    assert tree(store) == was
    return {"bits flipped": flips + 1}


def flip(path: Path, place: int) -> None:
    """Turn one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@row(18, "all-nodata block", "stored: second read sends nothing")
def nothing_there(bench: Bench) -> dict[str, Any]:
    server, store = bench.serve(), bench.folder / "lake.zarr"
    ds = bench.open(server, DAYS[:2], LAKE, store=store, mask_and_scale=False)
    assert (ds.reflectance.values == NODATA).all()
    assert len(server.downloads()) == 2
    assert block_file(store, 0).exists()
    assert ds.clearsky.fetched().values.all()
    forget()  # as another process
    again = bench.open(server, DAYS[:2], LAKE, store=store, mask_and_scale=False)
    assert (again.reflectance.values == NODATA).all()
    assert len(server.downloads()) == 2
    offline = clearsky_xr.open_store(store, mask_and_scale=False)
    assert (offline.reflectance.values == NODATA).all()  # bought, so no NotBoughtError
    return {"requests of the second read": 0}


@row(
    30,
    "hostile store path or metadata; foreign or newer store at the path",
    "clear error, nothing overwritten",
)
def not_ours(bench: Bench) -> dict[str, Any]:
    server = bench.serve()
    full = bench.folder / "full.zarr"
    bench.open(server, store=full).load()
    forget()
    downloads = len(server.downloads())
    count = 0

    def refused(path: Path, kind: type[errors.ClearSkyError]) -> None:
        nonlocal count
        was = tree(path)
        for days in (DAY, DAYS[:2]):
            with bench.raises(kind, re.escape(str(path.parent)), spent="no"):
                bench.open(server, days, store=path).load()
            forget()
        assert tree(path) == was
        count += 1

    for name, make in FOREIGN.items():
        path = bench.folder / f"foreign {name}" / "fields.zarr"
        path.parent.mkdir()
        make(path)
        refused(path, errors.StoreError)
        if path.is_fifo():
            path.unlink()  # nobody can read it
    changes: list[tuple[str, Any]] = [(n, c) for n, c in (RECORDS | SHIFTED).items()]
    changes += [
        (f"version {v}", lambda r, v=v: {**r, "version": v}) for v in (2, 10**30, "1", None)
    ]
    for name, change in changes:
        path = bench.folder / f"record {name}"
        shutil.copytree(full, path)
        edit_record(path, change)
        refused(path, errors.StoreError)
        shutil.rmtree(path)
    for name, value in NO_RECORDS.items():
        path = bench.folder / f"no record {name}"
        shutil.copytree(full, path)
        edit(path / "zarr.json", lambda r, v=value: r["attributes"].update(clearsky_store=v))
        refused(path, errors.StoreError)
        shutil.rmtree(path)
    for place in (
        "s3://user:secret@bucket/x.zarr", "https://name:secret@example.org/x.zarr", "x\0.zarr", "",
        7, b"x.zarr",
    ):  # fmt: skip
        with bench.raises(errors.InvalidOptionError, "store=", spent="no") as caught:
            bench.open(server, store=place)
        assert "secret" not in str(caught.value)
        count += 1
    with bench.raises(errors.StoreError, "nothing://x.zarr", spent="no"):
        bench.open(server, store="nothing://x.zarr")
    assert len(server.downloads()) == downloads
    return {"refused": count, "overwritten": 0}
