"""The command ``clearsky-xr``."""

from __future__ import annotations

from pathlib import Path

import click

from .sandbox._command import sandbox


@click.group()
@click.version_option(package_name="clearsky-xr")
def main() -> None:
    """Cloudless Sentinel-2 imagery as xarray objects."""


main.add_command(sandbox)


@main.command()
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
    from ._demo import run

    run(output)
