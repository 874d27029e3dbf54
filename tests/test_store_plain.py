"""A store is a plain cube: others read the pixels served; the engine reads it without buying."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import xarray as xr
import zarr

import clearsky_xr
from clearsky_xr import _accessor, _account, _loop, errors
from clearsky_xr.errors import ClearSkyWarning
from clearsky_xr.sandbox import LedgerEntry, Server

from .conftest import FARM, SPRING, access, credits_of, paid
from .test_sandbox import TEN, Client
from .test_scenes import footprint, stack

NODATA = -32768
# 268 x 40 pixels: one block above another.
HALVES = (15.05, 46.05, 15.055, 46.074)
# 268 x 264 pixels: two blocks by two, of which three are narrow.
QUARTERS = (15.05, 46.05, 15.084, 46.074)
# Nothing but open water.
LAKE = (15.0592, 46.2051, 15.0602, 46.2062)

# Of the archive in the order in which the runs below ask for them.
ARRIVAL = [
    "2025-04-16", "2025-04-21", "2025-04-26", "2025-05-01",
    "2025-04-06", "2025-04-11",
    "2025-04-01", "2025-05-06",
]  # fmt: skip
DATES = sorted(ARRIVAL)


def settle() -> None:
    """Let everything end that was sent."""

    async def wait() -> None:
        for stock in list(_account.process().stocks.values()):
            while tasks := [
                *(fill.task for fill in stock.fills.values()),
                *(flight.task for some in stock.holdings._flights.values() for flight in some),
            ]:
                await asyncio.wait(tasks)

    _loop.run(wait())


def forget() -> None:
    """End the process, as far as accounts and stores can tell: nothing is known, locks are off."""
    settle()
    shared = _account.process()

    async def close() -> None:
        for owner in shared.accounts.values():
            await owner.client.close()

    _loop.run(close())
    shared.accounts.clear()
    for stock in shared.stocks.values():
        if sidecar := stock.__dict__.get("sidecar"):
            for alive in sidecar._own.values():
                alive.release()
    shared.stocks.clear()


def lazy(
    server: Server, store: object, area: object = FARM, time: object = SPRING, **options: object
) -> xr.Dataset:
    return xr.open_dataset(
        area, engine="clearsky", time=time, store=store, **access(server), **options
    )


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Give all that lies in a folder, or what lies in its place."""
    if not folder.exists() and not folder.is_symlink():
        return {}
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in (folder, *sorted(folder.rglob("*")))
    }


def block_file(store: Path, date: int = 0, row: int = 0, col: int = 0) -> Path:
    return store / f"reflectance/c/{date}/0/{row}/{col}"


class Bought:
    """What a sandbox was asked for since this was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = len(server.ledger())

    @property
    def all(self) -> list[LedgerEntry]:
        return self._server.ledger()[self._before :]

    @property
    def downloads(self) -> list[LedgerEntry]:
        return [entry for entry in self.all if entry.endpoint == "composite"]

    @property
    def credits(self) -> float:
        return round(sum(entry.credits for entry in self.all), 2)


def served(area: tuple[float, ...], dates: list[str]) -> xr.DataArray:
    """Give the images of a sandbox, asked for by a client that knows nothing of the library."""
    images = []
    with clearsky_xr.sandbox.serve(compression="none") as server:
        client = Client(server)
        for day in dates:
            values, profile, tags, names = client.image(
                Wkt=shapely.box(*area).wkt, Date=f"{day}T00:00:00Z", EpsgProjection=32633,
                Bandnames="all",
            )  # fmt: skip
            assert names == TEN
            assert tags["IMAGE_DATE"] == day.replace("-", "")
            images.append(values)
    affine = profile["transform"]
    height, width = images[0].shape[1:]
    return xr.DataArray(
        np.stack(images),
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(dates, "datetime64[ns]"),
            "band": list(TEN),
            "y": affine.f - 10 * (np.arange(height) + 0.5),
            "x": affine.c + 10 * (np.arange(width) + 0.5),
        },
        attrs={"transform": affine},
    )


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return served(HALVES, DATES)


@dataclass(frozen=True)
class Filled:
    path: Path
    server: Server


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Fill a store in three runs whose dates overlap and do not arrive in order."""
    path = tmp_path_factory.mktemp("plain") / "fields.zarr"
    with clearsky_xr.sandbox.serve(compression="none") as server:
        first = lazy(server, path, HALVES, ("2025-04-16", "2025-05-01"), chunks={})
        first.reflectance.isel(time=[3, 0], y=slice(0, 40)).compute()
        first.reflectance.isel(time=[1, 2], y=slice(256, 268)).compute()
        forget()
        lazy(server, path, HALVES, ("2025-04-06", "2025-04-21"), chunks={}).load()
        forget()
        third = lazy(server, path, HALVES, ["2025-05-06", "2025-04-01", "2025-04-26"])
        third.reflectance.isel(time=[2, 0, 1]).load()
        lazy(server, path, HALVES, ["2025-05-01"]).load()
        forget()
        yield Filled(path, server)
        forget()


@pytest.fixture
def copy(filled: Filled, tmp_path: Path) -> Path:
    """Give the full store at a place of its own."""
    return Path(shutil.copytree(filled.path, tmp_path / "copy.zarr"))


# ---- read by others


