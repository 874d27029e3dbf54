"""The same scenes as files behind a plain HTTP server with ranges, and as STAC items."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import multiprocessing
import socket
import urllib.request
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rasterio
from rasterio.io import MemoryFile

from ._contenders import PATH
from ._work import EPSG, Call, Job


class Files:
    """A server of one folder; a context manager.

    Parameters
    ----------
    folder : pathlib.Path
    latency : float
        Seconds before the head of each answer.
    """

    def __init__(self, folder: Path, latency: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(folder, latency, theirs), daemon=True)
        self._child.start()
        self.url: str = self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.terminate()
        self._child.join()


def _serve(folder: Path, latency: float, pipe: Connection) -> None:
    from aiohttp import web

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> Any:
        await asyncio.sleep(latency)
        return await handler(request)

    async def main() -> None:
        app = web.Application(middlewares=[slow])
        app.router.add_static("/", folder)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        pipe.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        await asyncio.Event().wait()

    asyncio.run(main())


def download(job: Job, folder: Path) -> None:
    """Put the job's answers into a folder, one file for each band: stackstac reads no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, call in enumerate(job.calls):
        if (folder / f"{number}-10.tif").exists():
            continue
        headers = {"x-api-key": job.key, "Content-Type": "application/json"}
        body = json.dumps(call.body).encode()
        request = urllib.request.Request(job.url + PATH, body, headers)  # noqa: S310  loopback
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            content = answer.read()
        with MemoryFile(content) as memory, memory.open(driver="GTiff") as image:
            profile = {**image.profile, "count": 1, "predictor": 2, "interleave": "band"}
            for band in range(1, image.count + 1):
                with rasterio.open(folder / f"{number}-{band}.tif", "w", **profile) as single:
                    single.write(image.read(band), 1)


def items(job: Job, url: str, names: list[str], *, run: int) -> list[dict[str, Any]]:
    """Write the STAC items; the run's number keeps GDAL from remembering the last one's bytes."""
    return [_item(job, call, number, url, names, run=run) for number, call in enumerate(job.calls)]


def _item(
    job: Job, call: Call, number: int, url: str, names: list[str], *, run: int
) -> dict[str, Any]:
    box = job.work.geobox[slice(*call.rows), slice(*call.cols)]
    outline = box.geographic_extent
    bounds = outline.boundingbox
    day = dt.datetime.combine(job.work.days[call.date], dt.time(), dt.UTC)
    raster = {"data_type": "int16", "nodata": -32768, "scale": 0.0001, "offset": 0}
    common = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    assets = {
        name: {**common, "href": f"{url}/{number}-{k}.tif?{run}", "raster:bands": [raster]}
        for k, name in enumerate(names, 1)
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
        ],
        "id": f"{number}",
        "geometry": outline.json,
        "bbox": list(bounds.bbox),
        "collection": "benchmark",
        "links": [],
        "properties": {
            "datetime": day.isoformat().replace("+00:00", "Z"),
            "proj:epsg": EPSG,
            "proj:shape": list(box.shape),
            "proj:transform": list(box.transform)[:6],
        },
        "assets": assets,
    }
