"""What covers look like: spectra of materials, and calendars that mix them.

A cover's spectrum is a mixture of green leaves, straw and soil. The calendars are those
of Central Europe; the shares by day of the year are logistic curves whose dates every
parcel shifts a little. All numbers are this sandbox's own, chosen to look right.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from ._cover import CROP, FOREST, GRASS, HEDGE, KIND_SHIFT, LANE, TOWN
from ._imagery import FloatArray
from ._noise import UintArray, mix, unit

# Reflectance x 10000 of the ten Stratus bands, in the order of STRATUS.
_MATERIALS: Final = {
    #             B2    B3    B4    B5    B6    B7    B8   B8A   B11   B12
    "leaf":     (220,  520,  260,  860, 3000, 3950, 4300, 4450, 1950,  900),
    "meadow":   (310,  640,  400, 1000, 2500, 3100, 3350, 3500, 2100, 1150),
    "bloom":    (450, 1450, 1150, 1750, 3300, 3950, 4250, 4350, 2000,  950),
    "straw":    (850, 1220, 1530, 1900, 2250, 2500, 2750, 3000, 3450, 2450),
    "soil dry": (830, 1130, 1470, 1720, 1910, 2080, 2280, 2420, 3250, 2850),
    "soil wet": (430,  610,  810,  960, 1080, 1190, 1320, 1430, 1950, 1650),
    "broad":    (190,  390,  215,  640, 2300, 3050, 3350, 3500, 1550,  680),
    "autumn":   (300,  620,  780, 1250, 1900, 2200, 2400, 2550, 1900, 1000),
    "twigs":    (290,  430,  530,  720, 1000, 1150, 1300, 1430, 1650, 1050),
    "conifer":  (150,  265,  175,  430, 1250, 1600, 1780, 1880,  900,  430),
    "roof":     (780,  960, 1420, 1650, 1780, 1880, 1980, 2080, 2350, 2150),
    "asphalt":  (720,  800,  860,  920,  970, 1010, 1060, 1110, 1250, 1150),
    "hall":     (2000, 2150, 2250, 2350, 2400, 2450, 2550, 2600, 2550, 2350),
}  # fmt: skip
_SPECTRA: Final = {name: np.array(row, np.float32) for name, row in _MATERIALS.items()}


@dataclass(frozen=True, slots=True)
class Crop:
    """The year of one crop; days of the year, negative ones in the autumn before.

    Parameters
    ----------
    share : float
        Part of the arable land.
    sown : float
        Day of emergence.
    young : float
        Green share before the main growth (of winter crops, over winter).
    rise, rise_days : float
        Middle and time constant of the main growth.
    green : float
        Green share at the height.
    fall, fall_days : float
        Middle and time constant of ripening.
    harvest : float
        Day of harvest; stubble follows.
    bloom : float
        Middle of a yellow bloom, 0 for none.
    """

    share: float
    sown: float
    young: float
    rise: float
    rise_days: float
    green: float
    fall: float
    fall_days: float
    harvest: float
    bloom: float = 0.0


CROPS: Final = (
    Crop(0.40, -75, 0.28, 98, 13, 0.96, 183, 7, 203),  # winter cereals
    Crop(0.15, -110, 0.45, 84, 10, 0.95, 181, 8, 199, bloom=121),  # rapeseed
    Crop(0.22, 133, 0.05, 170, 9, 0.97, 258, 10, 273),  # maize
    Crop(0.08, 108, 0.05, 156, 11, 0.94, 300, 9, 303),  # sugar beet
    Crop(0.11, 88, 0.08, 122, 9, 0.92, 189, 7, 211),  # spring barley
    Crop(0.04, 60, 0.25, 115, 20, 0.50, 255, 25, 400),  # fallow
)


@dataclass(frozen=True, slots=True)
class _Ground:
    """Covers of one kind on a day: keys (n,), bare soil (n, 10), day of the year, year."""

    keys: UintArray
    soil: FloatArray
    doy: float
    year: int


def paint(
    keys: UintArray, day: date, version: int, *, south: bool
) -> tuple[FloatArray, FloatArray]:
    """Give the colours of covers on a day.

    Parameters
    ----------
    keys : uint32 array (n,)
        Kinds and payloads, see `_cover`.
    day : date
        The day.
    version : int
        ``IMAGE_VERSION``.
    south : bool
        Whether the seasons are those of the southern hemisphere.

    Returns
    -------
    base, slope : float32 array (10, n)
        Reflectance x 10000, and its change by one deviation of the texture. Rows of
        water are zero.
    """
    # Half a year later, where the crop rotation's year begins as well.
    ordinal = day.toordinal() + (182 if south else 0)
    year = date.fromordinal(ordinal).year
    doy = float(ordinal - date(year, 1, 1).toordinal() + 1)
    moisture = _moisture(doy, ordinal)
    soil = _blend("soil dry", "soil wet", np.full(keys.size, moisture, np.float32))
    soil *= (0.8 + 0.4 * unit(mix(41, keys)))[:, None]

    base = np.zeros((keys.size, 10), np.float32)
    slope = np.zeros_like(base)
    kind = keys >> np.uint32(KIND_SHIFT)
    for which, painter in _PAINTERS.items():
        rows = np.flatnonzero(kind == which)
        if rows.size:
            base[rows], slope[rows] = painter(_Ground(keys[rows], soil[rows], doy, year))
    # The sun is lower in winter, and no two images agree to the last count.
    light = 1 + 0.05 * np.cos(2 * np.pi * (doy - 172) / 365.25)
    band = np.arange(10)
    noise = unit(mix(42, keys[:, None], band[None, :], ordinal, version)) - 0.5
    base *= light * (1 + 0.03 * noise)
    return np.ascontiguousarray(base.T), np.ascontiguousarray(slope.T)


def _moisture(doy: float, ordinal: int) -> float:
    """Give the wetness of bare soil, 0 to 1: wet winters, and rain in every season."""
    rain = sum(float(unit(mix(43, ordinal // days))) / 2 for days in (3, 11))
    return float(np.clip(0.45 + 0.25 * np.cos(2 * np.pi * doy / 365.25) + 0.6 * (rain - 0.5), 0, 1))


def _rise(doy: FloatArray | float, middle: FloatArray | float, days: float) -> FloatArray:
    """Go from 0 to 1 around a day."""
    # The logistic curve, written so that it cannot overflow.
    half = (np.asarray(doy) - middle) / (2 * days)
    return np.asarray(0.5 + 0.5 * np.tanh(half), np.float32)


def _blend(first: str, second: str, share: FloatArray) -> FloatArray:
    """Mix two materials: 0 is all of the first. Gives (n, 10)."""
    a, b = _SPECTRA[first], _SPECTRA[second]
    return a + (b - a) * share[:, None]


def _mixture(
    soil: FloatArray, green: FloatArray, straw: FloatArray, leaf: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mix leaves and straw over soil; vigour shifts the green share and the brightness."""
    bare = np.clip(1 - green - straw, 0, 1)[:, None]
    base = green[:, None] * leaf + straw[:, None] * _SPECTRA["straw"] + bare * soil
    vary = (0.025 + 0.24 * green * (1 - green))[:, None]
    return base, vary * (leaf - soil) + 0.022 * base


