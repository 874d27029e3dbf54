"""Pixels to cloud-optimised GeoTIFFs, each of them there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.transform import from_origin

from ._layers import NODATA

# Read everywhere, unlike zstd; the predictor halves what is left of reflectances.
_CREATION: Final = {
    "COMPRESS": "DEFLATE",
    "PREDICTOR": "YES",
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "ALL_CPUS",
}
# No .aux.xml beside the file: everything is in it.
_OPTIONS: Final = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

_COLOURS: Final = {
    "red": ColorInterp.red,
    "green": ColorInterp.green,
    "blue": ColorInterp.blue,
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One band of a file.

    Parameters
    ----------
    name : str
        Its description.
    scale : float
        Times the number in the file, it is the value.
    tags : dict of str
        ``common_name`` also decides in which colour viewers show it.
    """

    name: str
    scale: float
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a raster lies.

    Parameters
    ----------
    epsg : int
    resolution : float
        Metres.
    left, top : float
        Upper left corner, metres.
    """

    epsg: int
    resolution: float
    left: float
    top: float


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself.

    Parameters
    ----------
    frame : Frame
    shape : tuple of int
        Rows and columns.
    layers : tuple of Layer
    tags : dict of str
    """

    frame: Frame
    shape: tuple[int, int]
    layers: tuple[Layer, ...]
    tags: Mapping[str, str]


def write(
    path: Path,
    values: NDArray[np.int16],
    layers: Sequence[Layer],
    frame: Frame,
    tags: Mapping[str, str],
) -> None:
    """Write a file in one step: whoever sees it sees all of it.

    Parameters
    ----------
    path : pathlib.Path
    values : ndarray of int16, shape (layers, y, x)
        `NODATA` where there is none.
    layers : sequence of Layer
    frame : Frame
    tags : mapping of str
        Of the file.

    Raises
    ------
    OSError
        It could not be written; what was there before is as it was.
    """
    partial = partial_of(path)
    profile: dict[str, Any] = {
        "driver": "COG",
        "count": len(layers),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": "int16",
        "nodata": NODATA,
        "crs": f"EPSG:{frame.epsg}",
        "transform": from_origin(frame.left, frame.top, frame.resolution, frame.resolution),
        **_CREATION,
    }
    try:
        with rasterio.Env(**_OPTIONS):
            with rasterio.open(partial, "w", **profile) as file:
                file.write(values)
                file.scales = [layer.scale for layer in layers]
                file.descriptions = [layer.name for layer in layers]
                file.colorinterp = _colours(layers)
                file.update_tags(**tags)
                for k, layer in enumerate(layers, 1):
                    file.update_tags(k, **layer.tags)
            _check(partial, values)
        with partial.open("rb") as done:
            os.fsync(done.fileno())
        partial.replace(path)
    except Exception as error:
        # GDAL's own errors have no public class.
        if not type(error).__module__.startswith("rasterio"):
            raise
        raise OSError(f"{path} could not be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _check(path: Path, values: NDArray[np.int16]) -> None:
    """Read back what was written: a full disk is not always told while writing."""
    with rasterio.open(path, driver="GTiff") as file:
        same = file.shape == values.shape[1:] and file.count == len(values)
        for rows in ((row, min(row + 512, file.height)) for row in range(0, file.height, 512)):
            window = rows, (0, file.width)
            same = same and np.array_equal(file.read(window=window), values[:, slice(*rows)])
    if not same:
        raise OSError(f"{path} does not read back as it was written")


def partial_of(path: Path) -> Path:
    """Name the file that is written before it is moved into place."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def read_head(path: Path) -> Head | None:
    """Read what a file says of itself; None if it is no GeoTIFF.

    Raises
    ------
    OSError
        It is there and cannot be opened by anybody.
    """
    if not path.is_file():
        return None
    try:
        with rasterio.Env(**_OPTIONS), rasterio.open(path, driver="GTiff") as file:
            epsg = None if file.crs is None else file.crs.to_epsg()
            if epsg is None:
                return None
            transform = file.transform
            layers = tuple(
                Layer(str(name), float(scale), _plain(file.tags(k)))
                for k, name, scale in zip(file.indexes, file.descriptions, file.scales, strict=True)
            )
            frame = Frame(epsg, transform.a, transform.c, transform.f)
            return Head(frame, (file.height, file.width), layers, _plain(file.tags()))
    except RasterioError:
        return None


def _colours(layers: Sequence[Layer]) -> list[ColorInterp]:
    """Say which bands are red, green and blue, so that viewers show true colour at once."""
    names = [layer.tags.get("common_name", "") for layer in layers]
    if not set(_COLOURS) <= set(names):
        return [ColorInterp.gray, *[ColorInterp.undefined] * (len(names) - 1)]
    return [_COLOURS.get(name, ColorInterp.undefined) for name in names]


def _plain(tags: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in tags.items()}
