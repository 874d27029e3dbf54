"""From a body to a typed request, in the order of checks of contract section 13."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from shapely.geometry.base import BaseGeometry

from clearsky_xr._bands import RGB, model_bands, parse_bandnames
from clearsky_xr.errors import InvalidBandError

from . import _fields
from ._errors import invalid
from ._fields import Fields
from ._models import MODELS, Model
from ._query import Composite, Search
from ._select import Mode

#: Contract, section 5.1.
RESOLUTIONS: Final = (10, 20, 40, 80, 160, 320, 640, 1280)
#: The server picks the zone (contract, section 5.5).
AUTO_UTM: Final = 47000
#: Degrees from a zone's central meridian up to which it is served: the zone's own 3
#: and as much again. Transverse Mercator is of no use much further out.
ZONE_REACH: Final = 6.0

_SEARCH = (
    "Wkt", "GeoJson", "From", "Until", "To", "Model", "SatelliteConstellations",
)  # fmt: skip
_COMPOSITE = (
    "Wkt", "GeoJson", "Date", "Resolution", "EpsgProjection", "Model",
    "SatelliteConstellations", "Bandnames", "FileType", "PixelSelectionMode", "DataType",
    "UtmDataSelectionMode", "UtmGridForcePixelResolutionSize", "AllowPartialImage",
    "AutomaticOrderCreation", "UploadUrl", "OldPixelSelectionMode", "Level", "Harmonize",
)  # fmt: skip


def search(body: dict[str, Any]) -> Search:
    """Check the body of ``search/available`` (contract, section 4.3).

    Raises
    ------
    ApiError
        992.
    """
    fields = Fields(body, _SEARCH)
    fields.read("Wkt", _fields.text, default=None)
    fields.read("GeoJson", _fields.mapping, default=None)
    first = fields.read("From", _fields.day, default=None)
    until, to = (
        fields.read("Until", _fields.day, None),
        fields.read("To", _fields.day, default=None),
    )
    fields.check("Until", "must not be given beside To", allowed=until is None or to is None)
    model = fields.read("Model", _model, None)
    constellations = fields.read("SatelliteConstellations", _fields.names, default=None)
    fields.finish()
    return Search(
        geometry=fields.geometry(),
        first=first,
        last=until or to,
        model=model,
        constellations=None if constellations is None else _lower(constellations),
    )


def composite(body: dict[str, Any], required: frozenset[str]) -> Composite:
    """Check the body of ``composite``, ``estimate`` or ``available``.

    Parameters
    ----------
    body : dict
        The three take the same properties, so that one body can be sent to all.
    required : frozenset of str
        Properties that this endpoint insists on.

    Raises
    ------
    ApiError
        992.
    """
    fields = Fields(body, _COMPOSITE)

    def read(name: str, convert: Callable[[Any], Any], *, default: Any = None) -> Any:
        return fields.read(name, convert, default, required=name in required)

    read("Wkt", _fields.text)
    read("GeoJson", _fields.mapping)
    day = read("Date", _fields.day)
    resolution = read("Resolution", _one_of(RESOLUTIONS), default=10)
    epsg = read("EpsgProjection", _epsg, default=AUTO_UTM)
    model = read("Model", _model)
    constellations = _lower(read("SatelliteConstellations", _fields.names, default=()))
    bandnames = read("Bandnames", _fields.text, default="all")
    read("FileType", _fields.choice("tif"))
    mode = read("PixelSelectionMode", _fields.choice("intersect", "contained"), default="intersect")
    read("DataType", _data_type)
    # The archive has every zone everywhere within reach, so nothing is ever filled in from a
    # neighbouring one and the next two make no difference.
    read(
        "UtmDataSelectionMode",
        _fields.choice("single_utm_fully_covered", "single_utm", "combined_utm"),
    )
    read("UtmGridForcePixelResolutionSize", _fields.boolean)
    allow_partial = read("AllowPartialImage", _fields.boolean, default=False)
    orders = read("AutomaticOrderCreation", _fields.boolean, default=False)
    fields.check(
        "AutomaticOrderCreation", "must be false: the sandbox sells no orders", allowed=not orders
    )
    upload = read("UploadUrl", _fields.text)
    fields.check("UploadUrl", "must be null: the sandbox does not upload", allowed=upload is None)
    read("OldPixelSelectionMode", _fields.boolean)
    level = read("Level", _fields.integer, default=2)
    fields.check("Level", "must be 2, the only level of the Stratus models", allowed=level == 2)
    harmonize = read("Harmonize", _fields.boolean, default=True)
    if model is not None and "SatelliteConstellations" in required:
        _check_constellations(fields, model, constellations)
    fields.finish()
    geometry = fields.geometry()
    return Composite(
        geometry=geometry,
        layers=_layers(bandnames, model),
        day=day,
        model=model,
        constellations=constellations,
        epsg=_zone(epsg, geometry),
        resolution=resolution,
        mode=cast("Mode", mode),
        harmonize=harmonize,
        allow_partial=allow_partial,
    )


def _lower(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.lower() for word in words)


def _one_of(allowed: tuple[int, ...]) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if _fields.integer(value) not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return int(value)

    return convert


def _epsg(value: Any) -> int:
    code = _fields.integer(value)
    if code != AUTO_UTM and not (code // 100 in (326, 327) and 1 <= code % 100 <= 60):
        raise ValueError("must be a UTM zone, 326zz or 327zz, or 47000: the sandbox has no other")
    return code


def _data_type(value: Any) -> str:
    word = _fields.choice("int16", "uint8")(value)
    if word == "uint8":
        raise ValueError("must be INT16: the scaling of UINT8 is not documented, so not emulated")
    return word


def _model(value: Any) -> Model:
    model = MODELS.get(_fields.text(value).lower())
    if model is None:
        raise ValueError(f"must be one of {', '.join(m.name for m in MODELS.values())}")
    return model


def _check_constellations(fields: Fields, model: Model, sent: frozenset[str]) -> None:
    missing = [name for name in model.required if name.lower() not in sent]
    unknown = sent - {name.lower() for name in model.constellations}
    name = "SatelliteConstellations"
    fields.check(name, f"must contain {', '.join(missing)}", allowed=not missing or not sent)
    fields.check(name, f"must be among {', '.join(model.constellations)}", allowed=not unknown)


def _layers(bandnames: str, model: Model | None) -> tuple[str, ...]:
    """Read ``Bandnames`` (contract, section 5.4) against what the model offers."""
    offered = model_bands(model.name if model else "Stratus2")
    try:
        layers = parse_bandnames(bandnames)
    except InvalidBandError as error:
        raise invalid(Bandnames=f"Bandnames must be bands and indices: {error.message}") from None
    if layers == ("all",):
        return offered
    if layers == ("rgb",):
        return RGB
    used = {band for layer in layers for band in layer.strip("[]").split("_")}
    if missing := sorted(used - set(offered)):
        raise invalid(Bandnames=f"Bandnames must be bands of the model, not {', '.join(missing)}")
    # What the service makes of a band asked twice is not known: clients should not try.
    if len(set(layers)) < len(layers):
        raise invalid(Bandnames="Bandnames must name each band and index once")
    return layers


def _zone(epsg: int, geometry: BaseGeometry) -> int:
    """Resolve 47000, and refuse a zone that is far from the geometry."""
    if epsg == AUTO_UTM:
        centre = geometry.centroid
        number = min(int((centre.x + 180) // 6) + 1, 60)
        return (32600 if centre.y >= 0 else 32700) + number
    meridian = (epsg % 100) * 6 - 183
    west, _, east, _ = geometry.bounds
    if west < meridian - ZONE_REACH or east > meridian + ZONE_REACH:
        raise invalid(
            EpsgProjection=f"EpsgProjection must be a zone near the geometry; {epsg} reaches "
            f"{ZONE_REACH:g} degrees to either side of {meridian}"
        )
    return epsg
