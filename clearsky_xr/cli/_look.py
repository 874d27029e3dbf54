"""What is here already: ``info``, and ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _options as given
from ._show import show_json, show_pairs, show_rows, span


@click.command()
@click.argument("store")
@click.option("--receipts", is_flag=True, help="Show what came with each block.")
@given.as_json
def info(store: str, receipts: bool, as_json: bool) -> None:
    """Show what a store has. Needs no key and no network.

    \b
    Examples:
      clearsky-xr info field.zarr
      clearsky-xr info field.zarr --receipts --json
    """
    import clearsky_xr
    from clearsky_xr._shown import cube_of

    dataset = clearsky_xr.open_store(store, chunks=None)
    if receipts:
        table = dataset.clearsky.receipts()
        if as_json:
            show_json(table.to_dict("records"))
        else:
            rows = table.astype(str).itertuples(index=False)
            show_rows([table.columns, *rows])
        return
    cube = cube_of(dataset)[0]
    there = dataset.clearsky.fetched() if cube.dates else None
    counts = (0, 0) if there is None else (int(there.sum()), there.size)
    whole = [] if there is None else [
        date for date, full in zip(cube.dates, there.all("block").values, strict=True) if full
    ]  # fmt: skip
    folder = Path(store)
    size = (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if folder.is_dir()
        else None
    )
    title = str(dataset.attrs.get("title", ""))
    rows, cols = cube.grid.shape
    if as_json:
        show_json(
            {
                "title": title,
                "sandbox": title.startswith("SANDBOX"),
                "model": cube.model,
                "bands": cube.bands,
                "bounds": cube.area.bounds,
                "epsg": cube.grid.epsg,
                "resolution": cube.grid.resolution,
                "rows": rows,
                "columns": cols,
                "dates": cube.dates,
                "complete_dates": whole,
                "blocks": counts[1],
                "blocks_bought": counts[0],
                "bytes": size,
            }
        )
        return
    pairs: list[tuple[str, Any]] = [
        ("store", store if size is None else f"{store}, {size / 1e6:,.1f} MB"),
        ("holds", title),
        ("area", ", ".join(f"{value:.6g}" for value in cube.area.bounds) + " (W, S, E, N)"),
        ("grid", f"{rows} x {cols} px of {cube.grid.resolution} m, EPSG:{cube.grid.epsg}"),
        ("bands", ", ".join(cube.bands)),
        ("dates", span(cube.dates)),
        ("complete", span(whole)),
        ("blocks", f"{counts[0]:,} of {counts[1]:,} bought"),
    ]
    show_pairs(pairs)


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("clearsky_demo.png"),
    show_default=True,
    help="Where the picture goes.",
)
def demo(output: Path) -> None:
    """Load a season of farmland from the sandbox, and draw it. Needs no key and no network."""
    try:
        import matplotlib as mpl  # noqa: F401  asked for before the work, not after it
    except ImportError:
        raise click.ClickException(
            "the picture needs matplotlib: pip install 'clearsky-xr[plot]'"
        ) from None
    if not output.resolve().parent.is_dir():
        raise click.ClickException(f"there is no folder {output.parent}")
    from clearsky_xr._demo import run

    run(output)
