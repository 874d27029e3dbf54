"""A folder of dated GeoTIFFs as an archive."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from clearsky_xr._bands import STRATUS

from ._imagery import NATIVE, Block, FloatArray, coarsen

_DATE = re.compile(r"(?<!\d)(\d{8})(?!\d)")
#: Fine pixels read at once when a coarse raster is averaged, about 160 MB of float32.
_CHUNK_PX: Final = 4_000_000
#: Vertices on each side of a scene's outline: in degrees its sides are not straight.
_OUTLINE: Final = 16


@dataclass(frozen=True, slots=True)
class Scene:
    """One file.

    Parameters
    ----------
    path : Path
        The GeoTIFF.
    day : date
        From its name.
    bands : tuple of int
        Where the ten Stratus bands are, counted from 1.
    outline : shapely geometry
        Footprint, EPSG:4326.
    """

    path: Path
    day: date
    bands: tuple[int, ...]
    outline: BaseGeometry


class Scenes:
    """An archive made of local files.

    Parameters
    ----------
    folder : path
        Where the GeoTIFFs are; see `clearsky_xr.sandbox.serve`. Files of the same
        date are laid over each other, the last by name on top.

    Raises
    ------
    OSError
        No such folder.
    ValueError
        No scene in it, or one that cannot be served.
    """

    label = "scenes"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        paths = sorted(
            path
            for path in Path(folder).iterdir()
            if path.suffix.lower() in (".tif", ".tiff") and _DATE.search(path.stem)
        )
        if not paths:
            raise ValueError(f"no GeoTIFF with yyyymmdd in its name in {os.fspath(folder)}")
        self._scenes = [_open_scene(path) for path in paths]

    def dates(self, area: BaseGeometry) -> Sequence[date]:
        """Give the days that have a scene in the area, ascending."""
        return sorted({s.day for s in self._scenes if _share_area(s.outline, area)})

    def has(self, area: BaseGeometry, day: date) -> bool:
        """Whether there is a scene of the day in the area."""
        return any(s.day == day and _share_area(s.outline, area) for s in self._scenes)

    def on_cadence(self, day: date) -> bool:
        """Whether there is a scene of the day anywhere: files have no rhythm of their own."""
        return any(s.day == day for s in self._scenes)

    def read(self, block: Block, day: date, version: int) -> FloatArray:  # noqa: ARG002  # as Imagery has it
        """Read pixels; `version` changes nothing, since files do not.

        Pixels that lie on the file's own grid are copied. Others are taken from the
        nearest pixel of the file, at 10 m; coarser ones are the mean of those.
        """
        out = np.full((len(STRATUS), block.height, block.width), np.nan, np.float32)
        scenes = [scene for scene in self._scenes if scene.day == day]
        factor = block.resolution // NATIVE
        rows = max(1, _CHUNK_PX // (block.width * factor * factor))
        for start in range(0, block.height, rows):
            stop = min(start + rows, block.height)
            strip = block.rows(start, stop)
            fine = Block(
                block.epsg,
                NATIVE,
                strip.col * factor,
                strip.row * factor,
                strip.width * factor,
                strip.height * factor,
            )
            pixels = np.full((len(STRATUS), fine.height, fine.width), np.nan, np.float32)
            for scene in scenes:
                with rasterio.Env(), rasterio.open(scene.path) as source:
                    _paste(source, scene.bands, fine, pixels)
            out[:, start:stop] = coarsen(pixels, factor)
        return out


def _open_scene(path: Path) -> Scene:
    match = _DATE.search(path.stem)
    assert match is not None
    try:
        day = datetime.strptime(match[1], "%Y%m%d").date()
    except ValueError:
        raise ValueError(f"{path.name}: {match[1]} is not a date") from None
    with rasterio.Env(), rasterio.open(path) as source:
        if source.crs is None:
            raise ValueError(f"{path.name}: the scene has no CRS")
        if set(source.dtypes) != {"int16"}:
            raise ValueError(f"{path.name}: the scene must be int16, is {source.dtypes[0]}")
        described = [(text or "").strip().upper() for text in source.descriptions]
        if set(STRATUS) <= set(described):
            bands = tuple(described.index(name) + 1 for name in STRATUS)
        elif source.count == len(STRATUS) and not any(
            re.fullmatch(r"B\d+A?", text) for text in described
        ):
            bands = tuple(range(1, len(STRATUS) + 1))
        else:
            raise ValueError(
                f"{path.name}: the scene must have the bands {', '.join(STRATUS)}, in this "
                "order or with these names as descriptions"
            )
        box = shapely.segmentize(
            shapely.box(*source.bounds), (source.bounds.right - source.bounds.left) / _OUTLINE
        )
        to_degrees = Transformer.from_crs(source.crs.to_wkt(), 4326, always_xy=True)

    def project(points: Any) -> Any:
        return np.stack(to_degrees.transform(points[:, 0], points[:, 1]), axis=1)

    return Scene(path, day, bands, shapely.transform(box, project))


def _share_area(a: BaseGeometry, b: BaseGeometry) -> bool:
    return bool(a.intersects(b) and not a.touches(b))


@lru_cache(maxsize=128)
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)


def _paste(source: DatasetReader, bands: tuple[int, ...], block: Block, out: FloatArray) -> None:
    """Lay a file over `out`, (band, y, x); pixels that have no data in any band are left."""
    left, top = block.col * NATIVE, -block.row * NATIVE
    grid = source.transform
    same = source.crs == _crs(block.epsg) and (grid.a, grid.b, grid.d, grid.e) == (10, 0, 0, -10)
    col, row = (left - grid.c) / NATIVE, (grid.f - top) / NATIVE
    if same and col.is_integer() and row.is_integer():
        _copy(source, bands, int(col), int(row), out)
        return
    transform = Affine(NATIVE, 0, left, 0, -NATIVE, top)
    with WarpedVRT(
        source,
        crs=_crs(block.epsg),
        transform=transform,
        width=block.width,
        height=block.height,
        resampling=Resampling.nearest,
        nodata=_nodata(source),
    ) as warped:
        _copy(warped, bands, 0, 0, out)


def _nodata(source: DatasetReader) -> float:
    return -32768 if source.nodata is None else source.nodata


def _copy(
    source: DatasetReader, bands: tuple[int, ...], col: int, row: int, out: FloatArray
) -> None:
    """Copy the overlap of `out`, whose corner lies at (row, col) of the source."""
    _, height, width = out.shape
    x0, x1 = max(col, 0), min(col + width, source.width)
    y0, y1 = max(row, 0), min(row + height, source.height)
    if x0 >= x1 or y0 >= y1:
        return
    pixels = source.read(list(bands), window=Window(x0, y0, x1 - x0, y1 - y0))
    valid = (pixels != _nodata(source)).all(axis=0)
    target = out[:, y0 - row : y1 - row, x0 - col : x1 - col]
    np.copyto(target, pixels, where=valid, casting="unsafe")
