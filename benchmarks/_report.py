"""Rows of measurements to a table, to verdicts about the goals, to JSON and to a plot."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

_MIB: Final = 2**20
# Of the plot, which is logarithmic.
_TICKS: Final = (0.1, 0.2, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)


@dataclass(slots=True)
class Row:
    """One contender at one cell of the matrix.

    Parameters
    ----------
    work : str
    latency : float
        Seconds to the first byte.
    connections : int
    dtype : str
    layout : str
    contender : str
    wall, cpu : list of float
        Seconds, one a repetition.
    requests, bytes : int
        Of one run.
    busy : list of float
        Share of the connections in use while work remained, as the server saw it.
    peak, result, flight : int
        Bytes: growth of a fresh process, size of the result, and what may be in flight (a
        body and its decoded raster for each connection).
    """

    work: str
    latency: float
    connections: int
    dtype: str
    layout: str
    contender: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    requests: int = 0
    bytes: int = 0
    busy: list[float] = field(default_factory=list)
    peak: int = 0
    result: int = 0
    flight: int = 0

    @property
    def cell(self) -> tuple[str, float, int, str, str]:
        """Where it stands in the matrix."""
        return self.work, self.latency, self.connections, self.dtype, self.layout


def median(values: Iterable[float]) -> float:
    """Give the median of what is there; NaN of nothing."""
    there = [value for value in values if not math.isnan(value)]
    return statistics.median(there) if there else math.nan


def ratio(row: Row, other: Row, what: str = "wall") -> float:
    """Give the median of the ratios, repetition by repetition: these ran next to each other."""
    pairs = zip(getattr(row, what), getattr(other, what), strict=False)
    return median(one / two for one, two in pairs)


def table(rows: list[Row]) -> str:
    """Write all rows, with their ratio to the floor of their cell."""
    floors = {row.cell: row for row in rows if row.contender == "floor"}
    lines = [
        (
            f"{'work':7s} {'lat.':>4s} {'conn':>4s} {'dtype':7s} {'layout':8s} {'contender':10s} "
            f"{'wall s':>8s} {'min':>8s} {'max':>8s} {'cpu s':>7s} {'/floor':>7s} {'cpu/fl.':>7s} "
            f"{'requests':>8s} {'MB':>7s} {'busy':>6s} {'peak MiB':>8s}"
        )
    ]
    for row in rows:
        below = floors.get(row.cell)
        wall, cpu = (ratio(row, below), ratio(row, below, "cpu")) if below else (math.nan,) * 2
        lines.append(
            f"{row.work:7s} {row.latency:4.1f} {row.connections:4d} {row.dtype:7s} "
            f"{row.layout:8s} {row.contender:10s} {median(row.wall):8.3f} {min(row.wall):8.3f} "
            f"{max(row.wall):8.3f} {median(row.cpu):7.3f} {wall:7.3f} {cpu:7.3f} "
            f"{row.requests:8d} {row.bytes / 1e6:7.1f} {median(row.busy):6.3f} "
            f"{row.peak / _MIB:8.1f}"
        )
    return "\n".join(lines)


def beginnings(found: dict[str, dict[str, float]]) -> str:
    """Write how long it takes until there is something to look at."""
    columns = ("open s", "chunk s", "date s", "chunks", "tasks")
    lines = [" ".join([f"{'to begin':16s}", *(f"{column:>8s}" for column in columns)])]
    for label, row in found.items():
        seconds = " ".join(f"{row[name]:8.3f}" for name in ("open", "first_chunk", "first_date"))
        lines.append(f"{label:16s} {seconds} {row['chunks']:8.0f} {row['tasks']:8.0f}")
    return "\n".join(lines)


def goals(rows: list[Row], opening: dict[str, float], by_length: dict[int, float]) -> str:
    """Hold what was measured against the goals."""
    at = {(*row.cell, row.contender): row for row in rows}
    lines = [f"{'goal':78s} {'found':>8s} {'at most':>8s}"]

    def say(text: str, found: float, bound: float, *, least: bool = False) -> None:
        if math.isnan(found):
            return
        met = found >= bound if least else found <= bound
        word = "met" if met else "NOT MET"
        lines.append(f"{text:78s} {found:8.3f} {'>=' if least else ' '}{bound:7.2f} {word}")

    for row in rows:
        name, here = row.contender, row.cell
        below, load = at.get((*here, "floor")), at.get((*here, "load"))
        label = " ".join(map(str, here))
        if name == "load" and below is not None:
            small = row.work == "field"
            field_bound = 1.15 if row.dtype == "int16" else 1.25
            bound = 1.03 if row.latency else field_bound if small else 1.05
            say(f"load / floor, {label}", ratio(row, below), bound)
            used = ratio(row, below, "cpu")
            lines.append(f"{'    the same of processor time, for information':78s} {used:8.3f}")
            if (careful := at.get((*here, "careful"))) is not None:
                over = ratio(row, careful)
                lines.append(f"{'    load / careful floor, for information':78s} {over:8.3f}")
        if name in ("dask", "reduction") and load is not None:
            say(f"{name} / load, {label}", ratio(row, load), 1.10 if row.latency else 1.25)
        if name == "vendor" and load is not None and row.work == "field" and row.latency == 0.2:
            bound = 4.0 if row.connections == 4 else 14.0
            say(f"vendor / load, {label}", ratio(row, load), bound, least=True)
        if name == "load" and row.latency:
            say(f"busy connections, {label}", median(row.busy), 0.97, least=True)
        if name == "load" and row.peak and row.result:
            # In units of what is allowed, so that one number tells.
            allowed = 1.25 * row.flight + 64 * _MIB
            say(f"memory above the result / allowed, {label}", (row.peak - row.result) / allowed, 1)
        if name == "load" and row.dtype == "float32" and row.latency == 0.2:
            raw = at.get((*here[:3], "int16", here[4], "load"))
            if raw is not None:
                say(f"float32 / int16, {label}", ratio(row, raw), 1.05)
        if name == "warm" and (plain := at.get((*here, "plain"))) is not None:
            say(f"warm store / plain open_zarr, {label}", ratio(row, plain), 1.1)
    if opening:
        count = f"{opening['chunks']:,.0f} chunks"
        say(f"open lazily, {count}, s", opening["lazily"], 0.05)
        say(f"open with chunks={{}}, {count}, s", opening["chunked"], 0.25)
        say(f"pickle of the variable, {count}, kB", opening["pickle"] / 1e3, 50)
        say(f"pickle of its Dask array, {count}, kB", opening["pickle_chunked"] / 1e3, 50)
        say(f"pickle of the Dataset, {count}, kB", opening["pickle_dataset"] / 1e3, 50)
        size = opening["pickle_dataset_chunked"] / 1e3
        say(f"pickle of the Dataset with chunks={{}}, {count}, kB", size, 50)
    if by_length:
        first, last = min(by_length), max(by_length)
        say(
            f"time a date, {last:,} dates / {first:,} dates",
            by_length[last] / by_length[first],
            1.1,
        )
    return "\n".join(lines)


def save(
    folder: Path, rows: list[Row], *, opening: dict[str, float], by_length: dict[int, float],
    begun: dict[str, dict[str, float]], machine: dict[str, Any], text: str,
) -> None:  # fmt: skip
    """Write JSON, the text, and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "rows": [asdict(row) for row in rows],
        "opening": opening,
        "by_length": by_length,
        "beginning": begun,
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1))
    (folder / "results.txt").write_text(text + "\n")
    plot(folder / "results.png", rows)


