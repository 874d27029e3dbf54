"""``python -m benchmarks``: the matrix, the goals, a table, JSON and a plot.

Contenders are processes of their own that take turns in random order. Figures of one run can be
compared with each other only.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click

from clearsky_xr import _loop
from clearsky_xr._array import opened as cube_of
from clearsky_xr._cube import Cube
from clearsky_xr._fetch import open_desk
from clearsky_xr._selection import read_key

from . import _contenders, _opening, _report
from ._child import Child, warmed
from ._files import Files, download, items
from ._report import Row
from ._service import Service, busy
from ._work import CORNER, EPSG, FARM, FIELD, LAYOUTS, PIXEL, QUICK, REGION, Call, Job, Work

_RESULTS: Final = Path(__file__).parent / "results"
_ALWAYS: Final = ("floor", "load")
_PEERS: Final = ("odc-stac", "stackstac")


def calls_of(cube: Cube, settings: Any) -> tuple[Call, ...]:
    """Give the downloads that this package makes for a cube: all contenders make the same."""

    async def find() -> tuple[Call, ...]:
        desk = await open_desk(cube, settings)
        source: Any = desk.source
        shape = (len(cube.dates), len(cube.layers), *cube.grid.shape)
        found = []
        for tile in desk.tiles(read_key((slice(None),) * 4, shape)):
            wanted = cube.wanted(tile.pixels)
            assert wanted is not None
            for piece in source.pieces(wanted):
                rows, cols = cube.grid.window.slices(piece.pixels.window)
                found += [
                    Call(
                        k,
                        (rows.start, rows.stop),
                        (cols.start, cols.stop),
                        source.request(cube.dates[date], piece).body(),
                    )
                    for date, k in tile.dates
                ]
        return tuple(found)

    return _loop.run(find())


def job_of(work: Work, service: Service, connections: int, folder: str, *, scaled: bool) -> Job:
    """Write a job, with its calls."""
    job = Job(work, service.url, service.keys[connections], connections, scaled, (), folder)
    known = cube_of(_contenders.opened(job, None).encoding["source"])
    assert known is not None
    return replace(job, calls=calls_of(*known))


class Matrix:
    """Runs cells of the matrix and keeps their rows.

    Parameters
    ----------
    repetitions : int
    """

    def __init__(self, repetitions: int) -> None:
        self.repetitions = repetitions
        self.rows: list[Row] = []
        self._children: dict[str, Child] = {}

    def end(self) -> None:
        """End the contenders' processes."""
        for child in self._children.values():
            child.end()

    def _child(self, name: str) -> Child:
        if name not in self._children:
            self._children[name] = Child(name)
        return self._children[name]

    def cell(
        self, service: Service, layout: str, latency: float, jobs: list[Job],
        contenders: tuple[str, ...], *, memory: bool,
    ) -> None:  # fmt: skip
        """Measure contenders, with the same cube as both dtypes, in random order."""
        service.set_latency(latency)
        turns: dict[tuple[str, bool], tuple[Child, Job, Row]] = {}
        for job in jobs:
            for name in contenders:
                dtype = str(job.dtype)
                row = Row(job.work.name, latency, job.connections, dtype, layout, name)
                row.result = job.dtype.itemsize * 10 * job.work.dates * job.work.side**2
                turns[name, job.scaled] = (self._child(name), job, row)
        sums = {}
        for (name, scaled), (child, job, _) in turns.items():
            child.run(warmed(job))
            if latency < 1:
                sums[name, scaled] = child.run(job, check=True).sum
        _agree(sums)
        service.traffic(1)
        for _ in range(self.repetitions):
            for key in random.sample(list(turns), len(turns)):
                child, job, row = turns[key]
                run = child.run(job)
                row.wall.append(run.wall)
                row.cpu.append(run.cpu)
                seen = service.traffic(job.connections)
                # Seen from our side until the last byte has come; from the server's, is sent.
                own = busy(run.sent, job.connections)
                row.busy.append(seen.busy if math.isnan(own) else own)
                row.requests, row.bytes = seen.requests, seen.bytes
        for (name, _), (_, job, row) in turns.items():
            largest = max((c.rows[1] - c.rows[0]) * (c.cols[1] - c.cols[0]) for c in job.calls)
            body = row.bytes // max(row.requests, 1)
            row.flight = job.connections * (body + 20 * largest)
            if memory and name in _contenders.WHOLE:
                # A process that has run before keeps memory: it would grow by less.
                child = Child(name)
                child.run(warmed(job))
                row.peak = child.run(job).peak
                child.end()
                service.traffic(1)
            self.rows.append(row)
            print(_report.table([row]).splitlines()[1], flush=True)  # noqa: T201


def _agree(sums: dict[tuple[str, bool], float]) -> None:
    """Make sure that all contenders came to the same pixels."""
    for scaled in (False, True):
        found = {
            name: value
            for (name, s), value in sums.items()
            if s == scaled and not math.isnan(value)
        }
        for name, value in found.items():
            first = next(iter(found.values()))
            assert abs(value - first) <= 1e-5 * abs(first), (name, value, found)


