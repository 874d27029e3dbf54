"""From a query to the bytes of a GeoTIFF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from rasterio.env import Env
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry

from clearsky_xr._bands import STRATUS

from ._errors import invalid
from ._imagery import Block, FloatArray, Imagery
from ._query import Composite
from ._select import project, select, select_in

Compression = Literal["deflate", "lzw", "zstd", "none"]

#: Contract, section 5.3.
NODATA: Final = -32768
#: Contract, section 7.3.
INDEX_SCALE: Final = 32767
#: Added to spectral counts by ``Harmonize: false`` (contract, section 7.3).
OFFSET: Final = 1000
#: Pixels of a side of a tile, about which the sandbox counts versions (contract, section 7.4).
_TILE_PX: Final = 5120
#: Pixels worked on at once, about 80 MB of ten float32 bands.
_STRIP_PX: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Image:
    """A raster before it is written.

    Parameters
    ----------
    pixels : int16 array (layer, y, x)
        Counts.
    epsg : int
        CRS.
    transform : Affine
        Of the upper left corner, metres.
    nodata : int
        Value of missing pixels.
    tags : mapping of str to str
        Dataset tags.
    layers : tuple of str
        Names of the layers.
    """

    pixels: npt.NDArray[Any]
    epsg: int
    transform: Affine
    nodata: int
    tags: Mapping[str, str]
    layers: tuple[str, ...]


def render(
    query: Composite, covered: BaseGeometry, day: date, imagery: Imagery, version: int
) -> Image:
    """Cut, compute and round the pixels of one download.

    Parameters
    ----------
    query : Composite
        What was asked.
    covered : shapely geometry
        The part of its geometry that may be read, EPSG:4326. The rest is no-data.
    day : date
        Its date.
    imagery : Imagery
        Where the pixels come from.
    version : int
        ``IMAGE_VERSION`` of the day.

    Raises
    ------
    ApiError
        992: no pixel is selected, or too many are spanned.
    """
    geometry = project(query.geometry, query.epsg)
    if not np.isfinite(geometry.bounds).all():
        raise invalid(EpsgProjection="EpsgProjection must be a zone that contains the geometry")
    block, mask = select(geometry, query.epsg, query.resolution, query.mode)
    if covered is not query.geometry:
        mask &= select_in(block, project(covered, query.epsg), query.mode)
    pixels = np.full((len(query.layers), block.height, block.width), NODATA, np.int16)
    rows = max(1, _STRIP_PX // block.width)
    for start in range(0, block.height, rows):
        stop = min(start + rows, block.height)
        if mask[start:stop].any():
            bands = imagery.read(block.rows(start, stop), day, version)
            _encode(bands, mask[start:stop], query, pixels[:, start:stop])
    size = float(query.resolution)
    return Image(
        pixels=pixels,
        epsg=query.epsg,
        transform=Affine(size, 0.0, block.col * size, 0.0, -size, -block.row * size),
        nodata=NODATA,
        tags=_tags(query, day, imagery.label, version, block),
        layers=query.layers,
    )


def _encode(
    bands: FloatArray, mask: npt.NDArray[np.bool_], query: Composite, out: npt.NDArray[np.int16]
) -> None:
    """Round the layers of one strip into `out`, (layer, y, x)."""
    # No-data is the same in all bands, so one test serves them.
    valid = mask & ~np.isnan(bands[0])
    shift = np.float32(0 if query.harmonize else OFFSET)
    for target, layer in zip(out, query.layers, strict=True):
        if layer.startswith("["):
            # In float64, because float32 cannot hold the product with 32767 to half a count.
            x, y = (
                bands[STRATUS.index(name)].astype(np.float64)
                for name in layer.strip("[]").split("_")
            )
            total = x + y
            with np.errstate(invalid="ignore", divide="ignore"):
                index = np.clip((x - y) / total, -1, 1) * INDEX_SCALE
            usable = valid & (total != 0)
            target[usable] = np.rint(index[usable]).astype(np.int16)
        else:
            counts = bands[STRATUS.index(layer)] + shift
            np.clip(counts, NODATA + 1, -(NODATA + 1), out=counts)
            with np.errstate(invalid="ignore"):
                np.copyto(target, np.rint(counts), where=valid, casting="unsafe")


def _tags(query: Composite, day: date, label: str, version: int, block: Block) -> dict[str, str]:
    """Give the dataset tags (contract, section 6.1), with the one that says sandbox."""
    model = query.model
    assert model is not None
    # One entry for each tile that the raster meets; how tiles lie is not published, so
    # only their number is imitated.
    pixels = _TILE_PX * 10 // query.resolution
    tiles = (1 + (block.width - 1) // pixels) * (1 + (block.height - 1) // pixels)
    tags = {
        "IMAGE_DATE": f"{day:%Y%m%d}",
        "MODEL_VERSION": ",".join([model.version] * tiles),
        "IMAGE_VERSION": ",".join([str(version)] * tiles),
        "CONSTELLATIONS": ",".join(
            name for name in model.constellations if name.lower() in query.constellations
        ),
        "CLEARSKY_SANDBOX": label,
    }
    if not query.harmonize:
        tags |= {"ADD_OFFSET": str(-OFFSET), "QUANTIFICATION_VALUE": "10000"}
    return tags


def write(image: Image, *, plain: bool, compression: Compression) -> bytes:
    """Write a GeoTIFF.

    Parameters
    ----------
    image : Image
        What to write.
    plain : bool
        Striped and without band descriptions, instead of tiles of 256 pixels with
        them. The service documents neither layout (contract, section 6.1).
    compression : {"deflate", "lzw", "zstd", "none"}
        Codec.

    Returns
    -------
    bytes
        The file.
    """
    count, height, width = image.pixels.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": image.pixels.dtype.name,
        "crs": f"EPSG:{image.epsg}",
        "transform": image.transform,
        "nodata": image.nodata,
        "BIGTIFF": "IF_SAFER",
    }
    if compression != "none":
        # The fastest level: on such pixels the slower ones save a few per cent.
        level = {"deflate": {"zlevel": 1}, "zstd": {"zstd_level": 1}}.get(compression, {})
        profile |= {"compress": compression, "predictor": 2, **level}
    # A tile larger than the raster would pad one pixel to 256 x 256.
    if not plain and min(height, width) >= 256:
        profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    with Env(), MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(image.pixels)
            target.update_tags(**image.tags)
            if not plain:
                target.descriptions = image.layers
        return bytes(memory.read())
