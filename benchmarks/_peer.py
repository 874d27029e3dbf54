"""One run of a peer, in its own process and, if need be, its own environment.

It stands alone: it imports nothing of this package, since stackstac needs an older pandas than
this package is used with. ``python _peer.py {odc-stac,stackstac} < job.json``
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

# As the documentation of both advises for files behind HTTP.
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "GDAL_HTTP_TCP_KEEPALIVE": "YES",
    "VSI_CACHE": "TRUE",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "CPL_VSIL_CURL_USE_HEAD": "NO",
}


def odc_stac(job: dict[str, Any], items: list[Any]) -> Any:
    """Read with odc-stac."""
    import odc.stac

    odc.stac.configure_rio(cloud_defaults=True, **GDAL)
    cube = odc.stac.load(
        items, bands=job["bands"], crs=job["epsg"], resolution=job["pixel"],
        x=(job["x"], job["x"] + job["side"] * job["pixel"]),
        y=(job["y"] - job["side"] * job["pixel"], job["y"]),
        groupby="time", pool=job["connections"], dtype="int16", nodata=-32768,
    )  # fmt: skip
    if not job["scaled"]:
        return cube.to_dataarray("band")
    return cube.where(cube != -32768).astype("float32").to_dataarray("band") / np.float32(10000)


def stack(job: dict[str, Any], items: list[Any]) -> Any:
    """Read with stackstac."""
    import dask
    import rasterio
    import stackstac

    del rasterio
    env = stackstac.DEFAULT_GDAL_ENV.updated(always=dict(GDAL.items()))
    far = job["side"] * job["pixel"]
    cube = stackstac.stack(
        items, assets=job["bands"], epsg=job["epsg"], resolution=job["pixel"],
        bounds=(job["x"], job["y"] - far, job["x"] + far, job["y"]), snap_bounds=False,
        dtype="float64" if job["scaled"] else "int16",
        fill_value=np.nan if job["scaled"] else np.int16(-32768),
        rescale=job["scaled"], chunksize=(1, 1, 1024, 1024), gdal_env=env,
    )  # fmt: skip
    with dask.config.set(scheduler="threads", num_workers=job["connections"]):
        return cube.compute()


def main() -> None:
    """Read a job, run it once, and tell."""
    import pystac

    job = json.load(sys.stdin)
    run = {"odc-stac": odc_stac, "stackstac": stack}[sys.argv[1]]
    seconds = []
    for dicts in job["items"]:
        items = [pystac.Item.from_dict(item, preserve_dict=False) for item in dicts]
        cpu, wall = time.process_time(), time.perf_counter()
        values = np.asarray(run(job, items))
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    total = float(np.nansum(np.where(values == -32768, np.nan, values), dtype=np.float64))
    json.dump({"seconds": seconds, "shape": values.shape, "sum": total}, sys.stdout)


if __name__ == "__main__":
    main()
