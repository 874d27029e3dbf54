"""The service's endpoints over aiohttp: one method each, one attempt each.

A failure is a `Failed` that says what it means for money; what to do about it
is decided above.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from . import errors
from ._request import Request
from ._retry import Failed, Outcome, retry_after

#: Largest JSON answer that is read, bytes: a date search may hold many outlines.
_JSON_CAP: Final = 64 * 2**20
_TOO_MANY: Final = 429
_EXCERPT: Final = 200

_BY_CODE: Final[Mapping[int, tuple[type[errors.ServiceError], str]]] = {
    992: (errors.ValidationError, "See the fields that it names."),
    993: (errors.ValidationError, "See the fields that it names."),
    994: (
        errors.InsufficientCreditsError,
        "Buy credits, or ask for less: the price depends on area alone.",
    ),
    1002: (
        errors.NoImageryError,
        "Give a time range instead of a list of days: ranges are resolved by the date search.",
    ),
    1003: (
        errors.RateLimitedError,
        "Other programs may use the same key. Lower concurrency=, or try again later.",
    ),
    1004: (errors.AreaLimitError, "The account's MaxCompositeAreaKm2 is smaller than reported."),
    1005: (errors.BandLimitError, "Ask for fewer bands and indices."),
    1006: (
        errors.NotOrderedError,
        "Place an order for this area, date and model first, or check model= and constellations=.",
    ),
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that parts of a call may take.

    Parameters
    ----------
    connect : float
        Until a connection stands.
    first_byte : float
        From sending to the answer's head: 39 s were observed for 1,000 km2
        (contract, section 12).
    stall : float
        Between two parts of a body.
    total : float
        The whole call.
    """

    connect: float = 30.0
    first_byte: float = 300.0
    stall: float = 30.0
    total: float = 900.0


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """What the account call tells (contract, sections 4.1 and 4.2); None where it is silent.

    Parameters
    ----------
    connections : int or None
        ``MaxConcurrentConnections``.
    area_km2 : float or None
        ``MaxCompositeAreaKm2``.
    bands : int or None
        ``MaxTotalBands``.
    sandbox : str or None
        What the pixels are, if an emulator answers: "synthetic" or "scenes".
    """

    connections: int | None
    area_km2: float | None
    bands: int | None
    sandbox: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_json(self) -> bool:
        return self.content[:64].lstrip()[:1] == b"{"


