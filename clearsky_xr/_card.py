"""What ``ds.clearsky`` shows of itself: where, when, what, and what it costs."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np
import shapely
import xarray as xr

from ._area import Area
from ._cube import Cube
from ._grid import projected
from ._planned import Plan, plan_of
from ._settings import Settings

# Cubes of more tiles than this are priced by their surface: planning them takes seconds.
_TILES: Final = 10_000
_SIDE: Final = 512
# How long a card waits for the free questions behind a price, seconds.
_PATIENCE: Final = 3.0
# Height and width of the map, CSS pixels.
_MAP: Final = 150
# To be seen on light and on dark pages: a picture does not take on their colours.
_GREY: Final = "#808080"


@dataclass(frozen=True, slots=True)
class Card:
    """Lines of names and values, and an outline.

    Parameters
    ----------
    lines : list of tuple of str
    outline : shapely.Geometry or None
        The cube's area, metres.
    window : tuple of float or None
        Left, bottom, right, top of what is selected, metres.
    """

    lines: list[tuple[str, str]]
    outline: Area | None
    window: tuple[float, float, float, float] | None

    def text(self) -> str:
        """Show it as plain text."""
        width = max(len(name) for name, _ in self.lines)
        lines = [f"  {name:{width}}  {value}"[:100] for name, value in self.lines]
        return "\n".join(["<clearsky_xr cube>", *lines])

    def html(self) -> str:
        """Show it as HTML, with a map."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self.lines
        )
        return (
            "<div style='display:flex;gap:1.5em;align-items:flex-start'>"
            f"{self._map()}<table>{rows}</table></div>"
        )

    def _map(self) -> str:
        """Draw the area, what is selected of it, and a scale bar."""
        if self.outline is None or self.window is None:
            return ""
        left, bottom, right, top = self.outline.union(shapely.box(*self.window)).bounds
        scale = (_MAP - 10) / max(right - left, top - bottom, 1.0)
        width, height = (right - left) * scale + 10, (top - bottom) * scale + 10
        bar = _round(max(right - left, 1.0) / 3)

        def path(ring: Any) -> str:
            points = shapely.get_coordinates(ring)
            return "M" + "L".join(
                f"{(x - left) * scale + 5:.1f} {(top - y) * scale + 5:.1f}" for x, y in points
            )

        rings = "Z".join(path(ring) for ring in _rings(self.outline))
        frame = path(shapely.box(*self.window).exterior)
        length = f"{bar / 1000:g} km" if bar >= 1000 else f"{bar:g} m"
        svg = (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' "
            f"height='{height + 22:.0f}' fill='none' stroke='{_GREY}'>"
            f"<path d='{rings}Z' fill='{_GREY}' fill-opacity='0.2' fill-rule='evenodd'/>"
            f"<path d='{frame}Z' stroke-dasharray='3 3'/>"
            f"<path d='M5 {height + 6:.0f}h{bar * scale:.1f}' stroke-width='2'/>"
            f"<text x='5' y='{height + 19:.0f}' fill='{_GREY}' stroke='none' "
            f"font-family='sans-serif' font-size='11'>{length}</text></svg>"
        )
        # As a picture, since Jupyter takes drawings out of notebooks that others have run.
        content = base64.b64encode(svg.encode()).decode()
        return (
            f"<img src='data:image/svg+xml;base64,{content}' alt='outline of the area' "
            "style='flex:none;margin:0'/>"
        )


