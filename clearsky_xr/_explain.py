"""What the free availability call knows about downloads that were refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

from ._availability import Availability
from ._request import Request
from .errors import (
    ClearSkyError,
    CredentialsError,
    InsufficientCreditsError,
    NoImageryError,
    NotOrderedError,
)

# Of these the availability call says more. Expired, restricted and partial images have no
# documented code of their own; what there is says "recheck availability" of 1002.
_EXPLAINED: Final = (NotOrderedError, InsufficientCreditsError, NoImageryError)

# What fails one download so fails all: those that wait for their turn are not sent.
_FINAL: Final = (CredentialsError, InsufficientCreditsError)

# An error is held back no longer than this for its explanation, seconds.
PATIENCE: Final = 10.0

# After an answer a burst stays open for as long, seconds: other threads of the same
# computation may only just have begun.
LINGER: Final = 2.0


class Burst:
    """Downloads of one cube that are under way together, on whatever threads.

    What fails one of them usually fails all. So the first one asks, of each kind
    of error, and the others share the answer, which says of which date it is.

    Parameters
    ----------
    ask : callable
        Makes the call, once.

    Attributes
    ----------
    over : bool
        Whether what is begun from now on fails anew.
    final : ClearSkyError or None
        Why nothing more of it is to be sent: the key is revoked, or the credits are used up.
    """

    def __init__(self, ask: Callable[[Request], Awaitable[Availability]]) -> None:
        self._ask = ask
        self._asked: dict[type[ClearSkyError], asyncio.Task[Availability | None]] = {}
        self.over = False
        self.final: ClearSkyError | None = None
        self._flights = 0

    def __enter__(self) -> Self:
        self._flights += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._flights -= 1
        # Whoever tries again after the last of them has done something about it.
        if self.final is not None and not self._flights:
            self._end()

    def failed(self, error: ClearSkyError) -> None:
        """Take note of an error, before anything else is sent."""
        if self.final is None and isinstance(error, _FINAL):
            self.final = error

    async def explain(self, error: ClearSkyError, request: Request) -> ClearSkyError:
        """Give an error of a download that also tells what the availability call says.

        It stays as it is if that call says nothing about such errors, or fails itself.

        Parameters
        ----------
        error : ClearSkyError
        request : Request
            What was asked for.
        """
        if not isinstance(error, _EXPLAINED):
            return error
        if type(error) not in self._asked:
            self._asked[type(error)] = asyncio.create_task(self._attempt(request))
        said = await asyncio.shield(self._asked[type(error)])
        if said is None:
            return error
        day = f"{said.date}" if said.date == request.date else f"{said.date}, which failed as well"
        advice = f"The service's (free) availability call says of {day}: {said.why}."
        return error.advise(advice, availability=said)

    async def _attempt(self, request: Request) -> Availability | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._ask(request)
        except Exception:  # noqa: BLE001  whatever it is, it must not hide the download's own error
            return None
        finally:
            asyncio.get_running_loop().call_later(LINGER, self._end)

    def _end(self) -> None:
        self.over = True
