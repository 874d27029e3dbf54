"""``python -m tests.scoreboard [NUMBER ...]``: play the rows and print them."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from pathlib import Path

from . import ROWS
from .bench import close_cluster
from .board import PAGE, figures, page, play


def main(wanted: list[int]) -> int:
    """Play rows, all of them by default; gives how many did not hold."""
    played = []
    # The key is looked for in all that the other rows have given away: so 23 is the last.
    for number in sorted(wanted or ROWS, key=lambda number: (number == 23, number)):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            one = play(ROWS[number], Path(folder))
        played.append(one)
        mark = "ok  " if one.failure is None else "FAIL"
        seconds = time.perf_counter() - begin
        print(f"{mark} {number:2} {one.row.fault}\n        {figures(one.counted)}"
              f"  [{seconds:.1f} s]", flush=True)  # fmt: skip
        if one.failure is not None:
            # Where the row stood, not what xarray did below it.
            frames = traceback.extract_tb(one.failure.__traceback__)
            own = [frame for frame in frames if "site-packages" not in frame.filename]
            print("".join(traceback.format_list(own[-8:])), one.failure, sep="")
    close_cluster()
    failed = sum(one.failure is not None for one in played)
    print(f"{len(played) - failed} of {len(played)} rows hold")
    if not wanted and not failed:
        played.sort(key=lambda one: one.row.number)
        PAGE.write_text(page(played), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]) > 0)
