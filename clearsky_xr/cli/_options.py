"""What several commands take: an area, a place of the key, the options of a cube."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from clearsky_xr._bands import INDICES
from clearsky_xr.errors import (
    CredentialsError,
    InvalidAreaError,
    InvalidBandError,
    InvalidOptionError,
    InvalidTimeError,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NUMBERS: Final = re.compile(r"[-+\d.eE]+(\s*,\s*[-+\d.eE]+)+")
_JSON: Final = (".json", ".geojson")
_AREAS: Final = (
    "Give a file (GeoJSON, or anything that geopandas reads), GeoJSON or WKT text, or W,S,E,N in "
    "degrees, such as -1.5,50,-1.4,50.1."
)
_TIMES: Final = "Examples: 2025-04-01/2025-09-30, 2025-06, 2025-06-05."


class AreaCommand(click.Command):
    """A command whose area may begin with a minus sign."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep western areas from being taken for options, none of which is a number."""
        return super().parse_args(ctx, [f" {a}" if re.match(r"-[\d.]", a) else a for a in args])


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:  # not generic before click 8.4
    _Type = click.ParamType


class Area(_Type):
    """An area as it is written on a command line."""

    name = "area"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002
        """Give what `clearsky_xr.open_timeseries` takes as an area."""
        from clearsky_xr._area import resolve_area

        try:
            return resolve_area(_read(value.strip()) if isinstance(value, str) else value)
        except InvalidAreaError as error:
            # What Python takes is of no use here.
            hint = _AREAS if "__geo_interface__" in error.hint else error.hint
            raise InvalidAreaError(error.message, hint=hint) from None


def _read(text: str) -> Any:
    if _NUMBERS.fullmatch(text):
        try:
            bounds = tuple(float(part) for part in text.split(","))
        except ValueError:
            bounds = ()
        if len(bounds) != 4:
            raise InvalidAreaError(
                f"{text} is not W,S,E,N: four numbers of degrees",
                hint="Example: -1.5,50,-1.4,50.1 for west, south, east, north.",
            )
        return bounds
    path = Path(text)
    try:
        other = path.is_file() and path.suffix.lower() not in _JSON
    except OSError:  # such as a WKT that is too long for a name
        other = False
    if not other:
        return text
    try:
        import geopandas
    except ImportError:
        raise InvalidAreaError(
            f"{text} is no GeoJSON, and other files need geopandas",
            hint="Install it: pip install 'clearsky-xr[vector]'.",
        ) from None
    try:
        return geopandas.read_file(path)
    except Exception as error:  # noqa: BLE001  drivers raise what they like
        raise InvalidAreaError(f"{text} cannot be read: {error}"[:300]) from None


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service is, and its key; neither is ever shown.

    Parameters
    ----------
    base_url : str or None
    key_file : pathlib.Path or None
    """

    base_url: str | None
    key_file: Path | None

    def access(self) -> dict[str, str | None]:
        """Give the options of the functions that ask the service."""
        return {"base_url": self.base_url, "api_key": self._key()}

    def _key(self) -> str | None:
        if self.key_file is None:
            return None
        try:
            lines = self.key_file.read_text(encoding="utf-8-sig").split()
        except UnicodeDecodeError:
            lines = []
        if len(lines) != 1:
            raise CredentialsError(
                f"the key file {self.key_file} does not hold one key and nothing else",
                hint="It is the key as it was given, in one line.",
            )
        return lines[0]


def _refuse_key(ctx: Any, param: Any, value: Any) -> None:  # noqa: ARG001
    if value is not None:
        raise InvalidOptionError(
            "a key in an argument is seen by everyone on this machine, and stays in the history "
            "of the shell",
            hint="Put it into CLEARSKY_API_KEY, or into a file: --key-file key.txt. Have the one "
            "that was typed replaced.",
        )


def service(command: _Command) -> _Command:
    """Give a command the options that say where the service and the key are."""
    for option in (
        click.option("--api-key", hidden=True, expose_value=False, callback=_refuse_key),
        click.option(
            "--key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with the API key.  [default: the variable CLEARSKY_API_KEY]",
        ),
        click.option(
            "--base-url",
            help="Address of the service, or `sandbox`.  [default: the variable "
            "CLEARSKY_BASE_URL, else the service]",
        ),
    ):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def area(command: _Command) -> _Command:
    """Give a command the argument AREA."""
    return click.argument("area", type=Area())(command)


def _checked_time(ctx: Any, param: Any, value: str) -> str:  # noqa: ARG001
    from clearsky_xr._dates import resolve_time

    try:
        resolve_time(value)
    except InvalidTimeError as error:
        raise InvalidTimeError(error.message, hint=_TIMES) from None
    return value


def time(command: _Command) -> _Command:
    """Give a command the option that says when."""
    return click.option(
        "--time",
        required=True,
        callback=_checked_time,
        metavar="A/B",
        help="First and last day, such as 2025-04-01/2025-09-30; or a day, month or year.",
    )(command)


def cube(command: _Command) -> _Command:
    """Give a command the options that make a cube."""
    for option in (
        click.option(
            "--allow-partial",
            is_flag=True,
            help="Take dates, too, on which a part of the area has no image.",
        ),
        click.option(
            "--pixels",
            type=click.Choice(["intersect", "contained"]),
            default="intersect",
            show_default=True,
            help="Which pixels on the edge belong to the area.",
        ),
        click.option(
            "--clip/--no-clip",
            default=True,
            show_default=True,
            help="Buy the area itself, or its bounding rectangle.",
        ),
        click.option("--model", default="Stratus2", show_default=True, help="Model ordered."),
        click.option("--crs", default="auto", show_default=True, help="A UTM zone: EPSG:32633."),
        click.option("--resolution", type=int, help="Metres.  [default: 10, or the store's]"),
        click.option(
            "--indices", help="Such as ndvi,ndmi; your own as name=B8/B5 for (B8-B5)/(B8+B5)."
        ),
        click.option(
            "--bands",
            default="all",
            show_default=True,
            help="Such as B4,nir; `rgb`, `none`. Bands cost nothing.",
        ),
    ):
        command = option(command)
    return time(command)


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the options of `cube` into those of `clearsky_xr.resolve`."""
    bands, crs = options["bands"], str(options["crs"])
    return {
        **{name: options[name] for name in ("resolution", "model", "clip", "pixels")},
        "allow_partial": options["allow_partial"],
        "bands": None if bands.strip().lower() == "none" else bands,
        "indices": _indices(options["indices"]),
        "crs": int(crs) if crs.isdigit() else crs,
    }


def _indices(text: str | None) -> str | dict[str, tuple[str, ...]] | None:
    if text is None or "=" not in text:
        return text
    pairs: dict[str, tuple[str, ...]] = {}
    for item in text.split(","):
        name, own, formula = (part.strip() for part in item.partition("="))
        if not own and name.lower() not in INDICES:
            raise InvalidBandError(
                f"there is no index {name!r} in the catalogue", hint=f"Known: {', '.join(INDICES)}."
            )
        pairs[name] = tuple(formula.split("/")) if own else INDICES[name.lower()]
    return pairs
