"""The command ``clearsky-xr``: one verb for each job."""

from __future__ import annotations

import click

from ._ask import account, available, dates, models
from ._buy import download, estimate
from ._end import CODES, Verbs
from ._look import demo, info
from ._sandbox import sandbox


@click.group(cls=Verbs, context_settings={"max_content_width": 100}, epilog=CODES)
@click.version_option(package_name="clearsky-xr")
@click.option("--traceback", is_flag=True, help="Show where in the code an error comes from.")
def main(traceback: bool) -> None:
    """Cloudless Sentinel-2 imagery: what there is, what it costs, and downloads of it.

    The key is read from the environment variable CLEARSKY_API_KEY, or from a file
    (--key-file). Without one everything can be tried with --base-url sandbox, an emulator
    inside this process: no network, no cost, synthetic pixels.

    AREA is a GeoJSON file, any other file that geopandas reads, GeoJSON or WKT text, or
    W,S,E,N in degrees, such as -1.5,50,-1.4,50.1.

    \b
    Examples:
      clearsky-xr demo
      clearsky-xr dates field.geojson --time 2025-06
      clearsky-xr estimate -1.5,50,-1.48,50.02 --time 2025-04-01/2025-09-30
      clearsky-xr download field.geojson --time 2025-06 --store field.zarr
    """


for verb in (demo, sandbox, account, models, dates, available, estimate, download, info):
    main.add_command(verb)
