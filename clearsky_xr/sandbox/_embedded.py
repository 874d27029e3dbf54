"""The one sandbox of the process, for ``base_url="sandbox"``."""

from __future__ import annotations

import atexit
import os
import threading
from typing import ClassVar

from ._serve import serve
from ._server import Server


class _Process:
    """The sandbox of this process, if it has been asked for."""

    lock = threading.Lock()
    server: Server | None = None
    #: Servers of a parent process. Kept, because collecting them would close event loops
    #: whose file descriptors are shared with the parent.
    inherited: ClassVar[list[Server]] = []


def embedded() -> Server:
    """Give the sandbox of this process, starting it on first use.

    It has one account with a random key and the defaults of `serve`, and is closed when
    the interpreter exits. Safe to call from any thread. A forked child starts its own.

    Returns
    -------
    Server
    """
    with _Process.lock:
        if _Process.server is None:
            _Process.server = serve()
            atexit.register(_Process.server.close)
        return _Process.server


def _after_fork() -> None:
    """Forget the parent's server: its thread does not run here."""
    # Another thread of the parent may have held the lock at the moment of the fork.
    _Process.lock = threading.Lock()
    if _Process.server is not None:
        _Process.inherited.append(_Process.server)
        _Process.server = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
