"""Limits of one's own."""

from __future__ import annotations

import threading
from typing import Any

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.sandbox import Fault

from .bench import DAY, DAYS, FARM, KEY, PATIENCE, Bench, credits_of
from .board import row


@row(
    29,
    "budget exceeded, also by racing threads and workers",
    "refused before sending; spent never above budget",
)
def budgets(bench: Bench) -> dict[str, Any]:
    # Forty pixels of one date at a cent each, eight threads, 17 cents.
    server = bench.serve()
    ds = bench.open(server)
    start, refused = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait(PATIENCE)
        for k in range(5):
            try:
                ds.reflectance.isel(x=2 * number, y=3 * k).load()
            except errors.BudgetError as error:
                refused.append(error)

    with clearsky_xr.budget(0.17) as budget:
        for thread in bench.threads(*(lambda n=n: work(n) for n in range(8))):
            thread.join(PATIENCE)
    assert credits_of(server.downloads()) == budget.report().settled == 0.17
    assert len(server.downloads()) == 17  # the other 23 were never sent
    assert len(refused) == 23
    for error in refused[:2]:
        with bench.raises(errors.BudgetError, "budget of 0.17 credits", spent="no"):
            raise error

    # The budget of a Dataset, through Dask's threads and into a store.
    server = bench.serve(latency=0.02)
    ds = clearsky_xr.open_timeseries(
        (15.05, 46.05, 15.06, 46.06), DAYS, base_url=server.url, api_key=server.api_key,
        store=bench.folder / "fields.zarr", max_credits=0.5,
    )  # fmt: skip
    with bench.raises(errors.BudgetError, "budget of 0.50 credits", spent="no"):
        ds.chunk(time=1).reflectance.compute()
    bench.quiet(server)
    assert 0 < credits_of(server.downloads()) <= 0.5
    assert all(entry.status == 200 for entry in server.downloads())

    # What may have been charged counts as spent: a repeat that does not fit is not sent.
    bench.fake_pauses()
    server = bench.serve(Fault.lost(times=None))
    with (
        clearsky_xr.budget(0.2) as budget,
        bench.raises(errors.BudgetError, "0.18 may have been charged", spent="no"),
    ):
        bench.open(server, DAY).load()
    assert len(server.downloads()) == 2
    assert budget.report().possibly == 0.18
    assert budget.left == 0.02

    # One budget for the notebook and all workers.
    client = bench.cluster()
    server = bench.serve(max_connections=16)
    clearsky_xr.cluster.setup(client, api_key=KEY)
    ds = clearsky_xr.open_timeseries(
        FARM, DAYS, base_url=server.url, api_key=KEY, chunks={"time": 1}
    )
    with (
        clearsky_xr.budget(0.5) as budget,
        bench.raises(errors.BudgetError, "budget of 0.50 credits", spent="no"),
    ):
        ds.reflectance.mean().compute(scheduler=client)
    bench.until(lambda: server.in_flight == 0 and budget.report().reserved == 0)
    assert 0 < credits_of(server.downloads()) <= 0.5
    assert {entry.status for entry in server.downloads()} == {200}
    assert budget.report().settled == credits_of(server.downloads())
    return {"refused before sending": len(refused)}
