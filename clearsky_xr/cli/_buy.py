"""Prices and purchases: ``estimate``, ``download``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from . import _options as given
from ._end import DECLINED, End
from ._show import show_json, show_pairs, span

if TYPE_CHECKING:
    import xarray as xr

    from clearsky_xr._cube import Cube
    from clearsky_xr._planned import Plan

# Beyond the price that was agreed to: what repeating lost downloads may cost (docs/decisions.md).
_ALLOWANCE: Final = 1.0
_SHARE: Final = 0.02
# More distinct geometries than this are not sent to the free estimate, one call each.
_ESTIMATES: Final = 20


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be priced or bought.

    Parameters
    ----------
    cube : Cube
    store : str or None
    options : dict
        For opening the cube: access, connections, lost downloads.
    connections : int
        Most downloads at a time.
    """

    cube: Cube
    store: str | None
    options: dict[str, Any]
    connections: int

    def priced(self) -> xr.Dataset:
        """Open the cube so that it can be priced; makes no store."""
        from clearsky_xr._location import resolve_location
        from clearsky_xr._store import find

        store: Any = self.store
        location = resolve_location(store, None)
        if location is not None and find(location) is None:
            from zarr.storage import MemoryStore

            store = MemoryStore()
        return self._open(store)

    def open(self) -> xr.Dataset:
        """Open the cube, with its store."""
        return self._open(self.store)

    def _open(self, store: Any) -> xr.Dataset:
        import xarray as xr

        return xr.open_dataset(
            self.cube,  # type: ignore[arg-type]  # xarray's types know paths only
            engine="clearsky",
            chunks={},
            store=store,
            **self.options,
        )


def _order(area: Any, store: str | None, options: dict[str, Any], **more: Any) -> _Order:
    """Settle what is asked for; free questions only."""
    from clearsky_xr._open import account_info, resolve
    from clearsky_xr._settings import resolve_settings

    access: dict[str, Any] = given.Service(options["base_url"], options["key_file"]).access()
    settings = resolve_settings(store=store, **access, **more)
    unsaid: dict[str, Any] = {"like": None, "constellations": None}
    cube = resolve(area, options["time"], settings, **unsaid, **given.settled(options))
    return _Order(cube, store, {**access, **more}, account_info(settings).connections or 4)


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
    order = _order(area, store, options)
    dataset = order.priced()
    price = _Price(order.cube, dataset.clearsky.plan(), _source(dataset))
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

    With --store whole blocks of 256 x 256 px are bought, with all bands, and nothing is
    lost even if the process is killed. With --geotiff alone exactly the area is bought.

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
    order = _order(area, store, options, **more)
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


def _price(order: _Order, geotiff: Path | None) -> _Price:
    """Plan what is missing; buys nothing, and makes neither store nor folder."""
    from clearsky_xr._planned import plan_of

    dataset = order.priced()
    wanted: tuple[Any, ...] = (dataset,)
    if geotiff is not None:
        from clearsky_xr._export import Export

        export = Export(dataset, geotiff)
        left = export.pending()
        wanted = (export.part(left),) if left else ()
    return _Price(order.cube, plan_of(*wanted), _source(dataset))


def _buy(order: _Order, geotiff: Path | None, most: float, *, stac: bool) -> tuple[Any, list[Path]]:
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


def _agree(price: _Price) -> None:
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


def _source(dataset: xr.Dataset) -> str:
    """Say what the pixels are if they are no imagery."""
    sandbox = str(dataset.attrs.get("title", "")).startswith("SANDBOX")
    return str(dataset.attrs.get("source", "")) if sandbox else ""


def _layers(cube: Cube) -> list[str]:
    return [*cube.bands, *(name for name, _ in cube.indices)]


@dataclass(frozen=True, slots=True)
class _Price:
    """What would be bought.

    Parameters
    ----------
    cube : Cube
    plan : Plan
    sandbox : str
        What the pixels are if they are no imagery; else empty.
    """

    cube: Cube
    plan: Plan
    sandbox: str

    def lines(self, service: str = "") -> list[tuple[str, str]]:
        """Tell it line by line."""
        cube, plan = self.cube, self.plan
        rows, cols = cube.grid.shape
        lines = [
            ("dates", span(cube.dates)),
            ("grid", f"{rows} x {cols} px of {cube.grid.resolution} m, EPSG:{cube.grid.epsg}"),
            ("layers", ", ".join(_layers(cube))),
        ]
        if self.sandbox:
            lines.append(("pixels", f"{self.sandbox}; nothing is paid"))
        if not plan.requests:
            return [*lines, ("price", "nothing: all of it is there")]
        lines += [
            ("downloads", f"{len(plan.requests):,}, for {len(plan.dates):,} dates"),
            ("size", f"{plan.bytes / 1e6:,.1f} MB at most"),
            ("price", f"{plan.credits:,.2f} credits"),
        ]
        return [*lines, ("service's price", service)] if service else lines

    def told(self) -> dict[str, Any]:
        """Tell it to a script."""
        cube, plan = self.cube, self.plan
        rows, cols = cube.grid.shape
        return {
            "dates": cube.dates,
            "rows": rows,
            "columns": cols,
            "resolution": cube.grid.resolution,
            "epsg": cube.grid.epsg,
            "layers": _layers(cube),
            "sandbox": bool(self.sandbox),
            "downloads": len(plan.requests),
            "bytes_at_most": plan.bytes,
            "credits": plan.credits,
        }
