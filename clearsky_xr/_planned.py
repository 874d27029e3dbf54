"""A plan: the requests that a computation would send, and what they cost."""

from __future__ import annotations

import datetime as dt
import re
import sys
import textwrap
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np
import pandas as pd

from . import _loop
from ._account import account
from ._graph import Read, reads
from ._plan import MINIMUM
from ._quote import Focus, Quote, quote
from ._request import Request
from .errors import InvalidOptionError

# Below this share of used pixels a plan says how to buy less.
_FEW: Final = 0.1
# Steps of Dask that make one value of many. Where there is one, nothing is said of pixels that
# are bought and not used.
_REDUCES: Final = re.compile(
    r"(^| )(nan)?(agg|all|any|arg|count|cum|first|groupby|last|max|mean|median|min|moment|overlap"
    r"|prod|push|quantile|reduc|std|sum|var)|aggregate|chunk_|_chunk|_agg",
    re.IGNORECASE,
)
# Most free estimates that are asked for without being told to.
_ESTIMATES: Final = 20


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One download.

    Parameters
    ----------
    date : datetime.date
        UTC day.
    credits : float
        By the contract's formula.
    area_km2 : float
        The surface that is billed.
    pixels : int
        That come.
    useful : int
        That are asked for and still told apart by the result.
    bounds : tuple of float
        Left, bottom, right, top, metres.
    epsg : int
        Of the bounds.
    bytes : int
        Estimate: the raster as int16, uncompressed.
    """

    date: dt.date
    credits: float
    area_km2: float
    pixels: int
    useful: int
    bounds: tuple[float, float, float, float]
    epsg: int
    bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What computing something would buy now; made by ``obj.clearsky.plan()``.

    Parameters
    ----------
    requests : tuple of PlannedRequest
        What is held, in the store, or loaded is not among them.
    credits_at_most : float
        If nothing were held and nothing shared.
    exact : bool
        False on a cluster, where workers may hold more than this process knows, and
        do not share what they hold; and where windows overlap in part, since then
        the order in which threads come decides which request brings what they share.
    whole_blocks : bool
        Whether a store makes requests larger than what is asked for.
    on_cluster : bool
        Whether the workers of a Dask cluster would compute it: without a store each
        Dask key is a purchase of its own.
    """

    requests: tuple[PlannedRequest, ...]
    credits_at_most: float
    exact: bool
    whole_blocks: bool
    on_cluster: bool = False

    @property
    def credits(self) -> float:
        """What the requests cost together, credits."""
        return round(sum((request.credits for request in self.requests), 0.0), 2)

    @property
    def area_km2(self) -> float:
        """The surface that is billed, summed over dates, km2."""
        return sum(request.area_km2 for request in self.requests)

    @property
    def bytes(self) -> int:
        """Estimate of what is downloaded: rasters of int16, uncompressed."""
        return sum(request.bytes for request in self.requests)

    @property
    def dates(self) -> tuple[dt.date, ...]:
        """The dates that are bought, ascending."""
        return tuple(sorted({request.date for request in self.requests}))

    @property
    def useful_fraction(self) -> float:
        """Pixels that the result tells apart, of those that are bought; 1 if none are."""
        bought = sum(request.pixels for request in self.requests)
        return sum(request.useful for request in self.requests) / bought if bought else 1.0

    @property
    def advice(self) -> str:
        """How to buy less, if much more is bought than used; else empty."""
        least = all(request.credits <= MINIMUM for request in self.requests)
        if self.useful_fraction >= _FEW or least:
            return ""
        if self.whole_blocks:
            return (
                "A store buys whole blocks of 256 x 256 px. If their other pixels are of no use, "
                "open without store=."
            )
        return (
            "Select before you compute: ds.isel(...) first, arithmetic afterwards. After "
            "arithmetic Dask buys the whole chunks in which selected pixels lie; smaller chunks= "
            "help, too."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Give the requests as a table.

        Returns
        -------
        pandas.DataFrame
            Columns ``date``, ``credits``, ``area_km2``, ``pixels``, ``useful``, ``left``,
            ``bottom``, ``right``, ``top``, ``epsg`` and ``bytes``.
        """
        rows = [
            (pd.Timestamp(r.date), r.credits, r.area_km2, r.pixels, r.useful, *r.bounds, r.epsg,
             r.bytes)
            for r in self.requests
        ]  # fmt: skip
        columns = ["date", "credits", "area_km2", "pixels", "useful", "left", "bottom", "right"]
        return pd.DataFrame(rows, columns=[*columns, "top", "epsg", "bytes"])

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._lines())
        lines = [f"  {name:{width}}  {value}" for name, value in self._lines()]
        return "\n".join(["<clearsky_xr Plan>", *lines, *textwrap.wrap(self.advice, 78)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        advice = f"<p>{escape(self.advice)}</p>" if self.advice else ""
        return f"<div><table><caption>Plan</caption>{rows}</table>{advice}</div>"

    def _lines(self) -> list[tuple[str, str]]:
        if not self.requests:
            return [("requests", "none: all of it is loaded, held or in the store")]
        bound = "" if self.exact else ", more or less: a cluster, or windows that overlap in part"
        span = (
            f"{self.dates[0]}"
            if len(self.dates) == 1
            else f"{len(self.dates)}, {self.dates[0]} to {self.dates[-1]}"
        )
        shared = (
            "workers share the store: each block is bought once"
            if self.whole_blocks
            else "each Dask key buys for itself; a store lets workers share"
        )
        return [
            ("requests", f"{len(self.requests):,}"),
            ("credits", f"{self.credits:,.2f}{bound}"),
            ("nothing shared", f"{self.credits_at_most:,.2f} credits"),
            ("dates", span),
            ("area", f"{self.area_km2:,.2f} km2 over all dates"),
            ("download", f"{self.bytes / 1e6:,.1f} MB at most, uncompressed"),
            ("used", _share(self.useful_fraction)),
            *([("cluster", shared)] if self.on_cluster else []),
        ]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The service's own price for a plan, beside ours; made by ``obj.clearsky.estimate()``.

    Parameters
    ----------
    plan : Plan
    table : pandas.DataFrame
        One row for each distinct geometry: ``requests`` that ask for it, ``formula`` and
        ``service``, credits of one of them.
    """

    plan: Plan
    table: pd.DataFrame

    @property
    def credits(self) -> float:
        """What the service asks for all requests, credits."""
        return round(float((self.table["service"] * self.table["requests"]).sum()), 2)

    @property
    def agrees(self) -> bool:
        """Whether the service's prices are those of the formula, to the cent."""
        return bool((abs(self.table["service"] - self.table["formula"]) < 0.005).all())

    def __repr__(self) -> str:
        verdict = "as the formula says" if self.agrees else f"the formula says {self.plan.credits}"
        return (
            f"<clearsky_xr Estimate: {self.credits:.2f} credits by the service for "
            f"{len(self.plan.requests)} requests, {verdict}>"
        )


def _share(useful: float) -> str:
    if useful == 1:
        return "every pixel bought"
    return f"{useful:.1%} of the pixels bought" if useful >= 0.001 else "under 0.1% of those bought"


def plan_of(*objects: Any) -> Plan:
    """Plan what computing objects together would buy."""
    return _made(_quoted(objects))


def estimate_of(*objects: Any, most: int | None = _ESTIMATES) -> Estimate:
    """Let the service price a plan: one free call for each distinct geometry."""
    found, quoted = reads(*objects), _quoted(objects)
    kinds: dict[str, list[Request]] = {}
    for request in quoted.requests:
        kinds.setdefault(request.wkt, []).append(request)
    if most is not None and len(kinds) > most:
        raise InvalidOptionError(
            f"the plan has {len(kinds)} distinct geometries, each of them one free call",
            hint=f"estimate(most={len(kinds)}) asks them all; plan() prices them by the formula.",
        )
    prices = _loop.run(_ask(found, [same[0] for same in kinds.values()]))
    table = pd.DataFrame(
        [
            (len(same), same[0].credits, price)
            for same, price in zip(kinds.values(), prices, strict=True)
        ],
        columns=["requests", "formula", "service"],
    )
    return Estimate(_made(quoted), table)


async def _ask(found: list[Read], requests: list[Request]) -> list[float]:
    if not requests:
        return []
    owner = await account(found[0].array.settings)
    return [await owner.estimate(request) for request in requests]


def _quoted(objects: tuple[Any, ...]) -> Quote:
    found = reads(*objects)
    focus = _focus(objects[0], found) if len(objects) == 1 else Focus()
    return _loop.run(quote(found, focus))


def _made(quoted: Quote) -> Plan:
    on_cluster = _on_a_cluster()
    return Plan(
        tuple(
            _planned(request, useful)
            for request, useful in zip(quoted.requests, quoted.useful, strict=True)
        ),
        round(quoted.alone, 2),
        not quoted.in_turn and not on_cluster,
        quoted.whole_blocks,
        on_cluster,
    )


def _planned(request: Request, useful: int) -> PlannedRequest:
    window, size = request.pixels.window, request.resolution
    return PlannedRequest(
        request.date,
        request.credits,
        request.area_km2,
        len(request.pixels),
        useful,
        tuple(
            float(edge * size) for edge in (window.col0, -window.row1, window.col1, -window.row0)
        ),  # type: ignore[arg-type]
        request.epsg,
        2 * len(request.layers) * window.size,
    )


def _focus(obj: Any, found: list[Read]) -> Focus:
    """Read from the coordinates of a result which pixels it still tells apart."""
    if not found or not hasattr(obj, "coords"):
        return Focus()
    if _REDUCES.search(" ".join(_layers(obj))):
        return Focus()  # a mean may lie on the coordinates of one of its pixels
    cube = found[0].array.cube
    size = cube.grid.resolution

    def values(name: str) -> Any:
        return np.ravel(obj.coords[name].values) if name in obj.coords else None

    def places(name: str, sign: int, start: int, stop: int) -> tuple[int, ...] | None:
        """Give lattice places; None for all, and where the coordinate is not one of pixels."""
        given = values(name)
        if given is None or not np.issubdtype(given.dtype, np.floating):
            return None
        exact = sign * given / size - 0.5
        whole = np.round(exact)
        if (np.abs(exact - whole) > 1e-6).any() or (whole < start).any() or (whole >= stop).any():
            return None
        if len(np.unique(whole)) == stop - start:
            return None
        return tuple(int(place) for place in whole)

    times = values("time")
    dates = None
    if times is not None and np.issubdtype(times.dtype, np.datetime64):
        days = frozenset(time.astype("datetime64[D]").item() for time in times)
        dates = days if days <= set(cube.dates) else None
    window = cube.grid.window
    y, x = (obj.coords[name].dims if name in obj.coords else () for name in ("y", "x"))
    return Focus(
        dates,
        places("y", -1, window.row0, window.row1),
        places("x", 1, window.col0, window.col1),
        points=bool(y) and y == x,
    )


def _layers(obj: Any) -> list[str]:
    """Name the steps of Dask that lead to an object."""
    graph = obj.__dask_graph__()
    return [] if graph is None else [str(name) for name in getattr(graph, "layers", ())]


def _on_a_cluster() -> bool:
    """Say whether Dask would compute on a distributed client."""
    import dask

    if dask.config.get("scheduler", None) in ("sync", "synchronous", "threads", "single-threaded"):
        return False
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_client()
    except ValueError:
        return False
    return True