def test_every_pixel_was_paid_once(filled: Filled, truth: xr.DataArray) -> None:
    # Two dates in two halves by turns, one each of the rest.
    assert len(paid(filled.server)) == len(filled.server.downloads()) == 12
    # A box in degrees fills most of its window on the grid.
    km2 = len(DATES) * truth.sizes["y"] * truth.sizes["x"] / 10_000
    assert sum(entry.area_km2 for entry in paid(filled.server)) == pytest.approx(km2, rel=0.04)


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_plain_xarray_reads_the_pixels_served(
    filled: Filled, truth: xr.DataArray, chunks: object, *, consolidated: bool
) -> None:
    options = {"chunks": chunks, "consolidated": consolidated}
    numbers = xr.open_zarr(filled.path, mask_and_scale=False, **options).sortby("time")
    assert numbers.reflectance.dtype == np.int16
    assert numbers.reflectance.dims == truth.dims
    np.testing.assert_array_equal(numbers.reflectance.values, truth.values)
    ds = xr.open_zarr(filled.path, **options).sortby("time")
    assert ds.reflectance.dtype == np.float64
    expected = np.where(truth.values == NODATA, np.nan, truth.values * 0.0001)
    np.testing.assert_array_equal(ds.reflectance.values, expected)
    for name in ("time", "band", "y", "x"):
        np.testing.assert_array_equal(ds[name].values, truth[name].values)
    assert list(ds.data_vars) == ["reflectance"]


def test_plain_zarr_reads_the_pixels_served(filled: Filled, truth: xr.DataArray) -> None:
    group = zarr.open_group(filled.path, mode="r", use_consolidated=False)
    order = np.argsort(group["time"][:])
    np.testing.assert_array_equal(group["reflectance"][:][order], truth.values)


def test_times_to_the_second(filled: Filled) -> None:
    array = zarr.open_group(filled.path, mode="r")["time"]
    assert array.dtype == np.int64
    assert array.attrs["units"] == "seconds since 1970-01-01"
    assert array.attrs["calendar"] == "proleptic_gregorian"
    # In order of arrival, by the standard library's reckoning.
    midnights = [dt.datetime.fromisoformat(f"{day}T00:00:00+00:00") for day in ARRIVAL]
    assert array[:].tolist() == [int(midnight.timestamp()) for midnight in midnights]
    for consolidated in (True, False):
        plain = xr.open_zarr(filled.path, consolidated=consolidated)
        assert plain.time.values.tolist() == np.array(ARRIVAL, "datetime64[ns]").tolist()
        raw = xr.open_zarr(filled.path, consolidated=consolidated, decode_times=False)
        assert raw.time.dtype == np.int64


def test_crs_and_grid_for_rioxarray_and_odc(filled: Filled, truth: xr.DataArray) -> None:
    plain = xr.open_zarr(filled.path)
    assert "spatial_ref" in plain.coords
    own = clearsky_xr.open_store(filled.path)
    for ds in (plain, plain.sortby("time"), own, xr.open_zarr(filled.path, consolidated=False)):
        for thing in (ds, ds.reflectance):
            assert thing.rio.crs.to_epsg() == 32633
            assert tuple(thing.rio.transform()) == tuple(truth.attrs["transform"])
            assert thing.rio.bounds() == own.rio.bounds()
            box = thing.odc.geobox
            assert box is not None
            assert (box.crs.to_epsg(), box.shape) == (32633, truth.shape[2:])
            assert tuple(box.affine) == tuple(truth.attrs["transform"])
        assert ds.reflectance.rio.nodata is None or np.isnan(ds.reflectance.rio.nodata)
        assert ds.reflectance.rio.encoded_nodata == NODATA


def test_what_bands_are_called(filled: Filled) -> None:
    plain = xr.open_zarr(filled.path).load()
    assert plain.band.values.tolist() == list(TEN)
    assert plain.common_name.values.tolist() == [
        "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16",
        "swir22",
    ]  # fmt: skip
    for name in ("common_name", "band_name", "wavelength", "bandwidth"):
        assert plain[name].dims == ("band",)
    assert plain.wavelength.values[:3] == pytest.approx([490, 560, 665], abs=10)
    nir = plain.reflectance.set_xindex("common_name").sel(common_name="nir")
    assert nir.band.item() == "B8"


def test_how_pixels_are_packed(filled: Filled) -> None:
    array = zarr.open_group(filled.path, mode="r", zarr_format=3)["reflectance"]
    assert array.metadata.zarr_format == 3
    assert array.dtype == np.int16
    assert array.fill_value == NODATA
    assert array.chunks == (1, 10, 256, 256)
    assert array.metadata.dimension_names == ("time", "band", "y", "x")
    raw = dict(array.attrs)
    assert raw.pop("scale_factor") == 0.0001
    assert raw.pop("_FillValue") is not None
    assert raw == {
        "long_name": "surface reflectance",
        "standard_name": "surface_bidirectional_reflectance",
        "units": "1",
        "grid_mapping": "spatial_ref",
        "coordinates": "spatial_ref",
    }
    plain = xr.open_zarr(filled.path)
    encoding = plain.reflectance.encoding
    assert (encoding["_FillValue"], encoding["scale_factor"]) == (NODATA, 0.0001)
    assert "add_offset" not in encoding
    assert "SYNTHETIC" in plain.attrs["source"]
    # One object a block, and nothing else, holds pixels.
    objects = {
        str(path.relative_to(filled.path / "reflectance"))
        for path in (filled.path / "reflectance").rglob("*")
        if path.is_file()
    }
    assert objects == {"zarr.json"} | {
        f"c/{k}/0/{row}/0" for k in range(len(DATES)) for row in (0, 1)
    }


