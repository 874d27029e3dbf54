"""How a command ends: one message on standard error, and an exit code that scripts can tell."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from clearsky_xr import errors

FAILED: Final = 1
WRONG: Final = 2
KEY: Final = 3
REFUSED: Final = 4
DECLINED: Final = 5
AGAIN: Final = 6
PLACE: Final = 7
STRANGE: Final = 8
INTERRUPTED: Final = 130

#: What the exit codes mean, as ``--help`` tells it.
CODES: Final = """
\b
Exit codes:
    0  done; of `available`: the image can be had
    1  something else went wrong
    2  your input is wrong; nothing was sent
    3  there is no key, or the service refuses it
    4  the service says no: no order, no image, no credits, a limit
    5  not bought: over your limit, or not agreed to
    6  the service cannot be reached, or a download was lost: try again
    7  a store, folder or file cannot be read or written
    8  an answer is not what was asked for; paid bytes are kept
  130  interrupted
"""

_NO_KEY: Final = (
    "Set the environment variable CLEARSKY_API_KEY, or give --key-file. A key comes with an "
    "account at https://clearsky.vision. To try everything without one: --base-url sandbox."
)

# The first class that fits counts.
_KINDS: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.InputError, WRONG),
    (errors.CredentialsError, KEY),
    (errors.BudgetError, DECLINED),
    (errors.ServiceUnavailableError, AGAIN),
    (errors.RateLimitedError, AGAIN),
    (errors.LostDownloadError, AGAIN),
    (errors.ServiceError, REFUSED),
    (errors.StoreError, PLACE),
    (errors.SpoolError, PLACE),
    (errors.UnexpectedResponseError, STRANGE),
    (OSError, PLACE),
)


class End(click.ClickException):
    """An error message and an exit code.

    Parameters
    ----------
    message : str
    exit_code : int
    """

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click types it as the class's


class Verbs(click.Group):
    """A group whose commands end without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what it raises into a message."""
        try:
            with _plain_warnings():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise End(
                "interrupted. What is paid for and was kept is not bought again: the same command "
                "goes on where this one stood",
                INTERRUPTED,
            ) from None
        except Exception as error:
            if ctx.params.get("traceback"):
                raise
            raise End(*_said(error)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """List the commands in the order in which they are needed."""
        return list(self.commands)


def _said(error: Exception) -> tuple[str, int]:
    code = next((code for kind, code in _KINDS if isinstance(error, kind)), FAILED)
    if isinstance(error, errors.ClearSkyError):
        if isinstance(error, errors.CredentialsError) and "api_key=" in error.hint:
            return f"{error.message}\n{_NO_KEY}", code
        money = {"maybe": "\nCredits may have been spent.", "yes": "\nIt was paid for."}
        return str(error) + money.get(error.spent, ""), code
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}" if error.strerror else str(error), code
    where = "clearsky-xr --traceback ... shows where; please report it"
    return f"unexpected {type(error).__name__}: {error}\n{where}", code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line each, on standard error."""

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:  # noqa: ARG001
        click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        # Others' warnings are for developers, unless these have asked for them.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", errors.ClearSkyWarning)
        yield