class Client:
    """One account at one origin.

    It must be made and used on the background loop.

    Parameters
    ----------
    url : str
        Origin, checked.
    key : str
    timeouts : Timeouts
    """

    def __init__(self, url: str, key: str, timeouts: Timeouts) -> None:
        self._url = url
        self._key = key
        self._timeouts = timeouts
        self._session = aiohttp.ClientSession(
            # The gate bounds the connections. Idle ones are let go early, since a
            # POST into a socket that the server is closing may be charged and lost.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is asked for is compressed inside; a compressed body could only hide its size.
            headers={"Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def account(self) -> AccountInfo:
        """Ask for the account's limits: the current endpoint, then the old one."""
        try:
            data, headers = await self._json("GET", "/api/account/info", None)
        except Failed as failed:
            if failed.error.details.get("status") != 404:
                raise
            data, headers = await self._json("GET", "/api/apikey/info", None)
        area = _number(data.get("MaxCompositeAreaKm2"))
        connections, bands = (
            None if (value := _number(data.get(name))) is None else int(value)
            for name in ("MaxConcurrentConnections", "MaxTotalBands")
        )
        return AccountInfo(connections, area, bands, headers.get("X-Clearsky-Sandbox"))

    async def search(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Ask which dates exist; gives the entries of ``ModelImageDates``."""
        data, _ = await self._json("POST", "/api/satelliteimages/search/available", body)
        entries = data.get("ModelImageDates")
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            raise _unexpected("the date search answered without ModelImageDates")
        return entries

    async def estimate(self, request: Request) -> float:
        """Ask for the price of a request, credits."""
        data, _ = await self._json(
            "POST", "/api/satelliteimages/process/composite/estimate", request.body()
        )
        price = _number(data.get("CreditEstimate"))
        if price is None:
            raise _unexpected("the estimate answered without CreditEstimate")
        return price

    async def composite(self, request: Request, cap: int) -> bytes:
        """Download one image. This spends credits.

        Parameters
        ----------
        request : Request
        cap : int
            Bytes after which the body is not read further.

        Returns
        -------
        bytes
            Not checked yet, but complete, and not one of the service's errors.
        """
        answer = await self._call(
            "POST", "/api/satelliteimages/process/composite", request.body(), cap=cap, paid=True
        )
        if answer.is_json:
            self._refuse(answer)
            raise _unexpected(f"the download answered JSON: {_excerpt(answer.content)}")
        if answer.content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise _unexpected(f"the download is no TIFF: {_excerpt(answer.content)}")
        return answer.content

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Make a free call; gives ``Data`` of the envelope, and the headers."""
        answer = await self._call(method, path, body, cap=_JSON_CAP, paid=False)
        document = self._refuse(answer)
        data = document.get("Data") if document else None
        if not isinstance(data, Mapping):
            raise _unexpected(f"{path} answered without Data: {_excerpt(answer.content)}")
        return data, answer.headers

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, cap: int, paid: bool
    ) -> _Answer:
        """Send once, and read the answer whole; anything but a 2xx is a `Failed`."""
        failure: Failed
        try:
            async with asyncio.timeout(self._timeouts.total):
                answer = await self._exchange(method, path, body, cap)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure = _unreachable(self._url, error)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = _lost(path, error, paid=paid)
        else:
            if answer.status // 100 == 2:
                return answer
            failure = self._failure(answer)
        # Raised out here, so that it does not carry aiohttp's exception, whose
        # request headers hold the key, as its context.
        raise failure

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, cap: int
    ) -> _Answer:
        headers = {
            "x-api-key": self._key,
            "Accept": "application/json, application/octet-stream",
        }
        async with asyncio.timeout(self._timeouts.first_byte):
            response = await self._session.request(
                method, self._url + path, json=body, headers=headers, allow_redirects=False
            )
        async with response:
            content = bytearray()
            while True:
                async with asyncio.timeout(self._timeouts.stall):
                    part = await response.content.readany()
                if not part:
                    break
                content += part
                if len(content) > cap:
                    response.close()
                    raise _unexpected(
                        f"{path} answered more than the {cap:,} bytes that its answer can need"
                    )
            return _Answer(response.status, response.headers.copy(), bytes(content))

    def _failure(self, answer: _Answer) -> Failed:
        """Understand an answer that is not a 2xx."""
        status = answer.status
        wait = retry_after(answer.headers)
        if status == _TOO_MANY:
            error: errors.ClearSkyError = errors.RateLimitedError(
                "the service answered 429: too many requests",
                hint=_BY_CODE[1003][1],
                status=status,
            )
            return Failed(Outcome.REFUSED, error, retry_after=wait)
        if status // 100 == 5:
            error = errors.ServiceUnavailableError(
                f"the service answered {status}: {_excerpt(answer.content)}",
                hint="Try again later; what was paid and answered is kept.",
                status=status,
            )
            # A gateway that gave up (502, 504) does not know what the service did.
            return Failed(Outcome.TRANSIENT, error, retry_after=wait, charged=status in (502, 504))
        try:
            if answer.is_json:
                self._refuse(answer)
        except Failed as failed:
            return failed
        if status // 100 == 3:
            return _unexpected(
                f"the service answered with a redirect ({status}), which is not followed: the key "
                "goes to the configured origin only",
                hint="Check base_url=.",
                status=status,
            )
        return _rejected(status, None, _excerpt(answer.content), {})

    def _refuse(self, answer: _Answer) -> Mapping[str, Any] | None:
        """Read the envelope, or the framework's problem document; raise if it says no."""
        try:
            document = json.loads(answer.content)
        except ValueError:
            document = None
        if not isinstance(document, Mapping):
            raise _unexpected(f"the service answered no JSON: {_excerpt(answer.content)}")
        failure = document.get("Error")
        if isinstance(failure, Mapping) or document.get("Succeeded") is False:
            failure = failure if isinstance(failure, Mapping) else {}
            code = _number(failure.get("Code"))
            raise _rejected(
                answer.status,
                None if code is None else int(code),
                _clean(failure.get("Message", "no message")),
                document.get("Data"),
                wait=retry_after(answer.headers),
            )
        if "errors" in document and "title" in document:
            raise _rejected(answer.status, None, _clean(document["title"]), document["errors"])
        return document


def _rejected(
    status: int, code: int | None, message: str, fields: Any, *, wait: float | None = None
) -> Failed:
    named = (
        {_clean(name): _clean(texts) for name, texts in fields.items()}
        if isinstance(fields, Mapping)
        else {}
    )
    listed = "".join(f"\n  {name}: {text}" for name, text in list(named.items())[:20])
    if status in (401, 403):
        error: errors.ClearSkyError = errors.CredentialsError(
            f"the service refuses the API key (HTTP {status}): {message}",
            hint="Is the key whole, not revoked, and meant for this base_url?",
            status=status,
        )
        return Failed(Outcome.REJECTED, error)
    validation = (errors.ValidationError, "See the fields that it names.")
    unknown = (errors.ServiceError, "This code is not documented; the request is not repeated.")
    kind, hint = (
        _BY_CODE.get(code, unknown) if code is not None else (validation if named else unknown)
    )
    if code is None and not named:
        hint = "The request is not repeated."
    said = f"HTTP {status}" + (f", code {code}" if code is not None else "")
    error = kind(
        f"the service refused ({said}): {message}{listed}",
        hint=hint,
        status=status,
        code=code,
        fields=named,
    )
    outcome = Outcome.REFUSED if kind is errors.RateLimitedError else Outcome.REJECTED
    return Failed(outcome, error, retry_after=wait)


def _unreachable(url: str, error: Exception) -> Failed:
    # A certificate that is wrong now is wrong in a minute, too.
    untrusted = isinstance(error, aiohttp.ClientSSLError)
    return Failed(
        Outcome.REJECTED if untrusted else Outcome.UNREACHABLE,
        errors.ServiceUnavailableError(
            f"cannot connect to {url}: {type(error).__name__}: {_clean(error)}",
            hint="Check the network and base_url=. Nothing was sent.",
        ),
    )


def _lost(path: str, error: BaseException, *, paid: bool) -> Failed:
    cause = "it took too long" if isinstance(error, TimeoutError) else _clean(error)
    if not paid:
        return Failed(
            Outcome.TRANSIENT,
            errors.ServiceUnavailableError(
                f"{path} gave no complete answer: {type(error).__name__}: {cause}",
                hint="This call is free; try again later.",
            ),
        )
    return Failed(
        Outcome.LOST,
        errors.LostDownloadError(
            f"a download was sent and its answer was lost: {type(error).__name__}: {cause}",
            hint="It may have been charged, so it is repeated only within a small allowance "
            '(on_lost="retry") or not at all (on_lost="raise"). Asking again sends it anew.',
        ),
        charged=True,
    )


def _unexpected(message: str, *, hint: str = "", **details: Any) -> Failed:
    return Failed(
        Outcome.REJECTED,
        errors.UnexpectedResponseError(
            message,
            hint=hint or "Is base_url= the service itself, with no proxy or portal before it?",
            **details,
        ),
        charged=True,
    )


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _excerpt(content: bytes) -> str:
    return _clean(content[: 4 * _EXCERPT].decode("utf-8", "replace"))


def _clean(text: Any) -> str:
    """Make a server's text safe to print: one short line without control characters."""
    if isinstance(text, list):
        text = "; ".join(str(part) for part in text[:10])
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * _EXCERPT])
    line = " ".join(printable.split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."


def search_body(
    wkt: str, start: dt.date, end: dt.date | None, model: str, constellations: tuple[str, ...]
) -> dict[str, Any]:
    """Write the body of a date search; ``Until``, since both vendor clients send that."""
    return {
        "Wkt": wkt,
        "From": f"{start}T00:00:00Z",
        "Until": None if end is None else f"{end}T00:00:00Z",
        "Model": model,
        "SatelliteConstellations": list(constellations),
    }
