"""What was asked of the sandbox and what it cost, one entry a request."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One request that the server received.

    Attributes
    ----------
    sequence : int
        Number in order of arrival, from 1.
    endpoint : str
        ``"account"``, ``"apikey"``, ``"search"``, ``"available"``, ``"estimate"``,
        ``"composite"``, ``"models"`` or ``"unknown"``.
    account : str
        ``"account-1"``, ...; empty if the key was refused. Never the key.
    date : date or None
        ``Date`` of the body.
    area_km2 : float or None
        Area by the billing rule, of a body that got so far.
    credits : float
        Units charged.
    status : int or None
        HTTP status; None while the request is worked on, 0 if the connection was
        reset instead of answered, or left by the client.
    code : int or None
        ``Error.Code`` of the answer.
    wkt : str or None
        The geometry as it was sent, as WKT.
    bandnames : str or None
        ``Bandnames`` as sent.
    resolution, epsg : int or None
        ``Resolution`` and ``EpsgProjection`` as sent.
    bytes : int
        Bytes of the body that were handed to the network.
    in_flight : int
        Composite downloads of the account in the server when this one got its
        connection, itself included; 0 for all others.
    fault : str or None
        Kind of the fault that was played on it.
    peer : int
        Port of the client's end: requests with the same one came on the same connection.
    """

    sequence: int
    endpoint: str
    account: str = ""
    date: dt.date | None = None
    area_km2: float | None = None
    credits: float = 0.0
    status: int | None = None
    code: int | None = None
    wkt: str | None = None
    bandnames: str | None = None
    resolution: int | None = None
    epsg: int | None = None
    bytes: int = 0
    in_flight: int = 0
    fault: str | None = None
    peer: int = 0

    def to_json(self) -> dict[str, Any]:
        """Give the entry as JSON values."""
        values = asdict(self)
        values["date"] = self.date.isoformat() if self.date else None
        return values


class Ledger:
    """All entries, in order of arrival. Safe to use from any thread."""

    def __init__(self) -> None:
        self._entries: list[LedgerEntry] = []
        self._lock = threading.Lock()

    def open(self, endpoint: str) -> int:
        """Begin an entry.

        Returns
        -------
        int
            Its sequence number.
        """
        with self._lock:
            self._entries.append(LedgerEntry(len(self._entries) + 1, endpoint))
            return len(self._entries)

    def note(self, sequence: int, **values: Any) -> None:
        """Set fields of an entry."""
        with self._lock:
            self._entries[sequence - 1] = replace(self._entries[sequence - 1], **values)

    def entries(self) -> list[LedgerEntry]:
        """Give a copy of the list."""
        with self._lock:
            return list(self._entries)

    def summary(self) -> Mapping[str, Any]:
        """Give the whole ledger as JSON values, with its sums."""
        entries = self.entries()
        return {
            "requests": len(entries),
            "downloads": sum(e.endpoint == "composite" and e.status == 200 for e in entries),
            "credits": round(sum(e.credits for e in entries), 2),
            "entries": [entry.to_json() for entry in entries],
        }