def _paint_crop(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    keys, soil, doy, year = ground.keys, ground.soil, ground.doy, ground.year
    green, straw, bloom = _crop_state(keys, doy, year)
    # In autumn the next harvest's winter crops are up already.
    after, _, _ = _crop_state(keys, doy - 365, year + 1)
    after = np.maximum(after - straw, 0)
    straw = np.minimum(straw, 1 - after)
    green = np.maximum(green, after)
    leaf = _SPECTRA["leaf"] + (_SPECTRA["bloom"] - _SPECTRA["leaf"]) * bloom[:, None]
    tint = 0.9 + 0.2 * unit(mix(44, keys))
    return _mixture(soil, green, straw, leaf * tint[:, None])


def _crop_state(
    keys: UintArray, doy: float, year: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give green share, straw share and bloom of parcels, of the harvest of one year."""
    draw = unit(mix(45, keys, year))
    edges = np.cumsum([crop.share for crop in CROPS])
    kinds = np.minimum(np.searchsorted(edges, draw, side="right"), len(CROPS) - 1)
    phase = (unit(mix(46, keys, year)) + unit(mix(47, keys, year)) - 1) * 13
    health = 0.86 + 0.14 * unit(mix(48, keys, year))
    green, straw, bloom = (np.zeros(keys.size, np.float32) for _ in range(3))
    for i, crop in enumerate(CROPS):
        at = np.flatnonzero(kinds == i)
        if not at.size:
            continue
        t = doy - phase[at]
        young = crop.young * _rise(t, crop.sown + 14, 6)
        rise = _rise(t, crop.rise, crop.rise_days)
        fall = _rise(t, crop.fall, crop.fall_days)
        cut = _rise(t, crop.harvest, 1.5)
        grown = (young + (crop.green - crop.young) * rise) * health[at]
        green[at] = grown * (1 - fall) * (1 - cut)
        # Stubble is ploughed in after some weeks.
        stubble = 0.55 * cut * (1 - _rise(t, crop.harvest + 38, 5))
        straw[at] = 0.85 * grown * fall * (1 - cut) + stubble
        if crop.bloom:
            bloom[at] = np.exp(-(((t - crop.bloom) / 10) ** 2))
    return green, straw, bloom


def _paint_grass(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    keys, soil, doy, year = ground.keys, ground.soil, ground.doy, ground.year
    summer = 0.5 - 0.5 * np.cos(2 * np.pi * (doy - 25) / 365.25)
    green = 0.52 + 0.38 * summer + 0.08 * (unit(mix(49, keys)) - 0.5)
    for i, middle in enumerate((143, 196, 252)):
        mown = middle + 24 * (unit(mix(50 + i, keys, year)) - 0.5)
        since = doy - mown
        # Half of the meadows are grazed, not mown.
        cut = (since >= 0) & (unit(mix(53, keys)) < 0.5)
        green = green - np.where(cut, 0.38 * np.exp(-np.maximum(since, 0) / 15), 0)
    straw = np.full(keys.size, 0.16 - 0.1 * summer, np.float32)
    leaf = np.broadcast_to(_SPECTRA["meadow"], soil.shape)
    return _mixture(soil, green.astype(np.float32), straw, leaf)


def _broadleaf(doy: float) -> FloatArray:
    """Give the colour (10,) of broad-leaved trees."""
    leafy = _rise(doy, 117, 6) * (1 - _rise(doy, 299, 7))
    tint = _rise(doy, 288, 6)
    crown = _SPECTRA["broad"] + (_SPECTRA["autumn"] - _SPECTRA["broad"]) * tint
    # Fresh leaves of May are brighter than those of August.
    fresh = 1 + 0.10 * np.exp(-(((doy - 140) / 22) ** 2))
    return np.asarray(leafy * crown * fresh + (1 - leafy) * _SPECTRA["twigs"], np.float32)


def _paint_forest(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    keys, doy = ground.keys, ground.doy
    stand = (keys & np.uint32(15)).astype(np.float32)
    conifer = np.clip((stand - 5) / 6, 0.06, 0.94)[:, None]
    needles = _SPECTRA["conifer"] * (1 + 0.08 * np.cos(2 * np.pi * (doy - 200) / 365.25))
    base = conifer * needles + (1 - conifer) * _broadleaf(doy)
    return base, 0.11 * base


def _paint_hedge(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    soil, doy = ground.soil, ground.doy
    base = np.zeros_like(soil) + 0.7 * _broadleaf(doy) + 0.3 * _SPECTRA["meadow"]
    return base, np.float32(0.09) * base


def _paint_lane(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    keys, soil = ground.keys, ground.soil
    paved = (keys & np.uint32(1)).astype(np.float32)[:, None]
    track = 0.55 * soil + 0.45 * _SPECTRA["meadow"]
    base = paved * (0.75 * _SPECTRA["asphalt"] + 0.25 * _SPECTRA["meadow"]) + (1 - paved) * track
    return base, 0.06 * base


def _paint_town(ground: _Ground) -> tuple[FloatArray, FloatArray]:
    keys, soil, doy = ground.keys, ground.soil, ground.doy
    lot = unit(mix(54, keys))[:, None]
    garden = 0.6 * _SPECTRA["meadow"] + 0.4 * _broadleaf(doy)
    base = np.select(
        [lot < 0.28, lot < 0.52, lot < 0.58, lot < 0.8],
        [
            0.7 * _SPECTRA["roof"] + 0.3 * garden,
            0.75 * _SPECTRA["asphalt"] + 0.25 * garden,
            np.broadcast_to(_SPECTRA["hall"], soil.shape),
            0.75 * garden + 0.25 * _SPECTRA["asphalt"],
        ],
        np.broadcast_to(_broadleaf(doy), soil.shape),
    ).astype(np.float32)
    return base, 0.09 * base


_PAINTERS: Final = {
    CROP: _paint_crop,
    GRASS: _paint_grass,
    HEDGE: _paint_hedge,
    FOREST: _paint_forest,
    TOWN: _paint_town,
    LANE: _paint_lane,
}
