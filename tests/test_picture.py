"""Pictures and indices: against plain numpy, and what they buy."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.sandbox import Server

from .conftest import access

mpl.use("Agg")

FARM = (15.05, 46.05, 15.06, 46.06)
# A triangle, so that there is nodata.
TRIANGLE = "POLYGON ((15.05 46.05, 15.06 46.05, 15.05 46.06, 15.05 46.05))"
TIME = ("2025-04-01", "2025-04-16")


@pytest.fixture(scope="module")
def shop() -> Iterator[Server]:
    with clearsky_xr.sandbox.serve() as server:
        yield server


def lazy(shop: Server, area: Any = TRIANGLE, **options: Any) -> xr.Dataset:
    return clearsky_xr.open_timeseries(
        area, options.pop("time", TIME), base_url=shop.url, api_key=shop.api_key, **options
    )


@pytest.fixture(scope="module")
def whole(shop: Server) -> xr.Dataset:
    """The same pixels, loaded."""
    return lazy(shop).load()


def expected(ds: xr.Dataset, bands: tuple[str, ...], vmin: float, vmax: float) -> np.ndarray:
    """Colours out of reflectances by plain numpy."""
    values = np.stack([ds.reflectance.sel(band=b).values.astype(float) for b in bands], -1)
    nodata = np.isnan(values).any(-1)
    scaled = (np.clip(np.nan_to_num(values), vmin, vmax) - vmin) / (vmax - vmin) * 255
    picture = np.concatenate([np.round(scaled), np.full((*nodata.shape, 1), 255.0)], -1)
    picture[nodata] = 0
    return picture


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("scaled", [True, False])
def test_rgb(shop: Server, whole: xr.Dataset, chunks: Any, *, scaled: bool) -> None:
    ds = lazy(shop, chunks=chunks, mask_and_scale=scaled)
    picture = ds.clearsky.rgb()
    assert (picture.chunks is not None) == (chunks is not None)
    assert picture.dims == ("time", "y", "x", "rgba")
    assert picture.dtype == np.uint8
    assert picture.rgba.values.tolist() == ["r", "g", "b", "a"]
    wanted = expected(whole, ("B4", "B3", "B2"), 0, 0.2)
    # A half may be rounded either way.
    assert np.abs(picture.values.astype(int) - wanted).max() <= 1
    np.testing.assert_array_equal(picture.values[..., 3], wanted[..., 3])
    assert 0.4 < (picture.values[..., 3] == 0).mean() < 0.6
    np.testing.assert_array_equal(picture.x, ds.x)
    assert picture.rio.crs == ds.rio.crs
    assert "SYNTHETIC" in picture.attrs["source"]


def test_rgb_of_other_bands_and_ranges(whole: xr.Dataset) -> None:
    one = whole.isel(time=1)
    picture = one.clearsky.rgb(("nir", "B4", "green"), vmin=0.05, vmax=0.4)
    assert picture.dims == ("y", "x", "rgba")
    wanted = expected(one, ("B8", "B4", "B3"), 0.05, 0.4)
    assert np.abs(picture.values.astype(int) - wanted).max() <= 1
    assert {0, 255} <= set(picture.values[..., :3].ravel().tolist())


def test_a_picture_is_planned_and_buys_what_it_shows(serve: Any) -> None:
    server = serve()
    ds = lazy(server, FARM, chunks={})
    picture = ds.isel(time=[1]).clearsky.rgb()
    plan = picture.clearsky.plan()
    assert server.downloads() == []
    assert [request.date for request in plan.requests] == [dt.date(2025, 4, 6)]
    picture.compute()
    assert sum(entry.credits for entry in server.downloads()) == pytest.approx(plan.credits)
    assert len(server.downloads()) == 1


def test_index_costs_nothing_beyond_the_bands(serve: Any) -> None:
    server = serve()
    ds = lazy(server, FARM, chunks={}, bands=["red", "nir"])
    ndvi = ds.clearsky.index("ndvi")
    assert server.downloads() == []
    red, nir = (ds.reflectance.sel(band=b).values.astype(float) for b in ("B4", "B8"))
    count = len(server.downloads())
    np.testing.assert_allclose(ndvi.values, (nir - red) / (nir + red), rtol=1e-5)
    assert ndvi.dtype == np.float32
    assert (ndvi.name, ndvi.dims) == ("ndvi", ("time", "y", "x"))
    assert ndvi.attrs == {"long_name": "(B8 - B4) / (B8 + B4)", "units": "1"}
    own = ds.clearsky.index({"mine": ("B4", "B8")})
    np.testing.assert_allclose(own.values, -ndvi.values, rtol=1e-5)
    assert own.name == "mine"
    assert len(server.downloads()) == count == ds.sizes["time"]


def test_index_where_both_bands_are_zero(whole: xr.Dataset) -> None:
    dark = whole.copy()
    dark["reflectance"] = whole.reflectance * 0
    assert dark.clearsky.index("ndvi").isnull().all()


def test_what_cannot_be_drawn(whole: xr.Dataset, shop: Server) -> None:
    for bands in ("red", ("red", "green"), ("red", "green", "blue", "nir")):
        with pytest.raises(errors.InvalidOptionError, match="three bands"):
            whole.clearsky.rgb(bands)
    for low, high in ((0.2, 0.2), (0.3, 0.1), (0, np.nan), (0, np.inf)):
        with pytest.raises(errors.InvalidOptionError, match="no range"):
            whole.clearsky.rgb(vmin=low, vmax=high)
    with pytest.raises(errors.InvalidBandError, match="purple"):
        whole.clearsky.rgb(("red", "green", "purple"))
    two = lazy(shop, bands=["red", "nir"])
    with pytest.raises(errors.InvalidBandError, match=r"no band .*only B4, B8") as caught:
        two.clearsky.rgb()
    assert "bands=" in caught.value.hint
    with pytest.raises(errors.InvalidBandError, match="no band B11"):
        two.clearsky.index("ndmi")
    with pytest.raises(errors.InvalidBandError, match="no index"):
        two.clearsky.index("vigour")
    with pytest.raises(errors.InvalidBandError, match="no reflectance"):
        whole[["reflectance"]].sel(band="B4").clearsky.rgb()


def test_plot_rgb_facets_over_time(whole: xr.Dataset) -> None:
    import matplotlib.pyplot as plt

    grid = whole.clearsky.plot_rgb()
    titles = [ax.get_title() for ax in grid.axs.flat if ax.images]
    assert titles == [str(time)[:10] for time in whole.time.values]
    assert all(ax.get_aspect() == 1 for ax in grid.axs.flat if ax.images)
    shown = next(iter(grid.axs.flat)).images[0].get_array()
    assert shown.shape[-1] == 4
    assert any("SANDBOX" in text.get_text() for text in grid.fig.texts)
    one = whole.isel(time=2).clearsky.plot_rgb(vmax=0.4, ax=plt.figure().gca())
    assert one.axes.get_title() == str(whole.time.values[2])[:10]
    plt.close("all")


def test_too_many_dates_are_not_drawn(serve: Any) -> None:
    server = serve()
    ds = lazy(server, FARM, time=("2025-01-01", "2025-12-31"))
    assert ds.sizes["time"] > 24
    with pytest.raises(errors.InvalidOptionError, match="too many"):
        ds.clearsky.plot_rgb()
    assert server.downloads() == []


# --- the card


def lines(text: str) -> SimpleNamespace:
    rows = [line.strip().split(None, 1) for line in text.splitlines()[1:]]
    return SimpleNamespace(**dict(rows))


def test_the_card_of_a_cube(serve: Any, tmp_path: Any) -> None:
    server = serve()
    ds = lazy(server, FARM, indices="ndvi", store=tmp_path / "a.zarr")
    said = lines(repr(ds.clearsky))
    price = 0.09 * ds.sizes["time"]
    assert "SYNTHETIC" in said.pixels
    assert said.area == "46.0500 N to 46.0600 N, 15.0500 E to 15.0600 E"
    assert said.dates == f"{ds.sizes['time']}, 2025-04-01 to 2025-04-16"
    assert said.layers == "reflectance (B2 B3 B4 B5 B6 B7 B8 B8A B11 B12), ndvi"
    assert said.grid == "EPSG:32633, 10 m, 112 x 79 px"
    assert said.store == str(tmp_path / "a.zarr")
    assert said.price == f"{price:.2f} credits for the whole"
    assert said.paid == f"0.00 of them; {price:.2f} for {ds.sizes['time']} requests are left"
    assert server.downloads() == []
    ds.isel(time=0).ndvi.load()
    assert (
        lines(repr(ds.clearsky)).paid == f"0.09 of them; {price - 0.09:.2f} for 3 requests are left"
    )
    assert lines(repr(ds.isel(time=0).clearsky)).paid.startswith("0.09 of them; 0.00 for 0")
    assert len(server.downloads()) == 1


def test_the_card_of_what_is_paid_or_gone(serve: Any, tmp_path: Any) -> None:
    server = serve()
    path = tmp_path / "a.zarr"
    loaded = lazy(server, FARM, store=path).load()
    assert "loaded" in lines(repr(loaded.clearsky)).price
    assert "nothing" in lines(repr(clearsky_xr.open_store(path).clearsky)).price
    assert "unknown" in repr(xr.Dataset({"a": ("x", [1.0])}).clearsky)
    # Without the service it still says what it knows.
    ds = lazy(server, FARM, time=("2025-05-01", "2025-05-10"))
    server.close()
    assert "credits" in repr(ds.clearsky) or "unknown" in repr(ds.clearsky)


def test_the_card_of_a_large_cube_is_not_planned(server: Server) -> None:
    weeks = [f"2025-{month:02d}-{day:02d}" for month in range(1, 13) for day in range(1, 29)]
    ds = clearsky_xr.open_timeseries((14.6, 45.9, 15.37, 46.44), weeks, **access(server))
    said = lines(repr(ds.clearsky))
    km2 = ds.sizes["x"] * ds.sizes["y"] / 1e4
    assert said.price == f"about {0.1 * km2 * len(weeks):,.0f} credits at most; see plan()"


def test_the_card_in_a_notebook(shop: Server) -> None:
    from xml.etree import ElementTree as ET

    ds = lazy(shop)
    ds.attrs["source"] = "<script>alert(1)</script>"
    html = ds.isel(x=slice(0, 20)).clearsky._repr_html_()
    assert "<script" not in html
    tree = ET.fromstring(html)  # noqa: S314  our own
    (picture,) = tree.findall(".//img")
    kind, content = picture.attrib["src"].split(",")
    assert kind == "data:image/svg+xml;base64"
    drawing = ET.fromstring(base64.b64decode(content))  # noqa: S314
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}path")) == 3
    assert "".join(drawing.itertext()) in ("500 m", "200 m")
