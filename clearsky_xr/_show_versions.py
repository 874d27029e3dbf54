"""Versions of everything that matters, for a report of a mistake."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final, TextIO

# What only those need who change the package.
_OURS: Final = re.compile(r"extra\s*==\s*['\"](test|dev|docs|bench)['\"]")


def show_versions(file: TextIO | None = None) -> None:
    """Print the versions of Python, GDAL, PROJ, and what this package stands on.

    It shows neither keys nor addresses nor paths, so it can be pasted into a report.

    Parameters
    ----------
    file : text file, optional
        Where it goes; standard output if not given.

    Examples
    --------
    >>> import clearsky_xr
    >>> clearsky_xr.show_versions()  # doctest: +ELLIPSIS
    clearsky-xr: ...
    """
    out = sys.stdout if file is None else file
    for name, found in versions().items():
        print(f"{name}: {found}", file=out)


def versions() -> dict[str, str]:
    """Give versions by name; "not installed" where an optional package is missing."""
    found = {
        "clearsky-xr": version("clearsky-xr"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    try:
        import pyproj
        import rasterio
        import shapely
    except Exception as error:  # noqa: BLE001  a broken installation is what this may be for
        found["GDAL, PROJ, GEOS"] = f"cannot be loaded ({type(error).__name__})"
    else:
        found |= {
            "GDAL (rasterio)": rasterio.__gdal_version__,
            "PROJ (rasterio)": getattr(rasterio, "__proj_version__", "unknown"),
            "PROJ (pyproj)": pyproj.proj_version_str,
            "GEOS (shapely)": shapely.geos_version_string,
        }
    for requirement in sorted(requires("clearsky-xr") or []):
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        if _OURS.search(requirement) or name in found or name == "clearsky-xr":
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
