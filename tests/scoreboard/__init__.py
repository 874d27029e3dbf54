"""The fault scoreboard: what can go wrong, what must happen, and a run that shows it.

``python -m tests.scoreboard`` runs all rows, prints them with what they counted, and writes
``docs/reliability.md`` if all of them held; ``python -m tests.scoreboard 6 31`` runs two of
them. The same rows are tests in ``tests/test_scoreboard.py``.

A row is data (`board.Row`): number, fault, expected, and the function that plays the fault and
asserts what must happen. There is no other way to pass than for that function to return.
"""

from . import (  # noqa: F401  they put their rows on the board
    rows_answers,
    rows_arguments,
    rows_images,
    rows_key,
    rows_machines,
    rows_money,
    rows_stores,
    rows_waiting,
)
from .board import ROWS

__all__ = ["ROWS"]
