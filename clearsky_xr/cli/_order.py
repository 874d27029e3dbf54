"""What is asked for, opened without a trace, and its price in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _options as given
from ._show import span

if TYPE_CHECKING:
    import xarray as xr

    from clearsky_xr._cube import Cube
    from clearsky_xr._planned import Plan


@dataclass(frozen=True, slots=True)
class Order:
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


def order_of(area: Any, store: str | None, options: dict[str, Any], **more: Any) -> Order:
    """Settle what is asked for; free questions only."""
    from clearsky_xr._open import account_info, resolve
    from clearsky_xr._settings import resolve_settings

    access: dict[str, Any] = given.Service(options["base_url"], options["key_file"]).access()
    settings = resolve_settings(store=store, **access, **more)
    unsaid: dict[str, Any] = {"like": None, "constellations": None}
    cube = resolve(area, options["time"], settings, **unsaid, **given.settled(options))
    return Order(cube, store, {**access, **more}, account_info(settings).connections or 4)


def source_of(dataset: xr.Dataset) -> str:
    """Say what the pixels are if they are no imagery."""
    sandbox = str(dataset.attrs.get("title", "")).startswith("SANDBOX")
    return str(dataset.attrs.get("source", "")) if sandbox else ""


def _layers(cube: Cube) -> list[str]:
    return [*cube.bands, *(name for name, _ in cube.indices)]


@dataclass(frozen=True, slots=True)
class Price:
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
