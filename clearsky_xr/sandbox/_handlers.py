"""The free endpoints, and the checks that a download has to pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shapely.geometry.base import BaseGeometry

from . import _coverage, _validate
from ._accounts import Holder
from ._billing import MAXIMUM_CREDITS, area_km2, billed_km2, credits_of
from ._errors import AREA_LIMIT, BAND_LIMIT, NO_IMAGE, NOT_ORDERED, ApiError
from ._models import MODELS
from ._query import Composite
from ._readiness import Readiness
from ._state import State

Json = dict[str, Any]
#: Sets fields of the ledger's entry.
Note = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a known account.

    Parameters
    ----------
    state : State
        What there is.
    holder : Holder
        Who asks.
    body : dict
        The JSON object that was sent; empty for a GET.
    note : callable
        Sets fields of the ledger's entry.
    """

    state: State
    holder: Holder
    body: Json
    note: Note


Handler = Callable[[Call], Json]

_DOWNLOAD: Final = frozenset(
    ("Date", "Resolution", "EpsgProjection", "Model", "SatelliteConstellations", "Bandnames")
)
_AVAILABLE: Final = _DOWNLOAD - {"Resolution"}


def account_info(call: Call) -> Json:
    """``GET /api/account/info`` (contract, section 4.1)."""
    return {"TenantId": call.holder.tenant, **_limits(call.holder), "EuroOverdraftLimit": 0,
            "EuroBalanceCap": 0}  # fmt: skip


def apikey_info(call: Call) -> Json:
    """``GET /api/apikey/info`` (contract, section 4.2)."""
    return {
        "Key": call.holder.account.key,
        "CreditAmount": call.holder.balance,
        "CreditLimit": call.holder.account.credit_limit,
        "EuroCreditAmount": 0.0,
        "EuroCreditLimit": 0,
        "ContactInfo": "sandbox",
        "Email": None,
        **_limits(call.holder),
        "CurrentMonthCosts": 0.0,
        "NextMonthCosts": 0.0,
    }


def _limits(holder: Holder) -> Json:
    return {
        "MaxConcurrentConnections": holder.account.max_connections,
        "MaxCompositeAreaKm2": holder.account.max_area_km2,
        "MaxTotalBands": holder.account.max_bands,
    }


def models(_call: Call) -> Json:
    """``GET /api/tasking/models`` (contract, section 4.8)."""
    return {"TaskingModels": [model.describe() for model in MODELS.values()]}


def search(call: Call) -> Json:
    """``POST .../search/available`` (contract, section 4.3)."""
    query = _validate.search(call.body)
    groups: dict[tuple[str, frozenset[str]], list[Any]] = {}
    for order in call.holder.account.orders:
        names = frozenset(name.lower() for name in order.constellations)
        groups.setdefault((order.model.lower(), names), []).append(order)
    entries = []
    for (name, constellations), orders in groups.items():
        model = MODELS[name]
        if query.model not in (None, model):
            continue
        if query.constellations not in (None, constellations):
            continue
        parts = []
        for part, days in _coverage.sub_areas(
            orders, call.state.holes, call.state.imagery, query.geometry
        ):
            asked = [
                day
                for day in days
                if (query.first is None or day >= query.first)
                and (query.last is None or day <= query.last)
            ]
            parts.append({"Wkt": part.wkt, "Dates": [day.isoformat() for day in asked]})
        entries.append(
            {
                "Model": model.name,
                "SatelliteConstellations": [
                    n for n in model.constellations if n.lower() in constellations
                ],
                "DatesByGeog": parts,
            }
        )
    return {"ModelImageDates": entries}


