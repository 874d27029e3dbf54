"""What to do after a request failed: wait and repeat, or raise.

No I/O and no clock: an outcome goes in, seconds or an exception come out.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import enum
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ClearSkyError


class Outcome(enum.Enum):
    """How a request failed, as far as money is concerned."""

    #: Not begun: 429 or 400/1003. Nothing was charged.
    REFUSED = "refused"
    #: No connection: nothing was sent.
    UNREACHABLE = "unreachable"
    #: 5xx: the vendor says to repeat. Some may have been charged.
    TRANSIENT = "transient"
    #: Sent, and no complete answer. It may have been charged.
    LOST = "lost"
    #: Any other answer: the same request would fail again.
    REJECTED = "rejected"


class Failed(Exception):  # noqa: N818  never leaves the package: `error` does
    """A request failed.

    Parameters
    ----------
    outcome : Outcome
    error : ClearSkyError
        What the user gets if it is not repeated.
    retry_after : float or None
        Seconds that the service asked to wait.
    charged : bool
        Whether it may have been charged.
    """

    def __init__(
        self,
        outcome: Outcome,
        error: ClearSkyError,
        *,
        retry_after: float | None = None,
        charged: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.outcome = outcome
        self.error = error
        self.retry_after = retry_after
        self.charged = charged


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how long to repeat.

    Parameters
    ----------
    deadline : float
        Seconds from the first failure after which nothing is repeated.
    transient, lost : int
        Attempts in all after a 5xx or without a connection (the vendor's client
        makes 5, contract section 2), and repeats after a lost download.
    base, cap : float
        First and longest pause, seconds; each pause is about twice the one
        before (the vendor's client waits 1, 2, 4, 8).
    """

    deadline: float = 900.0
    transient: int = 5
    lost: int = 2
    base: float = 1.0
    cap: float = 60.0


@dataclass(slots=True)
class Retry:
    """The history of one request.

    Parameters
    ----------
    policy : Policy
    """

    policy: Policy
    _seen: dict[Outcome, int] = field(default_factory=dict)

    def wait(self, failed: Failed, elapsed: float, *, may_repeat_lost: bool = False) -> float:
        """Give the seconds to wait before the next attempt, or raise.

        Parameters
        ----------
        failed : Failed
        elapsed : float
            Seconds since the first failure.
        may_repeat_lost : bool
            Whether the allowance for lost downloads admits another one.

        Raises
        ------
        ClearSkyError
            The failure's own error: it is not to be repeated.
        """
        seen = self._seen[failed.outcome] = self._seen.get(failed.outcome, 0) + 1
        # The jitter keeps requests that failed together from coming back together.
        pause = min(self.policy.cap, self.policy.base * 2.0 ** min(seen - 1, 30))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311  no secret
        if failed.retry_after is not None:
            pause = failed.retry_after + pause / 2
        again = {
            Outcome.REFUSED: True,
            Outcome.UNREACHABLE: seen < self.policy.transient,
            Outcome.TRANSIENT: seen < self.policy.transient,
            Outcome.LOST: may_repeat_lost and seen <= self.policy.lost,
            Outcome.REJECTED: False,
        }[failed.outcome]
        if not again or elapsed + pause > self.policy.deadline:
            raise failed.error
        return pause


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read ``Retry-After``: seconds, or a date reckoned from the response's own ``Date``.

    Returns
    -------
    float or None
        Seconds, 0 or more; None if it is absent or unreadable.
    """
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        then = email.utils.parsedate_to_datetime(text)
        now = (
            email.utils.parsedate_to_datetime(headers["Date"])
            if "Date" in headers
            else dt.datetime.now(dt.UTC)
        )
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
