"""Random faults for a long time against readers of all kinds.

``python -m tests.soak --seconds 600`` prints what was seen; a minute of it is in the tests.

Five in a hundred downloads go wrong, in one of eight ways. Meanwhile threads read windows with and
without Dask, through a store and without one, and a Dask cluster of processes reads, too. Then

* every value that was given must be exactly the service's,
* each failure is one of the package's own errors, and a reader who tries again gets on,
* nothing is bought without need: of what came whole, no pixel was paid for twice,
* no more is in flight than the account allows,
* memory, threads, sockets, files and tasks are at the end what they were when all was warm.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _loop, errors
from clearsky_xr.sandbox import Fault, LedgerEntry, Server
from clearsky_xr.sandbox.faults import in_turn

KEY = "soak-5c1f7e22"
AREA = (15.05, 46.05, 15.06, 46.06)
LIMIT = 4
SHARE = 0.05
#: Dates of the archive, a page of which is read at a time.
PAGE = 6


def faults() -> list[Fault]:
    """Give what goes wrong: eight kinds, five in a hundred downloads in all."""
    half = [
        Fault.status(503),
        Fault.status(429, retry_after=0),
        Fault.status(400, code=1003),
        Fault.lost(),
        Fault.short_body(3000),
        Fault.half_pixel(),
        Fault.garble("corrupt", lambda content: content[:200] + bytes(len(content) - 200)),
        Fault.html(502),
    ]
    each = 1 - (1 - SHARE) ** (1 / len(half))
    return [in_turn(fault.__class__(fault.kind, fault.effect, times=None, share=each, seed=k))[0]
            for k, fault in enumerate(half)]  # fmt: skip


@dataclass
class Seen:
    """What the readers have met; safe under threads.

    Attributes
    ----------
    reads : int
        Windows that were read and compared.
    wrong : list of str
        What must not have happened.
    met : Counter
        Errors by name.
    """

    reads: int = 0
    wrong: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        with self.lock:
            self.reads += 1

    def error(self, error: BaseException) -> None:
        with self.lock:
            self.met[type(error).__name__] += 1


class Truth:
    """What the service has, fetched from a sandbox of its own that never fails."""

    def __init__(self) -> None:
        self._server = clearsky_xr.sandbox.serve(api_key="the-truth", cadence_days=1)
        self._pages: dict[int, Any] = {}
        self._lock = threading.Lock()

    def page(self, number: int) -> Any:
        """Give the values of a page of dates, as float32 (time, band, y, x)."""
        with self._lock:
            if number not in self._pages:
                self._pages.clear()  # it is read in order
                ds = xr.open_dataset(
                    AREA, engine="clearsky", time=days(number), base_url=self._server.url,
                    api_key="the-truth",
                )  # fmt: skip
                self._pages[number] = ds.reflectance.values
            return self._pages[number]

    def close(self) -> None:
        self._server.close()


def days(page: int) -> list[str]:
    """Give the dates of a page: each is read once, since there are images of every day."""
    first = np.datetime64("2017-01-03") + PAGE * page
    return [str(first + k) for k in range(PAGE)]


def resources() -> dict[str, int]:
    """Count what might leak in this process."""
    gc.collect()

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    folder = Path("/proc/self/fd")
    files = []
    for entry in folder.iterdir():
        try:
            files.append(str(entry.readlink()))
        except OSError:
            continue
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    spool = _account.process().spool._folder
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "sockets": sum(name.startswith("socket:") for name in files),
        "files": sum(not name.startswith(("socket:", "pipe:", "anon_inode:")) for name in files),
        "tasks": _loop.run(tasks()),
        "temporary": 0 if spool is None else sum(1 for _ in spool.iterdir()),
    }


class Soak:
    """One run.

    Parameters
    ----------
    seconds : float
    folder : Path
        For stores.
    with_cluster : bool
        Whether a Dask cluster of processes reads as well.
    """

    def __init__(self, seconds: float, folder: Path, *, with_cluster: bool = True) -> None:
        self._seconds = seconds
        self._folder = folder
        self._with_cluster = with_cluster
        self.seen = Seen()
        self.truth = Truth()
        self.server: Server = clearsky_xr.sandbox.serve(
            api_key=KEY,
            max_connections=LIMIT,
            overload="1003",
            balance=1e9,
            cadence_days=1,
            faults=faults(),
        )
        self.client: Any = None

    # ---- readers

    def open(self, page: int, **options: Any) -> xr.Dataset:
        return xr.open_dataset(
            AREA, engine="clearsky", time=days(page), base_url=self.server.url, api_key=KEY,
            **options,
        )  # fmt: skip

    def insist(self, read: Callable[[], Any]) -> Any:
        """Read until it succeeds: as somebody who runs the cell again."""
        for _ in range(20):
            try:
                return read()
            except (
                errors.LostDownloadError, errors.ServiceUnavailableError,
                errors.UnexpectedImageError, errors.RateLimitedError,
                errors.UnexpectedResponseError,
            ) as error:  # fmt: skip
                self.seen.error(error)
                if kept := error.details.get("kept"):
                    shutil.rmtree(Path(kept).parent, ignore_errors=True)
        self.seen.wrong.append("twenty attempts have failed")
        return None

    def compare(self, what: str, got: Any, expected: Any) -> None:
        if got is not None and not np.array_equal(got, expected, equal_nan=True):
            self.seen.wrong.append(f"{what}: other values than the service's")
        self.seen.read()

    def by_threads(self, page: int, truth: Any) -> None:
        """Four threads read windows of their own, two of each the same, half of them by Dask."""

        def one(k: int) -> None:
            dice = random.Random(page * 8 + k // 2)
            ds = self.open(page, chunks={} if k % 2 else None)
            height, width = ds.sizes["y"], ds.sizes["x"]
            y0, x0 = dice.randrange(height - 8), dice.randrange(width - 8)
            window = {"y": slice(y0, y0 + 1 + dice.randrange(40)), "x": slice(x0, x0 + 8)}
            # Not on the cluster, whose processes have answers of their own.
            part = ds.reflectance.isel(window)
            got = self.insist(lambda: part.compute(scheduler="threads").values)
            self.compare("threads", got, truth[:, :, window["y"], window["x"]])

        crowd = [threading.Thread(target=one, args=(k,)) for k in range(4)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(120)
            if thread.is_alive():
                self.seen.wrong.append("a thread hangs")

    def by_loop(self, page: int, truth: Any) -> None:
        """A loop awaits; now and then it loses its patience, and comes back."""
        ds = self.open(page)

        async def patient(seconds: float) -> Any:
            async with asyncio.timeout(seconds):
                return (await ds.load_async()).reflectance.values

        if page % 3 == 0:
            try:
                asyncio.run(patient(0.02))
            except TimeoutError:
                pass
            except errors.ClearSkyError as error:
                self.seen.error(error)
        self.compare("loop", self.insist(lambda: asyncio.run(patient(300))), truth)

    def by_store(self, page: int, truth: Any) -> None:
        """A store is filled in part, then read whole, then offline."""
        store = self._folder / f"{page}.zarr"
        ds = self.open(page, store=store)
        got = self.insist(lambda: ds.reflectance.isel(time=slice(0, 2), x=slice(0, 9)).values)
        self.compare("part of a store", got, truth[:2, :, :, :9])
        self.compare("store", self.insist(lambda: ds.reflectance.values), truth)
        offline = clearsky_xr.open_store(store)
        self.compare("offline", offline.reflectance.values, truth)
        self.close(store)

    def by_cluster(self, page: int, truth: Any) -> None:
        """Two processes with two threads each fill a store through Dask."""
        store = self._folder / f"{page}.zarr"
        ds = self.open(page, chunks={"time": 2}, store=store)

        def read() -> Any:
            future = self.client.compute(ds.reflectance)
            try:
                return future.result(timeout=300)
            finally:
                future.release()  # or whoever asks again gets the same failure again

        got = self.insist(read)
        self.compare("cluster", got, truth)
        self.close(store)

    @staticmethod
    def close(store: Path) -> None:
        """Let go of a store, as the end of a process does, and remove it."""
        stocks = _account.process().stocks
        for stock in stocks.values():
            for alive in stock.sidecar._own.values():
                alive.release()
            if stock.sidecar._claims is not None:
                os.close(stock.sidecar._claims)
        stocks.clear()
        shutil.rmtree(store)
        shutil.rmtree(f"{store}.clearsky")

    # ---- the run

    def run(self) -> dict[str, Any]:
        """Read until the time is over; gives figures."""
        if self._with_cluster:
            import distributed

            cluster = distributed.LocalCluster(
                n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0"
            )
            self.client = distributed.Client(cluster)
            clearsky_xr.cluster.setup(self.client, api_key=KEY)
        try:
            return self._run()
        finally:
            if self._with_cluster:
                self.client.close()
                cluster.close()
                _account.process().links.clear()
            self.truth.close()
            self.server.close()

    def _run(self) -> dict[str, Any]:
        ways = [self.by_threads, self.by_loop, self.by_store]
        if self._with_cluster:
            ways.append(self.by_cluster)
        begin, page, warm = time.monotonic(), 0, None
        samples = []
        while time.monotonic() - begin < self._seconds or page < 2 * len(ways):
            way = ways[page % len(ways)]
            truth = self.truth.page(page)
            way(page, truth)
            page += 1
            self.new_process()
            if page % len(ways) == 0:
                now = resources()
                samples.append(now["rss"])
                # The first rounds fill caches: of Dask, GDAL, PROJ and of imports.
                if (
                    warm is None
                    and page >= 2 * len(ways)
                    and (time.monotonic() - begin > self._seconds / 5)
                ):
                    warm = now
        end = self.settled()
        thinned = samples[:: max(1, len(samples) // 12)]
        return self.figures(warm or end, end, page, time.monotonic() - begin, thinned)

    def new_process(self) -> None:
        """Let go of what this process holds, as if it had ended: pages are not read again."""
        deadline = time.monotonic() + 60
        while clearsky_xr.spent().reserved and time.monotonic() < deadline:
            time.sleep(0.01)
        for owner in _account.process().accounts.values():
            for answers in list(owner.holdings._held.values()):
                for held in list(answers):
                    owner.holdings.forget(held)
                    if held.path is not None:
                        held.path.unlink(missing_ok=True)

    def settled(self) -> dict[str, int]:
        """Wait until all is quiet."""
        deadline = time.monotonic() + 60
        while (self.server.in_flight or clearsky_xr.spent().reserved) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        time.sleep(0.5)
        return resources()

    def figures(
        self,
        warm: dict[str, int],
        end: dict[str, int],
        pages: int,
        seconds: float,
        samples: list[int],
    ) -> dict[str, Any]:
        entries = self.server.downloads()
        struck = Counter(entry.fault for entry in entries if entry.fault)
        broken = [e for e in entries if e.fault and e.credits]
        charged = round(sum(entry.credits for entry in entries), 2)
        in_vain = round(sum(entry.credits for entry in broken), 2)
        wasted = sum(map(needless, by_date(entries)), 0.0)
        return {
            "seconds": round(seconds),
            "pages": pages,
            "reads": self.seen.reads,
            "wrong": self.seen.wrong,
            "errors met": dict(self.seen.met),
            "requests": len(entries),
            "struck": sum(struck.values()),
            "faults": dict(struck),
            "peak": self.server.peak_in_flight,
            "charged": charged,
            "charged in vain by faults": in_vain,
            "bought without need": round(wasted, 2),
            "spent.possibly": clearsky_xr.spent().possibly,
            "rss over time, MB": [round(rss / 1e6) for rss in samples],
            "warm": warm,
            "end": end,
        }


def by_date(entries: list[LedgerEntry]) -> list[list[LedgerEntry]]:
    """Sort out what came whole and was charged, date by date; the days of a page are its own."""
    found: dict[object, list[LedgerEntry]] = {}
    for entry in entries:
        if entry.credits and not entry.fault:
            found.setdefault(entry.date, []).append(entry)
    return list(found.values())


def needless(bought: list[LedgerEntry]) -> float:
    """Give what was paid for pixels of a date that had been bought already, credits.

    A request may bring them once more where that costs nothing: whatever is below 0.1 km2 costs
    a cent.
    """
    held, wasted = shapely.Polygon(), 0.0
    for entry in bought:
        area = shapely.from_wkt(entry.wkt)
        fresh = area.difference(held).area / area.area
        need = max(0.01, round(0.1 * fresh * (entry.area_km2 or 0.0), 2)) if fresh > 1e-9 else 0.0
        wasted += max(0.0, entry.credits - need)
        held = held.union(area)
    return wasted


def check(figures: dict[str, Any]) -> None:
    """Assert what must hold."""
    warm, end = figures["warm"], figures["end"]
    assert figures["wrong"] == [], figures["wrong"]
    assert figures["peak"] <= LIMIT, figures["peak"]
    assert figures["bought without need"] == 0, figures
    for name in ("threads", "sockets", "files", "tasks", "temporary"):
        assert end[name] <= warm[name] + SLACK.get(name, 0), f"{name}: {warm} then {end}"
    assert end["rss"] <= 1.15 * warm["rss"] + 30e6, f"{warm['rss']:,} then {end['rss']:,}"


#: Connections that idle for up to ten seconds, with both ends in this process, and threads that
#: pools start when they need them.
SLACK = {"sockets": 24, "threads": 8, "files": 4}


def run(seconds: float, *, with_cluster: bool = True) -> dict[str, Any]:
    """Soak for some seconds; gives the figures."""
    os.environ.pop("CLEARSKY_API_KEY", None)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.ClearSkyWarning)
        warnings.filterwarnings("ignore", "The specified chunks separate", UserWarning)
        warnings.filterwarnings("ignore", ".*Sending large graph", UserWarning)
        return Soak(seconds, Path(folder), with_cluster=with_cluster).run()


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--without-cluster", action="store_true")
    options = parser.parse_args()
    figures = run(options.seconds, with_cluster=not options.without_cluster)
    print(json.dumps(figures, indent=2))
    check(figures)
    print("all of it holds")


if __name__ == "__main__":
    main()
    sys.exit()
