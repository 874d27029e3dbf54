"""GeoTIFFs out: what is in them, what is bought for them, and what is left when it fails."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from pystac.validation import validate_dict
from rasterio.enums import ColorInterp

import clearsky_xr
from clearsky_xr import _account, _cog, _export, errors
from clearsky_xr._bands import STRATUS
from clearsky_xr._holdings import Holdings
from clearsky_xr.sandbox import Fault, Server

from .conftest import FARM, SPRING, access, paid

DAYS = [dt.date(2025, 4, day) for day in (1, 6, 11, 16)]
# A corner of the farm: a triangle, so that half of its rectangle is nodata.
TRIANGLE = shapely.Polygon([(15.05, 46.05), (15.054, 46.05), (15.05, 46.054)])


def cube(server: Server, **options: Any) -> xr.Dataset:
    area = options.pop("area", TRIANGLE)
    time = options.pop("time", SPRING)
    return clearsky_xr.open_timeseries(area, time, **{**access(server), **options})


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def forget(server: Server) -> None:
    """Let this process hold nothing any more, like a new one."""
    for owner in _account.process().accounts.values():
        owner.holdings = Holdings()


def test_files_hold_what_was_served(server: Server, tmp_path: Path) -> None:
    ds = cube(server, indices={"ndvi": ("B8", "B4"), "mine": ("B5", "B4")})
    paths = ds.clearsky.to_geotiff(tmp_path / "out", progress=False)
    assert [path.name for path in paths] == [f"{day}.tif" for day in DAYS]
    assert names(tmp_path / "out") == [path.name for path in paths]
    assert len(paid(server)) == 4

    # The service's own numbers, which this process holds.
    raw = cube(
        server, indices={"ndvi": ("B8", "B4"), "mine": ("B5", "B4")}, mask_and_scale=False
    ).load()
    assert len(paid(server)) == 4
    assert (raw.reflectance == -32768).any()
    for k, path in enumerate(paths):
        values = read(path)
        np.testing.assert_array_equal(values[:10], raw.reflectance[k])
        np.testing.assert_array_equal(values[10], raw.ndvi[k])
        np.testing.assert_array_equal(values[11], raw.mine[k])


def test_a_file_says_what_it_is(server: Server, tmp_path: Path) -> None:
    ds = cube(server, indices="ndvi")
    path = ds.isel(time=[1]).clearsky.to_geotiff(tmp_path, progress=False)[0]
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == ds.rio.transform()
        assert file.shape == (ds.sizes["y"], ds.sizes["x"])
        assert file.descriptions == (*STRATUS, "ndvi")
        assert file.scales == (*[1e-4] * 10, 1 / 32767)
        assert file.nodatavals == (-32768,) * 11
        assert file.colorinterp[:3] == (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(4) == {
            "common_name": "rededge1", "wavelength_nm": "704", "bandwidth_nm": "16",
        }  # fmt: skip
        tags = file.tags()
    assert tags["DATE"] == "2025-04-06"
    assert tags["TIFFTAG_DATETIME"] == "2025:04:06 00:00:00"
    assert tags["MODEL"] == "Stratus2"
    # As the sandbox's GeoTIFFs have them.
    assert {name: tags[name] for name in ("IMAGE_DATE", "MODEL_VERSION", "IMAGE_VERSION")} == {
        "IMAGE_DATE": "20250406", "MODEL_VERSION": "15", "IMAGE_VERSION": "1",
    }  # fmt: skip
    assert tags["CONSTELLATIONS"] == "Sentinel1,Sentinel2,Landsat89"
    assert "SYNTHETIC" in tags["CLEARSKY_SANDBOX"]
    assert tags["TIFFTAG_IMAGEDESCRIPTION"].startswith("SANDBOX, not imagery")


def test_a_file_reads_as_reflectance(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands=["B8", "B3"]).isel(time=[1])
    (path,) = ds.clearsky.to_geotiff(tmp_path, progress=False)
    with xr.open_dataset(path, engine="rasterio", mask_and_scale=True) as again:
        np.testing.assert_allclose(again.band_data, ds.reflectance[0], rtol=1e-6, atol=0)
        assert again.rio.crs == ds.rio.crs
        np.testing.assert_array_equal(again.x, ds.x)
        np.testing.assert_array_equal(again.y, ds.y)


def test_synthetic_pixels_say_so_whatever_became_of_the_attributes(
    server: Server, tmp_path: Path
) -> None:
    bare = cube(server, bands="B8").isel(time=[0]).drop_attrs()
    (path,) = bare.clearsky.to_geotiff(tmp_path, progress=False)
    with rasterio.open(path) as file:
        assert "SYNTHETIC" in file.tags()["CLEARSKY_SANDBOX"]


def test_a_second_call_goes_on(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb")
    first = ds.isel(time=slice(0, 3)).clearsky.to_geotiff(tmp_path, progress=False)
    kept = [path.stat().st_ino for path in first]
    first[1].unlink()
    forget(server)
    # A new process with another choice of dates.
    paths = cube(server, bands="rgb").clearsky.to_geotiff(tmp_path, progress=False)
    assert [entry.date for entry in paid(server)][3:] == [DAYS[1], DAYS[3]]
    assert [paths[0].stat().st_ino, paths[2].stat().st_ino] == [kept[0], kept[2]]
    assert names(tmp_path) == [f"{day}.tif" for day in DAYS]
    ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 5


def test_other_images_are_not_overwritten(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", time="2025-04-01")
    (path,) = ds.clearsky.to_geotiff(tmp_path, progress=False)
    before = path.read_bytes()
    others = [
        cube(server, bands=["B8"], time="2025-04-01"),
        cube(server, bands="rgb", time="2025-04-01", clip=False),
        ds.isel(x=slice(1, None)),
    ]
    for other in others:
        with pytest.raises(errors.InvalidOptionError, match="not the image that would be written"):
            other.clearsky.to_geotiff(tmp_path, progress=False)
    assert path.read_bytes() == before
    assert len(paid(server)) == 1
    others[0].clearsky.to_geotiff(tmp_path, overwrite=True, progress=False)
    assert read(path).shape[0] == 1

    path.write_text("mine")
    with pytest.raises(errors.InvalidOptionError, match="not the image"):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert path.read_text() == "mine"


def test_what_was_changed_is_written_as_it_is_now(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", indices="ndvi").isel(time=[0])
    ndre = cube(server, indices="ndre").ndre.isel(time=[0]) / 2
    changed = ds.assign(ndvi=ds.ndvi.where(ds.ndvi > 0.4), ndre=ndre)
    assert changed.ndvi.encoding == changed.ndre.encoding == {}
    (path,) = changed.clearsky.to_geotiff(tmp_path / "a", progress=False)
    expected = changed.load()
    values = read(path)
    assert 0 < expected.ndvi.notnull().sum() < ds.ndvi.load().notnull().sum()
    np.testing.assert_array_equal(values[3] == -32768, expected.ndvi[0].isnull())
    np.testing.assert_allclose(
        np.where(values[4] == -32768, np.nan, values[4] / 32767), expected.ndre[0], atol=2e-5
    )
    # Neither takes the other's file for its own.
    with pytest.raises(errors.InvalidOptionError, match="not the image"):
        ds.assign(ndre=ndre).clearsky.to_geotiff(tmp_path / "a", progress=False)


def test_a_loaded_cube_and_a_lazy_one_are_the_same_file(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb")
    ds.isel(time=[0]).load().clearsky.to_geotiff(tmp_path, progress=False)
    forget(server)
    ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 4
    # As it was served.
    cube(server, bands="rgb", mask_and_scale=False).clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 4


REFUSED = {
    "points": (lambda ds: ds.sel(x=xr.DataArray([0, 1], dims="p"), y=xr.DataArray([0, 1], dims="p"),
                                 method="nearest"), "only rectangles"),
    "gaps": (lambda ds: ds.isel(x=[0, 2]), "no unbroken row"),
    "steps": (lambda ds: ds.isel(y=slice(None, None, 2)), "no unbroken row"),
    "turned": (lambda ds: ds.sortby("y"), "no unbroken row"),
    "a line": (lambda ds: ds.isel(y=0), "no dimension y"),
    "a mean": (lambda ds: ds.mean("time"), "coordinate time is gone"),
    "a mean beside": (lambda ds: ds.assign(m=ds.ndvi.mean("time")), "dimensions"),
    "an unknown": (lambda ds: ds.assign(evi=2.5 * ds.ndvi), "not known how"),
    "nothing": (lambda ds: ds.drop_vars(["ndvi", "reflectance"]), "no variable"),
    "no cube": (lambda _: xr.Dataset({"a": ("x", [1])}), "does not come from"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_raster_of_int16_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    ds = cube(server, bands="rgb", indices="ndvi", time="2025-04-01")
    with pytest.raises(errors.InputError, match=message):
        change(ds).clearsky.to_geotiff(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    assert server.downloads() == []


def test_values_that_int16_cannot_hold_are_an_error(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", time="2025-04-01")
    ds = ds.assign(reflectance=ds.reflectance + 4)
    with pytest.raises(errors.InputError, match="int16 cannot hold"):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert names(tmp_path) == []
    ds.reflectance.encoding["scale_factor"] = 0.001
    (path,) = ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert 4000 <= read(path).max() < 6000


def test_a_single_date_without_dask_is_bought_when_it_is_written(
    server: Server, tmp_path: Path
) -> None:
    ds = cube(server, bands="rgb", chunks=None).isel(time=2)
    export = _export.Export(ds, tmp_path)
    assert export.pending() == [dt.date(2025, 4, 11)]
    assert server.downloads() == []
    (path,) = ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert path.name == "2025-04-11.tif"
    assert len(paid(server)) == 1
    np.testing.assert_array_equal(
        read(path)[0] == -32768, ds.reflectance.isel(band=0).isnull().values
    )


def test_a_store_is_read_and_gives_its_receipts(server: Server, tmp_path: Path) -> None:
    store = tmp_path / "farm.zarr"
    ds = cube(server, store=store, indices="ndvi")
    ds.isel(time=[0]).clearsky.prefetch(progress=False)
    ds.clearsky.to_geotiff(tmp_path / "out", progress=False)
    assert len(paid(server)) == 4
    # Offline, into another folder.
    again = clearsky_xr.open_store(store, indices="ndvi")
    paths = again.clearsky.to_geotiff(tmp_path / "again", progress=False)
    assert [read(path).tolist() for path in paths] == [
        read(tmp_path / "out" / path.name).tolist() for path in paths
    ]
    for path in paths:
        with rasterio.open(path) as file:
            assert file.tags()["IMAGE_VERSION"] == "1"
            assert "SYNTHETIC" in file.tags()["CLEARSKY_SANDBOX"]
    assert len(paid(server)) == 4


def test_what_was_never_bought_is_told_from_no_data(server: Server, tmp_path: Path) -> None:
    store = tmp_path / "farm.zarr"
    ds = cube(server, store=store, time="2025-04-01/2025-04-06")
    ds.isel(time=[0]).clearsky.prefetch(progress=False)
    with pytest.raises(errors.NotBoughtError):
        clearsky_xr.open_store(store).clearsky.to_geotiff(tmp_path / "out", progress=False)
    assert names(tmp_path / "out") == [f"{DAYS[0]}.tif"]  # it has that one
    shown = clearsky_xr.open_store(store, missing="nan")
    told = []
    for path in shown.clearsky.to_geotiff(tmp_path / "nan", progress=False):
        with rasterio.open(path) as file:
            told.append("CLEARSKY_INCOMPLETE" in file.tags())
    assert told == [False, True]
    # Such a file is never taken for a complete one.
    with pytest.raises(errors.InvalidOptionError, match="not the image"):
        ds.clearsky.to_geotiff(tmp_path / "nan", progress=False)
    assert len(paid(server)) == 1


def test_several_versions_of_a_date_are_all_told(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", time="2025-04-01", area=FARM)
    ds.isel(x=slice(0, 20)).load()
    server.regenerate(DAYS[0])
    with pytest.warns(errors.ClearSkyWarning, match="IMAGE_VERSION 1, 2"):
        ds.isel(x=slice(20, None)).load()
    (path,) = ds.clearsky.to_geotiff(tmp_path, progress=False)
    with rasterio.open(path) as file:
        assert sorted(file.tags()["IMAGE_VERSION"].split("; ")) == ["1", "2"]
        assert file.tags()["MODEL_VERSION"] == "15"
    assert len(paid(server)) == 2


def test_tags_that_are_not_known_are_left_out(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", time="2025-04-01").load()
    forget(server)  # such as on a cluster, whose workers hold the answers
    for folder in ("none", "some"):
        (path,) = ds.clearsky.to_geotiff(tmp_path / folder, progress=False)
        with rasterio.open(path) as file:
            assert not {"IMAGE_DATE", "IMAGE_VERSION", "MODEL_VERSION"} & set(file.tags())
            assert file.tags()["DATE"] == "2025-04-01"
        # What is known of a part is not known of the whole.
        cube(server, bands="rgb", time="2025-04-01").isel(x=slice(0, 3)).load()
    assert len(paid(server)) == 2


def test_a_budget_that_does_not_fit_keeps_what_fitted(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb", concurrency=1)
    price = ds.isel(time=[0]).clearsky.plan().credits
    # A download is reserved rounded up to the cent.
    with clearsky_xr.budget(2 * price + 0.01), pytest.raises(errors.BudgetError):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 2
    assert names(tmp_path) == [f"{entry.date}.tif" for entry in sorted_by_date(server)]
    ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 4


def sorted_by_date(server: Server) -> list[Any]:
    return sorted(paid(server), key=lambda entry: entry.date)


def test_a_date_that_fails_does_not_cost_the_others(serve, tmp_path: Path) -> None:
    server = serve(faults=[Fault.status(400, code=1002, times=None).on(date=DAYS[2])])
    ds = cube(server, bands="rgb")
    with pytest.raises(errors.NoImageryError, match="2025-04-11"):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert names(tmp_path) == [f"{entry.date}.tif" for entry in sorted_by_date(server)]
    assert len([e for e in server.downloads() if e.status == 400]) == 1  # not asked again


def test_an_interrupt_while_writing_keeps_what_is_paid_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, *rest: Any) -> None:
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        _cog.write(path, *rest)

    monkeypatch.setattr(_export, "write", write)
    monkeypatch.setattr(_export, "_TOGETHER", 3)
    with pytest.raises(KeyboardInterrupt):
        cube(server, bands="rgb").clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 3
    assert names(tmp_path) == [f"{day}.tif" for day in DAYS[:3]]


def test_dates_are_loaded_as_far_as_they_fit(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    part = _export.Export.part

    def spy(self: _export.Export, dates: Any) -> xr.Dataset:
        loaded.append(len(dates))
        return part(self, dates)

    monkeypatch.setattr(_export.Export, "part", spy)
    ds = cube(server, bands="rgb")
    each = 4 * ds.reflectance.isel(time=0).size
    monkeypatch.setattr(_export, "_BYTES", 2 * each)
    ds.clearsky.to_geotiff(tmp_path / "two", progress=False)
    monkeypatch.setattr(_export, "_BYTES", each // 2)
    ds.clearsky.to_geotiff(tmp_path / "one", progress=False)
    assert loaded == [2, 2, 1, 1, 1, 1]
    assert len(paid(server)) == 4


def test_what_the_disk_may_not_hold_is_not_bought(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = cube(server, bands="rgb")
    each = 2 * ds.reflectance.isel(time=0).size
    room = iter([2 * each, 2 * each - 1])
    monkeypatch.setattr(_export, "_TOGETHER", 2)
    monkeypatch.setattr(
        _export.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, next(room))
    )
    with pytest.raises(OSError, match=r"2 dates may need 0\.0 MB.*not bought"):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    assert len(paid(server)) == 2
    assert names(tmp_path) == [f"{day}.tif" for day in DAYS[:2]]


def test_a_full_disk_leaves_no_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "2025-04-01.tif"
    _cog.partial_of(path).symlink_to("/dev/full")
    frame = _cog.Frame(32633, 10, 500000, 5000000)
    values = np.arange(3 * 600 * 600, dtype=np.int16).reshape(3, 600, 600)
    layers = [_cog.Layer(name, 1e-4) for name in "abc"]
    with pytest.raises(OSError, match=r".+"):
        _cog.write(path, values, layers, frame, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_what_was_written_is_noticed(tmp_path: Path) -> None:
    values = np.arange(2 * 700 * 600, dtype=np.int16).reshape(2, 700, 600)
    layers = [_cog.Layer(name, 1e-4) for name in "ab"]
    path = tmp_path / "a.tif"
    _cog.write(path, values, layers, _cog.Frame(32633, 10, 500000, 5000000), {})
    _cog._check(path, values)
    other = values.copy()
    other[1, 690, 3] += 1
    for wrong in (other, values[:1], values[:, 1:]):
        with pytest.raises(OSError, match="does not read back"):
            _cog._check(path, wrong)


def test_one_process_at_a_time_writes_to_a_folder(server: Server, tmp_path: Path) -> None:
    ds = cube(server, bands="rgb")
    with (
        filelock.FileLock(tmp_path / ".clearsky_xr.lock"),
        pytest.raises(errors.InvalidOptionError, match="another process"),
    ):
        ds.clearsky.to_geotiff(tmp_path, progress=False)
    with pytest.raises(errors.InvalidOptionError, match="cannot be made"):
        ds.clearsky.to_geotiff(tmp_path / "no" / "such", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InvalidOptionError, match="cannot be made"):
        ds.clearsky.to_geotiff(tmp_path / "file", progress=False)
    assert server.downloads() == []


def test_stac_describes_the_files(server: Server, tmp_path: Path) -> None:
    ds = cube(server, indices="ndvi")
    ds.isel(time=[0]).clearsky.to_geotiff(tmp_path, progress=False)
    ds.clearsky.to_geotiff(tmp_path, stac=True, progress=False)
    assert "collection.json" in names(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert str(tmp_path) not in path.read_text()  # relative links: the folder may move

    moved = tmp_path.rename(tmp_path.with_name("moved"))
    collection = pystac.Collection.from_file(moved / "collection.json")
    assert str(collection.title).startswith("SANDBOX, not imagery")
    items = sorted(collection.get_items(), key=lambda item: item.id)
    assert [item.id for item in items] == [f"Stratus2-{day}" for day in DAYS]
    for thing, kind in (collection, "collection"), *((item, "item") for item in items):
        plain = thing.to_dict()
        plain["stac_extensions"] = []  # their schemas are on the web alone
        (used,) = validate_dict(plain)
        assert used.endswith(f"/v1.1.0/{kind}-spec/json-schema/{kind}.json")
    for item, day in zip(items, DAYS, strict=True):
        assert item.datetime == dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
        assert "SYNTHETIC" in item.properties["description"]
        asset = item.assets["data"]
        with rasterio.open(asset.get_absolute_href()) as file:
            assert item.properties["proj:code"] == f"EPSG:{file.crs.to_epsg()}"
            assert item.properties["proj:shape"] == list(file.shape)
            assert item.properties["proj:transform"] == list(file.transform)[:6]
            assert item.properties["proj:bbox"] == list(file.bounds)
            assert item.properties["clearsky:image_version"] == file.tags()["IMAGE_VERSION"]
            raster, eo = asset.extra_fields["raster:bands"], asset.extra_fields["eo:bands"]
            assert [band["name"] for band in eo] == list(file.descriptions)
            assert [band["scale"] for band in raster] == list(file.scales)
            assert {(b["nodata"], b["data_type"]) for b in raster} == {(-32768, "int16")}
        assert eo[2] == {
            "name": "B4", "common_name": "red", "center_wavelength": 0.664,
            "full_width_half_max": 0.03,
        }  # fmt: skip
        assert [band["common_name"] for band in eo[3:6]] == ["rededge"] * 3
        footprint = shapely.from_geojson(json.dumps(item.geometry))
        assert footprint.buffer(1e-6).contains(TRIANGLE)
        assert footprint.exterior.is_ccw


def test_without_pystac_nothing_is_bought(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "clearsky_xr._stac.find_spec", lambda name: None if name == "pystac" else find(name)
    )
    with pytest.raises(errors.InputError, match=r"clearsky-xr\[stac\]"):
        cube(server).clearsky.to_geotiff(tmp_path / "out", stac=True, progress=False)
    assert server.downloads() == []
    assert not (tmp_path / "out").exists()
