"""What can go wrong, as a tree.

The class says what a handler should do; ``kind`` says the cause in one word;
``spent`` says whether money may have been spent.

::

    ClearSkyError
    ├── InputError (ValueError)        your call is wrong; nothing was sent
    │   ├── InvalidAreaError
    │   ├── InvalidTimeError
    │   ├── InvalidBandError
    │   ├── InvalidGridError
    │   ├── InvalidOptionError
    │   └── StoreMismatchError         the store keeps another cube
    ├── BudgetError                    a limit of yours; refused before it was sent
    ├── CredentialsError               no key, or one that the service refuses
    ├── ServiceError                   the service said no
    │   ├── ValidationError            992, 993: the body was refused
    │   ├── InsufficientCreditsError   994
    │   ├── NoImageryError             1002, or no date in the range
    │   ├── RateLimitedError           429, 1003, until the deadline
    │   ├── AreaLimitError             1004
    │   ├── BandLimitError             1005
    │   ├── NotOrderedError            1006
    │   └── ServiceUnavailableError    5xx or no connection, until the deadline
    ├── LostDownloadError              sent, no complete answer: perhaps charged
    ├── PlanIncomplete                 what an expression would buy cannot be told
    ├── SpoolError                     paid bytes are gone from this process's disk
    ├── StoreError                     the store cannot be used; it is left as it is
    │   └── NotBoughtError             offline, and the store has no such pixels
    └── UnexpectedResponseError        an answer that is not what was asked
        └── UnexpectedImageError       paid bytes that are not the image asked
            └── GridMismatchError      ... that lie on another pixel grid

Every exception survives pickle, and none ever holds the API key.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar


class ClearSkyError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message : str
        What went wrong.
    hint : str, optional
        What to do about it.
    kind : str, optional
        The cause in one word; the class has a default.
    spent : {"no", "maybe", "yes"}, optional
        Whether credits may have been spent; the class has a default.
    **details
        Facts for a handler, kept in `details` (e.g. ``code``, ``status``,
        ``date``, ``window``).
    """

    kind: str = "error"
    #: "no", "maybe" or "yes": whether credits may have been spent by what failed.
    spent: str = "no"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        kind: str | None = None,
        spent: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if kind is not None:
            self.kind = kind
        if spent is not None:
            self.spent = spent
        self.details = details

    def __str__(self) -> str:
        where = ", ".join(
            f"{name} {self.details[name]}"
            for name in ("store", "date", "window", "kept")
            if name in self.details
        )
        text = f"{self.message} [{where}]" if where else self.message
        return f"{text}\n{self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self._words(), self.details)

    def _words(self) -> dict[str, str]:
        return {"hint": self.hint, "kind": self.kind, "spent": self.spent}

    def at(self, **details: Any) -> Self:
        """Give a copy that also says where: ``date``, ``window``, ...

        A copy, because one failed request may be raised to several readers.
        """
        return _rebuild(type(self), self.message, self._words(), {**details, **self.details})

    def advise(self, advice: str, /, **details: Any) -> Self:
        """Give a copy whose hint goes on with `advice`, and that knows more."""
        words = self._words()
        words["hint"] = f"{self.hint}\n{advice}" if self.hint else advice
        return _rebuild(type(self), self.message, words, {**details, **self.details})


_E = TypeVar("_E", bound=ClearSkyError)


def _rebuild(cls: type[_E], message: str, words: dict[str, str], details: dict[str, Any]) -> _E:
    return cls(message, **words, **details)


class InputError(ClearSkyError, ValueError):
    """Your call is wrong. Nothing was sent and nothing was paid."""

    kind = "input"


class InvalidAreaError(InputError):
    """The area is not a usable polygon on the globe."""

    kind = "area"


class InvalidTimeError(InputError):
    """The time is not a range or a list of days."""

    kind = "time"


class InvalidBandError(InputError):
    """A band or an index does not exist, or is repeated, or is not offered."""

    kind = "band"


class InvalidGridError(InputError):
    """Resolution, CRS or ``like`` do not give a grid that the service can serve."""

    kind = "grid"


class InvalidOptionError(InputError):
    """Another option has an unusable value."""

    kind = "option"


class StoreMismatchError(InputError):
    """What is asked for does not fit what the store keeps; nothing was overwritten."""

    kind = "store_mismatch"


class BudgetError(ClearSkyError):
    """A download does not fit into ``max_credits=`` or `clearsky_xr.budget`; it was not sent.

    ``details`` holds ``limit``, ``asked`` and ``left``, credits.
    """

    kind = "budget"


class CredentialsError(ClearSkyError):
    """There is no API key, or the service refuses the one there is (401, 403)."""

    kind = "credentials"


class ServiceError(ClearSkyError):
    """The service refused, and repeating the same request will not help.

    ``details`` holds ``status`` (HTTP), ``code`` (``Error.Code``) and, for
    validation errors, ``fields``. When a download fails with 994, 1002 or 1006 the free
    availability call is asked as well: its answer is in ``availability``
    (`clearsky_xr.Availability`), and in words in the hint.
    """

    kind = "refused"


class ValidationError(ServiceError):
    """Codes 992 and 993: a field of the request was refused."""

    kind = "validation"


class InsufficientCreditsError(ServiceError):
    """Code 994: the account has too few credits left for this download."""

    kind = "credits"


class NoImageryError(ServiceError):
    """Code 1002, or a time range without a single date: there is no imagery."""

    kind = "no_imagery"


class RateLimitedError(ServiceError):
    """429 or code 1003 until the deadline: the account's connections are all in use."""

    kind = "rate_limited"


class AreaLimitError(ServiceError):
    """Code 1004: one request covers more than ``MaxCompositeAreaKm2``."""

    kind = "area_limit"


class BandLimitError(ServiceError):
    """Code 1005, or found at open: more layers than ``MaxTotalBands``."""

    kind = "band_limit"


class NotOrderedError(ServiceError):
    """Code 1006: no order of the account covers this area, date and model."""

    kind = "not_ordered"


class ServiceUnavailableError(ServiceError):
    """The service could not be reached, or answered 5xx, until the deadline."""

    kind = "unavailable"
    spent = "maybe"


class LostDownloadError(ClearSkyError):
    """A download was sent and no complete answer came back. It may have been charged."""

    kind = "lost"
    spent = "maybe"


class PlanIncomplete(ClearSkyError):  # noqa: N818  says what the plan is, as asyncio's do
    """What an expression would buy cannot be told. Nothing was sent; it can still be computed."""

    kind = "plan"


class SpoolError(ClearSkyError):
    """A paid answer has vanished from the temporary folder. Computing again buys it again."""

    kind = "spool"


class StoreError(ClearSkyError):
    """The store cannot be used: foreign, newer, damaged, out of reach. It is left as it is."""

    kind = "store"


class NotBoughtError(StoreError):
    """A computation touched pixels that the store does not have, and nothing may be bought."""

    kind = "not_bought"


class UnexpectedResponseError(ClearSkyError):
    """The answer is not what the service's contract says (HTML, a redirect, ...)."""

    kind = "response"
    spent = "maybe"


class UnexpectedImageError(UnexpectedResponseError):
    """The paid bytes are not the image that was asked for. They are kept aside.

    ``details["kept"]`` is the path of the bytes.
    """

    kind = "image"
    spent = "yes"


class GridMismatchError(UnexpectedImageError):
    """The image lies on another pixel grid than the one asked for."""

    kind = "grid_mismatch"


class ClearSkyWarning(UserWarning):
    """Something that costs, or may cost, money or time, and that you can change."""
