"""The band catalogue, the index catalogue and the ``Bandnames`` grammar.

A *layer* is one output band of the service: a spectral band (``"B8"``) or a
normalised difference that the server computes (``"[B8_B4]"``). Layers are
written as the items of the service's ``Bandnames`` string, which makes the
string itself ``",".join(layers)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from .errors import InvalidBandError


@dataclass(frozen=True, slots=True)
class Band:
    """One spectral band.

    Parameters
    ----------
    id : str
        The service's identifier, e.g. ``"B8A"``.
    common_name : str
        Name in the vocabulary of the STAC ``eo`` extension, with ``rededge1``
        to ``rededge3`` told apart as the public Sentinel-2 catalogues do.
    name : str
        Name in words.
    wavelength : float
        Centre, nanometres.
    bandwidth : float
        Full width, nanometres.
    """

    id: str
    common_name: str
    name: str
    wavelength: float
    bandwidth: float


# Centres and half-widths of the ten Stratus bands: contract, section 7.1. B8 is
# printed there as 732 nm, a slip for 832 (the half-width of 53 nm is B8's own).
# B1, B9 and B10 (Nimbus only): nominal Sentinel-2A values of ESA.
BANDS: Final[Mapping[str, Band]] = {
    band.id: band
    for band in (
        Band("B1", "coastal", "Coastal aerosol", 443, 21),
        Band("B2", "blue", "Blue", 492, 66),
        Band("B3", "green", "Green", 559, 36),
        Band("B4", "red", "Red", 664, 30),
        Band("B5", "rededge1", "Red edge 1", 704, 16),
        Band("B6", "rededge2", "Red edge 2", 740, 14),
        Band("B7", "rededge3", "Red edge 3", 782, 20),
        Band("B8", "nir", "Near infrared", 832, 106),
        Band("B8A", "nir08", "Narrow near infrared", 864, 22),
        Band("B9", "nir09", "Water vapour", 945, 20),
        Band("B10", "cirrus", "Cirrus", 1375, 31),
        Band("B11", "swir16", "Shortwave infrared 1", 1613, 94),
        Band("B12", "swir22", "Shortwave infrared 2", 2200, 184),
    )
}

#: The bands of the Stratus models, in the order of the service's ``all``.
STRATUS: Final[tuple[str, ...]] = (
    "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12",
)  # fmt: skip

#: True colour, written out because the service's own ``rgb`` has no documented order.
RGB: Final[tuple[str, ...]] = ("B4", "B3", "B2")

#: Normalised differences by name: (X, Y) stands for (X - Y) / (X + Y).
INDICES: Final[Mapping[str, tuple[str, str]]] = {
    "ndvi": ("B8", "B4"),  # vegetation: Rouse et al. 1974
    "gndvi": ("B8", "B3"),  # green vegetation: Gitelson et al. 1996
    "ndre": ("B8", "B5"),  # red edge, chlorophyll: Gitelson and Merzlyak 1994
    "ndwi": ("B3", "B8"),  # open water: McFeeters 1996
    "mndwi": ("B3", "B11"),  # open water beside buildings: Xu 2006
    "ndmi": ("B8", "B11"),  # moisture of the canopy: Gao 1996
    "ndsi": ("B3", "B11"),  # snow: Hall et al. 1995
    "ndbi": ("B11", "B8"),  # buildings: Zha et al. 2003
    "nbr": ("B8", "B12"),  # burns: Key and Benson 2006
    "nbr2": ("B11", "B12"),  # burns and tillage: USGS
}

_ALIASES: Final[Mapping[str, str]] = {
    **{band.common_name: band.id for band in BANDS.values()},
    "rededge": "B5",
    "rededge071": "B5",
    "rededge074": "B6",
    "rededge078": "B7",
    "swir1": "B11",
    "swir2": "B12",
}
# Variables and coordinates of every cube.
_RESERVED: Final = frozenset(
    {"reflectance", "time", "band", "y", "x", "spatial_ref", "common_name", "band_name"}
    | {"wavelength", "bandwidth"}
)
_BAND_ID = re.compile(r"B0*(\d{1,2})(A?)", re.IGNORECASE)
_INDEX = re.compile(r"\[\s*(\w+?)\s*_\s*(\w+)\s*\]")


def model_bands(model: str) -> tuple[str, ...]:
    """Give the bands that a model offers (contract, section 7.2).

    Parameters
    ----------
    model : str
        ``Model`` of the service. Everything but a Stratus is taken to offer
        the whole catalogue; the service has the last word.
    """
    return STRATUS if model.lower().startswith("stratus") else tuple(BANDS)


def band_id(name: str, offered: Iterable[str] = BANDS) -> str:
    """Turn any usual spelling of one band into the service's identifier.

    Parameters
    ----------
    name : str
        ``"B8A"``, ``"b8a"``, ``"B08"``, ``"nir"``, ``"rededge1"``, ...
    offered : iterable of str
        The ids that the message names if there is no such band.

    Raises
    ------
    InvalidBandError
        No such band; the message names near matches.
    """
    text = str(name).strip()
    if match := _BAND_ID.fullmatch(text):
        text = f"B{int(match[1])}{match[2].upper()}"
    text = _ALIASES.get(text.lower(), text)
    if text not in BANDS:
        offered = tuple(offered)
        known = [*offered, *(alias for alias, band in _ALIASES.items() if band in offered)]
        near = get_close_matches(str(name).strip(), known, 3) or get_close_matches(
            str(name).strip().lower(), known, 3
        )
        raise InvalidBandError(
            f"there is no band {name!r}",
            hint=f'That is an index: indices="{str(name).strip().lower()}".'
            if str(name).strip().lower() in INDICES
            else (f"did you mean {', '.join(near)}? " if near else "")
            + f"Bands: {', '.join(offered)}; common names: "
            + f"{', '.join(BANDS[i].common_name for i in offered)}.",
        )
    return text


def resolve_bands(bands: str | Iterable[str] | None, model: str) -> tuple[str, ...]:
    """Turn the ``bands`` option into an explicit tuple of band ids.

    Parameters
    ----------
    bands : str, iterable of str or None
        ``"all"``, ``"rgb"``, one name, several names in one comma separated
        string, or names. None stands for none (indices only).
    model : str
        Bounds what may be asked.

    Raises
    ------
    InvalidBandError
        Unknown or repeated band, or one that the model does not offer.
    """
    offered = model_bands(model)
    if bands is None:
        return ()
    if isinstance(bands, str):
        if bands.strip().lower() == "all":
            return offered
        if bands.strip().lower() == "rgb":
            return RGB
        bands = bands.split(",")
    try:
        names = list(bands)
    except TypeError:
        raise InvalidBandError(
            f"bands must be a name or names, got {type(bands).__name__}",
            hint='Examples: bands="all", bands="rgb", bands=["B4", "nir"].',
        ) from None
    ids = [band_id(name, offered) for name in names]
    if repeated := sorted({i for i in ids if ids.count(i) > 1}):
        raise InvalidBandError(
            f"band asked more than once: {', '.join(repeated)}",
            hint="Name each band once; different spellings of one band count as the same.",
        )
    if missing := [i for i in ids if i not in offered]:
        raise InvalidBandError(
            f"model {model} does not offer {', '.join(missing)}",
            hint=f"It offers {', '.join(offered)}.",
        )
    return tuple(ids)


def resolve_indices(
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None, model: str
) -> tuple[tuple[str, str], ...]:
    """Turn the ``indices`` option into ``(variable name, layer)`` pairs.

    Parameters
    ----------
    indices : str, iterable of str, mapping or None
        Names of the catalogue `INDICES`, or a mapping of a name of your own to
        the pair ``(X, Y)`` of ``(X - Y) / (X + Y)``.
    model : str
        Bounds the bands that may be used.

    Raises
    ------
    InvalidBandError
        Unknown index, or a pair that is not two different bands of the model.
    """
    if indices is None:
        return ()
    if isinstance(indices, str):
        indices = [name.strip() for name in indices.split(",")]
    if isinstance(indices, Mapping):
        pairs = dict(indices)
    elif not isinstance(indices, Iterable):
        raise InvalidBandError(
            f"indices must be names or pairs by name, got {type(indices).__name__}",
            hint='Examples: indices="ndvi", indices={"mine": ("B8", "B5")}.',
        )
    else:
        pairs = {}
        for name in indices:
            if str(name).lower() not in INDICES:
                near = get_close_matches(str(name).lower(), list(INDICES), 3)
                raise InvalidBandError(
                    f"there is no index {name!r} in the catalogue",
                    hint=(f"did you mean {', '.join(near)}? " if near else "")
                    + f"Known: {', '.join(INDICES)}; any other normalised difference works as "
                    + 'indices={"mine": ("B8", "B5")}. Others are computed from bands.',
                )
            pairs[str(name).lower()] = INDICES[str(name).lower()]
    resolved = []
    for name, pair in pairs.items():
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise InvalidBandError(
                f"{name!r} cannot name an index variable",
                hint="Use letters, digits and underscores, and none of the names of the cube: "
                f"{', '.join(sorted(_RESERVED))}.",
            )
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidBandError(
                f"index {name!r} must be a pair of bands, got {pair!r}",
                hint='For (B8 - B5) / (B8 + B5) write {"mine": ("B8", "B5")}.',
            )
        x, y = resolve_bands(list(pair), model)
        resolved.append((name, f"[{x}_{y}]"))
    return tuple(resolved)


def parse_bandnames(text: str) -> tuple[str, ...]:
    """Read a ``Bandnames`` string of the service (contract, section 5.4).

    Returns
    -------
    tuple of str
        Layers in canonical spelling, in the order written; ``all`` and ``rgb``
        are not expanded here, since what they mean depends on the model.

    Raises
    ------
    InvalidBandError
        The string is not in the grammar.
    """
    layers = []
    for item in text.split(","):
        word = item.strip()
        if index := _INDEX.fullmatch(word):
            layers.append(f"[{_strict_id(index[1])}_{_strict_id(index[2])}]")
        elif word.lower() in ("all", "rgb") and "," not in text:
            layers.append(word.lower())
        else:
            layers.append(_strict_id(word))
    return tuple(layers)


def _strict_id(word: str) -> str:
    """Give the band id, without the aliases that the service does not know."""
    if word.upper() not in BANDS:
        raise InvalidBandError(f"{word!r} is not a band or an index of the service")
    return word.upper()
