"""A bar for whatever is bought while something is computed."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ._account import process
from ._budget import Budget
from ._ledger import Ledger
from .errors import ClearSkyError

with warnings.catch_warnings():
    # In a notebook without ipywidgets a bar is a line of text. Nobody need be told whenever a
    # cube is opened.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm as tqdm  # noqa: PLC0414  for others


@contextmanager
def progress(*, leave: bool = True) -> Iterator[None]:
    """Show what is bought while something is computed, with Dask or without.

    A line in a terminal, a widget in a notebook: requests, megabytes, credits and
    dates that have come, and how many requests are in flight. It counts all
    purchases of this process, and of the cluster that it has set up.

    Parameters
    ----------
    leave : bool, default True
        Keep the last state on the screen.

    Returns
    -------
    context manager

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox"
    ... )
    >>> with clearsky_xr.progress(leave=False):
    ...     mean = ds.reflectance.mean().compute()
    """
    shared = process()
    layout = "{n_fmt} requests [{elapsed}{postfix}]"
    with (
        tqdm(bar_format=layout, leave=leave, miniters=1) as bar,
        Budget(math.inf, shared.ledger, lambda: shared.link) as counted,
    ):

        def show() -> None:
            tally = counted.tally()
            bar.set_postfix_str(
                f"{tally.spent.bytes / 1e6:.1f} MB, {tally.spent.settled:.2f} credits, "
                f"{tally.dates} dates, {tally.in_flight} in flight",
                refresh=False,
            )
            bar.update(tally.spent.requests - bar.n)

        with _often(show) if counted.elsewhere else _watching(shared.ledger, show):
            yield
        show()
        bar.refresh()


@contextmanager
def _watching(ledger: Ledger, show: Callable[[], None]) -> Iterator[None]:
    """Show whatever this process books."""
    ledger.watchers.append(show)
    try:
        yield
    finally:
        ledger.watchers.remove(show)


@contextmanager
def _often(show: Callable[[], None]) -> Iterator[None]:
    """Ask the scheduler of a cluster twice a second."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            with suppress(ClearSkyError):  # a bar is not worth an error
                show()

    thread = threading.Thread(target=look, name="clearsky_xr-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
