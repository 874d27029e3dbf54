"""Broken GeoTIFFs against the decoder, in a child whose crash is seen and whose memory is limited.

``python -m tests.fuzz_geotiff --seconds 600`` goes on with fresh seeds for so long; row 10 of the
scoreboard plays the first thousand and a half. A mutation is a pure function of its seed, so that
what was found can be had again: ``python -m tests.fuzz_geotiff --seed 1234``.

Whatever the bytes say, `clearsky_xr._geotiff.read` must give an array of the shape and type that
was asked for, or an error of the package. A crash, a hang, a MemoryError and any other exception
are findings. Wrong pixels of the right shape are not: TIFF has no checksum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

#: What the child may allocate beyond what it has when it begins, bytes.
MEMORY = 384 * 2**20
#: A mutation that takes longer hangs, seconds.
HANG = 20.0

# TIFF types, and tags that lead decoders astray.
_KINDS = (0, 1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 16, 17, 18, 99, 65535)
_TAGS = (
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 292, 317, 320, 322, 323, 324,
    325, 330, 338, 339, 347, 700, 33550, 33922, 34735, 34736, 34737, 42112, 42113, 65000,
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 32767, 32768, 65535, 2**16, 2**24, 2**31 - 1, 2**31,
            2**32 - 1)  # fmt: skip


# --- what is mutated


def samples() -> list[tuple[bytes, Any]]:
    """Give good answers of all layouts, with the requests that they answer."""
    import clearsky_xr
    from clearsky_xr import _client
    from clearsky_xr.sandbox import serve

    found = []
    genuine = _client.Client.composite

    async def overheard(self: Any, request: Any, cap: int) -> bytes:
        content = await genuine(self, request, cap)
        found.append((content, request))
        return content

    _client.Client.composite = overheard  # type: ignore[method-assign]
    try:
        for options in (
            {}, {"plain": True}, {"compression": "lzw"}, {"compression": "zstd"},
            {"compression": "none"}, {"compression": "none", "plain": True},
        ):  # fmt: skip
            with serve(**options) as server:  # type: ignore[arg-type]
                clearsky_xr.open_timeseries(
                    (15.05, 46.05, 15.0535, 46.0525), ["2025-04-01"], bands=["B4", "B8", "B11"],
                    base_url=server.url, api_key=server.api_key, chunks=None,
                ).load()  # fmt: skip
    finally:
        _client.Client.composite = genuine  # type: ignore[method-assign]
    return found


def entries(content: bytes) -> list[int]:
    """Give the places of the entries of the first directory."""
    try:
        order = "<" if content[:2] == b"II" else ">"
        (place,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, place)
    except struct.error:
        return []
    return [at for k in range(count) if (at := place + 2 + 12 * k) + 12 <= len(content)]


def mutate(content: bytes, dice: random.Random) -> bytes:
    """Break a TIFF in one to four places."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 2, 4))):
        places = entries(bytes(data))
        kind = dice.randrange(11)
        if kind <= 4 and places:  # an entry: its tag, type, count or value
            at = dice.choice(places)
            which = dice.randrange(4)
            if which == 0:
                struct.pack_into("<H", data, at, dice.choice(_TAGS))
            elif which == 1:
                struct.pack_into("<H", data, at + 2, dice.choice(_KINDS))
            else:
                place = at + (4 if which == 2 else 8)
                (old,) = struct.unpack_from("<I", data, place)
                new = dice.choice(
                    (*_NUMBERS, old + 1, old - 1, 2 * old, old // 2, len(data), old ^ 1)
                )
                struct.pack_into("<I", data, place, new % 2**32)
        elif kind == 5 and len(places) > 1:  # an entry in another's place
            one, other = dice.sample(places, 2)
            data[one : one + 12] = data[other : other + 12]
        elif kind == 6 and len(data) > 8:  # the end is missing
            del data[dice.randrange(8, len(data)) :]
        elif kind == 7 and data:  # bits
            for _ in range(dice.choice((1, 3, 20))):
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        elif kind == 8 and len(data) > 16:  # a stretch of something else
            at, size = dice.randrange(8, len(data)), dice.choice((1, 4, 64, 1000))
            data[at : at + size] = dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size)))
        elif kind == 9 and len(data) > 16:  # a stretch moved or doubled
            start, end = sorted(dice.randrange(len(data)) for _ in range(2))
            part = data[start : min(end, start + 5000)]
            at = dice.randrange(8, len(data))
            data[at:at] = part
        elif kind == 10 and len(data) > 8:  # the header
            place = dice.choice((0, 2, 4))
            struct.pack_into("<H", data, place, dice.choice(_NUMBERS) % 2**16)
    return bytes(data)


def tiff(tags: dict[int, tuple[int, int, int]], rest: bytes = b"") -> bytes:
    """Write a TIFF: tags to (type, count, value or offset)."""
    rows = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + rows + bytes(4) + rest


