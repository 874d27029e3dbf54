"""Free questions: ``account``, ``models``, ``dates``, ``available``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from . import _options as given
from ._end import REFUSED
from ._show import show_json, show_pairs, show_rows


@click.command()
@given.service
@given.as_json
def account(base_url: str | None, key_file: Path | None, as_json: bool) -> None:
    """Show limits and balance of the account. Free.

    \b
    Examples:
      clearsky-xr account
      clearsky-xr account --base-url sandbox --json
    """
    import dataclasses

    import clearsky_xr

    status = clearsky_xr.account(**given.Service(base_url, key_file).access())
    if as_json:
        show_json(dataclasses.asdict(status))
        return

    def told(value: float | None, unit: str = "") -> str:
        return "the service does not tell" if value is None else f"{value:,g}{unit}"

    pairs = [
        ("credits left", told(status.credits)),
        ("in arrears", told(status.credit_limit, " credits at most")),
        ("for orders", told(status.euros, " EUR")),
        ("connections", told(status.connections)),
        ("largest download", told(status.area_km2, " km2")),
        ("layers", told(status.bands, " in a download")),
    ]
    if status.sandbox is not None:
        pairs.insert(0, ("account", f"of a sandbox ({status.sandbox}): nothing here is real"))
    show_pairs(pairs)


@click.command()
@given.service
@given.as_json
def models(base_url: str | None, key_file: Path | None, as_json: bool) -> None:
    """List models and the satellites that they read. Free.

    \b
    Example:
      clearsky-xr models
    """
    import clearsky_xr

    table = clearsky_xr.models(**given.Service(base_url, key_file).access())
    if as_json:
        show_json(table.to_dict("records"))
        return
    rows = [
        (str(row.model), _names(row.required), _names(row.optional))
        for row in table.itertuples(index=False)
    ]
    show_rows([("model", "required", "optional"), *rows])


def _names(names: Any) -> str:
    return ", ".join(names) or "-"


@click.command(cls=given.AreaCommand)
@given.area
@given.time
@click.option("--model", help="This model only.")
@click.option("--whole", is_flag=True, help="Only dates that the whole area has.")
@given.service
@given.as_json
def dates(
    area: Any,
    time: str,
    model: str | None,
    whole: bool,
    base_url: str | None,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """List the images that exist of an area. Free.

    Each line is a date, its model, and how much of the area has it.

    \b
    Examples:
      clearsky-xr dates field.geojson --time 2025-06
      clearsky-xr dates -1.5,50,-1.4,50.1 --time 2025-04-01/2025-09-30 --whole
    """
    import clearsky_xr

    access = given.Service(base_url, key_file).access()
    table = clearsky_xr.dates(area, time, model=model, **access)
    if whole:
        table = table[table.whole]
    if as_json:
        show_json(table.drop(columns="geometry").to_dict("records"))
        return
    rows = [
        (
            str(row.date)[:10],
            str(row.model),
            ", ".join(row.constellations),
            "whole area" if row.whole else f"sub-area {row.subarea}, {row.area_km2:.2f} km2",
        )
        for row in _once(table.itertuples(index=False))
    ]
    if rows:
        show_rows(rows)
    else:
        click.echo("No images: is there an order for this area and time?", err=True)


def _once(rows: Iterable[Any]) -> Iterable[Any]:
    """Leave out that a date of the whole area is in each of its sub-areas."""
    seen = set()
    for row in rows:
        key = (row.date, row.model, row.constellations, 0 if row.whole else row.subarea)
        if row.whole and key in seen:
            continue
        seen.add(key)
        yield row


@click.command(cls=given.AreaCommand)
@given.area
@click.argument("date")
@click.option("--bands", default="all", show_default=True, help="As for `download`.")
@click.option("--crs", default="auto", show_default=True, help="As for `download`.")
@click.option("--model", default="Stratus2", show_default=True, help="Model ordered.")
@given.service
@given.as_json
@click.pass_context
def available(
    ctx: click.Context,
    area: Any,
    date: str,
    bands: str,
    crs: str,
    model: str,
    base_url: str | None,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Ask whether a date can be downloaded, and if not, why. Free.

    The exit code is 0 if it can be had and 4 if not.

    \b
    Examples:
      clearsky-xr available field.geojson 2025-06-05
      clearsky-xr available field.geojson 2025-06-05 && echo go
    """
    import dataclasses

    import clearsky_xr

    access = given.Service(base_url, key_file).access()
    zone = int(crs) if crs.isdigit() else crs
    answer = clearsky_xr.availability(area, date, bands=bands, crs=zone, model=model, **access)
    if as_json:
        told = {"ready": answer.ready, "kind": answer.kind, "why": answer.why}
        show_json({**told, **dataclasses.asdict(answer)})
    else:
        click.echo("It can be downloaded." if answer.ready else f"Not to be had: {answer.why}")
    if not answer.ready:
        ctx.exit(REFUSED)
