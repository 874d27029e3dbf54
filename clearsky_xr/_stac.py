"""A folder of our GeoTIFFs as a STAC collection, read from the files themselves."""

from __future__ import annotations

import datetime as dt
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyproj
import shapely

from ._cog import Head, read_head
from ._layers import NODATA
from .errors import InputError

if TYPE_CHECKING:
    import pystac

#: Tag by which a file is known again as what would be written in its place.
SELECTION: Final = "CLEARSKY_SELECTION"
#: Tag that says that a file's pixels are no imagery.
SANDBOX: Final = "CLEARSKY_SANDBOX"

# Points on each side of a footprint: straight in metres, bent by centimetres in degrees.
_DENSE: Final = 8


def require_pystac() -> None:
    """Make sure that pystac is there, before anything is bought.

    Raises
    ------
    InputError
        It is not.
    """
    if find_spec("pystac") is None:
        raise InputError(
            "writing STAC needs pystac", hint="Install it: pip install 'clearsky-xr[stac]'."
        )


def catalogue(folder: Path) -> Path:
    """Write a collection of the files of a folder, and an item for each, beside them.

    Parameters
    ----------
    folder : pathlib.Path
        Files that `Export` has not written are left out.

    Returns
    -------
    pathlib.Path
        Of the collection.
    """
    import pystac

    found = {path: read_head(path) for path in sorted(folder.glob("*.tif"))}
    files = {path: head for path, head in found.items() if head and SELECTION in head.tags}
    items = [_item(path, head) for path, head in files.items()]
    target = folder / "collection.json"
    collection = _collection(items, list(files.values()))
    collection.catalog_type = pystac.CatalogType.SELF_CONTAINED
    collection.set_self_href(str(target))
    for path, item in zip(files, items, strict=True):
        collection.add_item(item, set_parent=True)
        item.set_self_href(str(path.with_suffix(".json")))
        item.make_asset_hrefs_relative()
    for path, item in zip(files, items, strict=True):
        _save(path.with_suffix(".json"), item.to_dict(include_self_link=False))
    _save(target, collection.to_dict(include_self_link=False))
    return target


def _item(path: Path, head: Head) -> pystac.Item:
    import pystac
    from pystac.extensions.eo import Band, EOExtension
    from pystac.extensions.projection import ProjectionExtension
    from pystac.extensions.raster import DataType, RasterBand, RasterExtension

    frame, (rows, cols), tags = head.frame, head.shape, head.tags
    size = frame.resolution
    right, bottom = frame.left + cols * size, frame.top - rows * size
    box = shapely.box(frame.left, bottom, right, frame.top)
    footprint = _in_degrees(box, frame.epsg, max(right - frame.left, frame.top - bottom) / _DENSE)
    day = dt.datetime.fromisoformat(tags["DATE"]).replace(tzinfo=dt.UTC)
    item = pystac.Item(
        id=f"{tags['MODEL']}-{tags['DATE']}",
        geometry=json.loads(shapely.to_geojson(footprint)),
        bbox=list(footprint.bounds),
        datetime=day,
        properties={
            f"clearsky:{name.lower()}": tags[name]
            for name in ("MODEL", "MODEL_VERSION", "IMAGE_VERSION", "CONSTELLATIONS")
            if name in tags
        },
    )
    item.common_metadata.gsd = size
    if SANDBOX in tags:
        item.common_metadata.title = "SANDBOX, not imagery"
        item.common_metadata.description = tags[SANDBOX]
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.epsg = frame.epsg
    projection.shape = [rows, cols]
    projection.transform = [size, 0.0, frame.left, 0.0, -size, frame.top]
    projection.bbox = [frame.left, bottom, right, frame.top]
    asset = pystac.Asset(
        href=str(path.resolve()),
        media_type=pystac.MediaType.COG,
        roles=["data"],
        title=", ".join(layer.name for layer in head.layers),
    )
    item.add_asset("data", asset)
    EOExtension.ext(asset, add_if_missing=True).bands = [
        Band.create(
            name=layer.name,
            common_name=_common_name(layer.tags.get("common_name")),
            description=layer.tags.get("long_name"),
            center_wavelength=_micrometres(layer.tags.get("wavelength_nm")),
            full_width_half_max=_micrometres(layer.tags.get("bandwidth_nm")),
        )
        for layer in head.layers
    ]
    RasterExtension.ext(asset, add_if_missing=True).bands = [
        RasterBand.create(
            data_type=DataType.INT16,
            nodata=NODATA,
            scale=layer.scale,
            offset=0.0,
            spatial_resolution=size,
        )
        for layer in head.layers
    ]
    return item


def _collection(items: list[pystac.Item], heads: list[Head]) -> pystac.Collection:
    import pystac

    boxes = [item.bbox for item in items if item.bbox is not None]
    whole = [*(min(box[k] for box in boxes) for k in (0, 1)),
             *(max(box[k] for box in boxes) for k in (2, 3))]  # fmt: skip
    times = [item.datetime for item in items if item.datetime is not None]
    kinds = sorted({head.tags[SANDBOX] for head in heads if SANDBOX in head.tags})
    models = ", ".join(sorted({head.tags["MODEL"] for head in heads}))
    title = f"Cloudless Sentinel-2 time series, {models}"
    description = (
        "ClearSKY Vision's images, synthesised by a network, also where the sky was clear; "
        "written by clearsky_xr."
    )
    if kinds:
        title = f"SANDBOX, not imagery: {title}"
        description = f"Files of the clearsky_xr sandbox: {'; '.join(kinds)}."
    return pystac.Collection(
        id="clearsky-sandbox" if kinds else "clearsky",
        title=title,
        description=description,
        license="other",
        extent=pystac.Extent(
            pystac.SpatialExtent([whole]), pystac.TemporalExtent([[min(times), max(times)]])
        ),
        providers=None
        if kinds
        else [
            pystac.Provider(
                name="ClearSKY Vision",
                roles=[pystac.ProviderRole.PRODUCER, pystac.ProviderRole.LICENSOR],
                url="https://clearsky.vision",
            )
        ],
    )


def _in_degrees(box: shapely.Polygon, epsg: int, step: float) -> shapely.Polygon:
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    x, y = shapely.get_coordinates(shapely.segmentize(box, step)).T
    ring = np.round(np.column_stack(to_degrees.transform(x, y)), 7)
    return shapely.orient_polygons(shapely.Polygon(ring))


def _common_name(name: str | None) -> str | None:
    """Give a name that every version of the extension knows: of red edges it has one."""
    return "rededge" if name is not None and name.startswith("rededge") else name


def _micrometres(nanometres: str | None) -> float | None:
    return None if nanometres is None else float(nanometres) / 1000


def _save(path: Path, document: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        partial.write_text(json.dumps(document, indent=2), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
