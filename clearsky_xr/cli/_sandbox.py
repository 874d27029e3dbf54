"""``clearsky-xr sandbox``: a sandbox in a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="a free one",
    help="Port to listen on.",
)
@click.option("--latency", default=0.0, show_default=True, help="Seconds to the first byte.")
@click.option("--bandwidth", type=float, help="Bytes per second of each download.")
@click.option(
    "--scenes",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of dated GeoTIFFs to serve instead of the synthetic landscape.",
)
@click.option("--max-connections", default=4, show_default=True, help="Limit of the account.")
@click.option("--max-area-km2", default=2500, show_default=True, help="Limit of one download.")
@click.option("--max-bands", default=20, show_default=True, help="Limit of one download.")
@click.option("--balance", default=100_000.0, show_default=True, help="Units of the account.")
@click.option("--cadence-days", default=5, show_default=True, help="Days between images.")
@click.option(
    "--billing",
    type=click.Choice(["geometry", "bbox"]),
    default="geometry",
    show_default=True,
    help="What is billed.",
)
@click.option(
    "--overload",
    type=click.Choice(["1003", "429"]),
    default="1003",
    show_default=True,
    help="How too many connections are refused.",
)
@click.option(
    "--compression",
    type=click.Choice(["deflate", "lzw", "zstd", "none"]),
    default="deflate",
    show_default=True,
    help="Of the GeoTIFFs.",
)
@click.option("--plain", is_flag=True, help="Striped GeoTIFFs without band descriptions.")
@click.option("--memoize", is_flag=True, help="Remember answers, for benchmarks.")
@click.option("--api-key", show_default="a random one", help="Key of the account.")
def sandbox(**options: object) -> None:
    """Run an emulator of the service until Ctrl-C.

    Nothing here is real: no imagery, no key, no money. GET /sandbox/ledger shows what was
    asked and what it would have cost.
    """
    from clearsky_xr.sandbox import serve  # heavy, and not needed for --help

    try:
        server = serve(**options)  # type: ignore[arg-type]  # click has checked the types
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    with server:
        click.echo(f"Sandbox ({server.label}) at {server.url}")
        click.echo(f"Ledger at {server.url}/sandbox/ledger")
        click.echo("Use it with:")
        click.echo(f"  export CLEARSKY_BASE_URL={server.url}")
        click.echo(f"  export CLEARSKY_API_KEY={server.api_key}")
        click.echo("Ctrl-C stops it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo(f"\n{len(server.ledger())} requests served.")
