"""The main job in small: a season of farmland, from the embedded sandbox to a picture."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ._api import spent
from ._progress import tqdm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Two by two kilometres of the sandbox's landscape: fields, a wood and a river.
AREA: Final = (15.04, 45.98, 15.066, 45.998)
SEASON: Final = ("2025-03-01", "2025-10-31")
_PANELS: Final = 6
_FIELDS: Final = 5
# True colour is shown up to this reflectance: the vendor's display hint of 2000
# counts (contract, section 7.3).
_BRIGHT: Final = 0.2


def run(path: Path) -> None:
    """Open, load and draw the demo; prints what it does and what it would have cost."""
    dataset = xr.open_dataset(
        AREA,  # type: ignore[arg-type]  # xarray's types know paths only
        engine="clearsky",
        time=SEASON,
        indices="ndvi",
        clip=False,
        chunks={},
        base_url="sandbox",
    )
    print(dataset, "\n")
    season = _loaded(dataset)
    money = spent()
    print(
        f"\n{money.requests} requests, {money.settled:.2f} credits (of the sandbox: nothing was "
        "paid, and the pixels are synthetic)"
    )
    draw(season, path)
    print(f"Picture: {path}")


def _loaded(dataset: xr.Dataset) -> xr.Dataset:
    """Load with a bar that counts the answers."""
    before = spent().requests
    result: dict[str, Any] = {}

    def load() -> None:
        try:
            result["dataset"] = dataset.compute()
        except BaseException as error:  # noqa: BLE001  raised again below, on the main thread
            result["error"] = error

    work = threading.Thread(target=load)
    with tqdm(total=dataset.sizes["time"], unit=" dates", desc="Loading") as bar:
        work.start()
        while work.is_alive():
            work.join(0.1)
            bar.update(spent().requests - before - bar.n)
    if "error" in result:
        raise result["error"]
    loaded: xr.Dataset = result["dataset"]
    return loaded


def draw(season: xr.Dataset, path: Path) -> None:
    """Draw true-colour panels over the season, and NDVI curves of some fields.

    Parameters
    ----------
    season : xarray.Dataset
        Loaded, with ``reflectance`` and ``ndvi``.
    path : pathlib.Path
        Where the PNG goes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fields = _typical_fields(season.ndvi)
    figure = Figure(figsize=(11, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.45, 1), squeeze=False).flat
    panels = above.subplots(2, _PANELS // 2)
    colours = mpl.colormaps["Set1"].colors  # type: ignore[attr-defined]  # a listed map
    shown = np.linspace(0, season.sizes["time"] - 1, _PANELS).round().astype(int)
    for axes, k in zip(panels.flat, shown, strict=True):
        _true_colour(axes, season.reflectance.isel(time=k))
        for (row, col), colour in zip(fields, colours, strict=False):
            x, y = season.x.values[col], season.y.values[row]
            axes.plot(x, y, "o", ms=9, mfc="none", mec="white", mew=3.2)
            axes.plot(x, y, "o", ms=9, mfc="none", mec=colour, mew=1.8)
    above.suptitle(
        "Synthetic landscape of the clearsky_xr sandbox (no satellite imagery): true colour",
        fontsize=13,
    )
    _curves(below.subplots(), season.ndvi, fields, colours)
    figure.savefig(path, dpi=110)


def _true_colour(axes: Axes, image: xr.DataArray) -> None:
    rgb = image.sel(band=["B4", "B3", "B2"]).transpose("y", "x", "band").values
    alpha = np.isfinite(rgb).all(axis=-1, keepdims=True).astype(float)
    x, y = image.x.values, image.y.values
    axes.set_facecolor("#b9d3e8")
    axes.imshow(
        np.concatenate([np.clip(np.nan_to_num(rgb) / _BRIGHT, 0, 1), alpha], axis=-1),
        extent=(x[0] - 5, x[-1] + 5, y[-1] - 5, y[0] + 5),
    )
    axes.set_title(f"{image.time.dt.strftime('%d %B %Y').item()}", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def _curves(axes: Axes, ndvi: xr.DataArray, fields: list[tuple[int, int]], colours: Any) -> None:
    for (row, col), colour in zip(fields, colours, strict=False):
        # The mean of five by five pixels: 50 m, well inside a field.
        around = ndvi.isel(y=slice(row - 2, row + 3), x=slice(col - 2, col + 3))
        axes.plot(ndvi.time, around.mean(("y", "x")), "o-", color=colour, ms=4, lw=1.8)
    axes.set_ylabel("NDVI")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "NDVI at the marked spots (means of 50 x 50 m); light blue above is water: no data",
        fontsize=11,
    )


def _typical_fields(ndvi: xr.DataArray) -> list[tuple[int, int]]:
    """Choose even spots (row, column) whose curves differ most from each other."""
    spot = {"y": 5, "x": 5}
    around = ndvi.rolling(spot, center=True).construct({"y": "dy", "x": "dx"})
    even = around.std(("dy", "dx"), skipna=False).max("time").values
    rows, cols = np.nonzero(even < np.nanquantile(even, 0.2))
    curves = ndvi.values[:, rows, cols].T
    # The first is the liveliest curve; each next one is farthest from those chosen.
    chosen = [int(np.ptp(curves, axis=1).argmax())]
    while len(chosen) < _FIELDS:
        distance: NDArray[np.float64] = np.min(
            [np.linalg.norm(curves - curves[i], axis=1) for i in chosen], axis=0
        )
        chosen.append(int(distance.argmax()))
    return [(int(rows[i]), int(cols[i])) for i in chosen]
