"""Faults as data: what can go wrong between the service and a client.

A `Fault` says *when* (endpoint, date, which of the matching requests) and holds one
*effect*, which says *what*:

* `Answer`: this is answered instead of the real answer,
* `Tamper`: the raster is changed before it is written,
* `Garble`: the bytes of the answer are changed,
* `Delivery`: the right bytes are delivered badly.

The server applies an effect at one place each, so that a new fault is a new effect
value or a new constructor here and no change to any handler::

    with clearsky_xr.sandbox.serve(faults=[Fault.status(503, times=2)]) as server:
        server.inject(Fault.image("negative", lambda image: replace(image, pixels=-image.pixels)))
"""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from rasterio.transform import Affine

from ._raster import Image

__all__ = ["Answer", "Delivery", "Fault", "Garble", "Image", "Tamper"]

Endpoint = Literal[
    "account", "apikey", "search", "available", "estimate", "composite", "models", "any"
]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer this instead, without looking at the request.

    Parameters
    ----------
    status : int
        HTTP status; 0 resets the connection without an answer.
    body : bytes
        Body as it goes out.
    content_type : str
        Its type.
    headers : mapping of str to str
        More headers, e.g. ``Retry-After``.
    code : int or None
        ``Error.Code`` of the body, for the ledger.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Tamper:
    """Change the raster before it is written. The download is charged.

    Parameters
    ----------
    change : callable
        Gives the changed one.
    """

    change: Callable[[Image], Image]


