"""Randomness that depends on place alone: hashes and smooth noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._imagery import FloatArray

UintArray = npt.NDArray[np.uint32]


def mix(seed: int, *keys: npt.ArrayLike) -> UintArray:
    """Hash whole numbers to 32 evenly spread bits.

    Parameters
    ----------
    seed : int
        Tells uses apart.
    *keys : array_like of int
        Broadcast against each other; taken modulo 2**32.

    Returns
    -------
    uint32 array
    """
    # Multipliers of the finaliser of MurmurHash3 and of Fibonacci hashing.
    state: Any = np.uint32(seed * 0x9E3779B1 & 0xFFFFFFFF)
    # Wrapping around is the point; numpy warns of it for scalars.
    with np.errstate(over="ignore"):
        for key in keys:
            state = state ^ np.asarray(key).astype(np.uint32)
            state = state ^ (state >> np.uint32(16))
            state = state * np.uint32(0x85EBCA6B)
            state = state ^ (state >> np.uint32(13))
            state = state * np.uint32(0xC2B2AE35)
            state = state ^ (state >> np.uint32(16))
    return np.asarray(state, np.uint32)


def unit(bits: UintArray) -> FloatArray:
    """Turn hashed bits into numbers in [0, 1)."""
    # 24 bits are what a float32 holds without rounding up to 1.
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def smooth(
    seed: int, x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]], wavelength: float
) -> FloatArray:
    """Smooth random surface on the rectangle of two axes.

    A cubic B-spline with random coefficients on a square lattice: as smooth as one likes
    contour lines to be, and separable, which makes it cheap.

    Parameters
    ----------
    seed : int
        Tells surfaces apart.
    x, y : float64 array
        Ascending axes, metres.
    wavelength : float
        Spacing of the lattice, metres.

    Returns
    -------
    float32 array (y, x)
        Mean 0, standard deviation about 1.
    """
    (cols, across), (rows, down) = _weights(x / wavelength), _weights(y / wavelength)
    knots_x = np.arange(cols[0] - 1, cols[-1] + 3)
    knots_y = np.arange(rows[0] - 1, rows[-1] + 3)
    value = unit(mix(seed, knots_x[None, :], knots_y[:, None])) - np.float32(0.5)
    at_x, at_y = cols - cols[0], rows - rows[0]
    half = np.zeros((knots_y.size, x.size), np.float32)
    for k in range(4):
        half += value[:, at_x + k] * across[k]
    out = np.zeros((y.size, x.size), np.float32)
    for k in range(4):
        out += half[at_y + k] * down[k][:, None]
    # Uniform coefficients have deviation 0.289; the spline keeps 0.479 of it along each axis.
    out *= np.float32(1 / (0.289 * 0.479))
    return out


def _weights(t: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Give the cell of each position and the weights (4, position) of the knots around it."""
    cell = np.floor(t)
    u = (t - cell).astype(np.float32)
    v = 1 - u
    cubic = [v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3]
    weights: FloatArray = (np.stack(cubic) / 6).astype(np.float32)
    return cell.astype(np.int64), weights