def card(dataset: xr.Dataset, cube: Cube | None, settings: Settings | None) -> Card:
    """Describe a Dataset of a cube; downloads nothing, and never fails.

    Parameters
    ----------
    dataset : xarray.Dataset
        What was opened, or a selection of it.
    cube : Cube or None
        That it was opened from; None if that cannot be told.
    settings : Settings or None
    """
    if cube is None or settings is None:
        return Card(
            [("cube", "unknown: this Dataset no longer shows where it came from")], None, None
        )
    grid = cube.grid
    window = _window(dataset, grid.resolution)
    west, south, east, north = cube.area.bounds
    layers = [str(name) for name in dataset.data_vars]
    if "band" in dataset.coords:
        bands = " ".join(str(band) for band in np.atleast_1d(dataset["band"].values))
        layers = [f"{name} ({bands})" if name == "reflectance" else name for name in layers]
    times = np.atleast_1d(dataset["time"].values) if "time" in dataset.coords else np.array([])
    days = sorted(str(time)[:10] for time in times)
    rows, cols = (dataset.sizes.get(axis, 1) for axis in ("y", "x"))
    lines = [
        ("area", f"{_degrees(south, north, 'NS')}, {_degrees(west, east, 'EW')}"),
        ("dates", _span(days)),
        ("layers", ", ".join(layers)),
        ("grid", f"EPSG:{grid.epsg}, {grid.resolution} m, {rows} x {cols} px"),
        ("model", cube.model),
    ]
    title = str(dataset.attrs.get("title", ""))
    if title.startswith("SANDBOX"):
        lines.insert(0, ("pixels", str(dataset.attrs.get("source", title))))
    if settings.store is not None:
        lines.append(("store", settings.store.name))
    tiles = len(days) * math.ceil(rows / _SIDE) * math.ceil(cols / _SIDE)
    if tiles > _TILES:
        km2 = rows * cols * (grid.resolution / 1000) ** 2
        lines.append(("price", f"about {0.1 * km2 * len(days):,.0f} credits at most; see plan()"))
    else:
        lines += _price(dataset)
    return Card(lines, projected(cube.area, grid.epsg), window)


def _price(dataset: xr.Dataset) -> list[tuple[str, str]]:
    """Price the whole and the rest, unless that takes too long."""
    said: list[tuple[str, str]] = []

    def ask() -> None:
        try:
            left = plan_of(dataset)
            # Variables of one cube share their requests.
            whole = max((plan_of(dataset[name]) for name in dataset.data_vars), key=_worth)
        except Exception as error:  # noqa: BLE001  a card never fails
            said.append(("price", f"unknown: {type(error).__name__}"))
            return
        if not whole.credits_at_most:
            said.append(("price", "nothing: all of it is loaded or in the store"))
            return
        paid = max(0.0, whole.credits_at_most - left.credits)
        rest = f"{left.credits:,.2f} for {len(left.requests)} requests are left"
        said.append(("price", f"{whole.credits_at_most:,.2f} credits for the whole"))
        said.append(("paid", f"{paid:,.2f} of them; {rest}"))

    if not dataset.data_vars:
        return []
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return list(said) or [("price", "unknown: the service does not answer")]


def _worth(plan: Plan) -> float:
    return plan.credits_at_most


def _window(dataset: xr.Dataset, size: int) -> tuple[float, float, float, float] | None:
    """Give the rectangle of the pixels that are selected, metres."""
    if "y" not in dataset.coords or "x" not in dataset.coords:
        return None
    y, x = dataset["y"].values, dataset["x"].values
    if not y.size or not x.size:
        return None
    half = size / 2
    return (
        float(x.min() - half),
        float(y.min() - half),
        float(x.max() + half),
        float(y.max() + half),
    )


def _rings(area: Area) -> Iterator[Any]:
    for part in shapely.get_parts(area):
        yield part.exterior
        yield from part.interiors


def _span(days: list[str]) -> str:
    if len(days) < 2:
        return days[0] if days else "none"
    return f"{len(days)}, {days[0]} to {days[-1]}"


def _degrees(low: float, high: float, signs: str) -> str:
    def one(value: float) -> str:
        return f"{abs(value):.4f} {signs[0] if value >= 0 else signs[1]}"

    return f"{one(low)} to {one(high)}"


def _round(length: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(length))
    return float(max(step for step in (1, 2, 5) if step * power <= length) * power)
