"""Prices and purchases: ``estimate``, ``download``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from . import _options as given
from ._end import DECLINED, End
from ._order import Order, Price, order_of, source_of
from ._show import show_json, show_pairs

# Beyond the price that was agreed to: what repeating lost downloads may cost (docs/decisions.md).
_ALLOWANCE: Final = 1.0
_SHARE: Final = 0.02
# More distinct geometries than this are not sent to the free estimate, one call each.
_ESTIMATES: Final = 20


@click.command(cls=given.AreaCommand)
@given.area
@given.cube
@click.option("--store", help="Leave out what this store has; counts whole blocks.")
@given.service
@given.as_json
def estimate(area: Any, store: str | None, as_json: bool, **options: Any) -> None:
    """Say what a download would cost, without buying anything.

    Two prices: by the formula of the service's documentation, area x 0.1 credits a km2 and
    date; and by the service's own free estimate.

    \b
    Examples:
      clearsky-xr estimate field.geojson --time 2025-04-01/2025-09-30
      clearsky-xr estimate -1.5,50,-1.48,50.02 --time 2025-06 --base-url sandbox --json
    """
    order = order_of(area, store, options)
    dataset = order.priced()
    price = Price(order.cube, dataset.clearsky.plan(), source_of(dataset))
    geometries = len({(r.bounds, r.pixels) for r in price.plan.requests})
    few = geometries <= _ESTIMATES
    asked = dataset.clearsky.estimate(most=None).credits if few else None
    if as_json:
        show_json({**price.told(), "credits_of_service": asked})
        return
    unasked = f"not asked: {geometries} geometries would be a call each"
    show_pairs(price.lines(unasked if asked is None else f"{asked:,.2f} credits"))


@click.command(cls=given.AreaCommand)
@given.area
@given.cube
@click.option("--store", help="Zarr store to keep the pixels in; made if it is not there.")
@click.option(
    "--geotiff",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for a GeoTIFF of each date.",
)
@click.option("--stac", is_flag=True, help="Write a STAC collection beside the GeoTIFFs.")
@click.option("--yes", is_flag=True, help="Buy without asking.")
@click.option("--max-credits", type=float, help="Buy nothing if it costs more than this.")
@click.option("--concurrency", type=int, help="Connections.  [default: what the account has]")
@click.option(
    "--on-lost",
    type=click.Choice(["retry", "raise"]),
    default="retry",
    show_default=True,
    help="Repeat a download whose answer was lost, within a small allowance, or never.",
)
@given.service
@given.as_json
def download(
    area: Any,
    store: str | None,
    geotiff: Path | None,
    stac: bool,
    yes: bool,
    max_credits: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Buy an area over time into a store or GeoTIFFs.

    They go into a Zarr store, into a folder with a GeoTIFF for each date, or both. The price
    is shown first, and you are asked, unless --yes is given. It can be interrupted: the same
    command goes on where it stood, and buys nothing again that the store or the folder has.
    No more is spent than was agreed to, and an allowance of 1 credit or 2 % for downloads
    that are lost.

    With --store whole blocks of 256 x 256 px are bought, with all bands, and answers that
    have come are kept even if the process is killed. With --geotiff alone exactly the area
    is bought.

    \b
    Examples:
      clearsky-xr download field.geojson --time 2025-04-01/2025-09-30 --store field.zarr
      clearsky-xr download field.geojson --time 2025-06 --geotiff june --indices ndvi --yes
    """
    if store is None and geotiff is None:
        raise click.UsageError("where to? Give --store cube.zarr, or --geotiff FOLDER, or both")
    if stac and geotiff is None:
        raise click.UsageError("--stac describes GeoTIFFs: give --geotiff FOLDER")
    if stac:
        from clearsky_xr._stac import require_pystac

        require_pystac()
    more = {"concurrency": options["concurrency"], "on_lost": options["on_lost"]}
    order = order_of(area, store, options, **more)
    price = _price(order, geotiff)
    cost = price.plan.credits
    if max_credits is not None and cost > max_credits:
        raise End(
            f"it costs {cost:,.2f} credits, more than --max-credits {max_credits:g}. "
            "Nothing was bought",
            DECLINED,
        )
    if price.plan.requests and not yes:
        _agree(price)
    most = cost + max(_ALLOWANCE, _SHARE * cost)
    if max_credits is not None:
        # Those in flight are reserved rounded up to the cent.
        most = max(min(most, max_credits), cost + 0.01 * order.connections)
    spent, files = _buy(order, geotiff, most, stac=stac)
    if as_json:
        show_json(
            {
                "dates": order.cube.dates,
                "store": store,
                "files": [str(path) for path in files],
                "sandbox": bool(price.sandbox),
                "downloads": spent.requests,
                "credits": spent.settled,
                "possibly_charged": spent.possibly,
            }
        )
        return
    places = [f"{len(files)} files in {geotiff}"] if geotiff is not None else []
    places += [str(store)] if store is not None else []
    lost = f", and possibly {spent.possibly:,.2f} for lost downloads" if spent.possibly else ""
    click.echo(
        f"{' and '.join(places)}: {len(order.cube.dates)} dates, {spent.requests} downloads, "
        f"{spent.settled:,.2f} credits{lost}{' (of a sandbox)' if price.sandbox else ''}"
    )


def _price(order: Order, geotiff: Path | None) -> Price:
    """Plan what is missing; buys nothing, and makes neither store nor folder."""
    from clearsky_xr._planned import plan_of

    dataset = order.priced()
    wanted: tuple[Any, ...] = (dataset,)
    if geotiff is not None:
        from clearsky_xr._export import Export

        export = Export(dataset, geotiff)
        left = export.pending()
        wanted = (export.part(left),) if left else ()
    return Price(order.cube, plan_of(*wanted), source_of(dataset))


def _buy(order: Order, geotiff: Path | None, most: float, *, stac: bool) -> tuple[Any, list[Path]]:
    import clearsky_xr

    shown = sys.stderr.isatty()
    files: list[Path] = []
    with _ending_gently(), clearsky_xr.budget(most) as purse:
        dataset = order.open()
        if geotiff is None:
            dataset.clearsky.prefetch(progress=shown)
        else:
            files = dataset.clearsky.to_geotiff(geotiff, stac=stac, progress=shown)
    return purse.report(), files


@contextmanager
def _ending_gently() -> Iterator[None]:
    """Take SIGTERM, by which batch systems end a job, for Ctrl-C: what is paid for is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _agree(price: Price) -> None:
    """Show the price and ask."""
    show_pairs(price.lines(), err=True)
    if not _somebody_is_there():
        raise End("nobody is there to be asked: --yes agrees to the price", DECLINED)
    cost = f"{price.plan.credits:,.2f} credits"
    try:
        agreed = click.confirm(f"Buy it for {cost}?", default=False, err=True)
    except click.Abort:  # the end of the input, or Ctrl-C
        click.echo(err=True)
        agreed = False
    if not agreed:
        raise End("nothing was bought", DECLINED)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()
