"""Pixels in arrays: layers out of bands, and parts put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ._pixels import PixelSet, Window

#: No-data of int16 images (contract, section 5.3).
NODATA: Final = -32768
#: Scale of reflectances and of indices in int16 (contract, section 7.3).
REFLECTANCE: Final = 10000.0
INDEX: Final = 32767.0


def bands_for(layers: Sequence[str]) -> tuple[str, ...]:
    """Give the bands from which layers are made, each once."""
    return tuple(dict.fromkeys(band for layer in layers for band in _bands_of(layer)))


def derive(
    values: NDArray[np.int16], bands: Sequence[str], layers: Sequence[str]
) -> NDArray[np.int16]:
    """Make layers from bands.

    Parameters
    ----------
    values : ndarray of int16, shape (bands, y, x)
    bands : sequence of str
    layers : sequence of str
        Bands, or indices such as ``"[B8_B4]"``.

    Returns
    -------
    ndarray of int16, shape (layers, y, x)
    """
    if tuple(bands) == tuple(layers):
        return values
    place = {band: values[k] for k, band in enumerate(bands)}
    if all(layer in place for layer in layers):
        return values[[bands.index(layer) for layer in layers]]
    made = np.empty((len(layers), *values.shape[1:]), np.int16)
    for k, layer in enumerate(layers):
        made[k] = place[layer] if layer in place else _index(*(place[b] for b in _bands_of(layer)))
    return made


def fill_in(
    frame: NDArray[np.int16],
    window: Window,
    wanted: PixelSet,
    parts: Iterable[tuple[PixelSet, NDArray[np.int16]]],
) -> None:
    """Copy the wanted pixels of parts into a frame.

    Parameters
    ----------
    frame : ndarray of int16, shape (layers, y, x)
        On `window`.
    window : Window
    wanted : PixelSet
    parts : iterable of (PixelSet, ndarray of int16)
        Pixels, and their values (layers, y, x) on the window of the pixels.
    """
    for pixels, values in parts:
        shared = pixels.window & wanted.window & window
        if not shared.size:
            continue
        theirs = pixels.window.slices(shared)
        own = (slice(None), *window.slices(shared))
        if pixels.mask is None and wanted.mask is None:
            frame[own] = values[(slice(None), *theirs)]
        else:
            mask = pixels.dense[theirs] & wanted.dense[wanted.window.slices(shared)]
            np.copyto(frame[own], values[(slice(None), *theirs)], where=mask)


def _bands_of(layer: str) -> list[str]:
    return layer.strip("[]").split("_")


def _index(x: NDArray[np.int16], y: NDArray[np.int16]) -> NDArray[np.int16]:
    """Give (x - y) / (x + y) on the service's scale (contract, section 7.3)."""
    # In float64: float32 cannot hold the product with 32767 to half a count.
    one, other = x.astype(np.float64), y.astype(np.float64)
    total = one + other
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.rint(np.clip((one - other) / total, -1, 1) * INDEX)
    nothing = (x == NODATA) | (y == NODATA) | (total == 0)
    return np.where(nothing, NODATA, index).astype(np.int16)