@dataclass(frozen=True, slots=True)
class Garble:
    """Change the bytes of a successful answer. The download is charged.

    Parameters
    ----------
    change : callable
        Gives the changed one.
    """

    change: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Deliver a successful answer badly.

    Parameters
    ----------
    before : float
        Seconds of silence before the first byte.
    after_bytes : int or None
        Bytes of the body after which `stall` and `cut` take place.
    stall : float
        Seconds of silence then.
    cut : bool
        Whether the connection is then closed without the rest; the declared
        ``Content-Length`` stays that of the whole body. With `after_bytes` None it is
        reset before the first byte of the answer.
    bandwidth : float or None
        Bytes per second instead of the server's own.
    chunked : bool
        Send without ``Content-Length``, in chunks; a cut then ends without the last.
    charged : bool
        Whether the download is charged although it is never complete.
    """

    before: float = 0.0
    after_bytes: int | None = None
    stall: float = 0.0
    cut: bool = False
    bandwidth: float | None = None
    chunked: bool = False
    charged: bool = True


Effect = Answer | Tamper | Garble | Delivery


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, and what.

    Parameters
    ----------
    kind : str
        Name in the ledger.
    effect : Answer, Tamper, Garble or Delivery
        What happens.
    endpoint : str
        Endpoint name as in the ledger, or ``"any"``.
    date : date or None
        Only requests whose body has this ``Date``; None matches all.
    first : int
        The first matching request that is hit, from 1.
    times : int or None
        How many matching requests are hit from there on; None for all.
    """

    kind: str
    effect: Effect
    endpoint: Endpoint = "composite"
    date: dt.date | None = None
    first: int = 1
    times: int | None = 1

    def on(
        self,
        endpoint: Endpoint | None = None,
        *,
        date: dt.date | None = None,
        first: int | None = None,
        times: int | None = None,
    ) -> Self:
        """Give a copy that strikes elsewhere. What is not given stays."""
        given = {"endpoint": endpoint, "date": date, "first": first, "times": times}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        return replace(self, **changes)

    @classmethod
    def status(
        cls,
        status: int,
        *,
        code: int | None = None,
        message: str = "Injected by the sandbox.",
        fields: Mapping[str, list[str]] | None = None,
        retry_after: str | int | None = None,
        **when: Any,
    ) -> Self:
        """Answer with a status and the JSON envelope.

        A 200 gives the "success" that says ``Succeeded: false`` (contract, section 1.1).

        Parameters
        ----------
        status : int
            HTTP status.
        code : int, optional
            ``Error.Code``; the status by default.
        message : str
            ``Error.Message``.
        fields : mapping, optional
            ``Data``: messages by property.
        retry_after : str or int, optional
            Value of the header ``Retry-After``, sent as it is.
        **when
            ``endpoint``, ``date``, ``first``, ``times``.
        """
        code = status if code is None else code
        body = {
            "Data": dict(fields) if fields else None,
            "Succeeded": False,
            "Error": {"Message": message, "Code": code},
        }
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        answer = Answer(status, json.dumps(body).encode(), headers=headers, code=code)
        return cls(f"status {status}", answer, **when)

    @classmethod
    def problem(cls, fields: Mapping[str, list[str]] | None = None, **when: Any) -> Self:
        """Answer with 400 and the framework's own problem document."""
        body = {
            "title": "One or more validation errors occurred.",
            "status": 400,
            "errors": dict(fields or {"Wkt": ["Injected by the sandbox."]}),
            "traceId": "00-sandbox",
        }
        content = "application/problem+json"
        return cls("problem", Answer(400, json.dumps(body).encode(), content), **when)

    @classmethod
    def html(cls, status: int = 200, **when: Any) -> Self:
        """Answer with a web page, as a proxy or a captive portal does."""
        page = b"<!DOCTYPE html><html><body><h1>Sandbox gateway</h1></body></html>"
        return cls("html", Answer(status, page, "text/html"), **when)

    @classmethod
    def reset(cls, **when: Any) -> Self:
        """Reset the connection before any answer; nothing is charged."""
        return cls("reset", Answer(0), **when)

    @classmethod
    def short_body(cls, after_bytes: int = 100, *, charged: bool = True, **when: Any) -> Self:
        """Close the connection after some bytes of the body."""
        effect = Delivery(after_bytes=after_bytes, cut=True, charged=charged)
        return cls("short body", effect, **when)

    @classmethod
    def lost(cls, *, charged: bool = True, **when: Any) -> Self:
        """Do the work, then reset the connection without a single byte of the answer."""
        return cls("lost", Delivery(cut=True, charged=charged), **when)

    @classmethod
    def stall(cls, seconds: float, after_bytes: int = 100, **when: Any) -> Self:
        """Fall silent in the middle of the body, then go on."""
        return cls("stall", Delivery(after_bytes=after_bytes, stall=seconds), **when)

    @classmethod
    def slow(cls, *, first_byte: float = 0.0, bandwidth: float | None = None, **when: Any) -> Self:
        """Wait before the first byte (seconds), or send slowly (bytes per second)."""
        return cls("slow", Delivery(before=first_byte, bandwidth=bandwidth), **when)

    @classmethod
    def image(cls, kind: str, change: Callable[[Image], Image], **when: Any) -> Self:
        """Change the raster by a function of one's own."""
        return cls(kind, Tamper(change), **when)

    @classmethod
    def garble(cls, kind: str, change: Callable[[bytes], bytes], **when: Any) -> Self:
        """Change the bytes of the answer by a function of one's own."""
        return cls(kind, Garble(change), **when)

    @classmethod
    def half_pixel(cls, **when: Any) -> Self:
        """Shift the grid by half a pixel to the east and south."""

        def change(image: Image) -> Image:
            a, b, c, d, e, f = image.transform[:6]
            return replace(image, transform=Affine(a, b, c + a / 2, d, e, f + e / 2))

        return cls("half pixel", Tamper(change), **when)

    @classmethod
    def band_count(cls, extra: int = -1, **when: Any) -> Self:
        """Return some bands too few (negative) or too many, at least one in all."""

        def change(image: Image) -> Image:
            count = max(1, len(image.layers) + extra)
            index = np.arange(count) % len(image.layers)
            layers = tuple(image.layers[i] for i in index)
            return replace(image, pixels=image.pixels[index], layers=layers)

        return cls("band count", Tamper(change), **when)

    @classmethod
    def dtype(cls, name: str = "float32", **when: Any) -> Self:
        """Return another data type."""
        return cls("dtype", Tamper(lambda i: replace(i, pixels=i.pixels.astype(name))), **when)

    @classmethod
    def crs(cls, epsg: int, **when: Any) -> Self:
        """Declare another CRS, the pixels being the same."""
        return cls("crs", Tamper(lambda image: replace(image, epsg=epsg)), **when)

    @classmethod
    def nodata(cls, value: int = 0, **when: Any) -> Self:
        """Declare another no-data value."""
        return cls("nodata", Tamper(lambda image: replace(image, nodata=value)), **when)

    @classmethod
    def tag(cls, name: str, value: str, **when: Any) -> Self:
        """Change a dataset tag, e.g. ``IMAGE_DATE``."""

        def change(image: Image) -> Image:
            return replace(image, tags={**image.tags, name: value})

        return cls(f"tag {name}", Tamper(change), **when)


class Plan:
    """The faults of a server, and how often each one was met. Safe to use from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._met: list[tuple[Fault, int]] = [(fault, 0) for fault in faults]

    def add(self, fault: Fault) -> None:
        """Add a fault; its matching requests count from now."""
        with self._lock:
            self._met.append((fault, 0))

    def pick(self, endpoint: str, day: dt.date | None) -> Fault | None:
        """Give the fault that strikes this request, the oldest one first.

        A fault that is struck out by an older one does not count the request as met.
        """
        with self._lock:
            for i, (fault, met) in enumerate(self._met):
                if fault.endpoint not in (endpoint, "any"):
                    continue
                if fault.date is not None and fault.date != day:
                    continue
                self._met[i] = (fault, met + 1)
                turn = met + 1 - fault.first
                if turn >= 0 and (fault.times is None or turn < fault.times):
                    return fault
        return None
