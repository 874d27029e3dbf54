"""The endpoint that costs: from a checked body to a charged GeoTIFF."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final

from . import _raster
from ._accounts import Holder
from ._effects import Answer, Delivery, Effect, Garble, Tamper, parts
from ._fields import parse_object
from ._handlers import Call, Note, check_limits, check_orders
from ._state import State

#: Most bytes that a sandbox with ``memoize=True`` remembers.
MEMORY_BYTES: Final = 512 * 2**20


class Downloads:
    """Makes composite downloads.

    Parameters
    ----------
    state : State
        What there is.
    workers : Executor
        Where pixels are made, so that the event loop stays free to answer.
    """

    def __init__(self, state: State, workers: Executor) -> None:
        self._state = state
        self._workers = workers
        self._memory: dict[tuple[bytes, int], bytes] = {}

    async def make(
        self, holder: Holder, raw: bytes, effect: Effect | None, note: Note, stack: ExitStack
    ) -> Answer:
        """Check, charge and render one download.

        Parameters
        ----------
        holder : Holder
            Who asks.
        raw : bytes
            The body.
        effect : Effect or None
            Of the fault that strikes this request.
        note : callable
            Sets fields of the ledger's entry.
        stack : ExitStack
            Gets the connection that the download holds; the caller closes it when the
            last byte has gone out.

        Raises
        ------
        ApiError
            Any refusal, in the order of contract section 13; nothing is charged then.
        """
        state = self._state
        call = Call(state, holder, parse_object(raw), note)
        query, units = check_limits(call)
        note(in_flight=stack.enter_context(holder.slot(state.behaviour.overload)))
        covered = check_orders(call, query)
        day, model = query.day, query.model
        assert day is not None
        assert model is not None
        version = state.versions.of(day)
        effects = parts(effect)
        tampers = [one for one in effects if isinstance(one, Tamper)]

        def work() -> bytes:
            image = _raster.render(query, covered, day, state.imagery, version)
            for tamper in tampers:
                image = tamper.change(image)
            knobs = state.behaviour
            return _raster.write(image, plain=knobs.plain, compression=knobs.compression)

        holder.take(units, query.geometry, day, model.name)
        try:
            data = await self._make(work, (raw, version), cached=not tampers)
        except BaseException:
            holder.give_back(units, query.geometry, day, model.name)
            raise
        if any(isinstance(one, Delivery) and not one.charged for one in effects):
            holder.give_back(units, query.geometry, day, model.name)
        else:
            note(credits=units)
        for one in effects:
            if isinstance(one, Garble):
                data = one.change(data)
        name = f"{model.name}_{day:%Y%m%d}_{query.epsg}.tif"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Answer(200, data, "application/octet-stream", headers)

    async def _make(
        self, work: Callable[[], bytes], key: tuple[bytes, int], *, cached: bool
    ) -> bytes:
        """Work in a thread while the latency passes, or remember."""
        cached = cached and self._state.behaviour.memoize
        loop = asyncio.get_running_loop()
        due = loop.time() + self._state.behaviour.latency
        data = self._memory.get(key) if cached else None
        if data is None:
            data = await loop.run_in_executor(self._workers, work)
            if cached:
                self._remember(key, data)
        await asyncio.sleep(max(0.0, due - loop.time()))
        return data

    def _remember(self, key: tuple[bytes, int], data: bytes) -> None:
        self._memory[key] = data
        while sum(map(len, self._memory.values())) > MEMORY_BYTES:
            # The oldest first: dicts keep their order.
            del self._memory[next(iter(self._memory))]
