"""ClearSKY Vision's cloudless Sentinel-2 imagery as an ordinary xarray object.

>>> import xarray as xr
>>> ds = xr.open_dataset(
...     (15.05, 46.05, 15.06, 46.06), engine="clearsky", time="2025-06", base_url="sandbox"
... )
>>> ds.reflectance.dims
('time', 'band', 'y', 'x')

What is listed in ``__all__`` is public; everything else may change.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import cluster as cluster
    from . import errors as errors
    from . import sandbox as sandbox
    from ._accessor import ArrayAccessor, ClearSkyAccessor
    from ._api import budget, open_store, open_timeseries, plan, resolve, spent
    from ._availability import Availability
    from ._budget import Budget, Spent
    from ._catalogue import AccountStatus, account, availability, dates, models
    from ._cube import Cube
    from ._planned import Estimate, Plan
    from ._progress import progress
    from ._sample import sample
    from ._show_versions import show_versions

__all__ = [
    "AccountStatus",
    "ArrayAccessor",
    "Availability",
    "Budget",
    "ClearSkyAccessor",
    "Cube",
    "Estimate",
    "Plan",
    "Spent",
    "account",
    "availability",
    "budget",
    "cluster",
    "dates",
    "errors",
    "models",
    "open_store",
    "open_timeseries",
    "plan",
    "progress",
    "resolve",
    "sample",
    "sandbox",
    "show_versions",
    "spent",
]

# Without its extra it would be in the way of those who import or inspect all there is.
if importlib.util.find_spec("distributed") is None:
    __all__.remove("cluster")  # noqa: PYI056  mypy and pyright know it, and it stays sorted

# Loaded on first use: xarray imports this package whenever it looks for engines.
_HOMES = {
    "AccountStatus": "._catalogue",
    "ArrayAccessor": "._accessor",
    "Availability": "._availability",
    "Budget": "._budget",
    "ClearSkyAccessor": "._accessor",
    "Cube": "._cube",
    "Estimate": "._planned",
    "Plan": "._planned",
    "Spent": "._budget",
    "account": "._catalogue",
    "availability": "._catalogue",
    "budget": "._api",
    "dates": "._catalogue",
    "models": "._catalogue",
    "open_store": "._api",
    "open_timeseries": "._api",
    "plan": "._api",
    "progress": "._progress",
    "resolve": "._api",
    "sample": "._sample",
    "show_versions": "._show_versions",
    "spent": "._api",
}


def __getattr__(name: str) -> Any:
    if name == "cluster" and name not in __all__:
        raise AttributeError(
            "clearsky_xr.cluster needs dask.distributed: pip install 'clearsky-xr[cluster]'"
        )
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    else:
        value = importlib.import_module(f".{name}", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