def peers(
    matrix: Matrix, job: Job, latency: float, python: dict[str, str]
) -> None:  # fmt: skip
    """Let the peers read the same scenes as files; for information."""
    script = Path(__file__).parent / "_peer.py"
    folder = Path(job.folder, f"files-{job.work.name}")
    download(job, folder)
    names = ["B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"]
    with Files(folder, latency) as files:
        for name, interpreter in python.items():
            runs = range(matrix.repetitions + 1)
            document = {
                "bands": names, "epsg": EPSG, "pixel": PIXEL, "x": CORNER[0], "y": CORNER[1],
                "side": job.work.side, "connections": job.connections, "scaled": job.scaled,
                "items": [items(job, files.url, names, run=r) for r in runs],
            }  # fmt: skip
            done = subprocess.run(  # noqa: S603  our own script
                [interpreter, str(script), name], input=json.dumps(document), text=True,
                capture_output=True, timeout=1800, check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)  # noqa: T201
                continue
            answer = json.loads(done.stdout)
            row = Row(job.work.name, latency, job.connections, str(job.dtype), "deflate", name)
            row.wall, row.cpu = (
                list(values) for values in zip(*answer["seconds"][1:], strict=True)
            )
            matrix.rows.append(row)
            print(_report.table([row]).splitlines()[1], flush=True)  # noqa: T201


@click.command()
@click.option("--quick", is_flag=True, help="Small cubes, float32, three repetitions.")
@click.option("--only", default="field,farm,region", help="Works.")
@click.option("--latencies", default="0,0.2", help="Seconds to the first byte; 2 takes long.")
@click.option("--connections", default="4", help="4, 16, or both.")
@click.option("--dtypes", default=None, help="int16,float32; with --quick float32.")
@click.option("--layouts", default="deflate", help=f"Of {', '.join(LAYOUTS)}; or all.")
@click.option("--contenders", default=None, help=f"Of {', '.join(_contenders.CONTENDERS)}; or all.")
@click.option("--repetitions", default=5, show_default=True)
@click.option("--memory/--no-memory", default=True, help="Measure peaks in fresh processes.")
@click.option("--opening/--no-opening", default=True, help="Measure openings and long series.")
@click.option("--peers", "python", default=None, metavar="NAME=PYTHON,...",
              help="Interpreters in which odc-stac and stackstac are.")  # fmt: skip
@click.option("--output", default=_RESULTS, type=click.Path(path_type=Path))
def main(
    *, quick: bool, only: str, latencies: str, connections: str, dtypes: str | None, layouts: str,
    contenders: str | None, repetitions: int, memory: bool, opening: bool, python: str | None,
    output: Path,
) -> None:  # fmt: skip
    """Measure this package beside the floor and what users would take instead."""
    began = time.perf_counter()
    works = [w for w in (QUICK if quick else (FIELD, FARM, REGION)) if w.name in only.split(",")]
    repetitions = min(repetitions, 3) if quick else repetitions
    dtypes = dtypes or ("float32" if quick else "int16,float32")
    chosen = tuple(contenders.split(",")) if contenders else (*_ALWAYS, "dask")
    if contenders == "all":
        chosen = tuple(_contenders.CONTENDERS)
    matrix = Matrix(repetitions)
    opened: dict[str, float] = {}
    lengths: dict[int, float] = {}
    begun: dict[str, dict[str, float]] = {}
    folder = tempfile.mkdtemp(prefix="clearsky-benchmark-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        for layout in LAYOUTS if layouts == "all" else layouts.split(","):
            with Service(layout) as service:
                grid = itertools.product(map(int, connections.split(",")), works)
                for wide, work in grid:
                    jobs = [
                        job_of(work, service, wide, folder, scaled=dtype == "float32")
                        for dtype in dtypes.split(",")
                    ]
                    _prepare(service, jobs[0])
                    for latency in map(float, latencies.split(",")):
                        able = [c for c in chosen if len(jobs[0].calls) == work.dates
                                or c not in _contenders.UNCUT]  # fmt: skip
                        matrix.cell(
                            service, layout, latency, jobs, tuple(able),
                            memory=memory and not quick and latency == 0,
                        )  # fmt: skip
                        if opening and layout == "deflate":
                            label = f"{work.name} {latency:g} s, {wide}"
                            begun[label] = _opening.beginning(jobs[-1], min(repetitions, 5))
                            service.traffic(1)
                        # Ten bands are ten files to them: with latency they take minutes.
                        if python and layout == "deflate" and latency == 0:
                            pairs = dict(pair.split("=", 1) for pair in python.split(","))
                            peers(matrix, jobs[-1], latency, pairs)
                if opening and layout == "deflate":
                    service.set_latency(0)
                    counts = (10, 100, 1000) if quick else (10, 100, 1000, 10_000)
                    job = replace(jobs[0], scaled=True)
                    _prepare(service, job_of(Work("long", 8, counts[-1]), service, wide, folder,
                                             scaled=True))  # fmt: skip
                    opened = _opening.million(job, repetitions)
                    lengths = _opening.by_length(job, counts, repetitions)
    finally:
        matrix.end()
        shutil.rmtree(folder, ignore_errors=True)
    parts = [_report.table(matrix.rows), *([_report.beginnings(begun)] if begun else [])]
    text = "\n\n".join([*parts, _report.goals(matrix.rows, opened, lengths)])
    machine = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "clearsky_xr": version("clearsky-xr"),
        "minutes": round((time.perf_counter() - began) / 60, 1),
    }
    _report.save(
        output, matrix.rows, opening=opened, by_length=lengths, begun=begun, machine=machine,
        text=f"{machine}\n\n{text}",
    )  # fmt: skip
    print(f"\n{machine}\n\n{text}\n\nwritten to {output}")  # noqa: T201


def _prepare(service: Service, job: Job) -> None:
    """Let the server make every answer once."""
    service.set_latency(0)
    child = Child("bare")
    child.run(job)
    child.end()
    service.traffic(1)


if __name__ == "__main__":
    sys.exit(main())
