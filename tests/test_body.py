"""Bodies: no larger than they may be, unpacked, and whole as far as their bytes can tell."""

import gzip
import random
import struct
import zlib

import numpy as np
import pytest
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from clearsky_xr._body import Body, holds_all
from clearsky_xr._retry import Failed

from .fuzz_geotiff import mutate

LAYOUTS = {
    "little": {},
    "big endian": {"ENDIANNESS": "BIG"},
    "BigTIFF": {"BIGTIFF": "YES"},
    "BigTIFF, big endian": {"BIGTIFF": "YES", "ENDIANNESS": "BIG"},
    "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "strips of a row": {"blockysize": 1},
    "by band": {"interleave": "band"},
}


def tiff(**options):
    values = np.random.default_rng(5).integers(0, 9999, (2, 40, 30)).astype("int16")
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=30, height=40, count=2, dtype="int16", crs=32633,
            transform=from_origin(500_000, 5_000_000, 10, 10), compress="deflate", **options,
        ) as file:  # fmt: skip
            file.write(values)
        return memory.read()


def readable(content):
    try:
        with MemoryFile(content) as memory, memory.open(driver="GTiff") as file:
            file.read()
    except (RasterioError, NotGeoreferencedWarning):
        return False
    return True


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_whole_or_not(layout):
    """Compared with GDAL: what it cannot read for want of bytes is not whole.

    It passes over tags that are cut off, and so may read what is not.
    """
    content = tiff(**LAYOUTS[layout])
    assert holds_all(content)
    assert holds_all(content + b"more")
    ends = [*range(8, len(content), len(content) // 40), len(content) - 1]
    told = [holds_all(content[:end]) for end in ends]
    assert told == sorted(told)  # once whole, always whole
    assert not any(told[:-5])
    for end, whole in zip(ends, told, strict=True):
        assert not whole or readable(content[:end]), end


def test_whatever_the_bytes_are_it_is_yes_or_no():
    content = tiff()
    for seed in range(3000):
        assert holds_all(mutate(content, random.Random(seed))) in (True, False)  # noqa: S311
    for head in (b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"):
        for place in (8, 16, 2**40, 2**63 - 1, 2**64 - 1):
            order = "<" if head[:1] == b"I" else ">"
            assert not holds_all(head + struct.pack(f"{order}Q", place) + b"\xff" * 64)
    assert not holds_all(b"II*\0")


def gathered(parts, headers, cap=1000):
    body = Body("/path", headers, cap)
    for part in parts:
        body.add(part)
    return body


FRAMED = {"Content-Length": "1"}


def test_the_cap_is_for_what_comes_out():
    assert gathered([b"a" * 600, b"b" * 400], FRAMED).content == b"a" * 600 + b"b" * 400
    with pytest.raises(Failed, match="more than the 1,000 bytes"):
        gathered([b"a" * 600, b"b" * 401], FRAMED)
    bomb = gzip.compress(bytes(10**8))
    body = Body("/path", {**FRAMED, "Content-Encoding": "gzip"}, 1000)
    with pytest.raises(Failed, match="more than the 1,000 bytes"):
        body.add(bomb)
    assert len(body.content) == 1001


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_packed_bodies_are_unpacked_and_must_end(pack, step):
    text = bytes(range(256)) * 3
    packed = pack(text)
    headers = {"Content-Encoding": "gzip" if pack is gzip.compress else "deflate"}
    parts = [packed[k : k + step] for k in range(0, len(packed), step)]
    body = gathered(parts, headers)
    assert (body.content, body.whole) == (text, True)
    assert not gathered(parts[:-1] if step < 1000 else [packed[:-1]], headers).whole
    with pytest.raises(zlib.error):
        gathered([b"no such thing"], headers)


def test_an_encoding_that_is_not_known_is_refused():
    with pytest.raises(Failed, match="encoding 'br'"):
        Body("/path", {"Content-Encoding": "BR"}, 10)
    assert gathered([b"x"], {**FRAMED, "Content-Encoding": "identity"}).whole


@pytest.mark.parametrize(
    ("headers", "whole"), [({}, False), (FRAMED, True), ({"Transfer-Encoding": "chunked"}, True)]
)
def test_only_bodies_without_a_frame_are_looked_into(headers, whole):
    cut = tiff()[:300]
    assert gathered([cut], headers).whole is whole
    assert gathered([b'{"Data": 1'], headers).whole  # no TIFF: JSON tells by itself