def plot(path: Path, rows: list[Row]) -> None:
    """Draw the ratios to the floor, a panel for each work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    floors = {row.cell: row for row in rows if row.contender == "floor"}
    works = list(dict.fromkeys(row.work for row in rows if row.cell in floors))
    if not works:
        return
    figure, axes = plt.subplots(1, len(works), figsize=(6 * len(works), 7), squeeze=False)
    for axis, work in zip(axes[0], works, strict=True):
        shown = [r for r in rows if r.work == work and r.cell in floors and r.contender != "bare"]
        labels = [
            f"{r.contender} {r.dtype} {r.latency:g} s, {r.connections}"
            + ("" if r.layout == "deflate" else f", {r.layout}")
            for r in shown
        ]
        values = [ratio(r, floors[r.cell]) for r in shown]
        # From the floor on, so that what is longer or shorter than it is seen as such.
        bars = axis.barh(
            range(len(shown)), [value - 1 for value in values], left=1,
            color=["C0" if r.contender == "load" else "0.7" for r in shown],
        )  # fmt: skip
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=6)
        axis.set_yticks(range(len(shown)), labels, fontsize=6)
        axis.invert_yaxis()
        axis.axvline(1, color="k", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(min(0.8, *values) / 1.1, max(1.5, *values) * 1.2)
        axis.set_xticks([t for t in _TICKS if axis.get_xlim()[0] <= t <= axis.get_xlim()[1]])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.set_xlabel("time / floor")
        axis.set_title(f"{work} (synthetic pixels)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
