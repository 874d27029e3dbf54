"""The refusal of the emulated service, and the JSON envelope of every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INVALID = 992
NO_UNITS = 994
NO_IMAGE = 1002
TOO_MANY_CONNECTIONS = 1003
AREA_LIMIT = 1004
BAND_LIMIT = 1005
NOT_ORDERED = 1006


class ApiError(Exception):
    """An answer that is not a success.

    Parameters
    ----------
    code : int
        ``Error.Code`` of the envelope (contract, section 2.1).
    message : str
        ``Error.Message``.
    status : int, optional
        HTTP status; domain errors are all 400.
    fields : mapping of str to sequence of str, optional
        ``Data``: messages by property name.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: int = 400,
        fields: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields

    def envelope(self) -> dict[str, Any]:
        """Give the JSON body (contract, section 1.1)."""
        data = {name: list(texts) for name, texts in self.fields.items()} if self.fields else None
        return {
            "Data": data,
            "Succeeded": False,
            "Error": {"Message": self.message, "Code": self.code},
        }


class ProblemError(ApiError):
    """A body that cannot even be bound: the framework's own 400 (contract, section 1.1)."""

    def envelope(self) -> dict[str, Any]:
        """Give the problem document."""
        return {
            "title": self.message,
            "status": self.status,
            "errors": {name: list(texts) for name, texts in (self.fields or {}).items()},
            "traceId": "00-sandbox",
        }


def invalid(**fields: str) -> ApiError:
    """Give the general validation error for one or more fields.

    Parameters
    ----------
    **fields
        One message by property name, e.g. ``Resolution="Resolution must be 10"``.
    """
    return ApiError(
        INVALID,
        "One or more validation errors occurred.",
        fields={name: [text] for name, text in fields.items()},
    )


def success(data: Any) -> dict[str, Any]:
    """Give the envelope of a success."""
    return {"Data": data, "Succeeded": True, "Error": None}
