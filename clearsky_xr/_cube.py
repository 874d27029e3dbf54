"""The cube: what is asked for, as one immutable value."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import zlib
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import shapely

from ._area import Area
from ._grid import Grid, covering, projected
from ._mask import select
from ._pixels import PixelSet, Window

PixelMode = Literal["intersect", "contained"]


@dataclass(frozen=True, eq=False)
class Cube:
    """Grid x dates x layers of one area and model.

    It is made by `clearsky_xr.resolve`, holds no pixels and no key, and can be
    opened any number of times with ``xr.open_dataset(cube, engine="clearsky")``.

    Parameters
    ----------
    area : shapely.Polygon or shapely.MultiPolygon
        EPSG:4326.
    grid : Grid
        The pixel grid, UTM.
    dates : tuple of datetime.date
        UTC days, ascending.
    bands : tuple of str
        Service ids, in the order of the dimension ``band``; may be empty.
    indices : tuple of (str, str)
        Variable name and layer, e.g. ``("ndvi", "[B8_B4]")``.
    model : str
    constellations : tuple of str
    clip : bool
        Whether pixels outside the area are left out, or only those outside its
        bounding rectangle on the grid.
    pixels : {"intersect", "contained"}
        Which pixels on the area's edge belong to it.
    allow_partial : bool
        Whether dates count that do not cover the whole area.
    """

    area: Area
    grid: Grid
    dates: tuple[dt.date, ...]
    bands: tuple[str, ...]
    indices: tuple[tuple[str, str], ...]
    model: str
    constellations: tuple[str, ...]
    clip: bool = True
    pixels: PixelMode = "intersect"
    allow_partial: bool = False

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All layers, in the order in which every request asks for them."""
        return tuple(dict.fromkeys([*self.bands, *(layer for _, layer in self.indices)]))

    @cached_property
    def fingerprint(self) -> str:
        """A name that depends on what the cube asks for, and on nothing else."""
        canonical = json.dumps(
            [
                "clearsky_xr cube 1",
                shapely.to_wkb(self.area, hex=True),
                [self.grid.epsg, self.grid.resolution, str(self.grid.window)],
                [day.isoformat() for day in self.dates],
                [self.bands, self.indices, self.model, sorted(self.constellations)],
                [self.clip, self.pixels, self.allow_partial],
            ]
        )
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cube) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __dask_tokenize__(self) -> Hashable:
        return ("clearsky_xr.Cube", self.fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be derived, and pack the dates, so that a pickle stays small."""
        state = {name: self.__dict__[name] for name in self.__dataclass_fields__}
        # The days between them, which repeat: 4,000 dates are 53 kB as they are, less than 1 so.
        steps = np.diff([day.toordinal() for day in self.dates], prepend=0)
        return {**state, "dates": zlib.compress(steps.astype("<i4").tobytes())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        steps = np.frombuffer(zlib.decompress(state["dates"]), "<i4")
        dates = tuple(map(dt.date.fromordinal, np.cumsum(steps).tolist()))
        self.__dict__.update(state | {"dates": dates})

    def __repr__(self) -> str:
        height, width = self.grid.shape
        span = f"{self.dates[0]} to {self.dates[-1]}" if self.dates else "no dates"
        return (
            f"<clearsky_xr.Cube {len(self.dates)} dates ({span}), {height} x {width} px of "
            f"{self.grid.resolution} m, EPSG:{self.grid.epsg}, {self.model}, "
            f"{', '.join(self.layers)}>"
        )

    @cached_property
    def _outline(self) -> Area:
        return projected(self.area, self.grid.epsg)

    @cached_property
    def _bounds(self) -> Window:
        return covering(self.area, self.grid.epsg, self.grid.resolution).window

    def wanted(self, pixels: PixelSet) -> PixelSet | None:
        """Keep of a pixel set what belongs to the area; None if nothing does.

        Parameters
        ----------
        pixels : PixelSet
            In lattice pixels.
        """
        window = pixels.window & self._bounds
        if not window.size:
            return None
        inner = pixels.crop(window).tight()
        if inner is None or not self.clip:
            return inner
        inside = select(
            self._outline,
            inner.window,
            self.grid.resolution,
            contained=self.pixels == "contained",
        )
        if inside is None or inner.mask is None:
            return inside
        both = inner.crop(inside.window).dense & inside.dense
        return PixelSet(inside.window, None if both.all() else both).tight()
