"""What a running sandbox knows: accounts, archive, ledger, faults."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from ._accounts import Account, Holder, Overload
from ._billing import Billing
from ._errors import ApiError
from ._faultplan import Plan
from ._holes import Hole
from ._imagery import Imagery
from ._ledger import Ledger
from ._raster import Compression
from .faults import Fault


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the service behaves.

    Parameters
    ----------
    latency : float
        Seconds of processing before the first byte of a download.
    bandwidth : float or None
        Bytes per second of each download; None is as fast as it goes.
    billing : {"geometry", "bbox"}
        What is billed.
    overload : {"1003", "429"}
        How too many connections are refused.
    plain : bool
        Striped GeoTIFFs without band descriptions.
    compression : {"deflate", "lzw", "zstd", "none"}
        Of the GeoTIFFs.
    memoize : bool
        Answer a repeated body with the bytes of the first answer.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    billing: Billing = "geometry"
    overload: Overload = "1003"
    plain: bool = False
    compression: Compression = "deflate"
    memoize: bool = False

    def __post_init__(self) -> None:
        if self.latency < 0:
            raise ValueError(f"latency must not be negative, got {self.latency}")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError(f"bandwidth must be positive, got {self.bandwidth}")
        for name, allowed in (
            ("billing", ("geometry", "bbox")),
            ("overload", ("1003", "429")),
            ("compression", ("deflate", "lzw", "zstd", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


class Versions:
    """``IMAGE_VERSION`` by date, 1 unless regenerated. Safe to use from any thread."""

    def __init__(self) -> None:
        self._versions: dict[date, int] = {}
        self._lock = threading.Lock()

    def of(self, day: date) -> int:
        """Give the version of a day."""
        return self._versions.get(day, 1)

    def regenerate(self, day: date) -> int:
        """Raise the version of a day by one and give it."""
        with self._lock:
            self._versions[day] = self.of(day) + 1
            return self._versions[day]


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a request can touch.

    Parameters
    ----------
    holders : tuple of Holder
        The accounts.
    imagery : Imagery
        The archive.
    behaviour : Behaviour
        The knobs.
    faults : Plan
        The faults.
    holes : tuple of Hole
        What the archive lacks.
    """

    holders: tuple[Holder, ...] = field(repr=False)
    imagery: Imagery
    behaviour: Behaviour
    faults: Plan
    holes: tuple[Hole, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    versions: Versions = field(default_factory=Versions)

    def holder(self, key: str | None) -> Holder:
        """Find the account of a key.

        Raises
        ------
        ApiError
            401: no key, or none that is known.
        """
        for holder in self.holders:
            if key == holder.account.key:
                return holder
        raise ApiError(401, "Unauthorized.", status=401)


def make_state(
    accounts: Iterable[Account],
    imagery: Imagery,
    behaviour: Behaviour,
    faults: Iterable[Fault],
    holes: Iterable[Hole] = (),
) -> State:
    """Give the state of a fresh sandbox.

    Raises
    ------
    ValueError
        No account, or two with the same key.
    """
    accounts = tuple(accounts)
    if not accounts or len({account.key for account in accounts}) < len(accounts):
        raise ValueError("the sandbox needs one account or several with different keys")
    holders = tuple(Holder(a, f"account-{i}") for i, a in enumerate(accounts, 1))
    return State(holders, imagery, behaviour, Plan(faults), tuple(holes))
