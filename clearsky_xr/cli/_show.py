"""Answers on standard output: for eyes, or as JSON."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def show_json(value: Any) -> None:
    """Print JSON."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def show_pairs(pairs: Iterable[tuple[str, str]], *, err: bool = False) -> None:
    """Print names and values below each other."""
    lines = list(pairs)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:{width}}  {value}", err=err)


def show_rows(rows: Iterable[Sequence[str]]) -> None:
    """Print rows whose cells stand below each other."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def span(days: Sequence[dt.date]) -> str:
    """Say how many days there are, and from when to when."""
    if not days:
        return "none"
    return str(days[0]) if len(days) == 1 else f"{len(days)}, {days[0]} to {days[-1]}"


def _plain(value: Any) -> Any:
    """Give days, moments, and numpy's numbers as JSON has them."""
    if isinstance(value, dt.datetime):
        midnight = value.tzinfo is None and value.time() == dt.time()
        return value.date().isoformat() if midnight else value.isoformat()
    return value.isoformat() if isinstance(value, dt.date) else value.item()
