"""The service's endpoints over aiohttp: one method each, one attempt each.

A failure is a `Failed` that says what it means for money; what to do about it
is decided above.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from ._answers import Answer, excerpt, lost, number, refuse, unexpected, unreachable
from ._answers import failure as failure_of
from ._availability import Availability, read_availability
from ._body import TIFF, Body
from ._request import Question, Request
from ._retry import Failed

#: Largest JSON answer that is read, bytes: a date search may hold many outlines.
_JSON_CAP: Final = 64 * 2**20

# Shorter ones, as tests have them, may be part of any word of an answer.
_SHORTEST_SECRET: Final = 8


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
        A whole download.
    free : float
        A whole call that costs nothing: what the vendor's client allows for any call
        (contract, section 9). Such a call may be given up and repeated without harm.
    """

    connect: float = 30.0
    first_byte: float = 300.0
    stall: float = 30.0
    total: float = 900.0
    free: float = 120.0


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """What the account call tells (contract, sections 4.1 and 4.2); None where it is silent.

    A limit of 0 or below is none that could be kept to, and counts as silence.

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
class Balance:
    """What the older account call tells (contract, section 4.2); None where it is silent.

    Parameters
    ----------
    credits, credit_limit : float or None
        ``CreditAmount`` and ``CreditLimit``: credits left, and how many more may be used in
        arrears.
    euros, euro_limit : float or None
        ``EuroCreditAmount`` and ``EuroCreditLimit``: the same for placing orders, EUR.
    """

    credits: float | None = None
    credit_limit: float | None = None
    euros: float | None = None
    euro_limit: float | None = None


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
        self.timeouts = timeouts
        self._session = aiohttp.ClientSession(
            # The gate bounds the connections. Idle ones are let go early, since a
            # POST into a socket that the server is closing may be charged and lost.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect),
            trust_env=False,
            # Of a body that has come but is not read yet, bytes: its default of 64 KiB stops
            # and restarts the socket forty times in 3 MB.
            read_bufsize=2**18,
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is asked for is compressed inside; a compressed body could only hide its size.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def identify(self, salt: bytes) -> str:
        """Name the account, so that who does not know the salt learns nothing of the key."""
        return hashlib.blake2b(f"{self._url}\n{self._key}".encode(), key=salt).hexdigest()[:32]

    async def account(self) -> AccountInfo:
        """Ask for the account's limits: the current endpoint, then the old one."""
        try:
            data, headers = await self._json("GET", "/api/account/info", None)
        except Failed as failed:
            if failed.error.details.get("status") != 404:
                raise
            data, headers = await self._json("GET", "/api/apikey/info", None)
        area, connections, bands = (
            value if (value := number(data.get(name)) or 0) > 0 else None
            for name in ("MaxCompositeAreaKm2", "MaxConcurrentConnections", "MaxTotalBands")
        )
        return AccountInfo(
            None if connections is None else max(1, int(connections)),
            area,
            None if bands is None else max(1, int(bands)),
            headers.get("X-Clearsky-Sandbox"),
        )

    async def balance(self) -> Balance:
        """Ask for the balance, which only the old endpoint is known to tell."""
        data, _ = await self._json("GET", "/api/apikey/info", None)
        names = ("CreditAmount", "CreditLimit", "EuroCreditAmount", "EuroCreditLimit")
        return Balance(*(number(data.get(name)) for name in names))

    async def models(self) -> list[Mapping[str, Any]]:
        """Ask for the models; gives the entries of ``TaskingModels``."""
        data, _ = await self._json("GET", "/api/tasking/models", None)
        return _entries(data, "TaskingModels", "the list of models")

    async def search(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Ask which dates exist; gives the entries of ``ModelImageDates``."""
        data, _ = await self._json("POST", "/api/satelliteimages/search/available", body)
        return _entries(data, "ModelImageDates", "the date search")

    async def available(self, question: Question) -> Availability:
        """Ask whether an image can be served."""
        path = "/api/satelliteimages/process/composite/available"
        data, _ = await self._json("POST", path, question.body())
        return read_availability(question.date, data)

    async def estimate(self, request: Request) -> float:
        """Ask for the price of a request, credits."""
        data, _ = await self._json(
            "POST", "/api/satelliteimages/process/composite/estimate", request.body()
        )
        price = number(data.get("CreditEstimate"))
        if price is None:
            raise unexpected("the estimate answered without CreditEstimate")
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
            refuse(answer)
            raise unexpected(f"the download answered JSON: {excerpt(answer.content)}")
        if not answer.content.startswith(TIFF):
            raise unexpected(f"the download is no TIFF: {excerpt(answer.content)}")
        return answer.content

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Make a free call; gives ``Data`` of the envelope, and the headers."""
        answer = await self._call(method, path, body, cap=_JSON_CAP, paid=False)
        document = refuse(answer)
        data = document.get("Data") if document else None
        if not isinstance(data, Mapping):
            raise unexpected(f"{path} answered without Data: {excerpt(answer.content)}")
        return data, answer.headers

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, cap: int, paid: bool
    ) -> Answer:
        """Send once, and read the answer whole; anything but a 2xx is a `Failed`."""
        failure: Failed
        try:
            answer = await self._exchange(
                method, path, body, cap, self.timeouts.total if paid else self.timeouts.free
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure = unreachable(
                self._url, error, untrusted=isinstance(error, aiohttp.ClientSSLError)
            )
        except (aiohttp.ClientError, TimeoutError, OSError, zlib.error) as error:
            failure = lost(path, error, paid=paid)
        else:
            if answer.status // 100 == 2:
                return answer
            failure = failure_of(answer)
        # Raised out here, so that it does not carry aiohttp's exception, whose
        # request headers hold the key, as its context.
        raise failure

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, cap: int, total: float
    ) -> Answer:
        headers = {
            "x-api-key": self._key,
            "Accept": "application/json, application/octet-stream",
        }
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        now = asyncio.get_running_loop().time
        deadline = now() + total
        # One alarm, set anew for each wait: first for the head, then for each part of the body.
        async with (
            asyncio.timeout_at(min(deadline, now() + self.timeouts.first_byte)) as alarm,
            self._session.request(
                method, self._url + path, data=data, headers=headers, allow_redirects=False
            ) as response,
        ):
            try:
                got = Body(path, response.headers, cap)
                alarm.reschedule(min(deadline, now() + self.timeouts.stall))
                while part := await response.content.readany():
                    got.add(part)
                    alarm.reschedule(min(deadline, now() + self.timeouts.stall))
            except Failed:
                response.close()
                raise
            if not got.whole:
                raise aiohttp.ClientPayloadError("the body is not whole")
            return Answer(response.status, response.headers.copy(), self._redacted(got.content))

    def _redacted(self, content: bytes) -> bytes:
        """Blank the key in an answer that might be quoted in an error.

        The old account call gives it back, and error pages may show a request's headers.
        """
        key = self._key.encode()
        if len(key) < _SHORTEST_SECRET or content.startswith(TIFF):
            return content
        return content.replace(key, b"(key)")


def search_body(
    wkt: str,
    start: dt.date,
    end: dt.date | None,
    model: str | None,
    constellations: tuple[str, ...] | None,
) -> dict[str, Any]:
    """Write the body of a date search; ``Until``, since both vendor clients send that.

    Without a model or constellations, which those clients never send, it searches all.
    """
    body: dict[str, Any] = {
        "Wkt": wkt,
        "From": f"{start}T00:00:00Z",
        "Until": None if end is None else f"{end}T00:00:00Z",
    }
    if model is not None:
        body["Model"] = model
    if constellations is not None:
        body["SatelliteConstellations"] = list(constellations)
    return body


def _entries(data: Mapping[str, Any], name: str, call: str) -> list[Mapping[str, Any]]:
    entries = data.get(name)
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise unexpected(f"{call} answered without {name}")
    return entries
