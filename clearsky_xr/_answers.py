"""What the service's answers mean, and what a call without an answer means for money.

No I/O: bytes and headers in, data or a `Failed` out. The service's wording is
never trusted further than to be quoted, cut and cleaned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import errors
from ._retry import Failed, Outcome, retry_after

_TOO_MANY: Final = 429
_EXCERPT: Final = 200

_BY_CODE: Final[Mapping[int, tuple[type[errors.ServiceError], str]]] = {
    992: (errors.ValidationError, "See the fields that it names."),
    993: (errors.ValidationError, "See the fields that it names."),
    994: (
        errors.InsufficientCreditsError,
        "Buy credits (clearsky_xr.account() tells the balance), or ask for a smaller area.",
    ),
    1002: (
        errors.NoImageryError,
        "Give a time range instead of a list of days: ranges are resolved by the date search.",
    ),
    1003: (
        errors.RateLimitedError,
        "Other programs may use the same key. Lower concurrency=, or try again later.",
    ),
    1004: (errors.AreaLimitError, "The account's MaxCompositeAreaKm2 is smaller than reported."),
    1005: (errors.BandLimitError, "Ask for fewer bands and indices."),
    1006: (
        errors.NotOrderedError,
        "Place an order for this area, date and model first, or check model= and constellations=.",
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whole.

    Parameters
    ----------
    status : int
    headers : mapping of str to str
    content : bytes
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_json(self) -> bool:
        """Whether it looks like JSON; content types are not to be trusted."""
        return self.content[:64].lstrip()[:1] == b"{"


def failure(answer: Answer) -> Failed:
    """Understand an answer that is not a 2xx."""
    status = answer.status
    wait = retry_after(answer.headers)
    if status == _TOO_MANY:
        error: errors.ClearSkyError = errors.RateLimitedError(
            "the service answered 429: too many requests",
            hint=_BY_CODE[1003][1],
            status=status,
        )
        return Failed(Outcome.REFUSED, error, retry_after=wait)
    if status // 100 == 5:
        error = errors.ServiceUnavailableError(
            f"the service answered {status}: {excerpt(answer.content)}",
            hint="Try again later; what was paid and answered is kept.",
            status=status,
        )
        # A gateway that gave up (502, 504) does not know what the service did.
        return Failed(Outcome.TRANSIENT, error, retry_after=wait, charged=status in (502, 504))
    try:
        if answer.is_json:
            refuse(answer)
    except Failed as failed:
        return failed
    if status // 100 == 3:
        return unexpected(
            f"the service answered with a redirect ({status}), which is not followed: the key "
            "goes to the configured origin only",
            hint="Check base_url=.",
            status=status,
        )
    return _rejected(status, None, excerpt(answer.content), {})


def refuse(answer: Answer) -> Mapping[str, Any] | None:
    """Read the envelope, or the framework's problem document; raise if it says no."""
    try:
        document = json.loads(answer.content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, Mapping):
        raise unexpected(f"the service answered no JSON: {excerpt(answer.content)}")
    failure = document.get("Error")
    if isinstance(failure, Mapping) or document.get("Succeeded") is False:
        failure = failure if isinstance(failure, Mapping) else {}
        code = number(failure.get("Code"))
        raise _rejected(
            answer.status,
            None if code is None else int(code),
            clean(failure.get("Message", "no message")),
            document.get("Data"),
            wait=retry_after(answer.headers),
        )
    if "errors" in document and "title" in document:
        raise _rejected(answer.status, None, clean(document["title"]), document["errors"])
    return document


def _rejected(
    status: int, code: int | None, message: str, fields: Any, *, wait: float | None = None
) -> Failed:
    named = (
        {clean(name): clean(texts) for name, texts in fields.items()}
        if isinstance(fields, Mapping)
        else {}
    )
    listed = "".join(f"\n  {name}: {text}" for name, text in list(named.items())[:20])
    if status in (401, 403):
        error: errors.ClearSkyError = errors.CredentialsError(
            f"the service refuses the API key (HTTP {status}): {message}",
            hint="Is the key whole, not revoked, and meant for this base_url?",
            status=status,
        )
        return Failed(Outcome.REJECTED, error)
    validation = (errors.ValidationError, "See the fields that it names.")
    unknown = (errors.ServiceError, "This code is not documented; the request is not repeated.")
    kind, hint = (
        _BY_CODE.get(code, unknown) if code is not None else (validation if named else unknown)
    )
    if not named and (code is None or kind is errors.ValidationError):
        hint = "The request is not repeated."
    said = f"HTTP {status}" + (f", code {code}" if code is not None else "")
    error = kind(
        f"the service refused ({said}): {message}{listed}",
        hint=hint,
        status=status,
        code=code,
        fields=named,
    )
    outcome = Outcome.REFUSED if kind is errors.RateLimitedError else Outcome.REJECTED
    return Failed(outcome, error, retry_after=wait)


def unreachable(url: str, error: Exception, *, untrusted: bool) -> Failed:
    """Say that nothing was sent; a certificate that is wrong now is wrong in a minute, too."""
    return Failed(
        Outcome.REJECTED if untrusted else Outcome.UNREACHABLE,
        errors.ServiceUnavailableError(
            f"cannot connect to {url}: {type(error).__name__}: {clean(error)}",
            hint="Check the network and base_url=. Nothing was sent.",
            spent="no",
        ),
    )


def lost(path: str, error: BaseException, *, paid: bool) -> Failed:
    cause = "it took too long" if isinstance(error, TimeoutError) else clean(error)
    if not paid:
        return Failed(
            Outcome.TRANSIENT,
            errors.ServiceUnavailableError(
                f"{path} gave no complete answer: {type(error).__name__}: {cause}",
                hint="This call is free; try again later.",
                spent="no",
            ),
        )
    return Failed(
        Outcome.LOST,
        errors.LostDownloadError(
            f"a download was sent and its answer was lost: {type(error).__name__}: {cause}",
            hint="It may have been charged, so it is repeated only within a small allowance "
            '(on_lost="retry") or not at all (on_lost="raise"). Asking again sends it anew.',
        ),
        charged=True,
    )


def unexpected(message: str, *, hint: str = "", **details: Any) -> Failed:
    return Failed(
        Outcome.REJECTED,
        errors.UnexpectedResponseError(
            message,
            hint=hint or "Is base_url= the service itself, with no proxy or portal before it?",
            **details,
        ),
        charged=True,
    )


def number(value: Any) -> float | None:
    """Read a JSON number; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def excerpt(content: bytes) -> str:
    return clean(content[: 4 * _EXCERPT].decode("utf-8", "replace")) or "(nothing)"


def clean(text: Any) -> str:
    """Make a server's text safe to print: one short line without control characters."""
    if isinstance(text, list):
        text = "; ".join(str(part) for part in text[:10])
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * _EXCERPT])
    line = " ".join(printable.split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."
