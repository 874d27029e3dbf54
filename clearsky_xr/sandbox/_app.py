"""The HTTP side: one pipeline from a request to the last byte of its answer."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from datetime import date
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar

import shapely
from aiohttp import web
from shapely.geometry import shape

from . import _delivery, _fields
from ._download import Downloads
from ._effects import Answer, Delivery, Effect, parts
from ._errors import ApiError, ProblemError, success
from ._handlers import COMPOSITE, FREE, Call, Note
from ._state import State

#: Bodies with thousands of polygons pass aiohttp's default of 1 MiB.
MAX_BODY_BYTES: Final = 64 * 2**20
LEDGER_PATH: Final = "/sandbox/ledger"
_PATHS: Final = {path for _, path in (*FREE, COMPOSITE)}
_T = TypeVar("_T")


class Application:
    """Answers the requests of the contract from a `State`.

    Parameters
    ----------
    state : State
        What there is.
    workers : Executor
        Where pixels are made.
    """

    def __init__(self, state: State, workers: Executor) -> None:
        self._state = state
        self._downloads = Downloads(state, workers)

    def make(self) -> web.Application:
        """Give the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        # One route, because aiohttp's router is case-sensitive and the service's is not.
        app.router.add_route("*", "/{path:.*}", self._receive)
        return app

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        path = request.path.lower().rstrip("/")
        if path == LEDGER_PATH and request.method == "GET" and _is_loopback(request.remote):
            body = json.dumps(self._state.ledger.summary()).encode()
            return await self._deliver(request, Answer(200, body), None, _ignore)
        target = (request.method, path)
        name = "composite" if target == COMPOSITE else FREE.get(target, ("unknown",))[0]
        sequence = self._state.ledger.open(name)
        note = partial(self._state.ledger.note, sequence)
        if request.transport is not None:
            note(peer=request.transport.get_extra_info("peername")[1])
        try:
            raw = await request.read()
            fault = self._state.faults.pick(name, _describe(raw, note))
            effect = fault.effect if fault else None
            note(fault=fault.kind if fault else None)
            with ExitStack() as stack:
                if isinstance(effect, Answer):
                    answer = effect
                else:
                    answer = await self._answer(
                        request, target, raw, effect=effect, note=note, stack=stack
                    )
                finish = partial(_finish, answer, note, stack)
                return await self._deliver(request, answer, effect, finish)
        except (ConnectionError, asyncio.CancelledError):
            note(status=0)
            raise
        except Exception:
            # aiohttp logs it and answers 500.
            note(status=500)
            raise

    async def _answer(
        self,
        request: web.Request,
        target: tuple[str, str],
        raw: bytes,
        *,
        effect: Effect | None,
        note: Note,
        stack: ExitStack,
    ) -> Answer:
        """Give the honest answer, a refusal among them."""
        try:
            _check_target(target)
            holder = self._state.holder(request.headers.get("x-api-key"))
            note(account=holder.name)
            if target == COMPOSITE:
                return await self._downloads.make(holder, raw, effect, note, stack)
            body = _fields.parse_object(raw) if request.method == "POST" else {}
            data = FREE[target][1](Call(self._state, holder, body, note))
            return Answer(200, json.dumps(success(data)).encode())
        except ApiError as error:
            kind = "problem+json" if isinstance(error, ProblemError) else "json"
            content = json.dumps(error.envelope()).encode()
            return Answer(error.status, content, f"application/{kind}", code=error.code)

    async def _deliver(
        self,
        request: web.Request,
        answer: Answer,
        effect: Effect | None,
        finish: Callable[[int], None],
    ) -> web.StreamResponse:
        """Send: a refusal always well, a success by the fault or the bandwidth there is."""
        delivery = Delivery()
        bad = [one for one in parts(effect) if isinstance(one, Delivery)]
        if answer.status == HTTPStatus.OK and bad:
            delivery = bad[0]
        elif answer.content_type == "application/octet-stream":
            delivery = Delivery(bandwidth=self._state.behaviour.bandwidth)
        origin = self._state.imagery.label
        return await _delivery.send(request, answer, delivery, origin, finish)


def _ignore(_count: int) -> None:
    """Finish an answer that is in no ledger."""


def _finish(answer: Answer, note: Note, stack: ExitStack, count: int) -> None:
    """Write the entry and let go of the connection."""
    unanswered = answer.status == HTTPStatus.OK and answer.body and not count
    note(status=0 if unanswered else answer.status, code=answer.code, bytes=count)
    stack.close()


def _check_target(target: tuple[str, str]) -> None:
    """Refuse unknown paths and methods; the service's codes for these are not known."""
    if target[1] not in _PATHS:
        raise ApiError(404, "There is no such path.", status=404)
    if target != COMPOSITE and target not in FREE:
        raise ApiError(405, "The path does not take this method.", status=405)


def _describe(raw: bytes, note: Note) -> date | None:
    """Note what a body says, as far as it can be read, and give its date."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    values: dict[str, Any] = {str(name).lower(): value for name, value in body.items()}

    def read(name: str, convert: Callable[[Any], _T]) -> _T | None:
        with suppress(ValueError):
            return convert(values.get(name))
        return None

    day = read("date", _fields.day)
    wkt = read("wkt", _fields.text)
    if wkt is None and isinstance(values.get("geojson"), dict):
        # Whatever shapely thinks of it: the answer will say so, not the ledger.
        with suppress(Exception):
            wkt = shapely.to_wkt(shape(values["geojson"]), rounding_precision=-1)
    note(
        date=day,
        wkt=wkt,
        bandnames=read("bandnames", _fields.text),
        resolution=read("resolution", _fields.integer),
        epsg=read("epsgprojection", _fields.integer),
    )
    return day


def _is_loopback(remote: str | None) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(remote or "").is_loopback
    return False
