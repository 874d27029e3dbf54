"""The key, in everything that any row gave away."""

from __future__ import annotations

import io
from typing import Any

import clearsky_xr
from clearsky_xr import _account

from .bench import DAYS, FARM, KEY, Bench, watch
from .board import ROWS, play, row

#: Played if nothing else was: errors of all kinds are among them.
_SOME = (5, 9, 24)


@row(
    23,
    "a canary key through every row",
    "zero occurrences in logs at DEBUG, repr, str, args, traceback text, pickles, graphs, attrs, "
    "stores, HTML",
)
def canary(bench: Bench) -> dict[str, Any]:
    for number in _SOME:
        if number not in watch.rows:
            folder = bench.folder / str(number)
            folder.mkdir()
            played = play(ROWS[number], folder)
            if played.failure is not None:
                raise played.failure
    server = bench.serve()
    options = {"base_url": server.url, "api_key": KEY}
    store = bench.folder / "fields.zarr"
    ds = clearsky_xr.open_timeseries(FARM, DAYS[:2], indices="ndvi", store=store, **options)
    ds.load()
    assert len(server.downloads()) == 2
    info = io.StringIO()
    ds.info(info)
    card = ds.clearsky
    watch.look("reprs", info.getvalue(), repr(card), card._repr_html_(), repr(clearsky_xr.spent()))
    watch.look("reprs", repr(server), repr(_account.process().accounts.values()))
    watch.look("attrs", *(f"{v.attrs} {v.encoding}" for v in ds.variables.values()), ds.attrs)
    ds.drop_encoding().to_zarr(bench.folder / "copy.zarr", consolidated=False)
    ds.drop_encoding().to_netcdf(bench.folder / "copy.nc")
    loose = clearsky_xr.open_timeseries(FARM, DAYS[2:4], **options)
    loose.load()
    spool = _account.process().spool._folder
    assert spool is not None
    spooled = [path for path in spool.rglob("*") if path.is_file()]
    assert spooled
    watch.look("files", *(path.read_bytes() for path in spooled))
    watch.look("file names", *spooled)
    for kind in ("log records", "errors", "tracebacks", "pickles", "reprs", "files", "attrs"):
        assert watch.looked.get(kind), f"nothing was searched of {kind}"
    found = {f"{kind} above": 10 ** (len(str(n)) - 1) for kind, n in sorted(watch.looked.items())}
    return {"rows": len(watch.rows | {23}), "occurrences": 0, **found}
