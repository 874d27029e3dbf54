"""Paid bytes and what was asked for, to pixels, or a refusal.

Everything is checked from the header before a pixel is allocated: what comes
back has the shape that was asked for, whatever the bytes say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window as FileWindow

from ._answers import clean
from ._bands import parse_bandnames
from ._layers import NODATA
from ._pixels import Window
from ._request import Request
from .errors import (
    GridMismatchError,
    InvalidBandError,
    UnexpectedImageError,
)

# Open only the file itself: no sidecars, no neighbours, no other driver. A small
# block cache, since each image is read once from end to end. The CRS as the file's own
# keys say it: looking the EPSG code up as well, to compare, took a third of opening.
GDAL_OPTIONS: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 16 * 2**20,
    "GTIFF_SRS_SOURCE": "GEOKEYS",
}

# A file may announce blocks that are far larger than its image and make the
# reader allocate them: this much beyond the image itself is let pass, bytes.
_BLOCK_SLACK: Final = 64 * 2**20
# How far a corner may lie from a lattice point, pixels: rounding of a double.
_SNAP: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Image:
    """An answer whose header is what was asked for; its pixels are still packed.

    Parameters
    ----------
    tags : dict of str
        The GeoTIFF's dataset tags.
    layers : int
    window : Window
        Of the request.
    inner : Window
        Of the raster, which may be smaller.
    """

    tags: dict[str, str]
    layers: int
    window: Window
    inner: Window
    _dataset: DatasetReader
    _order: list[int]

    def read(self) -> NDArray[np.int16]:
        """Decode all pixels.

        Returns
        -------
        ndarray of int16, shape (layers, y, x)
            On the whole window of the request; `NODATA` where the answer has none.
        """
        values = np.empty((self.layers, *self.window.shape), np.int16)
        self.read_into(values)
        return values

    def read_into(self, out: NDArray[np.int16], start: int = 0) -> None:
        """Decode rows into an array.

        Parameters
        ----------
        out : ndarray of int16, shape (layers, rows, x)
            Filled; it need not be contiguous.
        start : int
            Row of the request's window with which it begins.
        """
        height = out.shape[1]
        rows, cols = self.window.slices(self.inner)
        if (rows.start, rows.stop) != (0, self.window.shape[0]) or cols != slice(0, out.shape[2]):
            out[...] = NODATA
        first, last = max(start, rows.start), min(start + height, rows.stop)
        if first < last:
            part = FileWindow(0, first - rows.start, self.inner.shape[1], last - first)
            target = out[:, first - start : last - start, cols]
            with _refusing():
                self._dataset.read(self._order, out=target, window=part)


def most_bytes(request: Request) -> int:
    """Give the size above which a body cannot be the answer to a request, bytes.

    An uncompressed image with overviews needs 4/3 of its pixels; twice that and
    a megabyte for the header leave room for any layout that is not an attack.
    """
    return 3 * 2 * len(request.layers) * request.pixels.window.size + 2**20


@contextmanager
def opened(content: bytes, request: Request) -> Iterator[Image]:
    """Check an answer against its request, and let its pixels be decoded.

    Parameters
    ----------
    content : bytes
        A GeoTIFF, as downloaded.
    request : Request

    Yields
    ------
    Image

    Raises
    ------
    GridMismatchError
        CRS, resolution, or place of the raster is not what was asked for.
    UnexpectedImageError
        Broken, or other bands, dtype, nodata or date.
    """
    with _refusing():
        memory = MemoryFile(content)
    with memory:
        with _refusing():
            dataset = memory.open(driver="GTiff")
        with dataset:
            with _refusing():
                tags = {str(k): str(v) for k, v in dataset.tags().items()}
                order = _checked(dataset, tags, request)
                inner = _placed(dataset, request)
            yield Image(tags, len(order), request.pixels.window, inner, dataset, order)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what GDAL says of broken bytes into a refusal."""
    try:
        yield
    # The warning is an error where the user has made warnings errors.
    except (RasterioError, ValueError, OSError, NotGeoreferencedWarning) as error:
        raise UnexpectedImageError(
            f"the image cannot be decoded: {type(error).__name__}: {clean(error)}"
        ) from None


