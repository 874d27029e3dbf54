"""Bytes that are not the image that was asked for."""

from __future__ import annotations

import datetime as dt
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from clearsky_xr import _account, _geotiff, errors
from clearsky_xr.sandbox import Fault
from clearsky_xr.sandbox.faults import Image

from .. import fuzz_geotiff
from .bench import DAY, DAYS, Bench, forget
from .board import row

MUTATIONS = 5000


@row(
    10,
    "corrupt TIFF, seeded mutations, in children under a memory limit",
    "typed error, or an array of exactly the asked shape and dtype (wrong pixels of the right "
    "shape cannot be seen: TIFF has no checksum); no crash, no hang",
)
def corrupt(bench: Bench) -> dict[str, Any]:
    findings = fuzz_geotiff.run(iter(range(MUTATIONS)))
    assert findings.bad == []
    outcomes = findings.outcomes
    assert sum(outcomes.values()) == MUTATIONS
    # The corpus breaks most files, in more than one way, and not all.
    assert outcomes["UnexpectedImageError"] > MUTATIONS / 3
    assert outcomes["GridMismatchError"] > MUTATIONS / 50
    assert outcomes["pixels"] > MUTATIONS / 50
    # And over the wire: refused, kept aside, paid once.
    server = bench.serve(Fault.garble("corrupt", lambda b: b[:200] + bytes(len(b) - 200)))
    with bench.raises(
        errors.UnexpectedImageError, "cannot be decoded|image", spent="yes"
    ) as caught:
        bench.open(server).load()
    put_away(caught.value)
    assert len(server.downloads()) == 1
    return {"mutations": MUTATIONS, "refused": MUTATIONS - outcomes["pixels"],
            "came through as pixels": outcomes["pixels"], "crashes": 0, "hangs": 0}  # fmt: skip


@row(
    11,
    "TIFF bomb: dimensions, samples, and tile or strip sizes",
    "refused from the header before allocation, `block_shapes` x samples bounded, "
    "`GDAL_CACHEMAX` set",
)
def bombs(bench: Bench) -> dict[str, Any]:
    names = list(fuzz_geotiff.bombs())
    findings = fuzz_geotiff.run(iter(names))
    assert findings.bad == []
    assert "pixels" not in findings.outcomes
    assert sum(findings.outcomes.values()) == len(names)
    assert findings.memory < 64 * 2**20, f"{findings.memory:,} bytes"
    largest = max(map(len, fuzz_geotiff.bombs().values()))

    def cache() -> Any:
        return rasterio.env.getenv()["GDAL_CACHEMAX"]

    assert _account.process().threads["decode"].submit(cache).result() == 16 * 2**20
    for name in names:
        content = fuzz_geotiff.bombs()[name]
        server = bench.serve(Fault.garble("bomb", lambda _, content=content: content))
        with bench.raises(errors.UnexpectedImageError, spent="yes") as caught:
            bench.open(server).load()
        put_away(caught.value)
        server.close()
    return {"bombs": len(names), "largest of bytes": largest,
            "memory below": "64 MiB"}  # fmt: skip


def encoded(driver: str, **options: Any) -> bytes:
    """Write a picture in another format."""
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it lies nowhere
        with memory.open(
            driver=driver, width=16, height=16, count=3, dtype="uint8", **options
        ) as file:
            file.write(np.zeros((3, 16, 16), np.uint8))
        return memory.read()


@row(
    12,
    "another GDAL driver's format in the body (VRT, ...)",
    "refused: only GTiff is opened",
)
def other_formats(bench: Bench) -> dict[str, Any]:
    other = bench.serve()
    bench.open(other).load()
    request, ledger = bench.request, len(other.ledger())
    vrt = as_vrt(request, f"/vsicurl/{other.url}/file.tif")
    bodies = {
        "VRT": vrt,
        "VRT behind the head of a TIFF": b"II*\0" + vrt,
        "WMS": b"<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service>"
        b"</GDAL_WMS>",
        "PNG": encoded("PNG"),
        "JPEG": encoded("JPEG"),
        "PNG behind the head of a TIFF": b"II*\0" + encoded("PNG"),
        "ENVI": b"ENVI\nsamples = 79\nlines = 112\nbands = 10\n",
        "PDF": b"%PDF-1.7",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(512),
        "subdataset": b"GTIFF_DIR:1:/etc/passwd",
    }
    refused = 0
    for body in bodies.values():
        server = bench.serve(Fault.garble("format", lambda _, body=body: body, times=None))
        tiff = body.startswith(b"II*\0")
        kind = errors.UnexpectedImageError if tiff else errors.UnexpectedResponseError
        with bench.raises(kind, "cannot be decoded" if tiff else "no TIFF") as caught:
            bench.open(server).load()
        if tiff:
            put_away(caught.value)
        assert len(server.downloads()) == 1
        refused += 1
        server.close()
    # And those that did not come by the wire, but lay in a folder where somebody has put them.
    for body in bodies.values():
        with pytest.raises(errors.UnexpectedImageError, match="cannot be decoded"):
            _geotiff.read(body, request)
    assert len(other.ledger()) == ledger  # nothing that a body spoke of was fetched
    return {"formats refused": refused}


def as_vrt(request: Any, source: str) -> bytes:
    """Describe just the image that was asked for, with its pixels elsewhere."""
    window, size = request.pixels.window, request.resolution
    height, width = window.shape
    bands = "".join(
        f"<VRTRasterBand dataType='Int16' band='{k}'><NoDataValue>-32768</NoDataValue>"
        f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>{k}</SourceBand>"
        f"<SourceProperties RasterXSize='{width}' RasterYSize='{height}' DataType='Int16'/>"
        f"</SimpleSource></VRTRasterBand>"
        for k in range(1, len(request.layers) + 1)
    )
    return (
        f"<VRTDataset rasterXSize='{width}' rasterYSize='{height}'><SRS>EPSG:{request.epsg}</SRS>"
        f"<GeoTransform>{window.col0 * size},{size},0,{-window.row0 * size},0,{-size}"
        f"</GeoTransform>{bands}</VRTDataset>"
    ).encode()