def test_consolidated_metadata_are_true(filled: Filled) -> None:
    root = json.loads((filled.path / "zarr.json").read_text())
    said = root["consolidated_metadata"]["metadata"]
    there = {
        str(path.parent.relative_to(filled.path)): json.loads(path.read_text())
        for path in filled.path.rglob("zarr.json")
        if path.parent != filled.path
    }
    assert set(said) == set(there) >= {"reflectance", "time", "receipts", "receipts/receipt"}
    for name, own in there.items():
        theirs = {k: v for k, v in said[name].items() if k != "consolidated_metadata"}
        assert theirs == own
    assert there["reflectance"]["shape"][0] == there["time"]["shape"][0] == len(DATES)
    both = [xr.open_zarr(filled.path, consolidated=way) for way in (True, False)]
    xr.testing.assert_identical(*both)


def test_plain_zarr_reads_the_receipts(filled: Filled) -> None:
    array = zarr.open_group(filled.path, mode="r")["receipts/receipt"]
    assert array.shape == (len(DATES), 2, 1)
    assert array.metadata.dimension_names == ("time", "block_y", "block_x")
    group = xr.open_zarr(filled.path, group="receipts")
    assert group.receipt.dims == ("time", "block_y", "block_x")
    table = array[:]
    np.testing.assert_array_equal(group.receipt.values, table)
    credits_paid = 0.0
    for place, text in np.ndenumerate(table):
        (receipt,) = json.loads(text)
        assert receipt["image_date"] == ARRIVAL[place[0]].replace("-", "")
        assert dt.datetime.fromisoformat(receipt["when"]).tzinfo is not None
        credits_paid += receipt["credits"]
    assert credits_paid == pytest.approx(credits_of(filled.server))


def test_real_scenes_round_trip(serve: Callable[..., Server], scenes: Path, tmp_path: Path) -> None:
    files = {}
    for path in sorted(scenes.glob("*.tif")):
        with rasterio.open(path) as file:
            files[path.stem] = (file.read(), file.transform)
    server = serve(scenes=scenes)
    store = tmp_path / "real.zarr"
    # The later date first, so that dates lie in the wrong order; then in two pieces.
    outline = footprint(files)
    lazy(server, store, outline, ["2015-08-30"], chunks={}).load()
    forget()
    ds = lazy(server, store, outline, "2015", mask_and_scale=False)
    expected = stack(files)
    np.testing.assert_array_equal(
        ds.reflectance.isel(y=slice(10, 42), x=slice(5, 60)).values,
        expected[:, :, 10:42, 5:60],
    )
    np.testing.assert_array_equal(ds.reflectance.values, expected)
    assert len(server.downloads()) == 2
    plain = xr.open_zarr(store, mask_and_scale=False)
    assert plain.time.dt.strftime("%Y%m%d").values.tolist() == list(files)[::-1]
    np.testing.assert_array_equal(plain.sortby("time").reflectance.values, expected)
    affine = next(iter(files.values()))[1]
    assert tuple(plain.rio.transform()) == tuple(affine)
    assert "scenes" in plain.source
    nodata = expected == NODATA
    decoded = xr.open_zarr(store).sortby("time").reflectance.values
    assert np.array_equal(np.isnan(decoded), nodata)
    np.testing.assert_array_equal(decoded[~nodata], expected[~nodata] * 0.0001)


def test_gdal_reads_a_date(filled: Filled, truth: xr.DataArray) -> None:
    try:
        file = rasterio.open(f'ZARR:"{filled.path}":/reflectance:0')
    except rasterio.RasterioIOError as error:
        if "Unsupported codec" not in str(error):
            raise
        pytest.skip(f"GDAL {rasterio.__gdal_version__} does not read these yet: {error}")
    with file:
        np.testing.assert_array_equal(file.read(), truth.sel(time=ARRIVAL[0]).values)
        assert file.crs.to_epsg() == 32633
        assert file.transform == truth.attrs["transform"]


# ---- read by the engine, from a full store

# By name: what is selected of a DataArray (time, band, y, x).
SELECTIONS: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "all": lambda a: a,
    "a date": lambda a: a.isel(time=3),
    "dates reversed": lambda a: a.isel(time=slice(None, None, -1), y=slice(0, 9)),
    "dates in any order": lambda a: a.isel(time=[5, 0, 3, 0], x=slice(20, 40)),
    "bands in another order": lambda a: a.sel(band=["B12", "B4", "B8"]).isel(time=[1, 2]),
    "a window across blocks": lambda a: a.isel(y=slice(250, 262), x=slice(11, 20)),
    "lists": lambda a: a.isel(band=[7, 0], y=[0, 200, 260], x=[3, 38]),
    "steps": lambda a: a.isel(y=slice(None, None, 37), x=slice(None, None, -7)),
    "a pixel": lambda a: a.isel(y=257, x=3).sel(band="B8"),
    "points": lambda a: a.isel(
        y=xr.DataArray([3, 255, 256, 267, 90], dims="p"),
        x=xr.DataArray([25, 26, 3, 39, 30], dims="p"),
    ),
    "labels": lambda a: a.sel(time=slice("2025-04-10", "2025-04-22")).sel(band="B2"),
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_selections_of_a_full_store(
    filled: Filled, truth: xr.DataArray, name: str, chunks: object
) -> None:
    since = Bought(filled.server)
    select = SELECTIONS[name]
    every = ("2025-04-01", "2025-05-06")
    ds = lazy(filled.server, filled.path, HALVES, every, mask_and_scale=False, chunks=chunks)
    reading = Bought(filled.server)
    got = select(ds.reflectance)
    expected = select(truth)
    assert got.dims == expected.dims
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.time.values, expected.time.values)
    assert reading.all == []
    if chunks == {}:
        scaled = select(lazy(filled.server, filled.path, HALVES, every, chunks=chunks).reflectance)
        floats = np.where(expected == NODATA, np.nan, expected.values.astype(np.float32) / 10000)
        np.testing.assert_array_equal(scaled.values, floats.astype(np.float32))
    # What opening asks for is free.
    assert {entry.endpoint for entry in since.all} <= {"account", "search"}


