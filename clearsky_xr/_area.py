"""Whatever a user calls an area, as one valid polygon in EPSG:4326."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from .errors import InvalidAreaError

Area = shapely.Polygon | shapely.MultiPolygon

# UTM is defined between these latitudes, degrees (EPSG area of use of 326zz and 327zz).
_UTM_SOUTH: Final = -80.0
_UTM_NORTH: Final = 84.0
_WKT: Final = re.compile(
    r"(SRID\s*=\s*4326\s*;\s*)?[A-Z]+\s*(Z|M|ZM)?\s*(\(|EMPTY$)", re.IGNORECASE
)
_FORMS: Final = (
    "Give (west, south, east, north) in degrees, GeoJSON (dict, text or file path), WKT, a shapely "
    "polygon, a GeoDataFrame or anything with __geo_interface__."
)


def resolve_area(area: Any) -> Area:
    """Turn an area of any form into one valid (Multi)Polygon.

    Parameters
    ----------
    area : tuple, dict, str, path, geometry, GeoDataFrame, GeoSeries
        ``(west, south, east, north)`` in degrees; GeoJSON geometry, Feature or
        FeatureCollection as dict, text or file path; WKT; a shapely geometry;
        anything with ``__geo_interface__``; a GeoDataFrame or GeoSeries in any
        CRS. Several polygons become one MultiPolygon.

    Returns
    -------
    shapely.Polygon or shapely.MultiPolygon
        In EPSG:4326, degrees, longitude first, normalised so that equal areas
        compare equal.

    Raises
    ------
    InvalidAreaError
        Not an area on the globe: empty, no polygon, self-intersecting, outside
        longitude -180..180 or latitude -80..84, or across the antimeridian.
    """
    parts = list(_polygons(_geometries(area)))
    for part in parts:
        _check_coordinates(part)
        if not part.is_valid:
            raise InvalidAreaError(
                f"the polygon is not valid: {shapely.is_valid_reason(part)}",
                hint="Repair it, for example with shapely.make_valid(polygon), and look at it.",
            )
    merged = shapely.normalize(parts[0] if len(parts) == 1 else shapely.union_all(parts))
    if merged.area == 0:
        raise InvalidAreaError(
            "the area is empty: it encloses no surface",
            hint="A point or a line needs a buffer before it can be bought.",
        )
    west, south, east, north = merged.bounds
    if east - west > 180:
        raise InvalidAreaError(
            f"the area spans {east - west:.1f} degrees of longitude",
            hint="If it crosses the antimeridian, split it at 180 degrees and open the two halves.",
        )
    if south < _UTM_SOUTH or north > _UTM_NORTH:
        raise InvalidAreaError(
            f"the area reaches from latitude {south:.2f} to {north:.2f}",
            hint=f"UTM, and so the imagery, ends at {_UTM_SOUTH:.0f} and {_UTM_NORTH:.0f} degrees.",
        )
    assert isinstance(merged, shapely.Polygon | shapely.MultiPolygon)
    return merged


def _geometries(area: Any) -> Iterator[BaseGeometry]:
    """Yield the geometries in EPSG:4326, of any type, that the argument holds."""
    if isinstance(area, BaseGeometry):
        yield area
    elif isinstance(area, os.PathLike):
        yield from _from_file(Path(area))
    elif isinstance(area, str):
        yield from _from_text(area)
    elif isinstance(area, Mapping):
        yield from _from_geojson(area)
    elif hasattr(area, "to_crs"):
        yield from _from_frame(area)
    elif hasattr(area, "__geo_interface__"):
        yield from _from_geojson(area.__geo_interface__)
    elif isinstance(area, Iterable) and not isinstance(area, AbstractSet):
        values = list(np.atleast_1d(area) if isinstance(area, np.ndarray) else area)
        if len(values) != 4 or not all(isinstance(v, Real) for v in values):
            raise InvalidAreaError(f"cannot read {_short(area)} as an area", hint=_FORMS)
        yield _from_bounds(*(float(v) for v in values))
    else:
        raise InvalidAreaError(f"cannot read a {type(area).__name__} as an area", hint=_FORMS)


def _from_bounds(west: float, south: float, east: float, north: float) -> BaseGeometry:
    if not np.isfinite([west, south, east, north]).all():
        raise InvalidAreaError("the bounds hold a value that is not finite", hint=_FORMS)
    if south >= north:
        raise InvalidAreaError(
            f"south ({south}) is not below north ({north})",
            hint="The order is (west, south, east, north), in degrees.",
        )
    if west >= east:
        raise InvalidAreaError(
            f"west ({west}) is not left of east ({east})",
            hint="The order is (west, south, east, north). An area across the antimeridian must "
            "be split at 180 degrees into two cubes.",
        )
    return shapely.box(west, south, east, north)


def _from_text(text: str) -> Iterator[BaseGeometry]:
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            document = json.loads(stripped)
        except (ValueError, RecursionError) as error:
            raise InvalidAreaError(f"the GeoJSON text is broken: {error}", hint=_FORMS) from None
        yield from _from_geojson(document)
    elif _WKT.match(stripped):
        try:
            yield shapely.from_wkt(stripped.rpartition(";")[2])
        except (shapely.errors.GEOSException, NotImplementedError) as error:
            raise InvalidAreaError(f"the WKT is broken: {error}", hint=_FORMS) from None
    else:
        yield from _from_file(Path(stripped))


def _from_file(path: Path) -> Iterator[BaseGeometry]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        if isinstance(error, IsADirectoryError) and (path / "zarr.json").exists():
            raise InvalidAreaError(
                f"{str(path)!r} is a Zarr cube and not an area",
                hint="clearsky_xr.open_store opens what was bought into a store; to buy into it "
                "give the area, and the cube as store=.",
            ) from None
        raise InvalidAreaError(
            f"cannot read the area file {_named(path)}: {error.strerror}", hint=_FORMS
        ) from None
    except (ValueError, RecursionError):
        raise InvalidAreaError(
            f"{_named(path)} is not GeoJSON",
            hint="Open other formats with geopandas.read_file and pass the GeoDataFrame.",
        ) from None
    yield from _from_geojson(document)


def _from_geojson(document: Any) -> Iterator[BaseGeometry]:
    if not isinstance(document, Mapping) or "type" not in document:
        raise InvalidAreaError("the GeoJSON has no 'type'", hint=_FORMS)
    crs = document.get("crs")
    if crs is not None and not re.search(r"(4326|CRS84)\D*$", str(crs)):
        raise InvalidAreaError(
            f"the GeoJSON says that it is in another CRS: {_short(crs)}",
            hint="GeoJSON is in degrees; open it with geopandas.read_file, which reprojects it.",
        )
    if document["type"] == "FeatureCollection":
        features = document.get("features") or []
        if not isinstance(features, list | tuple):
            raise InvalidAreaError("the 'features' of the GeoJSON are no list", hint=_FORMS)
        for feature in features:
            yield from _from_feature(feature)
    elif document["type"] == "Feature":
        yield from _from_feature(document)
    else:
        try:
            yield shape(dict(document))
        except Exception as error:  # noqa: BLE001  shapely raises whatever the broken nesting leads to
            raise InvalidAreaError(f"the GeoJSON is broken: {error}", hint=_FORMS) from None


def _from_feature(feature: Any) -> Iterator[BaseGeometry]:
    geometry = feature.get("geometry") if isinstance(feature, Mapping) else feature
    if isinstance(geometry, Mapping) and geometry.get("type") in ("Feature", "FeatureCollection"):
        raise InvalidAreaError("the GeoJSON nests features in features", hint=_FORMS)
    if geometry is not None:
        yield from _from_geojson(geometry)


def _from_frame(frame: Any) -> Iterator[BaseGeometry]:
    """Read a GeoDataFrame, a GeoSeries, or an ``odc.geo`` geometry: things with a CRS."""
    # A GeoDataFrame without a geometry column has no attribute crs either.
    if getattr(frame, "crs", None) is None:
        raise InvalidAreaError(
            f"the {type(frame).__name__} has no geometry with a CRS",
            hint="Say which it is, for example frame.set_crs(4326).",
        )
    frame = frame.to_crs("EPSG:4326")
    # A table may have a column "geom" as well; only a single geometry has no "geometry".
    yield from frame.geometry if hasattr(frame, "geometry") else [frame.geom]


def _polygons(geometries: Iterable[BaseGeometry | None]) -> Iterator[Area]:
    found = False
    for geometry in geometries:
        if geometry is None or geometry.is_empty:
            continue
        for part in shapely.get_parts(geometry) if "Coll" in geometry.geom_type else [geometry]:
            if not isinstance(part, shapely.Polygon | shapely.MultiPolygon):
                raise InvalidAreaError(
                    f"the area holds a {part.geom_type}, which encloses no surface",
                    hint="Only polygons can be bought; give points and lines a buffer. For values "
                    "at points open an area around them and use clearsky_xr.sample.",
                )
            if not part.is_empty:
                found = True
                yield shapely.force_2d(part)
    if not found:
        raise InvalidAreaError("the area is empty: it holds no polygon", hint=_FORMS)


def _check_coordinates(part: Area) -> None:
    xy = shapely.get_coordinates(part)
    if not np.isfinite(xy).all():
        raise InvalidAreaError(
            "the polygon holds a coordinate that is not finite",
            hint="Coordinates are degrees; a projection far outside its zone gives infinities.",
        )
    (west, south), (east, north) = xy.min(axis=0), xy.max(axis=0)
    if west >= -180 and east <= 180 and south >= -90 and north <= 90:
        return
    if max(abs(west), abs(east)) <= 90 and max(abs(south), abs(north)) <= 180:
        hint = "Longitude comes first; these look swapped."
    elif max(abs(west), abs(east), abs(south), abs(north)) > 360:
        hint = "These look projected: pass a GeoDataFrame that knows its CRS."
    else:
        hint = "Split an area across the antimeridian at 180 degrees and open the two halves."
    raise InvalidAreaError(
        f"the polygon reaches from ({west:.6g}, {south:.6g}) to ({east:.6g}, {north:.6g}), outside "
        "longitude -180..180 and latitude -90..90",
        hint=hint,
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _named(path: Path) -> str:
    """Name a file; what was taken for a path may be anything."""
    text = str(path)
    return repr(text if len(text) <= 1000 else f"{text[:77]}...")
