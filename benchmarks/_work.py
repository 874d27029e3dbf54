"""What is measured: cubes, and the ways in which the service may behave."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

#: Upper left corner of all cubes, UTM 33N: fields, forest and some water.
CORNER: Final = (480_000, 5_110_000)
EPSG: Final = 32633
PIXEL: Final = 10
#: Images of the sandbox in ``benchmarks``: one a day, ending here.
LAST: Final = dt.date(2025, 12, 31)
LAYOUTS: Final = {
    "deflate": {"compression": "deflate", "plain": False},
    "lzw": {"compression": "lzw", "plain": False},
    "zstd": {"compression": "zstd", "plain": False},
    "striped": {"compression": "deflate", "plain": True},
}


@dataclass(frozen=True, slots=True)
class Work:
    """A cube to load.

    Parameters
    ----------
    name : str
    side : int
        Pixels.
    dates : int
    """

    name: str
    side: int
    dates: int

    @property
    def days(self) -> list[dt.date]:
        """Its dates, ascending."""
        return [LAST - dt.timedelta(days=k) for k in range(self.dates)][::-1]

    @property
    def geobox(self) -> GeoBox:
        """Its grid."""
        x, y = CORNER
        affine = Affine(PIXEL, 0, x, 0, -PIXEL, y)
        return GeoBox((self.side, self.side), affine, f"EPSG:{EPSG}")

    @property
    def area(self) -> Any:
        """A polygon that is a little larger than the grid, EPSG:4326."""
        x, y = CORNER
        far = self.side * PIXEL
        corners = ((x, y), (x + far, y), (x + far, y - far), (x, y - far))
        project = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
        return shapely.Polygon([project.transform(*corner) for corner in corners]).buffer(0.002)


FIELD: Final = Work("field", 64, 150)
FARM: Final = Work("farm", 512, 60)
REGION: Final = Work("region", 4096, 8)
#: The same in little, for ``--quick``.
QUICK: Final = (Work("field", 64, 60), Work("farm", 512, 16), Work("region", 2048, 2))


@dataclass(frozen=True, slots=True)
class Call:
    """One download, as all contenders make it.

    Parameters
    ----------
    date : int
        Position along time.
    rows, cols : (int, int)
        Where its pixels lie in the cube: start and stop.
    body : dict
        JSON.
    """

    date: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A cube, the service, and how it is to come.

    Parameters
    ----------
    work : Work
    url, key : str
    connections : int
    scaled : bool
        float32 with NaN, or int16.
    calls : tuple of Call
    folder : str
        For files of any kind.
    """

    work: Work
    url: str
    key: str
    connections: int
    scaled: bool
    calls: tuple[Call, ...]
    folder: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(dates, bands, y, x)."""
        return self.work.dates, 10, self.work.side, self.work.side

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or int16."""
        return np.dtype(np.float32 if self.scaled else np.int16)
