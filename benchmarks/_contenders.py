"""Who loads the cubes: the floor, what users write by themselves, and this package.

A contender is a function of a job that gives a ready callable; what happens before
that, such as opening, is not measured. Imports stand inside, so that each process
carries only what its contender needs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from ._work import CORNER, EPSG, PIXEL, Call, Job

PATH: Final = "/api/satelliteimages/process/composite"
_NODATA: Final = -32768
# What a careful user of GDAL sets; and the key of the CRS, found while profiling.
_GDAL: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 16 * 2**20,
    "GTIFF_SRS_SOURCE": "GEOKEYS",
}


def floor(job: Job, *, careful: bool = False) -> Callable[[], Any]:
    """Download with bare aiohttp, decode into one array: no xarray, no checks, nothing kept."""
    import aiohttp
    import rasterio
    from rasterio.io import MemoryFile

    def enter() -> None:
        rasterio.Env(**_GDAL).__enter__()

    spool = Path(job.folder, "careful")
    writing = threading.Lock()

    def keep(content: bytes) -> None:
        with writing, spool.open("ab", buffering=0) as file:
            file.write(content)

    def check(image: Any, call: Call) -> None:
        (top, bottom), (left, right) = call.rows, call.cols
        corner = CORNER[0] + PIXEL * left, CORNER[1] - PIXEL * top
        assert (image.count, image.height, image.width) == (10, bottom - top, right - left)
        assert set(image.dtypes) == {"int16"}
        assert set(image.nodatavals) == {_NODATA}
        assert image.crs.to_epsg() == EPSG
        assert tuple(image.transform)[:6] == (PIXEL, 0, corner[0], 0, -PIXEL, corner[1])
        day = call.body["Date"][:10].replace("-", "")
        assert image.tags()["IMAGE_DATE"].replace("-", "") == day

    pool = ThreadPoolExecutor(os.cpu_count(), initializer=enter)

    def run() -> Any:
        out = np.empty(job.shape, job.dtype)

        def decode(content: bytes, call: Call) -> None:
            view = out[call.date, :, slice(*call.rows), slice(*call.cols)]
            if careful:
                keep(content)
            with MemoryFile(content) as memory, memory.open(driver="GTiff") as image:
                if careful:
                    check(image, call)
                if job.scaled:
                    raw = image.read()
                    np.divide(raw, np.float32(10000), out=view)
                    view[raw == _NODATA] = np.nan
                else:
                    image.read(out=view)

        async def download() -> None:
            loop, calls, decoding = asyncio.get_running_loop(), iter(job.calls), []
            async with aiohttp.ClientSession() as session:

                async def connection() -> None:
                    for call in calls:
                        async with session.post(
                            job.url + PATH, json=call.body, headers={"x-api-key": job.key}
                        ) as response:
                            content = await response.read()
                        decoding.append(loop.run_in_executor(pool, decode, content, call))

                await asyncio.gather(*(connection() for _ in range(job.connections)))
                await asyncio.gather(*decoding)

        asyncio.run(download())
        return out

    return run


def careful(job: Job) -> Callable[[], Any]:
    """Do the floor's work, but write each answer to disk first, and compare it with its request.

    Who pays for answers can hardly do less; there is no ledger, gate or retry in it.
    """
    run = floor(job, careful=True)

    def fresh() -> Any:
        Path(job.folder, "careful").unlink(missing_ok=True)
        return run()

    return fresh


def bare(job: Job) -> Callable[[], Any]:
    """Download and throw away: what the server can do at most."""
    import aiohttp

    async def download() -> None:
        calls = iter(job.calls)
        async with aiohttp.ClientSession() as session:

            async def connection() -> None:
                for call in calls:
                    async with session.post(
                        job.url + PATH, json=call.body, headers={"x-api-key": job.key}
                    ) as response:
                        await response.read()

            await asyncio.gather(*(connection() for _ in range(job.connections)))

    return lambda: asyncio.run(download())


def vendor(job: Job, connections: int = 1) -> Callable[[], Any]:
    """One request after the other with requests, a file each, rioxarray, xr.concat."""
    import requests
    import rioxarray
    import xarray as xr

    folder = Path(job.folder, "vendor")

    def get(numbered: tuple[int, Any]) -> Any:
        number, call = numbered
        answer = requests.post(
            job.url + PATH, json=call.body, headers={"x-api-key": job.key}, timeout=120
        )
        assert answer.status_code == 200, answer.text
        path = folder / f"{number}.tif"
        path.write_bytes(answer.content)
        image = rioxarray.open_rasterio(path)
        assert isinstance(image, xr.DataArray)
        if job.scaled:
            return (image.where(image != _NODATA) / np.float32(10000)).astype(np.float32)
        return image.load()

    def run() -> Any:
        folder.mkdir()
        if connections == 1:
            images = [get(call) for call in enumerate(job.calls)]
        else:
            with ThreadPoolExecutor(connections) as pool:
                images = list(pool.map(get, enumerate(job.calls)))
        cube = xr.concat(images, "time", join="override").values
        shutil.rmtree(folder)
        return cube

    return run


def pool(job: Job) -> Callable[[], Any]:
    """Do the vendor's way in a pool of threads, as many as the account has connections."""
    return vendor(job, job.connections)


