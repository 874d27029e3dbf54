"""Faults as data: what can go wrong between the service and a client.

A `Fault` says *when* (endpoint, date, which of the matching requests) and holds one
*effect*, which says *what*:

* `Answer`: this is answered instead of the real answer,
* `Tamper`: the raster is changed before it is written,
* `Garble`: the bytes of the answer are changed,
* `Delivery`: the right bytes are delivered badly,
* `Together`: several of the last three at once.

The server applies an effect at one place each, so that a new fault is a new effect
value or a new constructor here and no change to any handler::

    with clearsky_xr.sandbox.serve(faults=[Fault.status(503, times=2)]) as server:
        server.inject(Fault.image("negative", lambda image: replace(image, pixels=-image.pixels)))

Faults can be put one after the other, with `in_turn`: each begins to count where the one
before has ended. "The 3rd download of this date is cut after 1,000 bytes, the next answers
503 twice, and the one after those is fine" is ::

    in_turn(Fault.short_body(1000, first=3), Fault.status(503, times=2), date=day)

and they can be combined, with `together`: an image on the wrong grid that also comes
slowly is ::

    together(Fault.half_pixel(), Fault.slow(first_byte=2.0))

With ``share`` a fault strikes at random, and in the same way whenever it is played:
``Fault.lost(times=None, share=0.05)`` loses one download in twenty. In one's own tests
`clearsky_xr.sandbox.pytest_plugin` has a fixture that plays all this.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from rasterio.transform import Affine

from ._effects import Answer, Delivery, Effect, Garble, Tamper, Together, parts
from ._raster import Image

__all__ = [
    "Answer",
    "Delivery",
    "Fault",
    "Garble",
    "Image",
    "Tamper",
    "Together",
    "in_turn",
    "together",
]

Endpoint = Literal[
    "account", "apikey", "search", "available", "estimate", "composite", "models", "any"
]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, and what.

    Parameters
    ----------
    kind : str
        Name in the ledger.
    effect : Answer, Tamper, Garble, Delivery or Together
        What happens.
    endpoint : str
        Endpoint name as in the ledger, or ``"any"``.
    date : date or None
        Only requests whose body has this ``Date``; None matches all.
    first : int
        The first matching request that is hit, from 1.
    times : int or None
        How many matching requests are hit from there on; None for all.
    share : float
        Which share of those is hit, from 0 to 1; which ones is random, but the same
        for the same `kind` and `seed`.
    seed : int
        Gives another choice.
    """

    kind: str
    effect: Effect
    endpoint: Endpoint = "composite"
    date: dt.date | None = None
    first: int = 1
    times: int | None = 1
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.first < 1 or (self.times is not None and self.times < 0):
            raise ValueError("first counts from 1, and times is not negative")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")

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
            ``endpoint``, ``date``, ``first``, ``times``, ``share``, ``seed``.
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
    def redirect(cls, location: str, status: int = 307, **when: Any) -> Self:
        """Answer that it is to be found elsewhere."""
        return cls("redirect", Answer(status, headers={"Location": location}), **when)

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
    def endless(cls, **when: Any) -> Self:
        """Never stop sending."""
        return cls("endless", Delivery(endless=True), **when)

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


def in_turn(
    *steps: Fault, endpoint: Endpoint = "composite", date: dt.date | None = None
) -> tuple[Fault, ...]:
    """Put faults one after the other: each begins to count where the one before has ended.

    Parameters
    ----------
    *steps : Fault
        Of each, ``first`` counts from the end of the one before.
    endpoint, date
        Of all of them.

    Returns
    -------
    tuple of Fault
        For ``serve(faults=...)``.

    Raises
    ------
    ValueError
        A step that never ends is not the last one.

    Examples
    --------
    >>> [f.first for f in in_turn(Fault.short_body(1000, first=3), Fault.status(503, times=2))]
    [3, 3]

    The second one does not count the requests that the first one strikes.
    """
    if any(step.times is None for step in steps[:-1]):
        raise ValueError("a fault that strikes for ever (times=None) can only be the last one")
    placed = []
    passed = 0
    for step in steps:
        passed += step.first - 1
        placed.append(replace(step, endpoint=endpoint, date=date, first=passed + 1))
    return tuple(placed)


def together(*faults: Fault) -> Fault:
    """Let several faults strike the same requests: when the first one does.

    Parameters
    ----------
    *faults : Fault
        Of all but the first one, only the effect counts.

    Returns
    -------
    Fault
        For ``serve(faults=...)``.

    Raises
    ------
    ValueError
        They exclude each other, see `Together`.
    """
    effects = tuple(effect for fault in faults for effect in parts(fault.effect))
    kind = " + ".join(fault.kind for fault in faults)
    return replace(faults[0], kind=kind, effect=Together(effects))  # type: ignore[arg-type]
