"""When a Dask computation ends early, what its threads are still fetching is called off.

Ctrl-C reaches the main thread only. Dask's threads would go on, and buy all of
the chunks that they have begun.
"""

from __future__ import annotations

import threading
from typing import Any

from dask.callbacks import Callback

from . import _loop


class _Watch(Callback):
    """Counts the computations of Dask's local schedulers, and sees how they end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0

    def _start(self, _graph: Any) -> None:
        with self._lock:
            self._running += 1

    def _finish(self, _graph: Any, _state: Any, failed: bool) -> None:  # noqa: FBT001  Dask's
        with self._lock:
            self._running -= 1
            # Whose thread is whose cannot be told, so nothing is called off beside others.
            alone = self._running == 0
        if failed and alone:
            _loop.call_off()


_watch = _Watch()


def watch_dask() -> None:
    """Begin to watch; does no harm twice.

    It is called whenever a Dask array is made of a cube, since Dask forgets
    callbacks when computations in several threads overlap.
    """
    _watch.register()