def read(content: bytes, request: Request) -> tuple[dict[str, str], NDArray[np.int16]]:
    """Check and decode an answer; see `opened`.

    Returns
    -------
    tags : dict of str
    values : ndarray of int16, shape (layers, y, x)
    """
    with opened(content, request) as image:
        return image.tags, image.read()


def _checked(dataset: DatasetReader, tags: dict[str, str], request: Request) -> list[int]:
    """Check all but the grid; gives the positions of the layers in the file, from 1."""
    layers = request.layers
    height, width = request.pixels.window.shape
    _same("the number of bands", len(layers), dataset.count)
    _same("the data type", {"int16"}, set(dataset.dtypes))
    if dataset.nodatavals != (NODATA,) * dataset.count:
        raise _differs("the no-data value", NODATA, dataset.nodata)
    if dataset.height > height or dataset.width > width:
        raise _differs(
            "the size (y, x)",
            (height, width),
            (dataset.height, dataset.width),
            GridMismatchError,
        )
    for rows, cols in dataset.block_shapes:
        if 2 * rows * cols * dataset.count > 2 * height * width * dataset.count + _BLOCK_SLACK:
            raise UnexpectedImageError(
                f"the image of {height} x {width} px has blocks of {rows} x {cols} px"
            )
    # Documented for older answers (contract, section 6.1), so its absence is let pass.
    tag = tags.get("IMAGE_DATE")
    if tag is not None:
        _same("the date (IMAGE_DATE)", f"{request.date:%Y%m%d}", tag.strip().replace("-", ""))
    return _order(dataset.descriptions, layers)


def _order(descriptions: tuple[str | None, ...], layers: tuple[str, ...]) -> list[int]:
    """Trust band descriptions where all are layer names; else the order that was asked for."""
    try:
        named = [parse_bandnames(text or "")[0] for text in descriptions]
    except InvalidBandError:
        return list(range(1, len(layers) + 1))
    if sorted(named) != sorted(layers):
        raise _differs("the bands", layers, tuple(named))
    return [named.index(layer) + 1 for layer in layers]


def _placed(dataset: DatasetReader, request: Request) -> Window:
    """Check CRS and transform; gives the raster's window on the lattice."""
    epsg = None if dataset.crs is None else dataset.crs.to_epsg()
    _same("the CRS", f"EPSG:{request.epsg}", f"EPSG:{epsg}", GridMismatchError)
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    size = request.resolution
    _same("the pixel size (x, y)", (size, -size), (a, e), GridMismatchError)
    _same("the rotation", (0, 0), (b, d), GridMismatchError)
    col, row = c / size, -f / size
    if abs(col - round(col)) > _SNAP or abs(row - round(row)) > _SNAP:
        raise GridMismatchError(
            f"the image starts at ({c}, {f}), not on a multiple of {size} m: it lies "
            f"{(col - round(col)):.3f} px right and {(row - round(row)):.3f} px below a lattice "
            "point, and is not resampled silently"
        )
    inner = Window(round(row), round(row) + dataset.height, round(col), round(col) + dataset.width)
    needed = request.pixels.tight()
    assert needed is not None
    if inner not in request.pixels.window or needed.window not in inner:
        raise _differs("the place", needed.window, inner, GridMismatchError)
    return inner


def _same(
    what: str, expected: Any, got: Any, error: type[UnexpectedImageError] = UnexpectedImageError
) -> None:
    if expected != got:
        raise _differs(what, expected, got, error)


def _differs(
    what: str, expected: Any, got: Any, error: type[UnexpectedImageError] = UnexpectedImageError
) -> UnexpectedImageError:
    return error(
        # What the file says may be of any length, and hold anything.
        f"{what} of the image is {clean(got)}, expected {expected}",
        hint="The service's answer is not what was asked for. The paid bytes are kept aside; show "
        "them to the vendor.",
    )


def environment() -> rasterio.Env:
    """Give the GDAL environment of a decoding thread; entered once, since that costs 100 us."""
    return rasterio.Env(**GDAL_OPTIONS)
