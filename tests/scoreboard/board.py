"""The rows as data, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench import Bench

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Parameters
    ----------
    number : int
    fault, expected : str
        Markdown.
    play : callable
        Plays it on a bench; returns what it counted beside what the bench counts itself.
    """

    number: int
    fault: str
    expected: str
    play: Callable[[Bench], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Played:
    """A row that was played.

    Parameters
    ----------
    row : Row
    counted : mapping of str to value
        Figures by name.
    failure : BaseException or None
        Why it did not hold.
    """

    row: Row
    counted: Mapping[str, Any]
    failure: BaseException | None = None


ROWS: dict[int, Row] = {}


def row(number: int, fault: str, expected: str) -> Callable[[Any], Any]:
    """Put a row on the board."""

    def add(play: Callable[[Bench], Mapping[str, Any]]) -> Callable[[Bench], Mapping[str, Any]]:
        assert number not in ROWS, f"there are two rows {number}"
        ROWS[number] = Row(number, fault, expected, play)
        return play

    return add


def play(row: Row, folder: Path) -> Played:
    """Run a row; its failure is part of the result."""
    bench = Bench(row.number, folder)
    try:
        with bench:
            more = row.play(bench)
    except BaseException as failure:  # noqa: BLE001  shown, and raised again by the test
        return Played(row, bench.counted(), failure)
    return Played(row, {**bench.counted(), **more})


def figures(counted: Mapping[str, Any]) -> str:
    """Write down what was counted."""
    shown = []
    for name, value in counted.items():
        text = (
            f"{value:.2f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int) and not isinstance(value, bool)
            else str(value)
        )
        shown.append(f"{name} {text}")
    return ", ".join(shown)


def page(played: list[Played]) -> str:
    """Give the document: the promise and its proof."""
    rows = (
        f"| {one.row.number} | {one.row.fault} | {one.row.expected} | {figures(one.counted)} |"
        for one in played
    )
    return PAGE_TEXT.replace("(rows)", "\n".join(rows))


PAGE_TEXT = """# Reliability

What can go wrong, what happens then, and what was counted when it was made to happen.
`python -m tests.scoreboard` has written this page: every row is a run against the sandbox, over
real sockets, with real GeoTIFF bytes, real files and real processes; only time is faked, where it
says *fake seconds*. A row is here only because all that it asserts was so; the same rows run with
the tests. All pixels are synthetic.

*requests* are downloads that reached the server, *charged* what it took for them in credits, *peak*
the most that one account had in flight, and *bytes* what the server sent in their answers. Where a
row plays several faults they are sums over all of them. Threads are not punctual: peaks and bytes
differ a little from run to run.

| # | fault | expected | counted |
| --- | --- | --- | --- |
(rows)

## What this cannot show

* Wrong pixels in a GeoTIFF of the right shape, place and type cannot be seen: TIFF has no checksum.
  Row 10 counts how many of its mutations came through as pixels.
* The sandbox was written from the service's documented protocol. How the service itself fails may
  differ; the [assumptions](decisions.md) are listed.
* What a process had sent when it was killed may have been charged. Nobody can know; it is
  [counted and said](store.md).

See also: [what each error means](errors.md), and [what an evil server, store or file can
do](security.md).
"""