def available(call: Call) -> Json:
    """``POST .../process/composite/available``: twelve booleans (contract, section 4.4)."""
    query = _validate.composite(call.body, _AVAILABLE)
    ready = _readiness(call, query)
    anywhere = ready.in_data
    return {
        "IntersectedActiveZones": anywhere,
        "IntersectedActiveZonesUtmEpsg": anywhere,
        "FullyAvailable": ready.complete,
        "PartiallyAvailable": not ready.served.is_empty,
        "UncertaintyAvailable": False,
        "PartiallyUncertaintyAvailable": False,
        "PolygonInDataArea": anywhere,
        "DataAvailableForUser": not ready.restricted,
        "DataOnZoneDataFrequencyDate": ready.on_cadence,
        "AllImagesPredicted": ready.predicted,
        "AnyImageWithinStorageMonths": ready.stored,
        "OrdersCoverPolygon": ready.ordered,
    }


def _readiness(call: Call, query: Composite) -> Readiness:
    return Readiness(call.holder.account, call.state.imagery, call.state.holes, query)


def estimate(call: Call) -> Json:
    """``POST .../process/composite/estimate`` (contract, section 4.5).

    The December 2024 client sent neither date nor model, so only a geometry is required.
    """
    query = _validate.composite(call.body, frozenset())
    km2 = billed_km2(query.geometry, call.state.behaviour.billing)
    call.note(area_km2=km2)
    return {"AreaEstimateKm2": round(km2, 2), "CreditEstimate": credits_of(km2)}


def check_limits(call: Call) -> tuple[Composite, float]:
    """Check a download up to the point where it needs a connection.

    Returns
    -------
    query : Composite
        The typed body.
    units : float
        Its price, processing units.

    Raises
    ------
    ApiError
        992, then 1005, then 1004.
    """
    query = _validate.composite(call.body, _DOWNLOAD)
    km2 = billed_km2(query.geometry, call.state.behaviour.billing)
    units = credits_of(km2)
    call.note(area_km2=km2)
    account = call.holder.account
    if len(query.layers) > account.max_bands:
        raise ApiError(
            BAND_LIMIT, f"{len(query.layers)} bands asked, at most {account.max_bands} allowed."
        )
    # The limit is on the geometry, whatever is billed.
    if area_km2(query.geometry) > account.max_area_km2 or units > MAXIMUM_CREDITS:
        raise ApiError(
            AREA_LIMIT,
            f"{km2:.2f} km2 asked, at most {account.max_area_km2} km2 and "
            f"{MAXIMUM_CREDITS:.0f} units allowed.",
        )
    return query, units


def check_orders(call: Call, query: Composite) -> BaseGeometry:
    """Check that a download is ordered and that its image exists.

    Returns
    -------
    shapely geometry
        The part of the asked area that has an image, EPSG:4326: all of it, unless a
        partial image was allowed, or some lies outside the data. The rest is no-data
        (contract, section 6.2).

    Raises
    ------
    ApiError
        1006, then 1002. Restricted, expired and partial images have the latter: their
        codes are not documented, and its advice, to look at the availability, fits them.
    """
    ready = _readiness(call, query)
    if not (ready.ordered_partly if query.allow_partial else ready.ordered):
        raise ApiError(NOT_ORDERED, "The area or date is not covered by an order.")
    enough = not ready.served.is_empty if query.allow_partial else ready.complete
    if ready.restricted or not enough:
        raise ApiError(NO_IMAGE, f"There is no image of {query.day} for the area.")
    return ready.served


#: Free endpoints: (method, lower-case path) to (name in the ledger, handler).
FREE: Final[Mapping[tuple[str, str], tuple[str, Handler]]] = {
    ("GET", "/api/account/info"): ("account", account_info),
    ("GET", "/api/apikey/info"): ("apikey", apikey_info),
    ("GET", "/api/tasking/models"): ("models", models),
    ("POST", "/api/satelliteimages/search/available"): ("search", search),
    ("POST", "/api/satelliteimages/process/composite/available"): ("available", available),
    ("POST", "/api/satelliteimages/process/composite/estimate"): ("estimate", estimate),
}
#: The one that costs.
COMPOSITE: Final = ("POST", "/api/satelliteimages/process/composite")
