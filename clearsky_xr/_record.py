"""What a store says of itself: which cube it keeps, and what fits into it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import shapely

from ._area import resolve_area
from ._bands import BANDS
from ._cube import Cube, PixelMode
from ._grid import RESOLUTIONS, Grid, covering, projected
from ._layers import bands_for
from ._pixels import Window
from .errors import StoreError, StoreMismatchError

#: Version of the layout of stores.
VERSION: Final = 1

#: What a store's pixels are: imagery, or one of the sandbox's kinds.
Origin = Literal["service", "synthetic", "scenes"]

# Straight edges in degrees are projected in pieces, so that a common edge of an area and of a
# part of it may differ by centimetres, pixels. What a part touches beyond it is left out.
_NOISE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Record:
    """What a store keeps.

    Parameters
    ----------
    cube : Cube
        Its dates and indices do not count.
    origin : {"service", "synthetic", "scenes"}
        The service's imagery, or pixels of the sandbox.
    """

    cube: Cube
    origin: Origin

    def dumps(self) -> str:
        """Write the record as JSON."""
        cube = self.cube
        return json.dumps(
            {
                "version": VERSION,
                "origin": self.origin,
                "area": shapely.to_wkb(cube.area, hex=True),
                "epsg": cube.grid.epsg,
                "resolution": cube.grid.resolution,
                "window": dataclasses.astuple(cube.grid.window),
                "bands": cube.bands,
                "model": cube.model,
                "constellations": cube.constellations,
                "clip": cube.clip,
                "pixels": cube.pixels,
                "allow_partial": cube.allow_partial,
            }
        )

    def check(self, cube: Cube, origin: Origin | None) -> None:
        """Make sure that a cube can be read from the store, and bought into it.

        Parameters
        ----------
        cube : Cube
        origin : {"service", "synthetic", "scenes"} or None
            Of the account that would buy; None if it is not known yet.

        Raises
        ------
        StoreMismatchError
            It names what differs.
        """
        own = self.cube
        pairs = [
            ("the CRS", f"EPSG:{own.grid.epsg}", f"EPSG:{cube.grid.epsg}"),
            ("the resolution", f"{own.grid.resolution} m", f"{cube.grid.resolution} m"),
            ("the model", own.model, cube.model),
            ("the constellations", _sorted(own.constellations), _sorted(cube.constellations)),
            ("allow_partial", own.allow_partial, cube.allow_partial),
            ("the origin of the pixels", self.origin, origin or self.origin),
        ]
        for what, ours, theirs in pairs:
            if str(ours).lower() != str(theirs).lower():
                raise StoreMismatchError(
                    f"the store differs in {what}: it keeps {ours}, asked for is {theirs}",
                    hint="Use another store for another cube; one store keeps one grid and model.",
                )
        if missing := [band for band in bands_for(cube.layers) if band not in own.bands]:
            raise StoreMismatchError(
                f"the store keeps no {', '.join(missing)}, only {', '.join(own.bands)}",
                hint="It was made under an account with fewer bands. Use another store.",
            )
        if not self._holds(cube):
            edges = ""
            if self._holds(replace(cube, clip=own.clip, pixels=own.pixels)):
                edges = (
                    f" with clip={cube.clip} and pixels={cube.pixels!r}: it was made with "
                    f"clip={own.clip} and pixels={own.pixels!r}"
                )
            raise StoreMismatchError(
                f"the area reaches beyond the one that the store was made for{edges}",
                hint="Open the larger area with another store, or a part of the recorded one: "
                f"{shapely.to_wkt(own.area, rounding_precision=5)[:200]}",
            )

    def _holds(self, cube: Cube) -> bool:
        """Say whether every pixel that a cube wants is one that the store may have."""
        own = self.cube
        same = (own.clip, own.pixels) == (cube.clip, cube.pixels)
        if same and own.grid == cube.grid and own.area.equals(cube.area):
            return True
        size = own.grid.resolution
        wanted: shapely.Geometry = _box(cube)
        if cube.clip:
            outline = projected(cube.area, cube.grid.epsg)
            if own.clip and own.pixels == "contained" and cube.pixels == "intersect":
                # A pixel that is only touched must lie inside as a whole.
                outline = shapely.buffer(outline, 1.5 * size)
            wanted = shapely.intersection(wanted, outline)
        mine: shapely.Geometry = _box(own)
        if own.clip:
            mine = shapely.intersection(mine, projected(own.area, own.grid.epsg))
        return bool(shapely.covers(shapely.buffer(mine, _NOISE * size), wanted))


def _box(cube: Cube) -> shapely.Polygon:
    """Give the rectangle that holds a cube's pixels, metres: with like= the grid may be larger."""
    grid = cube.grid
    window = covering(cube.area, grid.epsg, grid.resolution).window & grid.window
    return shapely.box(*grid.bounds(window))


def loads(text: object) -> Record:
    """Read a record.

    Raises
    ------
    StoreError
        It is newer than this package, or not a record.
    """
    try:
        fields = json.loads(text) if isinstance(text, str) else None
        version = fields["version"]  # type: ignore[index]
        newer = type(version) is int and version > VERSION
        if not newer:
            return _read(fields)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001  whatever it is, it was found in the store
        raise StoreError(
            f"the store's own record cannot be read: {type(error).__name__}",
            hint="It was changed by hand, or is not a store of clearsky_xr.",
        ) from None
    raise StoreError(
        f"the store has layout {version}, this package knows up to {VERSION}",
        hint="Update clearsky_xr to buy into it. Reading works with plain xr.open_zarr.",
    )


def _read(fields: dict[str, object]) -> Record:
    """Build a record out of what may be anything."""
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        raise ValueError("version")
    if fields["origin"] not in get_args(Origin):
        raise ValueError("origin")
    window = Window(*_whole(fields["window"], 4))
    (epsg,), (resolution,) = _whole([fields["epsg"]], 1), _whole([fields["resolution"]], 1)
    bands = _names(fields["bands"])
    if (
        not window.size
        or max(map(abs, dataclasses.astuple(window))) > 10_000_000
        or min(window.shape) < 1
        or resolution not in RESOLUTIONS
        or epsg // 100 not in (326, 327)
        or not 1 <= epsg % 100 <= 60
        or not set(bands) <= set(BANDS)
        or len(set(bands)) != len(bands)
        or fields["pixels"] not in get_args(PixelMode)
        or not isinstance(fields["clip"], bool)
        or not isinstance(fields["allow_partial"], bool)
        or not isinstance(fields["model"], str)
    ):
        raise ValueError("a field")
    cube = Cube(
        area=resolve_area(shapely.from_wkb(str(fields["area"]))),
        grid=Grid(epsg, resolution, window),
        dates=(),
        bands=bands,
        indices=(),
        model=fields["model"],
        constellations=_names(fields["constellations"]),
        clip=fields["clip"],
        pixels=fields["pixels"],  # type: ignore[arg-type]
        allow_partial=fields["allow_partial"],
    )
    if not (covering(cube.area, epsg, resolution).window & window).size:
        raise ValueError("the area lies beside the grid")
    return Record(cube, fields["origin"])  # type: ignore[arg-type]


def record_for(cube: Cube, bands: Sequence[str], origin: Origin) -> Record:
    """Make the record of a new store for a cube."""
    return Record(replace(cube, dates=(), indices=(), bands=tuple(bands)), origin)


def _whole(values: object, count: int) -> list[int]:
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    ):
        raise ValueError("whole numbers")
    return values


def _names(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError("names")
    return tuple(values)


def _sorted(names: Sequence[str]) -> str:
    return ", ".join(sorted(names, key=str.lower))