def opened(job: Job, chunks: Any, **options: Any) -> Any:
    """Open a job's cube with this package."""
    import clearsky_xr

    cube = clearsky_xr.resolve(
        job.work.area, job.work.days, like=job.work.geobox, clip=False,
        base_url=job.url, api_key=job.key,
    )  # fmt: skip
    options = {"base_url": job.url, "api_key": job.key, **options}
    import xarray as xr

    return xr.open_dataset(
        cube, engine="clearsky", chunks=chunks, mask_and_scale=job.scaled, **options
    )  # fmt: skip


def forget() -> None:
    """Let go of all that this process holds, so that it is bought again."""
    from clearsky_xr import _account

    shared = _account.process()
    for owner in shared.accounts.values():
        owner.holdings._held.clear()
    shared.stocks.clear()
    shared.recent._values.clear()
    shared.recent._bytes = 0
    # The disk must not fill up over the repetitions.
    if shared.spool._folder is not None:
        os.truncate(shared.spool._folder / "answers", 0)


def load(job: Job) -> Callable[[], Any]:
    """``.load()`` without Dask."""
    dataset = opened(job, None)
    return lambda: dataset.load().reflectance.values


def load_async(job: Job) -> Callable[[], Any]:
    """``load_async``, from a running loop."""
    dataset = opened(job, None)
    return lambda: asyncio.run(dataset.load_async()).reflectance.values


def dask(job: Job) -> Callable[[], Any]:
    """``chunks={}`` on two threads, ``.persist()``."""
    import dask as dask_

    dataset = opened(job, {})

    def run() -> Any:
        with dask_.config.set(scheduler="threads", num_workers=2):
            return dataset.reflectance.persist()

    return run


def reduction(job: Job) -> Callable[[], Any]:
    """``chunks={}`` on two threads, the largest value of each pixel over time."""
    import dask as dask_

    dataset = opened(job, {})

    def run() -> None:
        with dask_.config.set(scheduler="threads", num_workers=2):
            dataset.reflectance.max("time", skipna=False).compute()

    return run


def cold(job: Job) -> Callable[[], Any]:
    """Fill a new store, and load."""
    store = Path(job.folder, "cold.zarr")
    for path in (store, store.with_name("cold.zarr.clearsky")):
        shutil.rmtree(path, ignore_errors=True)
    dataset = opened(job, None, store=store)
    return lambda: dataset.load().reflectance.values


def _full(job: Job) -> Path:
    store = Path(job.folder, f"full-{job.work.name}-{job.work.dates}.zarr")
    if not store.exists():
        opened(job, None, store=store).load()
        forget()
    return store


def warm(job: Job) -> Callable[[], Any]:
    """Load from a store that has everything, with ``chunks={}`` as a rule is read."""
    import dask as dask_

    dataset = opened(job, {}, store=_full(job))

    def run() -> Any:
        with dask_.config.set(scheduler="threads", num_workers=2):
            return dataset.reflectance.load().values

    return run


def plain(job: Job) -> Callable[[], Any]:
    """Load the same store with plain ``xr.open_zarr``."""
    import dask as dask_
    import xarray as xr

    dataset = xr.open_zarr(_full(job), mask_and_scale=job.scaled)

    def run() -> Any:
        with dask_.config.set(scheduler="threads", num_workers=2):
            return dataset.reflectance.load().values

    return run


clusters: list[Any] = []


def cluster(job: Job) -> Callable[[], Any]:
    """``chunks={}`` on a LocalCluster of two processes with one gate, ``.persist()``."""
    from distributed import Client, LocalCluster, wait

    import clearsky_xr

    if not clusters:
        clusters.append(
            Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
        )
    client = clusters[0]
    clearsky_xr.cluster.setup(client, api_key=job.key)
    client.run(forget)
    dataset = opened(job, {})

    def run() -> None:
        wait(client.persist(dataset.reflectance))

    return run


CONTENDERS: Final[dict[str, Callable[[Job], Callable[[], Any]]]] = {
    "floor": floor,
    "careful": careful,
    "bare": bare,
    "vendor": vendor,
    "pool": pool,
    "load": load,
    "load_async": load_async,
    "dask": dask,
    "reduction": reduction,
    "cold": cold,
    "warm": warm,
    "plain": plain,
    "cluster": cluster,
}
#: They hold the whole cube in memory in the end, so that their memory can be compared.
WHOLE: Final = ("floor", "load", "dask", "load_async")
#: They put the answers of one date together with xr.concat, which knows no blocks.
UNCUT: Final = ("vendor", "pool")