def test_asynchronous_loading_of_a_full_store(filled: Filled, truth: xr.DataArray) -> None:
    since = Bought(filled.server)
    ds = lazy(filled.server, filled.path, HALVES, DATES, mask_and_scale=False)
    got = asyncio.run(ds.isel(time=[6, 1], y=slice(240, 268)).load_async())
    np.testing.assert_array_equal(
        got.reflectance.values, truth.isel(time=[6, 1], y=slice(240, 268)).values
    )
    assert since.downloads == []


def test_other_bands_and_indices_later_are_free(filled: Filled, truth: xr.DataArray) -> None:
    since = Bought(filled.server)
    numbers = {name: truth.sel(band=name).values.astype(np.float64) for name in TEN}
    ds = lazy(
        filled.server, filled.path, HALVES, DATES, bands=None, mask_and_scale=False,
        indices={"ndvi": ("B8", "B4"), "own": ("B12", "B8A")},
    )  # fmt: skip
    for name, x, y in (("ndvi", "B8", "B4"), ("own", "B12", "B8A")):
        one, other = numbers[x], numbers[y]
        nothing = (one == NODATA) | (other == NODATA)
        # The service's own formula (contract, section 7.3), on the numbers that were served.
        with np.errstate(invalid="ignore"):
            index = np.rint(np.clip((one - other) / (one + other), -1, 1) * 32767)
        np.testing.assert_array_equal(ds[name].values, np.where(nothing, NODATA, index))
    few = lazy(filled.server, filled.path, HALVES, DATES, bands=["red", "B2"], indices="ndmi")
    np.testing.assert_allclose(
        few.reflectance.sel(band=["B4", "B2"]).isel(y=slice(0, 5)).values,
        truth.sel(band=["B4", "B2"]).isel(y=slice(0, 5)).where(truth != NODATA) / 10000,
        rtol=1e-6,
    )
    swir, nir = numbers["B11"], numbers["B8"]
    water = nir == NODATA
    np.testing.assert_allclose(
        few.ndmi.values, np.where(water, np.nan, (nir - swir) / (nir + swir)), atol=1 / 32767
    )
    assert since.downloads == []


def test_a_part_of_the_area_is_read_from_the_store(filled: Filled, truth: xr.DataArray) -> None:
    since = Bought(filled.server)
    box = (15.0503, 46.055, 15.0547, 46.0735)
    triangle = shapely.Polygon([(15.051, 46.051), (15.0545, 46.06), (15.0505, 46.0735)])
    with clearsky_xr.sandbox.serve(compression="none") as other:
        for part, least in ((box, 0.9), (triangle, 0.3)):
            options = {"area": part, "time": DATES[2:4], "mask_and_scale": False}
            ds = lazy(filled.server, filled.path, **options)
            without = lazy(other, None, **options).load()
            np.testing.assert_array_equal(ds.reflectance.values, without.reflectance.values)
            expected = truth.sel(time=ds.time, y=ds.y, x=ds.x)
            own = ds.reflectance != NODATA
            assert least < own.mean() < 1
            assert (ds.reflectance == expected).where(own, other=True).all()
    assert since.downloads == []


def test_the_same_cube_through_every_door(filled: Filled, truth: xr.DataArray) -> None:
    since = Bought(filled.server)
    options = access(filled.server)
    cube = clearsky_xr.resolve(HALVES, ("2025-04-01", "2025-04-12"), **options)
    by_cube = xr.open_dataset(cube, engine="clearsky", store=filled.path, **options)
    by_name = clearsky_xr.open_timeseries(
        HALVES, ("2025-04-01", "2025-04-12"), store=str(filled.path), **options
    )
    by_store = clearsky_xr.open_store(filled.path).isel(time=slice(0, 3))
    expected = truth.isel(time=slice(0, 3)).where(truth != NODATA) / 10000
    for ds in (by_cube, by_name, by_store):
        np.testing.assert_allclose(ds.reflectance.values, expected.values, rtol=1e-6)
    xr.testing.assert_identical(by_name.load(), by_store.load())
    assert since.downloads == []


# ---- bought into an empty store


@pytest.fixture(scope="module")
def shop() -> Iterator[Server]:
    """Give a sandbox for all of these tests: making a landscape takes its time."""
    with clearsky_xr.sandbox.serve(compression="none") as server:
        yield server


