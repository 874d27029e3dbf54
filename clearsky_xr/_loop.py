"""One background event loop per process, and the bridge to it from sync code.

Async is the implementation. Sync callers, on any thread and also inside a
running loop (Jupyter), wait for the background loop; async callers await it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, Final, TypeVar

from .errors import ClearSkyError

T = TypeVar("T")

# The end of a process waits no longer for the loop, seconds.
_END: Final = 1.0

_lock = threading.Lock()
# What threads wait for that Ctrl-C does not reach.
_waited_for: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


#: Say whether something that is waited for needs a loop. Who knows of such loops adds to it.
would_hang: list[Callable[[asyncio.AbstractEventLoop], bool]] = []


def background() -> asyncio.AbstractEventLoop:
    """Give the process's loop; starts its daemon thread on first use."""
    global _loop, _thread  # noqa: PLW0603  one per process is the point
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            _thread = threading.Thread(
                target=_serve, args=(loop,), name="clearsky_xr-loop", daemon=True
            )
            _thread.start()
            _loop = loop
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    if asyncio.all_tasks(loop):
        # The process ends, given up by Ctrl-C. What is under way must not be unwound as if it
        # had failed: what was asked for has to stay on the disk, to be counted as lost.
        threading.Event().wait()
    loop.close()


class Alone(ContextDecorator):
    """Lets errors of this package out without those that they were raised during.

    What those said is in their words. Dask pickles an error together with its context, and
    exceptions of other packages do not all survive that.
    """

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut the error loose."""
        if isinstance(error, ClearSkyError):
            error.__context__ = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it.

    An interrupt (Ctrl-C) cancels it: what is paid for and in flight goes on and
    lands in the spool, the rest is not sent.
    """
    with contextlib.suppress(RuntimeError):
        here = asyncio.get_running_loop()
        if any(needs(here) for needs in would_hang):
            work.close()
            raise ClearSkyError(
                "a sync call in the event loop of an asynchronous Dask client would wait for ever",
                hint="Use await ds.load_async(), or asyncio.to_thread.",
                kind="cluster",
            )
    loop = background()
    if threading.current_thread().name == "clearsky_xr-loop":
        work.close()
        raise ClearSkyError("a sync call from inside the package's own event loop would deadlock")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    if threading.current_thread() is not threading.main_thread():
        _waited_for.add(future)
    try:
        with Alone():
            return future.result()
    except CancelledError:
        raise ClearSkyError("the computation was interrupted", kind="interrupted") from None
    except BaseException:
        future.cancel()
        raise


def call_off() -> None:
    """Cancel what threads other than the main one wait for."""
    for future in list(_waited_for):
        future.cancel()


async def join(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and await it from another loop."""
    with Alone():
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, background()))


def stop() -> None:
    """End the loop, when the process does."""
    global _loop  # noqa: PLW0603
    with _lock:
        if _loop is not None:
            _loop.call_soon_threadsafe(_loop.stop)
            if _thread is not None:
                _thread.join(_END)  # or a loop that was not closed is complained of
            _loop = None


def _after_fork() -> None:
    """Forget the parent's loop: its thread does not exist in the child."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
