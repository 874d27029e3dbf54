"""What there is to buy, whether it can be had, and with what: questions that cost nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from . import _account, _loop
from ._account import Account
from ._area import resolve_area
from ._availability import Availability
from ._bands import resolve_bands
from ._client import AccountInfo, Balance, search_body
from ._dates import DateRange, resolve_time
from ._geometry import area_km2, wkt
from ._grid import resolve_grid
from ._open import CONSTELLATIONS, constellation_names, days, listed, model_name
from ._request import Question
from ._settings import resolve_settings
from .errors import InvalidBandError, InvalidTimeError, UnexpectedResponseError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class AccountStatus:
    """Limits and balance of an account; None where the service does not tell.

    Parameters
    ----------
    connections : int or None
        Most downloads at a time.
    area_km2 : float or None
        Largest area of one download, km2. Larger ones are split.
    bands : int or None
        Most layers of one download, bands and indices together.
    credits, credit_limit : float or None
        Credits left for downloads, and how many may be used in arrears.
    euros, euro_limit : float or None
        EUR left for placing orders, and how many may be used in arrears.
    sandbox : str or None
        Where the pixels come from if this is no real account: ``"synthetic"`` or
        ``"scenes"``.
    """

    connections: int | None
    area_km2: float | None
    bands: int | None
    credits: float | None
    credit_limit: float | None
    euros: float | None
    euro_limit: float | None
    sandbox: str | None

    def __repr__(self) -> str:
        def told(value: float | None) -> str:
            return "an unknown number of" if value is None else f"{value:g}"

        left = "unknown" if self.credits is None else f"{self.credits:.2f}"
        return (
            f"<clearsky_xr.AccountStatus{' of a sandbox' if self.sandbox else ''}, credits left: "
            f"{left}; {told(self.connections)} connections, {told(self.area_km2)} km2 and "
            f"{told(self.bands)} layers in a download>"
        )


def dates(
    area: Any,
    time: Any,
    *,
    model: str | None = None,
    constellations: Iterable[str] | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
) -> pd.DataFrame:
    """List the images that exist of an area. This is free.

    An image that exists may still not be had, for example because it is not stored
    any more: `availability` tells for one date.

    Parameters
    ----------
    area : tuple, dict, str, path, geometry, GeoDataFrame, GeoSeries
        As in `open_timeseries`.
    time : tuple, slice, str, or list of date-likes
        As in `open_timeseries`. Of a list of days those are given that have images.
    model : str, optional
        This model only; by default all that the account has ordered.
    constellations : iterable of str, optional
        Exactly these satellites only.
    api_key, base_url : str, optional
        As in `open_timeseries`.

    Returns
    -------
    pandas.DataFrame
        One row for each date of each sub-area, in the order of the service and then of
        time; no row where there is nothing. The service divides the area into sub-areas
        with the same dates; what no order covers may be in none of them. Columns:

        ``date``
            datetime64, UTC midnight.
        ``model``, ``constellations``
            str, and tuple of str: what an order was placed for, in the words that
            `open_timeseries` takes.
        ``subarea``
            Number of the sub-area, from 0, for one model and its constellations.
        ``area_km2``
            Its surface.
        ``whole``
            Whether all sub-areas of this model and these constellations have the date.
            These dates `open_timeseries` opens; the others with ``allow_partial=True``.
        ``geometry``
            The sub-area as a shapely geometry, EPSG:4326;
            ``geopandas.GeoDataFrame(frame, crs=4326)`` makes a map of it.

    Raises
    ------
    InputError
        Something of the above is wrong; nothing was sent.
    CredentialsError
        There is no key, or the service refuses it.
    ServiceError
        The service refuses the search, for example for a model that it does not know.

    Examples
    --------
    >>> import clearsky_xr
    >>> field = (15.05, 46.05, 15.06, 46.06)
    >>> found = clearsky_xr.dates(field, "2025-06", base_url="sandbox")
    >>> found[["date", "model", "subarea", "whole"]].head(2)
            date     model  subarea  whole
    0 2025-06-05  Stratus2        0   True
    1 2025-06-10  Stratus2        0   True
    """
    where, when = resolve_area(area), resolve_time(time)
    name = None if model is None else model_name(model)
    sources = None if constellations is None else constellation_names(constellations)
    span = when if isinstance(when, DateRange) else DateRange(when[0], when[-1])
    body = search_body(wkt(where), span.start, span.end, name, sources)
    rows = []
    for entry in _ask(api_key, base_url, lambda owner: owner.search(body)):
        served = str(entry.get("Model"))
        reads = tuple(str(each) for each in listed(entry, "SatelliteConstellations"))
        # The service is not known to filter; what was asked for is compared as it does.
        if (name is not None and served.lower() != name.lower()) or (
            sources is not None and _lower(reads) != _lower(sources)
        ):
            continue
        parts = listed(entry, "DatesByGeog")
        common = set.intersection(*map(days, parts)) if parts else set()
        for number, part in enumerate(parts):
            geometry = _geometry(part)
            surface = area_km2(geometry)
            rows += [
                (day, served, reads, number, surface, day in common, geometry)
                for day in sorted(days(part))
                if day in when
            ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
    return pd.DataFrame(
        {
            label: pd.Series(list(values), dtype=dtype)
            for (label, dtype), values in zip(_COLUMNS.items(), columns, strict=True)
        }
    )


_COLUMNS = {
    "date": "datetime64[ns]",
    "model": "object",
    "constellations": "object",
    "subarea": "int64",
    "area_km2": "float64",
    "whole": "bool",
    "geometry": "object",
}


def availability(
    area: Any,
    date: Any,
    *,
    bands: str | Iterable[str] = "all",
    crs: Any = "auto",
    model: str = "Stratus2",
    constellations: Iterable[str] | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Availability:
    """Ask whether an area can be downloaded on a date, and if not, why. This is free.

    A download that fails for want of an order, an image or credits asks by itself:
    the answer is in the error.

    Parameters
    ----------
    area : tuple, dict, str, path, geometry, GeoDataFrame, GeoSeries
        As in `open_timeseries`.
    date : str, date-like, or one of the other forms of a time
        One day.
    bands, crs, model, constellations
        As in `open_timeseries`, and as they will be there: the answer depends on them.
    api_key, base_url : str, optional
        As in `open_timeseries`.

    Returns
    -------
    Availability
        What the service says, ``ready`` or not, and ``why`` in words.

    Raises
    ------
    InputError
        Something of the above is wrong; nothing was sent.
    CredentialsError
        There is no key, or the service refuses it.
    ServiceError
        The service refuses the question.

    Examples
    --------
    >>> import clearsky_xr
    >>> field = (15.05, 46.05, 15.06, 46.06)
    >>> clearsky_xr.availability(field, "2025-06-05", base_url="sandbox").ready
    True
    >>> clearsky_xr.availability(field, "2025-06-06", base_url="sandbox").kind
    'off_cadence'
    """
    where, when = resolve_area(area), resolve_time(date)
    first, last = (when.start, when.end) if isinstance(when, DateRange) else (when[0], when[-1])
    if first != last:
        raise InvalidTimeError(
            f"availability is about one day; {date!r} is not one",
            hint="clearsky_xr.dates lists the images of a longer time.",
        )
    name = model_name(model)
    layers = resolve_bands(bands, name)
    if not layers:
        raise InvalidBandError("no bands were asked for", hint='Example: bands="all".')
    question = Question(
        date=first,
        wkt=wkt(where),
        layers=layers,
        epsg=resolve_grid(where, resolution=None, crs=crs, like=None).epsg,
        model=name,
        constellations=CONSTELLATIONS
        if constellations is None
        else constellation_names(constellations),
    )
    return _ask(api_key, base_url, lambda owner: owner.available(question))


def account(*, api_key: str | None = None, base_url: str | None = None) -> AccountStatus:
    """Ask for limits and balance of the account. This is free.

    Parameters
    ----------
    api_key, base_url : str, optional
        As in `open_timeseries`.

    Returns
    -------
    AccountStatus
        As it is now, without the key.

    Raises
    ------
    CredentialsError
        There is no key, or the service refuses it.
    ServiceUnavailableError
        The service could not be reached.

    Examples
    --------
    >>> import clearsky_xr
    >>> clearsky_xr.account(base_url="sandbox").connections
    4
    """

    async def both(owner: Account) -> tuple[AccountInfo, Balance]:
        # One after the other: the first one tells whether the key is good.
        return await owner.info(anew=True), await owner.balance()

    info, left = _ask(api_key, base_url, both)
    return AccountStatus(
        connections=info.connections,
        area_km2=info.area_km2,
        bands=info.bands,
        credits=left.credits,
        credit_limit=left.credit_limit,
        euros=left.euros,
        euro_limit=left.euro_limit,
        sandbox=info.sandbox,
    )


def models(*, api_key: str | None = None, base_url: str | None = None) -> pd.DataFrame:
    """List the models of the service, and the satellites that each one reads. This is free.

    Parameters
    ----------
    api_key, base_url : str, optional
        As in `open_timeseries`.

    Returns
    -------
    pandas.DataFrame
        One row for each model, in the words that `open_timeseries` takes. Columns:
        ``model``, str; ``required`` and ``optional``, tuples of the constellations that
        have to be, and that may be, among ``constellations``.

    Raises
    ------
    CredentialsError
        There is no key, or the service refuses it.

    Examples
    --------
    >>> import clearsky_xr
    >>> clearsky_xr.models(base_url="sandbox").set_index("model").optional["Stratus2Fast"]
    ('Landsat89',)
    """
    rows = []
    for entry in _ask(api_key, base_url, lambda owner: owner.models()):
        reads: dict[bool, list[str]] = {True: [], False: []}
        for each in listed(entry, "SupportedSatelliteConstellations"):
            if not isinstance(each, Mapping) or "SatelliteConstellation" not in each:
                raise UnexpectedResponseError("the service answered with unreadable models")
            reads[each.get("Optional") is True].append(str(each["SatelliteConstellation"]))
        rows.append((str(entry.get("Model")), tuple(reads[False]), tuple(reads[True])))
    return pd.DataFrame(rows, columns=["model", "required", "optional"], dtype=object)


def _ask(api_key: str | None, base_url: str | None, call: Callable[[Account], Awaitable[T]]) -> T:
    """Make a call for an account on the background loop."""
    settings = resolve_settings(
        api_key=api_key, base_url=base_url, concurrency=None, on_lost="retry"
    )

    async def work() -> T:
        return await call(await _account.account(settings))

    return _loop.run(work())


def _geometry(part: Mapping[str, Any]) -> BaseGeometry:
    """Read the outline of a sub-area."""
    try:
        geometry: BaseGeometry | None = shapely.from_wkt(part.get("Wkt"))
    except (TypeError, shapely.errors.GEOSException):
        geometry = None
    if geometry is None:
        raise UnexpectedResponseError("the date search answered with an unreadable sub-area")
    return geometry


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}
