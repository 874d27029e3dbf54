"""Handing an answer to the network, well or badly."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Final

from aiohttp import web

from ._effects import Answer, Delivery

#: Header of every answer: "synthetic" or "scenes".
ORIGIN_HEADER: Final = "X-Clearsky-Sandbox"

#: A bandwidth is kept in steps of about this many seconds.
_STEP_S: Final = 0.02

#: Bytes that are sent at a time where the body never ends.
_FLOOD_BYTES: Final = 2**16


async def send(
    request: web.Request,
    answer: Answer,
    delivery: Delivery,
    origin: str,
    finish: Callable[[int], None],
) -> web.StreamResponse:
    """Send an answer.

    Parameters
    ----------
    request : web.Request
        What is answered.
    answer : Answer
        Status 0 resets the connection.
    delivery : Delivery
        How.
    origin : str
        Value of the header that says sandbox.
    finish : callable
        Called once, with the number of bytes of the body that go out, before the last of
        them is sent. Whatever the client does on having read the answer, it then finds the
        ledger written and the connection free.

    Returns
    -------
    web.StreamResponse
        For aiohttp to finish.
    """
    response = web.StreamResponse(status=answer.status or 500, headers=dict(answer.headers))
    response.content_type = answer.content_type
    response.headers[ORIGIN_HEADER] = origin
    if delivery.before:
        await asyncio.sleep(delivery.before)
    if answer.status == 0 or (delivery.cut and delivery.after_bytes is None):
        finish(0)
        _hang_up(request, abort=True)
        return response
    body = answer.body
    if delivery.gzip:
        body = gzip.compress(body, mtime=0)
        response.headers["Content-Encoding"] = "gzip"
    if delivery.endless or delivery.until_close:
        if delivery.endless:
            await _flood(request, response, body, finish)
        else:
            _send_until_close(request, response, body[: delivery.after_bytes], finish)
        return response
    if delivery.chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(body)
    size = len(body)
    split = size if delivery.after_bytes is None else min(delivery.after_bytes, size)
    if not body:
        finish(0)
    await response.prepare(request)
    if delivery.cut or delivery.stall:
        await _write(response, body[:split], delivery.bandwidth)
        await asyncio.sleep(delivery.stall)
        if delivery.cut:
            finish(split)
            _hang_up(request)
            return response
        body = body[split:]
    await _write(response, body[:-1], delivery.bandwidth)
    if body:
        finish(size)
        await response.write(body[-1:])
    await response.write_eof()
    return response


def _hang_up(request: web.Request, *, abort: bool = False) -> None:
    """End the connection.

    Closed, not aborted: what was written still arrives, then the end too early. The end is sent
    explicitly, since closing says nothing while a forked child of this process holds a copy of
    the socket.
    """
    transport = request.transport
    if transport is None:
        return
    if abort:
        transport.abort()
    else:
        transport.write_eof()
        transport.close()


async def _flood(
    request: web.Request,
    response: web.StreamResponse,
    body: bytes,
    finish: Callable[[int], None],
) -> None:
    """Send a body and then zeros until nobody listens any more."""
    response.enable_chunked_encoding()
    await response.prepare(request)
    sent = 0
    try:
        while request.transport is not None and not request.transport.is_closing():
            part = bytes(_FLOOD_BYTES) if sent else body
            await response.write(part)
            sent += len(part)
    except ConnectionError:
        pass
    finally:
        finish(sent)


def _send_until_close(
    request: web.Request,
    response: web.StreamResponse,
    body: bytes,
    finish: Callable[[int], None],
) -> None:
    """Send a body that ends with the connection, which aiohttp itself never does."""
    if request.transport is None:
        return
    lines = [f"HTTP/1.1 {response.status} OK", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    finish(len(body))
    request.transport.write(head + body)
    _hang_up(request)


async def _write(response: web.StreamResponse, body: bytes, bandwidth: float | None) -> None:
    if bandwidth is None:
        if body:
            await response.write(body)
        return
    loop = asyncio.get_running_loop()
    begin = loop.time()
    step = max(1, int(bandwidth * _STEP_S))
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
        # Against the clock, not per step, so that slow timers do not add up.
        due = begin + min(start + step, len(body)) / bandwidth
        await asyncio.sleep(max(0.0, due - loop.time()))
