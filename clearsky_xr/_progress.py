"""A bar for whatever is bought while something is computed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from ._account import process
from ._budget import Booking


@contextmanager
def progress(*, leave: bool = True) -> Iterator[None]:
    """Show what is bought while something is computed, with Dask or without.

    A line in a terminal, a widget in a notebook: requests, megabytes, credits and
    dates that have come, and how many requests are in flight. It counts all
    purchases of this process.

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
    ledger = process().ledger
    dates: set[dt.date] = set()
    flying: set[Booking] = set()
    paid, size = 0.0, 0
    layout = "{n_fmt} requests [{elapsed}{postfix}]"
    with tqdm(bar_format=layout, leave=leave, miniters=1) as bar:

        def watch(booking: Booking, what: str, received: int) -> None:
            nonlocal paid, size
            if what == "sent":
                flying.add(booking)
            else:
                flying.discard(booking)
            if what == "settled":
                dates.add(booking.request.date)
                paid += booking.request.credits
                size += received
            bar.set_postfix_str(
                f"{size / 1e6:.1f} MB, {paid:.2f} credits, {len(dates)} dates, "
                f"{len(flying)} in flight",
                refresh=False,
            )
            bar.update(what == "settled")

        ledger.watchers.append(watch)
        try:
            yield
        finally:
            ledger.watchers.remove(watch)
            bar.refresh()
