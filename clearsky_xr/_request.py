"""One request for one image, as the service reads it, and what comes with its answer."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ._pixels import PixelSet


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One date, one pixel set, all layers of the cube: one POST.

    Parameters
    ----------
    date : datetime.date
        UTC day.
    pixels : PixelSet
        What the answer must hold, in lattice pixels.
    wkt : str
        The geometry that selects exactly `pixels`, EPSG:4326.
    credits : float
        What it costs by the contract's formula.
    layers : tuple of str
        Items of ``Bandnames``, in the order of the answer's bands.
    epsg, resolution : int
        The lattice: UTM zone, and metres.
    model : str
    constellations : tuple of str
    allow_partial : bool
        Whether zones that lack the date may come back as nodata.
    """

    date: dt.date
    pixels: PixelSet
    wkt: str
    credits: float
    layers: tuple[str, ...]
    epsg: int
    resolution: int
    model: str
    constellations: tuple[str, ...]
    allow_partial: bool

    def body(self) -> dict[str, Any]:
        """Give the JSON body, with every optional field sent (contract, sections 4.6, 14)."""
        return {
            "Wkt": self.wkt,
            "Date": f"{self.date}T00:00:00Z",
            "Resolution": self.resolution,
            "EpsgProjection": self.epsg,
            "Model": self.model,
            "SatelliteConstellations": list(self.constellations),
            "Bandnames": ",".join(self.layers),
            "FileType": "tif",
            "DataType": "INT16",
            "PixelSelectionMode": "intersect",
            # Near a zone's edge, take what is missing from the neighbour zone.
            "UtmDataSelectionMode": "combined_utm",
            # A series needs pixels of exactly this size on every date.
            "UtmGridForcePixelResolutionSize": True,
            "AllowPartialImage": self.allow_partial,
            # True could place an order, for money.
            "AutomaticOrderCreation": False,
            "OldPixelSelectionMode": False,
        }

    @property
    def fingerprint(self) -> str:
        """A name of the request that depends on its body alone."""
        canonical = json.dumps(self.body(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came with a paid answer.

    Parameters
    ----------
    image_date, model_version, image_version, constellations : str
        The GeoTIFF's tags, as they are; empty where there is none.
    credits : float
        By the contract's formula.
    when : datetime.datetime
        When the answer was complete, UTC.
    request : str
        Fingerprint of the request.
    """

    image_date: str
    model_version: str
    image_version: str
    constellations: str
    credits: float
    when: dt.datetime
    request: str
