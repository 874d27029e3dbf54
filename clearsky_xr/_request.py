"""One request for one image, as the service reads it, and what comes with its answer."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ._pixels import PixelSet, Window


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
    area_km2 : float
        The surface that is billed.
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
    area_km2: float = 0.0

    @property
    def credits_at_most(self) -> float:
        """The price rounded up to the cent."""
        # Less a hair: 0.3 km2 are 3 cents, not 4.
        return max(self.credits, math.ceil(self.area_km2 * 10 - 1e-6) / 100)

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
    def question(self) -> Question:
        """What to ask whether it can be served."""
        return Question(
            self.date, self.wkt, self.layers, self.epsg, self.model, self.constellations
        )

    @property
    def fingerprint(self) -> str:
        """A name of the request that depends on its body alone."""
        canonical = json.dumps(self.body(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def dumps(self) -> str:
        """Write the request as JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mask = self.pixels.mask
        fields["date"] = self.date.isoformat()
        fields["pixels"] = [
            *dataclasses.astuple(self.pixels.window),
            None if mask is None
            else base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 1)).decode(),
        ]  # fmt: skip
        return json.dumps(fields)

    @classmethod
    def loads(cls, text: str) -> Self:
        """Read what `dumps` has written.

        Raises
        ------
        ValueError
            It is something else, or cut off.
        """
        try:
            fields = json.loads(text)
            *edges, packed = fields["pixels"]
            window = Window(*(int(edge) for edge in edges))
            if min(window.shape) < 1:
                raise ValueError("the window is empty")
            mask = None
            if packed is not None:
                length = -(-window.size // 8)
                # Bounded, whatever the text says.
                raw = zlib.decompressobj().decompress(base64.b64decode(packed), length)
                if len(raw) != length:
                    raise ValueError("the mask is cut off")
                bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=window.size)
                mask = bits.reshape(window.shape).astype(bool)
            fields |= {
                "date": dt.date.fromisoformat(fields["date"]),
                "pixels": PixelSet(window, mask),
                "layers": tuple(map(str, fields["layers"])),
                "constellations": tuple(map(str, fields["constellations"])),
            }
            return cls(**fields)
        except (
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            OverflowError,
            MemoryError,
            zlib.error,
        ) as error:
            raise ValueError(f"not a request: {error}") from None


@dataclass(frozen=True, slots=True)
class Question:
    """What the availability call is asked: part of a request, for it is free.

    Parameters
    ----------
    date : datetime.date
        UTC day.
    wkt : str
        EPSG:4326.
    layers : tuple of str
        Some have an availability of their own.
    epsg : int
        UTM zone.
    model : str
    constellations : tuple of str
    """

    date: dt.date
    wkt: str
    layers: tuple[str, ...]
    epsg: int
    model: str
    constellations: tuple[str, ...]

    def body(self) -> dict[str, Any]:
        """Give the JSON body: the fields that are documented, and no others (section 4.4)."""
        return {
            "Wkt": self.wkt,
            "Date": f"{self.date}T00:00:00Z",
            "Model": self.model,
            "SatelliteConstellations": list(self.constellations),
            "EpsgProjection": self.epsg,
            "Bandnames": ",".join(self.layers),
            "UtmDataSelectionMode": "combined_utm",
        }


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

    @classmethod
    def of(cls, request: Request, tags: Mapping[str, str], when: dt.datetime | None = None) -> Self:
        """Make the receipt of an answer from its GeoTIFF's tags; it came now if not said."""
        return cls(
            tags.get("IMAGE_DATE", ""),
            tags.get("MODEL_VERSION", ""),
            tags.get("IMAGE_VERSION", ""),
            tags.get("CONSTELLATIONS", ""),
            request.credits,
            when or dt.datetime.now(dt.UTC),
            request.fingerprint,
        )