# What is selected of each date, and the rows and columns of the blocks that it needs.
COLD: dict[str, tuple[Callable[[xr.DataArray], xr.DataArray], set[tuple[int, int]]]] = {
    "a pixel": (lambda a: a.isel(y=10, x=20), {(0, 0)}),
    "a pixel of a narrow block": (lambda a: a.isel(y=10, x=260), {(0, 1)}),
    "a corner": (
        lambda a: a.isel(y=slice(250, 260), x=slice(250, 260)), {(0, 0), (0, 1), (1, 0), (1, 1)},
    ),
    "lists": (lambda a: a.isel(y=[257, 260], x=[7, 259]), {(1, 0), (1, 1)}),
    "points": (
        lambda a: a.isel(y=xr.DataArray([260, 3], dims="p"), x=xr.DataArray([3, 260], dims="p")),
        {(0, 1), (1, 0)},
    ),
    "a band": (lambda a: a.sel(band="B4").isel(y=258, x=slice(0, 9)), {(1, 0)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def quarters() -> xr.DataArray:
    return served(QUARTERS, DATES[1:3])


@pytest.mark.parametrize(
    ("name", "chunks"),
    [*((name, None) for name in COLD), ("a corner", {}), ("points", {})],
)
def test_whole_blocks_are_bought_neighbours_in_one_request(
    shop: Server, tmp_path: Path, quarters: xr.DataArray, name: str, chunks: object
) -> None:
    select, blocks = COLD[name]
    dates = DATES[1:3]
    store = tmp_path / "fields.zarr"
    ds = lazy(shop, store, QUARTERS, dates, mask_and_scale=False, chunks=chunks)
    since = Bought(shop)
    got = select(ds.reflectance).values
    np.testing.assert_array_equal(got, select(quarters).values)
    assert sorted(entry.date.isoformat() for entry in since.downloads) == dates
    km2 = sum((12 if row else 256) * (8 if col else 256) for row, col in blocks) / 10_000
    for entry in since.downloads:
        # A box in degrees leaves a few of the pixels on its edges to others.
        assert 0.6 * km2 < entry.area_km2 <= km2
        assert entry.credits == max(0.01, round(0.1 * entry.area_km2, 2))
        assert entry.bandnames == ",".join(TEN)
    assert clearsky_xr.spent().settled == since.credits
    for date in (0, 1):
        there = {(i, j) for i in (0, 1) for j in (0, 1) if block_file(store, date, i, j).exists()}
        assert there == blocks
    # And never again: in this process, and in another one.
    again = Bought(shop)
    for end in (lambda: None, forget):
        end()
        ds = lazy(shop, store, QUARTERS, dates, mask_and_scale=False, chunks=chunks)
        np.testing.assert_array_equal(select(ds.reflectance).values, got)
    assert again.downloads == []


def test_a_small_area_is_one_block_whatever_is_read(shop: Server, tmp_path: Path) -> None:
    since = Bought(shop)
    ds = lazy(shop, tmp_path / "farm.zarr")
    ds.reflectance.isel(y=3, x=4).sel(band="B8").load()
    assert [entry.credits for entry in since.downloads] == [0.09] * 4
    ds.load()
    lazy(shop, tmp_path / "farm.zarr", indices=["ndvi", "nbr"], bands=None).load()
    assert len(since.downloads) == 4


def test_asynchronous_loading_fills_the_store(
    shop: Server, tmp_path: Path, truth: xr.DataArray
) -> None:
    since = Bought(shop)
    ds = lazy(shop, tmp_path / "a.zarr", HALVES, DATES[:2], mask_and_scale=False)
    part = asyncio.run(ds.isel(y=slice(0, 10)).load_async())
    np.testing.assert_array_equal(
        part.reflectance.values, truth.isel(time=slice(0, 2), y=slice(0, 10)).values
    )
    assert len(since.downloads) == 2
    forget()
    offline = clearsky_xr.open_store(tmp_path / "a.zarr", mask_and_scale=False)
    np.testing.assert_array_equal(
        offline.reflectance.isel(y=slice(100, 256)).values,
        truth.isel(time=slice(0, 2), y=slice(100, 256)).values,
    )


def test_a_block_without_any_data_is_not_asked_for_again(shop: Server, tmp_path: Path) -> None:
    store = tmp_path / "lake.zarr"
    since = Bought(shop)
    ds = lazy(shop, store, LAKE).load()
    assert len(since.downloads) == 4
    assert ds.sizes["x"] * ds.sizes["y"] > 50
    assert ds.reflectance.isnull().all()
    again = Bought(shop)
    lazy(shop, store, LAKE).load()
    forget()
    lazy(shop, store, LAKE, chunks={}, indices="ndvi").load()
    assert again.downloads == []
    # It is there, and says so.
    for date in range(4):
        assert block_file(store, date).stat().st_size > 0
    offline = clearsky_xr.open_store(store)
    assert offline.clearsky.fetched().values.all()
    assert offline.reflectance.isnull().all()
    assert (xr.open_zarr(store, mask_and_scale=False).reflectance == NODATA).all()
    assert len(offline.clearsky.receipts()) == 4


def test_a_part_of_the_area_buys_whole_blocks_of_the_record(
    shop: Server, tmp_path: Path, truth: xr.DataArray
) -> None:
    """A store is made for an area; a smaller cube fills the blocks that it touches."""
    store = tmp_path / "fields.zarr"
    lazy(shop, store, HALVES, DATES[:1])
    since = Bought(shop)
    part = (15.051, 46.055, 15.054, 46.06)
    ds = lazy(shop, store, part, DATES[:1], mask_and_scale=False)
    own = ds.reflectance != NODATA
    expected = truth.sel(time=ds.time, y=ds.y, x=ds.x)
    assert (ds.reflectance == expected).where(own, other=True).all()
    assert own.mean() > 0.9
    assert [round(entry.area_km2, 1) for entry in since.downloads] == [1.0]
    whole = lazy(shop, store, HALVES, DATES[:1], mask_and_scale=False)
    got = whole.reflectance.isel(y=slice(0, 256)).values
    np.testing.assert_array_equal(got, truth.isel(time=[0], y=slice(0, 256)).values)
    assert len(since.downloads) == 1


def test_an_empty_folder_becomes_a_store(shop: Server, tmp_path: Path) -> None:
    store = tmp_path / "new.zarr"
    store.mkdir()
    ds = lazy(shop, store, time=SPRING).isel(time=0).load()
    plain = xr.open_zarr(store).isel(time=0).load()
    xr.testing.assert_allclose(plain.reflectance, ds.reflectance.drop_attrs(), rtol=1e-6)


# ---- what was fetched, and receipts


def test_fetched(shop: Server, tmp_path: Path) -> None:
    store = tmp_path / "fields.zarr"
    ds = lazy(shop, store, QUARTERS, DATES[:3])
    before = ds.clearsky.fetched()
    assert before.dims == ("time", "block")
    assert before.shape == (3, 4)
    assert before.dtype == bool
    assert not before.values.any()
    ds.reflectance.isel(time=1, y=3, x=260).compute()
    ds.reflectance.isel(time=2, y=260, x=slice(250, 260)).compute()
    after = ds.clearsky.fetched()
    where = {
        (str(cell.time.values)[:10], int(cell.row), int(cell.col))
        for cell in after.stack(cell=("time", "block")).transpose("cell")
        if cell
    }
    assert where == {(DATES[1], 0, 1), (DATES[2], 1, 0), (DATES[2], 1, 1)}
    assert after.y.values.tolist() == pytest.approx(
        [ds.y.values[:256].mean()] * 2 + [ds.y.values[256:].mean()] * 2
    )
    assert after.x.values.tolist() == pytest.approx(
        [ds.x.values[:256].mean(), ds.x.values[256:].mean()] * 2
    )
    # Of a selection, and of what has been loaded.
    assert ds.isel(time=1, x=slice(257, 260), y=[3]).clearsky.fetched().values.tolist() == [[True]]
    assert ds.isel(time=1, x=[0], y=[3]).compute().clearsky.fetched().values.tolist() == [[True]]
    forget()
    offline = clearsky_xr.open_store(store, missing="nan").clearsky.fetched()
    expected = after.values.copy()
    expected[1, 0] = True
    np.testing.assert_array_equal(offline.values, expected)


def test_receipts(filled: Filled) -> None:
    ds = clearsky_xr.open_store(filled.path)
    table = ds.clearsky.receipts()
    assert list(table.columns) == [
        "time", "row", "col", "image_date", "model_version", "image_version", "constellations",
        "credits", "when", "request",
    ]  # fmt: skip
    assert len(table) == len(DATES) * 2
    assert table["credits"].sum() == pytest.approx(credits_of(filled.server))
    assert (table.image_date == table.time.dt.strftime("%Y%m%d")).all()
    assert not table.duplicated(["time", "row", "col"]).any()
    assert table["when"].dt.tz is not None
    assert (table["when"] <= pd.Timestamp.now("UTC")).all()
    # One fingerprint for each request that was sent.
    assert table.request.nunique() == len(paid(filled.server))
    assert set(table.constellations) == {"Sentinel1,Sentinel2,Landsat89"}
    # By date what the sandbox has charged for it.
    charged = pd.Series(
        [entry.credits for entry in paid(filled.server)],
        [pd.Timestamp(entry.date) for entry in paid(filled.server)],
    )
    pd.testing.assert_series_equal(
        table.groupby("time")["credits"].sum(), charged.groupby(level=0).sum(),
        check_names=False, check_freq=False, check_index_type=False,
    )  # fmt: skip
    part = ds.isel(time=[2], y=[0], x=[0]).clearsky.receipts()
    assert (part.row.tolist(), part.col.tolist()) == ([0], [0])
    assert part.time.tolist() == [pd.Timestamp(DATES[2])]


def test_receipts_as_coordinates(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    store = tmp_path / "fields.zarr"
    ds = lazy(server, store, HALVES, DATES[:4])
    ds.reflectance.isel(time=[0, 1, 2], y=0, x=0).load()
    server.regenerate(dt.date.fromisoformat(DATES[1]))
    server.regenerate(dt.date.fromisoformat(DATES[2]))
    with pytest.warns(ClearSkyWarning, match="IMAGE_VERSION 1, 2"):
        ds.reflectance.isel(time=1, y=260, x=0).load()
    ds.reflectance.isel(time=3, y=260, x=0).load()
    said = ds.clearsky.with_receipts()
    # One value, several, one, one; never bought would be empty.
    assert said.image_version.values.tolist() == ["1", "", "1", "1"]
    assert said.model_version.values.tolist() == ["15"] * 4
    assert said.image_constellations.dims == ("time",)
    assert "image_version" in said.isel(time=0).reflectance.coords
    single = ds.isel(time=2).clearsky.with_receipts()
    assert single.image_version.item() == "1"
    other = lazy(server, store, HALVES, DATES[3:5]).clearsky.with_receipts()
    assert other.image_version.values.tolist() == ["1", ""]


# ---- prefetch


def test_prefetch_of_everything(
    shop: Server, tmp_path: Path, truth: xr.DataArray, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "fields.zarr"
    ds = lazy(shop, store, HALVES, DATES[:3], chunks={})
    ds.reflectance.isel(time=0, y=0, x=0).compute()
    since = Bought(shop)
    spent = ds.clearsky.prefetch()
    shown = capfd.readouterr().err
    assert "5/5" in shown
    for word in ("blocks", "MB", "credits spent", "left"):
        assert word in shown
    assert len(since.downloads) == 3
    assert spent.settled == since.credits
    assert spent.requests == 3
    assert spent.bytes == sum(entry.bytes for entry in since.downloads)
    # All of it is there.
    again = Bought(shop)
    idle = ds.clearsky.prefetch(progress=False)
    assert (idle.settled, idle.requests, idle.bytes) == (0, 0, 0)
    assert capfd.readouterr().err == ""
    assert again.all == []
    forget()
    offline = clearsky_xr.open_store(store, mask_and_scale=False)
    np.testing.assert_array_equal(offline.reflectance.values, truth.isel(time=slice(0, 3)).values)


def test_prefetch_counts_what_is_bought_meanwhile(
    shop: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ds = lazy(shop, tmp_path / "fields.zarr", HALVES, DATES[:3])
    real = _accessor.prefetch

    def others_first(*arguments: object, **more: object) -> object:
        ds.reflectance.isel(time=1, y=0).load()
        return real(*arguments, **more)

    monkeypatch.setattr(_accessor, "prefetch", others_first)
    ds.clearsky.prefetch()
    last = capfd.readouterr().err.split("\r")[-1]
    assert "6/6" in last
    assert "0.00 left" in last


def test_prefetch_of_selections(shop: Server, tmp_path: Path) -> None:
    store = tmp_path / "fields.zarr"
    ds = lazy(shop, store, QUARTERS, DATES[:3])
    # Of the blocks (0, 0), (0, 1), (1, 0), (1, 1) by date.
    expected = np.zeros((3, 4), bool)
    ds.isel(time=[2, 0], y=slice(257, 260)).clearsky.prefetch(progress=False)
    expected[[0, 0, 2, 2], [2, 3, 2, 3]] = True
    np.testing.assert_array_equal(ds.clearsky.fetched().values, expected)
    # A single date and pixel, and points.
    ds.isel(time=1, y=0, x=260).clearsky.prefetch(progress=False)
    expected[1, 1] = True
    np.testing.assert_array_equal(ds.clearsky.fetched().values, expected)
    points = {"y": xr.DataArray([3, 260], dims="p"), "x": xr.DataArray([260, 3], dims="p")}
    since = Bought(shop)
    ds.isel(time=[0, 1], **points).clearsky.prefetch(progress=False)
    expected[[0, 1], [1, 2]] = True
    np.testing.assert_array_equal(ds.clearsky.fetched().values, expected)
    assert len(since.downloads) == 2
    again = Bought(shop)
    lazy(shop, store, QUARTERS, DATES[:2], chunks={}).isel(**points).reflectance.compute()
    assert again.downloads == []


def test_prefetch_where_it_makes_no_sense(shop: Server, filled: Filled) -> None:
    without = lazy(shop, None)
    since = Bought(shop)
    for call in ("prefetch", "fetched", "receipts", "with_receipts"):
        with pytest.raises(errors.InvalidOptionError, match="no store") as caught:
            getattr(without.clearsky, call)()
        assert "store=" in caught.value.hint
    offline = clearsky_xr.open_store(filled.path)
    with pytest.raises(errors.InvalidOptionError, match="open_store buys nothing"):
        offline.clearsky.prefetch()
    with pytest.raises(errors.InputError, match="does not come from the engine"):
        xr.open_zarr(filled.path).clearsky.prefetch()
    with pytest.raises(errors.InputError, match="time"):
        offline.isel(time=0, drop=True).clearsky.fetched()
    assert since.all == []


def test_a_loaded_dataset_still_knows_its_store(shop: Server, tmp_path: Path) -> None:
    for chunks in (None, {}):
        ds = lazy(shop, tmp_path / "fields.zarr", chunks=chunks).load()
        assert ds.clearsky.fetched().values.tolist() == [[True]] * 4
        assert len(ds.clearsky.receipts()) == 4
        assert ds.isel(time=[0]).clearsky.fetched().shape == (1, 1)
        since = Bought(shop)
        assert ds.clearsky.prefetch(progress=False).settled == 0
        assert since.downloads == []
    offline = clearsky_xr.open_store(tmp_path / "fields.zarr").load()
    assert len(offline.clearsky.receipts()) == 4


# ---- offline


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach anything over a socket a failure of the test."""

    def refuse(*_: object) -> None:
        pytest.fail("something wants to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_offline_means_without_any_call(
    copy: Path, truth: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch)
    before = tree(copy)
    for chunks in (None, {}):
        ds = clearsky_xr.open_store(copy, chunks=chunks, indices="ndvi", mask_and_scale=False)
        np.testing.assert_array_equal(ds.reflectance.values, truth.values)
        assert ds.ndvi.shape == truth.isel(band=0).shape
        for name in ("time", "band", "y", "x"):
            np.testing.assert_array_equal(ds[name].values, truth[name].values)
    got = asyncio.run(clearsky_xr.open_store(copy, chunks=None).isel(time=0).load_async())
    assert got.reflectance.dtype == np.float32
    assert _account.process().accounts == {}
    assert clearsky_xr.spent().requests == 0
    assert tree(copy) == before


def hole(store: Path, date: int, row: int, col: int) -> None:
    """Make a block one that was never bought."""
    block_file(store, date, row, col).unlink()
    (store / f"receipts/receipt/c/{date}/{row}/{col}").unlink()


def test_offline_raises_where_nothing_was_bought(
    copy: Path, truth: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch)
    hole(copy, ARRIVAL.index("2025-04-11"), 1, 0)
    k = DATES.index("2025-04-11")
    for chunks in (None, {}):
        ds = clearsky_xr.open_store(copy, chunks=chunks, mask_and_scale=False)
        with pytest.raises(errors.NotBoughtError) as caught:
            ds.reflectance.isel(y=slice(250, 258), x=0).load()
        error = caught.value
        assert isinstance(error, errors.StoreError)
        assert error.kind == "not_bought"
        assert error.spent == "no"
        assert str(copy) in str(error)
        assert "2025-04-11" in str(error)
        assert error.details["window"] in str(error)
        # Rows and columns of the lattice: of the whole block.
        row0 = round(-float(ds.y[256] + 5) / 10)
        col0 = round(float(ds.x[0] - 5) / 10)
        for edge in (row0, row0 + 12, col0, col0 + 40):
            assert str(edge) in error.details["window"]
        assert 'missing="nan"' in error.hint
        # Around the hole everything is there.
        for part in ({"y": slice(0, 256)}, {"time": slice(0, k)}, {"time": slice(k + 1, None)}):
            np.testing.assert_array_equal(ds.reflectance.isel(part).values, truth.isel(part).values)


A_DATE = [("2025-05-06", 0), ("2025-05-06", 1)]
TWO_BLOCKS = [("2025-04-11", 1), ("2025-04-01", 0)]


@pytest.mark.parametrize(
    ("chunks", "holes"),
    [
        pytest.param(None, A_DATE, id="lazy-a date"),
        pytest.param({}, A_DATE, id="dask-a date"),
        pytest.param(None, TWO_BLOCKS, id="lazy-blocks"),
        pytest.param({}, TWO_BLOCKS, id="dask-blocks"),
    ],
)
def test_offline_shows_nan_where_that_is_asked_for(
    copy: Path, truth: xr.DataArray, holes: list[tuple[str, int]], chunks: object
) -> None:
    expected = truth.copy(deep=True)
    for day, row in holes:
        hole(copy, ARRIVAL.index(day), row, 0)
        expected[DATES.index(day), :, slice(256, None) if row else slice(256)] = NODATA
    options = {"missing": "nan", "chunks": chunks}
    raw = clearsky_xr.open_store(copy, mask_and_scale=False, **options)
    np.testing.assert_array_equal(raw.reflectance.values, expected.values)
    scaled = clearsky_xr.open_store(copy, indices="ndvi", **options)
    assert np.array_equal(np.isnan(scaled.reflectance.values), (expected == NODATA).values)
    assert np.array_equal(np.isnan(scaled.ndvi.values), (expected[:, 2] == NODATA).values)
    select = SELECTIONS["points"]
    np.testing.assert_array_equal(select(raw.reflectance).values, select(expected).values)


def test_offline_where_nothing_at_all_was_bought(shop: Server, tmp_path: Path) -> None:
    for area in (FARM, HALVES, shapely.Polygon([(15.05, 46.05), (15.06, 46.05), (15.05, 46.06)])):
        store = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        lazy(shop, store, area)
        empty = clearsky_xr.open_store(store, missing="nan", indices="ndvi").load()
        assert empty.reflectance.isnull().all()
        assert empty.ndvi.isnull().all()
        assert len(empty.clearsky.receipts()) == 0
        with pytest.raises(errors.NotBoughtError, match=DATES[0]):
            clearsky_xr.open_store(store).reflectance.isel(time=0, x=0, y=-1).load()


def test_offline_options_and_places_that_are_wrong(filled: Filled, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidOptionError, match="missing='buy'"):
        clearsky_xr.open_store(filled.path, missing="buy")
    with pytest.raises(errors.InvalidOptionError):
        clearsky_xr.open_store(None)
    with pytest.raises(errors.StoreError, match=r"there is no store at .*nothing\.zarr"):
        clearsky_xr.open_store(tmp_path / "nothing.zarr")
    with pytest.raises(errors.InvalidBandError):
        clearsky_xr.open_store(filled.path, bands=None)
    assert list(tmp_path.iterdir()) == []
    few = clearsky_xr.open_store(filled.path, bands=["B8", "red"])
    assert sorted(few.band.values.tolist()) == ["B4", "B8"]


def test_offline_sees_what_was_bought_since(shop: Server, tmp_path: Path) -> None:
    store = tmp_path / "fields.zarr"
    ds = lazy(shop, store)
    ds.isel(time=0).load()
    first = clearsky_xr.open_store(store)
    with pytest.raises(errors.NotBoughtError):
        first.load()
    lazy(shop, store, time=("2025-04-01", "2025-05-01")).load()
    assert first.load().sizes["time"] == 4
    assert clearsky_xr.open_store(store).load().sizes["time"] == 7
