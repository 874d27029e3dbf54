"""What covers the ground: the part of the synthetic landscape that dates do not change.

Farmland is a mosaic of blocks (the cells around jittered points, with lanes between
them); each block is ploughed in a direction of its own and cut into strips, strips into
parcels. Forest grows where a rough surface is high, rivers follow the zero line of a
smooth one, lakes fill its summits, and towns lie at some points of a wide lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ._imagery import FloatArray
from ._noise import UintArray, mix, smooth, unit

#: Samples on a side of a tile.
TILE: Final = 256

WATER, CROP, GRASS, HEDGE, FOREST, TOWN, LANE = range(7)
#: A key is the kind in the upper bits and what tells parcels apart in the lower ones.
KIND_SHIFT: Final = 28
_PAYLOAD: Final = np.uint32(2**KIND_SHIFT - 1)

_BLOCK_M: Final = 1150.0
_TOWN_M: Final = 6500.0

_Axis = npt.NDArray[np.floating[Any]]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cover:
    """One tile of ground.

    Parameters
    ----------
    keys : uint32 array (n,)
        The different covers in the tile: kind and payload.
    index : int array (y, x)
        Which of them each sample has.
    texture : float32 array (y, x)
        Vigour within a parcel, mean 0, deviation about 1.
    water : bool array (y, x)
        Open water, which the service removes.
    """

    keys: UintArray
    index: npt.NDArray[np.intp]
    texture: FloatArray
    water: _Bools


def survey(zone: int, col: int, row: int, stride: int) -> Cover:
    """Make one tile of ground.

    Parameters
    ----------
    zone : int
        EPSG code: each zone has a landscape of its own.
    col, row : int
        10 m pixel of the upper left sample.
    stride : int
        Pixels from one sample to the next.
    """
    steps = np.arange(TILE) * stride + stride // 2
    x, y = (col + steps) * 10.0 + 5.0, (row + steps) * 10.0 + 5.0
    surface = _Surface(zone, x, y)

    river = surface(1, 9000) + 0.4 * surface(2, 2600) + 0.06 * surface(3, 500)
    wood = surface(4, 3600) + 0.75 * surface(5, 1200) + 0.35 * surface(6, 380)
    wood += 0.12 * surface(7, 110)
    bank = np.abs(river)
    water = (bank < 0.011) | (river + 0.1 * surface(6, 380) > 2.75)
    town = _town_density(zone, x, y) + 0.10 * surface(8, 260) + 0.05 * surface(7, 110)

    keys, lane, hedge = _farmland(zone, x, y)
    # Where the lines of a town run, and which plot lies between them.
    plot = mix(zone + 9, (x // 30).astype(np.int64)[None, :], (y // 30).astype(np.int64)[:, None])
    stand = np.clip((surface(10, 700) * 2.2 + 8), 0, 15).astype(np.uint32)

    # Meadows follow the rivers, with a fringe of trees.
    meadow = (bank < 0.05) & (keys >> np.uint32(KIND_SHIFT) == CROP)
    keys = np.where(meadow, _key(GRASS, keys), keys)
    keys = np.where(hedge, _key(HEDGE, keys & np.uint32(7)), keys)
    keys = np.where(lane, _key(LANE, keys & np.uint32(3)), keys)
    fringe = (bank < 0.022) & (surface(6, 380) > -0.4)
    keys = np.where((wood > 1.1) | fringe, _key(FOREST, stand), keys)
    keys = np.where(town > 0.42, _key(TOWN, plot & np.uint32(63)), keys)
    keys = np.where(water, _key(WATER, np.zeros_like(keys)), keys)

    grain = unit(mix(zone + 11, (col + steps)[None, :], (row + steps)[:, None])) - np.float32(0.5)
    texture = 0.55 * surface(12, 170) + 0.4 * surface(13, 55) + 1.3 * grain
    unique, index = np.unique(keys, return_inverse=True)
    return Cover(unique, index.reshape(keys.shape), texture.astype(np.float32), water)


class _Surface:
    """Smooth surfaces over one tile, each made once."""

    def __init__(self, zone: int, x: _Axis, y: _Axis) -> None:
        self._zone, self._x, self._y = zone, x, y
        self._made: dict[int, FloatArray] = {}

    def __call__(self, seed: int, wavelength: float) -> FloatArray:
        if seed not in self._made:
            self._made[seed] = smooth(self._zone * 64 + seed, self._x, self._y, wavelength)
        return self._made[seed]


def _key(kind: int, payload: UintArray) -> UintArray:
    return np.asarray((payload & _PAYLOAD) | np.uint32(kind << KIND_SHIFT), np.uint32)


def _town_density(zone: int, x: _Axis, y: _Axis) -> FloatArray:
    """Give a bump around each town, 1 at its centre."""
    out = np.zeros((y.size, x.size), np.float32)
    for i in range(int(x[0] // _TOWN_M) - 1, int(x[-1] // _TOWN_M) + 2):
        for j in range(int(y[0] // _TOWN_M) - 1, int(y[-1] // _TOWN_M) + 2):
            u, v, size = (float(unit(mix(zone + 20 + k, i, j))) for k in range(3))
            if size < 0.35:
                continue
            radius = 150 + 600 * (size - 0.35) ** 2 / 0.4225 + 150 * size
            dx = (x - (i + 0.15 + 0.7 * u) * _TOWN_M) / radius
            dy = (y - (j + 0.15 + 0.7 * v) * _TOWN_M) / radius
            bump = np.exp(-(dx**2))[None, :] * np.exp(-(dy**2))[:, None]
            np.maximum(out, bump.astype(np.float32), out=out)
    return out


def _farmland(zone: int, x: _Axis, y: _Axis) -> tuple[UintArray, _Bools, _Bools]:
    """Give the parcel of each sample, and where lanes and hedges are."""
    i, j = np.floor(x / _BLOCK_M).astype(np.int64), np.floor(y / _BLOCK_M).astype(np.int64)
    cols, rows = np.arange(i[0] - 1, i[-1] + 2), np.arange(j[0] - 1, j[-1] + 2)
    seeds = mix(zone + 30, cols[None, :], rows[:, None])
    # Metres from the first cell of the tile: what float32 holds to a millimetre.
    at_x = (cols - cols[0] + 0.1 + 0.8 * unit(mix(1, seeds))).astype(np.float32) * _BLOCK_M
    at_y = (rows - rows[0])[:, None] + 0.1 + 0.8 * unit(mix(2, seeds))
    at_y = at_y.astype(np.float32) * _BLOCK_M
    px = (x - cols[0] * _BLOCK_M).astype(np.float32)[None, :]
    py = (y - rows[0] * _BLOCK_M).astype(np.float32)[:, None]
    nearest = np.full((y.size, x.size), np.inf, np.float32)
    second = nearest.copy()
    index = np.zeros(nearest.shape, np.intp)
    # Only the nine cells around a point can hold its nearest seed.
    for dj in (0, 1, 2):
        for di in (0, 1, 2):
            number = (j - rows[0] - 1 + dj)[:, None] * cols.size + (i - cols[0] - 1 + di)
            distance = (px - at_x.ravel()[number]) ** 2 + (py - at_y.ravel()[number]) ** 2
            np.copyto(index, number, where=distance < nearest)
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    blocks = seeds.ravel()
    block = blocks[index]
    east, south = px - at_x.ravel()[index], py - at_y.ravel()[index]
    # The difference of the two distances is about twice the distance to the border.
    lane = (np.sqrt(second) - np.sqrt(nearest) < 15) & (block & np.uint32(3) != 0)

    angle = unit(mix(3, blocks)) * np.float32(np.pi)
    widths, lengths = 110 + 190 * unit(mix(4, blocks)), 260 + 420 * unit(mix(5, blocks))
    cos, sin, width, length = (v[index] for v in (np.cos(angle), np.sin(angle), widths, lengths))
    across = (east * cos + south * sin) / width
    along = (south * cos - east * sin) / length
    strip = np.floor(across)
    shift = mix(6, block, strip.astype(np.int32))
    along += unit(shift)
    piece = np.floor(along)
    parcel = mix(7, shift, piece.astype(np.int32))
    # One strip in four is two narrow ones, and where two neighbours merge fields are large.
    fraction = across - strip
    narrow = (shift & np.uint32(3) == 0) & (fraction > 0.5)
    parcel = np.where(narrow, mix(8, parcel), parcel)
    edge_u = np.minimum(fraction, 1 - fraction) * width
    edge_v = along - piece
    edge_v = np.minimum(edge_v, 1 - edge_v) * length
    border = mix(10, block, np.round(across).astype(np.int32))
    hedge = (edge_u < 8) & (border % np.uint32(9) == 0)
    hedge |= (edge_v < 7) & (shift % np.uint32(11) == 0)
    kind = np.where(unit(mix(9, parcel)) < 0.16, GRASS, CROP).astype(np.uint32)
    keys = (parcel & _PAYLOAD) | (kind << np.uint32(KIND_SHIFT))
    return np.asarray(keys, np.uint32), np.asarray(lane), np.asarray(hedge)