def bombs() -> dict[str, bytes]:
    """Give small files that speak of something very large."""

    def plain(width: int, height: int, samples: int, **more: tuple[int, int, int]) -> bytes:
        rest = b"".join(struct.pack("<I", 8) for _ in range(8))
        tags = {
            256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 16), 259: (3, 1, 8),
            262: (3, 1, 1), 277: (3, 1, samples), 284: (3, 1, 2), 339: (3, 1, 2),
        }  # fmt: skip
        tags |= {int(name[1:]): value for name, value in more.items()}
        return tiff(tags, rest)

    def tiled(width: int, height: int, samples: int, tile: int) -> bytes:
        return plain(
            width, height, samples, t322=(4, 1, tile), t323=(4, 1, tile), t324=(4, 1, 8),
            t325=(4, 1, 100),
        )  # fmt: skip

    def striped(width: int, height: int, samples: int, rows: int) -> bytes:
        return plain(width, height, samples, t273=(4, 1, 8), t278=(4, 1, rows), t279=(4, 1, 100))

    return {
        "tile of 16,000 px": tiled(27, 28, 3, 16_000),
        "tile of 65,520 px": tiled(27, 28, 3, 65_520),
        "tile of 1,000,000 px": tiled(27, 28, 3, 1_000_000 // 16 * 16),
        "image of 100,000 px": tiled(100_000, 100_000, 3, 256),
        "image of 2^31 px": striped(2**31 - 1, 2**31 - 1, 3, 1),
        "65,535 samples": striped(27, 28, 65_535, 28),
        "a strip of 2^32 rows": striped(27, 28, 3, 2**32 - 1),
        "a strip of 2^31 columns": striped(2**31 - 1, 1, 3, 1),
        "2^32 strips": plain(
            27, 28, 3, t273=(4, 2**32 - 1, 8), t278=(4, 1, 1), t279=(4, 2**32 - 1, 8)
        ),
        "tags of 4 GB": plain(
            27, 28, 3, t273=(4, 1, 8), t279=(4, 1, 100), t42112=(2, 2**32 - 1, 8)
        ),
    }


# --- the child


def child() -> None:
    """Decode what the parent names, line by line; a crash is the parent's to see."""
    from clearsky_xr import _geotiff, errors

    good = samples()
    with _geotiff.environment():
        for content, request in good:
            _geotiff.read(content, request)
        huge = bombs()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        print(json.dumps({"ready": list(huge)}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if isinstance(order, str):
                content, request = huge[order], good[0][1]
            else:
                dice = random.Random(order)
                content, request = good[dice.randrange(len(good))]
                content = mutate(content, dice)
            shape = (len(request.layers), *request.pixels.window.shape)
            try:
                _, values = _geotiff.read(content, request)
            except errors.UnexpectedImageError as error:
                result = type(error).__name__
                if len(str(error)) > 1000:
                    result = "an error without end"
            except BaseException as error:  # noqa: BLE001  that is what is looked for
                result = f"! {type(error).__name__}: {error}"
            else:
                fits = values.shape == shape and values.dtype == np.int16
                result = "pixels" if fits else f"! {values.shape} {values.dtype}"
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps([order, result, memory]), flush=True)


# --- the parent


@dataclass
class Findings:
    """What came out.

    Attributes
    ----------
    outcomes : Counter
        How often: "pixels", or the name of an error.
    bad : list of (seed or name, str)
        Crashes, hangs, and other errors than those of the package.
    memory : int
        Most bytes that a child had beyond those with which it began.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[object, str]] = field(default_factory=list)
    memory: int = 0


def run(orders: Iterator[object]) -> Findings:
    """Let children decode; each is replaced when it dies."""
    findings = Findings()
    left = True
    while left:
        left = _one_child(orders, findings)
    return findings


def _one_child(orders: Iterator[object], findings: Findings) -> bool:
    """Give orders until they end or the child does; gives whether there may be more."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz_geotiff", "--child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=ROOT, bufsize=1,  # what GDAL says of broken files goes nowhere
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "0"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert "ready" in process.stdout.readline()
        begin = 0
        for order in orders:
            process.stdin.write(f"{json.dumps(order)}\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], HANG)[0]:
                findings.bad.append((order, "it hangs"))
                return True
            line = process.stdout.readline()
            if not line:
                status = process.wait()
                name = signal.Signals(-status).name if status < 0 else f"exit {status}"
                findings.bad.append((order, f"the process crashed: {name}"))
                return True
            _, outcome, memory = json.loads(line)
            begin = begin or memory
            findings.memory = max(findings.memory, memory - begin)
            findings.outcomes[outcome] += 1
            if outcome.startswith("!") or "without end" in outcome:
                findings.bad.append((order, outcome))
        return False
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--start", type=int, help="first seed; by default one of its own")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    first = int(time.time()) * 1000 if options.start is None else options.start
    end = time.monotonic() + options.seconds

    def seeds() -> Iterator[object]:
        if options.seed is not None:
            yield options.seed
            return
        seed = first
        while time.monotonic() < end:
            yield seed
            seed += 1

    findings = run(seeds())
    total = sum(findings.outcomes.values())
    begin = first if options.seed is None else options.seed
    print(f"{total:,} mutations from seed {begin}: {dict(findings.outcomes.most_common())}")
    print(f"memory beyond the beginning: {findings.memory:,} bytes")
    for order, what in findings.bad:
        print(f"FOUND {order}: {what}")
    sys.exit(bool(findings.bad))


if __name__ == "__main__":
    main()
