"""Each row of the fault scoreboard, and the page that it writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.scoreboard")
pytest.importorskip("distributed")
pytest.importorskip("ipykernel")

from .scoreboard import ROWS, bench, board  # noqa: E402  after its asserts may be rewritten

# What processes of others do that a row does not wait for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# The key is looked for in everything that the other rows have given away, so that one is last.
ORDER = [number for number in sorted(ROWS) if number != 23] + [23]


@pytest.fixture(scope="module", autouse=True)
def shared_cluster() -> Iterator[None]:
    yield
    bench.close_cluster()


@pytest.mark.parametrize("number", ORDER)
def test_row(number: int, tmp_path: Path) -> None:
    played = board.play(ROWS[number], tmp_path)
    if played.failure is not None:
        raise played.failure


def test_there_are_thirty_five_rows() -> None:
    assert sorted(ROWS) == list(range(1, 36))


def test_a_row_that_does_not_hold_is_no_proof(tmp_path: Path) -> None:
    """A row passes by its own assertions; the page is not written without them."""

    def broken(bench: bench.Bench) -> dict[str, int]:
        assert bench.serve().downloads(), "nothing was bought"
        return {}

    played = board.play(board.Row(0, "", "", broken), tmp_path)
    assert "nothing was bought" in str(played.failure)


def test_the_page_has_the_rows_of_the_board() -> None:
    """Not their figures: those are of the run that wrote it."""
    lines = board.PAGE.read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if re.match(r"\| \d", line)]
    rows = [ROWS[number] for number in sorted(ROWS)]
    assert [line.rsplit(" | ", 1)[0] for line in shown] == [
        f"| {row.number} | {row.fault} | {row.expected}" for row in rows
    ]
    assert all(re.search(r"\| requests \d[^|]* \|$", line) for line in shown)
    start = board.PAGE_TEXT.partition("(rows)")
    text = "\n".join(lines)
    assert text.startswith(start[0])
    assert text.endswith(start[2].rstrip("\n"))
