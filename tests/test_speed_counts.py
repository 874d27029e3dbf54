"""How often things are done for a download: a guard that needs no clock.

Times are measured by ``python -m benchmarks``. What made the difference there is counted here.
"""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
import xarray as xr
from numpy.typing import NDArray
from rasterio.io import MemoryFile

import clearsky_xr
from clearsky_xr import _account, _client, _geotiff, _output, _spool
from clearsky_xr.sandbox import Server

from .conftest import FARM, SPRING, access, paid

DATES = 4
DTYPES = pytest.mark.parametrize("scaled", [True, False], ids=["float32", "int16"])


TRIANGLE = shapely.Polygon([(15.05, 46.05), (15.06, 46.05), (15.055, 46.06)])


def lazy(server: Server, *, scaled: bool = True, clip: bool = False, **options: Any) -> xr.Dataset:
    """Open the farm, or with `clip` a triangle of it, without Dask."""
    options["clip"] = clip
    return xr.open_dataset(
        TRIANGLE if clip else FARM,
        engine="clearsky",
        time=SPRING,
        mask_and_scale=scaled,
        **options,
        **access(server),
    )


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is done while downloads are handled."""
    found: Counter[str] = Counter()

    def watch(owner: Any, name: str, label: str) -> None:
        genuine = getattr(owner, name)

        def counted(*args: Any, **named: Any) -> Any:
            found[label] += 1
            return genuine(*args, **named)

        monkeypatch.setattr(owner, name, counted)

    class Watched(MemoryFile):
        """Ours only: the sandbox of these tests lives in the same process."""

        def open(self, *args: Any, **named: Any) -> Any:
            found["opens"] += 1
            return super().open(*args, **named)

    monkeypatch.setattr(_geotiff, "MemoryFile", Watched)
    watch(_account.Process, "in_thread", "thread hops")
    watch(_spool.Spool, "write", "spool writes")
    watch(_client.Client, "composite", "requests")
    return found


@DTYPES
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "whole"])
def test_a_download_is_opened_once_and_handled_in_one_step(
    server: Server, counts: Counter[str], *, scaled: bool, clip: bool
) -> None:
    ds = lazy(server, scaled=scaled, clip=clip)
    counts.clear()  # opening has asked for the account
    ds.load()
    hops = counts.pop("thread hops")
    assert counts == {"opens": DATES, "spool writes": DATES, "requests": DATES}
    assert len(paid(server)) == DATES
    # One a download, beside one for the pixels of the tile and one for its requests.
    assert hops == DATES + 2


def test_a_second_band_is_opened_not_again(server: Server, counts: Counter[str]) -> None:
    ds = lazy(server, indices="ndvi")
    counts.clear()
    ds.load()  # all bands, and then the index, of the same answers
    del counts["thread hops"]
    assert counts == {"opens": DATES, "spool writes": DATES, "requests": DATES}


@DTYPES
def test_a_body_is_copied_nowhere_and_int16_is_decoded_in_place(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, scaled: bool
) -> None:
    bodies: dict[str, list[int]] = {"came": [], "spooled": [], "decoded": []}
    kept: list[bytes] = []  # so that no other object gets the same address
    outs: list[NDArray[np.int16]] = []
    composite, write = _client.Client.composite, _spool.Spool.write
    memory_file, read_into = _geotiff.MemoryFile, _geotiff.Image.read_into

    async def came(self: Any, *args: Any) -> bytes:
        content = await composite(self, *args)
        kept.append(content)
        bodies["came"].append(id(content))
        return content

    def spooled(self: Any, path: Any, content: bytes) -> Any:
        bodies["spooled"].append(id(content))
        return write(self, path, content)

    def decoded(content: bytes) -> Any:
        bodies["decoded"].append(id(content))
        return memory_file(content)

    def into(self: Any, out: NDArray[np.int16], start: int = 0) -> None:
        outs.append(out)
        read_into(self, out, start)

    monkeypatch.setattr(_client.Client, "composite", came)
    monkeypatch.setattr(_spool.Spool, "write", spooled)
    monkeypatch.setattr(_geotiff, "MemoryFile", decoded)
    monkeypatch.setattr(_geotiff.Image, "read_into", into)
    values = lazy(server, scaled=scaled).reflectance.load().values
    assert len(kept) == DATES
    assert sorted(bodies["came"]) == sorted(bodies["spooled"]) == sorted(bodies["decoded"])
    if scaled:
        # Not into the result, but into room that the two threads use again and again.
        assert not any(np.shares_memory(out, values) for out in outs)
        assert len({out.__array_interface__["data"][0] for out in outs}) <= 2
    else:
        assert len(outs) == DATES
        assert all(np.shares_memory(out, values) for out in outs)


def test_the_answers_of_a_process_lie_in_one_file(server: Server) -> None:
    lazy(server).load()
    folder = _account.process().spool._folder
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["answers"]
    assert (folder / "answers").stat().st_size >= clearsky_xr.spent().bytes > 0


@DTYPES
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "whole"])
def test_strips_give_what_a_whole_answer_gives(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, scaled: bool, clip: bool
) -> None:
    # An index beside the bands sends the pixels of the bands on the long way.
    long_way = lazy(server, scaled=scaled, clip=clip, indices="ndvi").reflectance.load()
    monkeypatch.setattr(_output, "_STRIP", 2 * 10 * 9 * long_way.sizes["x"])  # nine rows
    (owner,) = _account.process().accounts.values()
    owner.holdings._held.clear()  # so that it is bought again
    short = lazy(server, scaled=scaled, clip=clip).reflectance.load()
    assert len(paid(server)) == 2 * DATES
    assert short.sizes["y"] % 9 != 0
    assert bool(long_way.isnull().any() if scaled else (long_way == -32768).any()) == clip
    np.testing.assert_array_equal(short.values, long_way.values)


def test_what_two_wait_for_is_decoded_once(serve, counts: Counter[str]) -> None:
    server = serve(latency=0.3)
    ds = clearsky_xr.open_timeseries(FARM, SPRING, clip=False, **access(server))
    counts.clear()
    # Not one key of Dask: the same pixels, by different bands.
    red, nir = (ds.reflectance.sel(band=band).max("time") for band in ("B4", "B8"))
    (red + nir).compute()
    assert len(paid(server)) == DATES
    assert counts["opens"] == DATES


def test_a_cube_of_many_dates_is_small(server: Server) -> None:
    days = np.arange("2015-01-01", "2025-01-01", dtype="datetime64[D]").astype(str).tolist()
    cube = clearsky_xr.resolve(FARM, days, **access(server))
    assert len(cube.dates) > 3600
    text = pickle.dumps(cube)
    assert len(text) < 5000
    again = pickle.loads(text)
    assert again == cube
    assert again.dates == cube.dates


@DTYPES
def test_what_is_bought_beside_the_area_is_left_out_in_place(
    server: Server, counts: Counter[str], *, scaled: bool
) -> None:
    # So small that the window costs what the triangle costs, and is bought instead.
    tiny = shapely.Polygon([(15.05, 46.05), (15.0525, 46.05), (15.051, 46.0515)])
    ds = xr.open_dataset(tiny, engine="clearsky", time=SPRING, mask_and_scale=scaled,
                         **access(server))  # fmt: skip
    counts.clear()
    ds.load()
    assert counts["thread hops"] == DATES + 2  # by the short way
    bought = shapely.from_wkt(paid(server)[0].wkt)
    assert len(bought.exterior.coords) == 5
    project = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    outline = shapely.transform(tiny, lambda xy: np.transpose(project.transform(*xy.T)))
    x, y = np.meshgrid(ds.x.values, ds.y.values)
    inside = shapely.intersects(outline, shapely.box(x - 5, y - 5, x + 5, y + 5))
    assert 0.3 < inside.mean() < 0.8
    shown = ds.reflectance.notnull() if scaled else ds.reflectance != -32768
    np.testing.assert_array_equal(shown.values, np.broadcast_to(inside, shown.shape))