def east(image: Image) -> Image:
    """Move an image by one pixel: on the lattice, but not where it belongs."""
    a, b, c, d, e, f = image.transform[:6]
    return replace(image, transform=rasterio.Affine(a, b, c + a, d, e, f))


def larger(image: Image) -> Image:
    return replace(image, pixels=np.pad(image.pixels, ((0, 0), (0, 1), (0, 0))))


def coarser(image: Image) -> Image:
    a, b, c, d, e, f = image.transform[:6]
    return replace(image, transform=rasterio.Affine(2 * a, b, c, d, 2 * e, f))


def turned(image: Image) -> Image:
    a, _, c, _, e, f = image.transform[:6]
    return replace(image, transform=rasterio.Affine(a, 1.0, c, 1.0, e, f))


def unsigned(image: Image) -> Image:
    return replace(image, pixels=image.pixels.astype("uint16"), nodata=0)


GRID, IMAGE = errors.GridMismatchError, errors.UnexpectedImageError
WRONG = [
    (Fault.crs(32632), GRID, "CRS of the image is EPSG:32632, expected EPSG:32633"),
    (Fault.image("coarser", coarser), GRID, "pixel size .* is .20.0, -20.0., expected .10, -10."),
    (Fault.image("turned", turned), GRID, "rotation .* expected .0, 0."),
    (Fault.image("larger", larger), GRID, "size .* is .113, 79., expected .112, 79."),
    (Fault.image("moved", east), GRID, "place of the image is .* expected"),
    (Fault.half_pixel(), GRID, "not on a multiple of 10 m: it lies 0.500 px right and 0.500 px"),
    (Fault.band_count(-1), IMAGE, "number of bands of the image is 9, expected 10"),
    (Fault.band_count(1), IMAGE, "number of bands of the image is 11, expected 10"),
    (Fault.dtype("float32"), IMAGE, "data type of the image is .'float32'., expected .'int16'."),
    (Fault.image("uint16", unsigned), IMAGE, "data type .* is .'uint16'., expected .'int16'."),
    (Fault.nodata(0), IMAGE, "no-data value of the image is 0.*, expected -32768"),
    (Fault.tag("IMAGE_DATE", "2" * 5000), IMAGE, r"IMAGE_DATE. of the image is 2{200}\.{3}, "),
    (Fault.tag("IMAGE_DATE", "20250402"), IMAGE, "is 20250402, expected 20250401"),
]  # fmt: skip


@row(
    13,
    "wrong CRS, resolution, shape, half-pixel shift, bands, dtype, nodata, IMAGE_DATE",
    "`GridMismatchError` / `UnexpectedImageError`, expected versus got; the paid bytes are kept "
    "aside",
)
def another_image(bench: Bench) -> dict[str, Any]:
    for k, (fault, kind, match) in enumerate(WRONG):
        for store in (None, bench.folder / f"{k}.zarr"):
            server = bench.serve(replace(fault, times=None))
            with bench.raises(kind, match, spent="yes") as caught:
                bench.open(server, store=store).load()
            assert len(server.downloads()) == 1
            kept = Path(caught.value.details["kept"])
            assert kept.stat().st_size == server.downloads()[0].bytes
            assert str(kept) in str(caught.value)
            if store is None:
                put_away(caught.value)
            else:
                assert kept.parent == Path(f"{store}.clearsky") / "refused"
                assert not list(store.glob("reflectance/c/**/[0-9]"))
            forget()
            server.close()
    return {"kinds of wrong": len(WRONG)}


@row(
    35,
    "MODEL_VERSION or IMAGE_VERSION differs between dates or tiles of one cube",
    "allowed, warned once, kept as a coordinate",
)
def versions(bench: Bench) -> dict[str, Any]:
    days = DAYS[:4]
    server = bench.serve(Fault.tag("MODEL_VERSION", "16", date=dt.date.fromisoformat(days[2])))
    server.regenerate(dt.date.fromisoformat(days[1]))
    ds = bench.open(server, days, store=bench.folder / "fields.zarr")
    assert ds.reflectance.notnull().all()
    (said,) = bench.hears("differ", 1)
    assert "MODEL_VERSION 15, 16" in said
    assert "IMAGE_VERSION 1, 2" in said
    told = ds.clearsky.with_receipts()
    assert told.model_version.values.tolist() == ["15", "15", "16", "15"]
    assert told.image_version.values.tolist() == ["1", "2", "1", "1"]
    assert ds.copy().reflectance.notnull().all()  # again from the store, without a word

    # Tiles of one date, one after the other, without a store.
    server = bench.serve()
    ds = bench.open(server, DAY)
    ds.reflectance.isel(x=slice(0, 20)).load()
    server.regenerate(dt.date.fromisoformat(DAY[0]))
    ds.reflectance.isel(x=slice(20, 40)).load()
    bench.hears("IMAGE_VERSION 1, 2", 1)
    ds.reflectance.isel(x=slice(40, 60)).load()
    return {"warnings": 2}


def put_away(error: BaseException) -> None:
    """Remove what was kept aside in the temporary folder."""
    assert isinstance(error, errors.UnexpectedImageError)
    kept = Path(error.details["kept"])
    assert kept.read_bytes()[:2] in (b"II", b"MM")
    kept.unlink()
    kept.parent.rmdir()
