"""A store through a life of openings, reads, faults, deaths and damage, against a plain dict."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyproj
import pytest
import shapely
import xarray as xr
import zarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import clearsky_xr
from clearsky_xr import _account, _loop
from clearsky_xr._ledger import Ledger
from clearsky_xr._pixels import PixelSet
from clearsky_xr._spool import DurableSpool
from clearsky_xr.errors import NotBoughtError, StoreError

from .conftest import access
from .test_store_plain import settle

NODATA = -32768
SIDE = 256

# 301 x 303 pixels: 2 x 2 blocks, of which three are small.
WHOLE = (15.05, 46.05, 15.089, 46.077)
AREAS = {
    "whole": (WHOLE, {}),
    "north-west": ((15.053, 46.06, 15.07, 46.075), {}),
    "across": ((15.06, 46.0505, 15.0885, 46.0745), {}),
    "south": ((15.0505, 46.0503, 15.0885, 46.0530), {"clip": False}),
    "triangle": (
        shapely.Polygon([(15.051, 46.051), (15.088, 46.052), (15.055, 46.076)]),
        {"pixels": "contained"},
    ),
    "two corners": (
        shapely.union(
            shapely.box(15.051, 46.074, 15.053, 46.076),
            shapely.box(15.0865, 46.0505, 15.088, 46.052),
        ),
        {},
    ),
}  # fmt: skip
DATES = [dt.date(2025, 4, 1) + dt.timedelta(5 * k) for k in range(8)]
BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")

# What the user may hear, and when.
CANNOT_WRITE, DAMAGED, LOST = "cannot be written", "damaged blocks", "were under way when"


class Death(BaseException):
    """The process ends here."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A Dataset, and what it must show."""

    dataset: xr.Dataset
    area: str
    dates: tuple[dt.date, ...]
    bands: tuple[str, ...]

    def __repr__(self):
        return f"{self.area}, {self.dates[0]} to {self.dates[-1]}, {','.join(self.bands)}"


class World:
    """A sandbox, and what it serves, read once without a store."""

    def __init__(self, server):
        self.server = server
        self._paid = {}
        cubes = {
            area: clearsky_xr.resolve(where, DATES, **options, **access(server))
            for area, (where, options) in AREAS.items()
        }
        #: The store's grid.
        self.grid = cubes["whole"].grid.window
        rows, cols = self.grid.shape
        self.blocks = [(i, j) for i in range(-(-rows // SIDE)) for j in range(-(-cols // SIDE))]
        #: All bands of all dates (time, band, y, x), by area.
        self.served = {area: self._read(cube) for area, cube in cubes.items()}
        #: The number of each pixel's block, -1 where it is not of the area.
        self.numbers = {area: self._count(cube) for area, cube in cubes.items()}

    def _read(self, cube):
        found = xr.open_dataset(
            cube, engine="clearsky", mask_and_scale=False, **access(self.server)
        )  # fmt: skip
        assert tuple(found.band.values) == BANDS
        return found.reflectance.values

    def _count(self, cube):
        window, wanted = cube.grid.window, cube.wanted(PixelSet(cube.grid.window))
        mask = np.zeros(window.shape, bool)
        mask[window.slices(wanted.window)] = wanted.dense
        rows = (np.arange(window.row0, window.row1) - self.grid.row0) // SIDE
        cols = (np.arange(window.col0, window.col1) - self.grid.col0) // SIDE
        across = -(-self.grid.shape[1] // SIDE)
        return np.where(mask, rows[:, None] * across + cols[None, :], -1)

    def slices_of(self, block):
        """Give where a block lies in the whole area."""
        return tuple(slice(n * SIDE, (n + 1) * SIDE) for n in block)

    def credits_of(self, block):
        height, width = self.served["whole"][0, 0][self.slices_of(block)].shape
        return height * width * 1e-4 * 0.1

    def requests(self, since=0):
        """Give the downloads that were paid for, after those that were there already."""
        return [e for e in self.server.downloads() if e.credits and e.sequence > since]

    def purchases(self, since=0):
        """Count how often each block of each date was paid for."""
        counts = Counter()
        for entry in self.requests(since):
            if entry.wkt not in self._paid:
                self._paid[entry.wkt] = self._blocks_in(entry.wkt)
            counts.update((entry.date, block) for block in self._paid[entry.wkt])
        return counts

    def _blocks_in(self, wkt):
        geometry = shapely.from_wkt(wkt)
        moved = shapely.transform(geometry, lambda xy: np.column_stack(UTM.transform(*xy.T)))
        return [block for block in self.blocks if moved.intersects(self._square(block))]

    def _square(self, block):
        row, col = self.grid.row0 + block[0] * SIDE, self.grid.col0 + block[1] * SIDE
        return shapely.box(col * 10, -(row + SIDE) * 10, (col + SIDE) * 10, -row * 10)


UTM = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)


# ---- ends and faults


@contextmanager
def disk(after, error):
    """Let the disk of the store take so many objects, and raise from then on.

    Death leaves a file half-written, as the end of a process does.
    """
    from zarr.storage import _local

    put, left = _local._put, [after]

    def put_or_not(path, value, *, exclusive=False):
        if left[0] == 0:
            if error is Death:
                path.parent.mkdir(parents=True, exist_ok=True)
                half = path.with_suffix(f".{uuid.uuid4().hex}.partial")
                half.write_bytes(bytes(value.as_buffer_like())[:9])
            raise error(28, "No space left on device")
        left[0] -= 1
        return put(path, value, exclusive=exclusive)

    with mock.patch.object(_local, "_put", put_or_not):
        yield


@contextmanager
def spool(after, kept):
    """Let the process die when it has spooled so many answers; `kept` gets their paths."""
    write = DurableSpool.write

    def write_or_not(self, path, content):
        if len(kept) >= after:
            raise Death
        kept.append(path)
        write(self, path, content)

    with mock.patch.object(DurableSpool, "write", write_or_not):
        yield


def end_process():
    """Forget what a process knows, and let go of its locks as the system would."""
    settle()
    shared = _account.process()

    async def close():
        for owner in shared.accounts.values():
            await owner.client.close()

    _loop.run(close())
    for stock in shared.stocks.values():
        sidecar = stock.__dict__.get("sidecar")
        if sidecar is not None:
            for lock in sidecar._own.values():
                lock.release()
            if sidecar._claims is not None:
                os.close(sidecar._claims)
                sidecar._claims = None
    shared.accounts.clear()
    shared.stocks.clear()
    shared.ledger = Ledger()


# ---- the machine


# What is drawn must not depend on what the disk has, since deaths are not punctual: numbers
# are drawn, and count whatever there is.
NUMBERS = st.integers(0, 999)
SPANS = st.none() | st.none() | st.tuples(NUMBERS, NUMBERS)
PICKS = st.tuples(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=2), SPANS, SPANS)
TIMES = st.tuples(st.integers(0, 7), st.integers(1, 3), st.booleans())
LAYERS = st.none() | st.lists(st.sampled_from(BANDS), min_size=1, max_size=3, unique=True)
FAULTS = (NUMBERS, st.booleans(), st.integers(0, 15))

# What can happen. One rule for all of it: several rules are not chosen equally often.
STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(sorted(AREAS)), TIMES, LAYERS),
    st.tuples(
        st.just("open_and_die"), st.sampled_from(sorted(AREAS)), TIMES, LAYERS, st.integers(0, 12)
    ),
    st.tuples(st.just("read"), PICKS),
    st.tuples(st.just("read_onto_a_full_disk"), *FAULTS),
    st.tuples(st.just("read_and_die"), *FAULTS),
    st.tuples(st.just("read_and_lose"), *FAULTS),
    st.tuples(st.just("prefetch"), PICKS),
    st.tuples(st.just("read_offline"), PICKS, st.sampled_from(["raise", "nan"])),
    st.tuples(
        st.just("damage"),
        st.lists(NUMBERS, min_size=1, max_size=2),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
        st.booleans(),
    ),
    st.tuples(st.just("read_damaged"), NUMBERS),
    st.tuples(st.just("new_process")),
)


def some(values, number):
    """Give one of some values, or none if there are none."""
    return [values[number % len(values)]] if values else []


class Life(RuleBasedStateMachine):
    """A store, its files, and what is known of them."""

    world: World

    def __init__(self):
        super().__init__()
        end_process()
        self.folder = Path(tempfile.mkdtemp(prefix="clearsky-machine-"))
        self.path = self.folder / "fields.zarr"
        self.since = max(entry.sequence for entry in self.world.server.ledger())
        self.opened: list[Opened] = []
        self.dates: set[dt.date] = set()
        #: {(date, block): paid}; what is not in it was never bought.
        self.had: dict[tuple[dt.date, tuple[int, int]], bool] = {}
        #: Those that the store has.
        self.kept: set = set()
        self.damaged: set = set()
        #: Purchases beyond the first of a block, and why they are right.
        self.forgiven: Counter = Counter()
        #: Answers that died on the way, of which the user has not been told yet; and how many
        #: more may have been about to be asked for.
        self.lost = self.doubtful = 0
        #: Whether who was told of them has died.
        self.silent = False
        #: What this process was granted for damaged blocks; unsure once it was refused some.
        self.granted, self.unsure = 0.0, False
        #: Whether pixels are held here that the store would not take, or were left by the dead.
        self.pending = self.left = False
        self.checked: dict[Path, int] = {}

    def teardown(self):
        try:
            if self.path.exists() and sys.exc_info()[0] is None:
                self.a_new_process_finds_everything()
        finally:
            end_process()
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- openings

    @initialize(time=TIMES, ends=st.lists(st.integers(0, 45), max_size=1), drawn=PICKS)
    def make(self, time, ends, drawn):
        """Open the whole area first, which makes the store, perhaps not at once."""
        for end in ends:
            self.open_and_die("whole", time, None, end)
        self.open("whole", time, None)
        self.read(drawn)

    @rule(step=STEPS)
    def live(self, step):
        name, *arguments = step
        getattr(self, name)(*arguments)

    def open(self, area, time, bands):
        with self.hearing(LOST) as heard:
            dataset, dates = self.opening(area, time, bands)
        self.hear_of_lost(heard, adopted=True)
        self.dates |= set(dates)
        assert self.dates_in_files() == self.dates
        self.opened.append(Opened(dataset, area, dates, BANDS if bands is None else tuple(bands)))
        # What earlier processes have paid for was put in; this one's own waits for a reader.
        files = self.files()
        assert self.kept <= files <= set(self.had)
        assert files == set(self.had) or self.pending
        self.kept, self.left = files, False

    def open_and_die(self, area, time, bands, end):
        """Let the process end while it declares dates, or puts in what others have left."""
        with self.hearing(LOST) as heard, disk(end, Death):
            try:
                dates = self.opening(area, time, bands)[1]
            except Death:
                self.fail([])
                dates = self.dates_of(time)[1]
        self.hear_of_lost(heard)
        self.die()
        self.left = True
        if self.path.exists():
            now = self.dates_in_files()
            assert now in (self.dates, self.dates | set(dates))  # in one step, or not
            self.dates = now
            files = self.files()
            assert self.kept <= files <= set(self.had)
            self.kept = files

    def opening(self, area, time, bands):
        where, options = AREAS[area]
        asked, dates = self.dates_of(time)
        dataset = xr.open_dataset(
            where, engine="clearsky", store=self.path, mask_and_scale=False, time=asked,
            bands="all" if bands is None else bands,
            indices=None if bands is None else {"index": ("B8", "B4")},
            **options, **access(self.world.server),
        )  # fmt: skip
        return dataset, dates

    def dates_of(self, time):
        first, count, listed = time
        dates = tuple(DATES[first : first + count])
        return list(dates) if listed else (dates[0], dates[-1]), dates

    # ---- readings

    def read(self, drawn):
        opened, pick, touched = self.choose(drawn)
        if self.damaged & touched:
            self.read_what_is_damaged(opened, pick, touched)
        else:
            self.reading(opened, pick, touched)

    def read_onto_a_full_disk(self, number, two, after):
        """The pixels are given with a warning; the spool keeps them."""
        for chosen in self.choose_wanting(number, two):
            self.pending |= self.reading(*chosen, disk(after, OSError))

    def read_and_die(self, number, two, after):
        """Let the process end between the spool and the last block."""
        for chosen in self.choose_wanting(number, two):
            with self.dying():
                self.reading(*chosen, disk(after, Death))

    def read_and_lose(self, number, two, after):
        """Let the process end between an answer and the spool: that answer is lost."""
        for chosen in self.choose_wanting(number, two):
            with self.dying():
                kept = []
                self.reading(*chosen, spool(after % 2, kept), kept)

    @contextmanager
    def dying(self):
        """Let a reading die, or not if it has too little to do."""
        try:
            yield
        except Death:
            self.left = True
            self.die()

    def reading(self, opened, pick, touched, fault=None, kept=None):
        """Read what is not damaged; gives whether the store could not be written."""
        counts, died = self.purchases(), None
        with self.hearing(CANNOT_WRITE, LOST) as heard, fault or nullcontext():
            try:
                self.see(opened, pick)
            except Death as death:
                died = death
            settle()
        self.hear_of_lost(heard)
        bought = self.new_purchases(counts)
        files = self.files()
        assert set(bought) <= touched - set(self.had)
        assert all(times == 1 for times in bought.values())
        # What the dead have left may be put in by whoever buys next.
        most = self.kept | touched | (set(self.had) if self.left else set())
        assert self.kept <= files <= most
        if died is not None:
            assert fault is not None
            self.fail(pick["time"])
            gone = set() if kept is None else self.gone(bought, kept)
            self.had |= dict.fromkeys(bought.keys() - gone, True)
            self.kept = files
            raise died
        assert set(bought) == touched - set(self.had)
        self.had |= dict.fromkeys(touched, True)
        refused = any(CANNOT_WRITE in text for text in heard)
        assert fault is not None or not refused
        assert files >= touched or refused
        self.kept = files
        return refused

    def gone(self, bought, kept):
        """Give the blocks whose answers were paid for and died before they were spooled."""
        days = {dt.date.fromisoformat(path.stem.split("-", 1)[1]) for path in kept}
        # Of a date there is one request at a time here: its missing blocks.
        gone = {key for key in bought if key[0] not in days}
        self.forgiven.update(gone)
        self.lost += len({date for date, _ in gone})
        return gone

    def prefetch(self, drawn):
        opened, pick, touched = self.choose(drawn)
        if self.damaged & touched:
            return
        counts = self.purchases()
        with self.hearing(LOST) as heard:
            spent = self.selected(opened, pick).clearsky.prefetch(progress=False)
        self.hear_of_lost(heard)
        bought = self.new_purchases(counts)
        assert dict(bought) == dict.fromkeys(touched - set(self.had), 1)
        assert (spent.settled > 0) == bool(bought)
        self.had |= dict.fromkeys(touched, True)
        files = self.files()
        assert self.kept | touched <= files <= set(self.had)
        assert files == self.kept | touched or self.left
        self.kept = files

    def read_offline(self, drawn, missing):
        counts = self.purchases()
        dates = tuple(sorted(self.dates))
        with self.hearing():
            dataset = clearsky_xr.open_store(
                self.path, missing=missing, chunks=None, mask_and_scale=False
            )
            assert [day.astype("M8[D]").item() for day in dataset.time.values] == list(dates)
            opened = Opened(dataset, "whole", dates, BANDS)
            pick = self.pick(drawn, opened)
            touched = self.touched(opened, pick)
            absent = touched - self.kept
            if absent and missing == "raise":
                with pytest.raises(NotBoughtError):
                    self.values(opened, pick)
            elif touched & self.damaged:
                with pytest.raises(StoreError, match="are damaged"):
                    self.values(opened, pick)
            else:
                self.see(opened, pick, absent=absent)
        assert not self.new_purchases(counts)

    # ---- damage

    def damage(self, numbers, place, bit, at_once):
        """Flip a bit of the files of blocks, and read them at once or later."""
        for number in numbers:
            for key in some(sorted(self.kept - self.damaged), number):
                path = self.file(key)
                content = bytearray(path.read_bytes())
                content[int(place * len(content))] ^= 1 << bit
                path.write_bytes(content)
                self.damaged.add(key)
        if at_once:
            self.read_damaged(numbers[0])

    def read_damaged(self, number):
        for opened, k in some(self.showing(self.damaged), number):
            pick = {"time": [k]}
            self.read_what_is_damaged(opened, pick, self.touched(opened, pick))

    def read_what_is_damaged(self, opened, pick, touched):
        """It is bought again within the allowance, else it is an error."""
        counts = self.purchases()
        hurt = self.damaged & touched
        price = sum(max(0.01, self.world.credits_of(block)) for _, block in hurt)
        allowed = max(1.0, 0.02 * _account.process().ledger.spent().settled) - self.granted
        with self.hearing(DAMAGED, LOST) as heard:
            try:
                self.see(opened, pick)
                failed = False
            except StoreError as error:
                assert error.kind == "damaged"  # noqa: PT017  either may be right
                failed = True
            settle()
        self.hear_of_lost(heard)
        bought = self.new_purchases(counts)
        assert set(bought) <= (touched - set(self.had)) | hurt
        assert all(times == 1 for times in bought.values())
        if not self.unsure:
            assert not failed or price > allowed - 0.02
            assert failed or price < allowed + 0.02
        if failed:
            self.unsure = True
            self.fail(pick["time"])
            mended = set(bought) & hurt
        else:
            assert touched - set(self.had) <= set(bought)
            # An answer that is still held mends it for nothing.
            assert hurt <= set(bought) or self.pending or self.left
            assert self.unsure or any(DAMAGED in text for text in heard)
            mended = hurt
        self.forgiven.update(set(bought) & hurt)
        self.granted += price
        self.damaged -= mended
        self.had |= dict.fromkeys(bought, True)
        files = self.files()
        assert self.kept - hurt <= files <= set(self.had)
        assert files == self.kept | touched or failed or self.left
        self.kept = files

    def new_process(self):
        self.die()

    # ---- how it is read

    def choose(self, drawn):
        (opened,) = some(self.opened, drawn[0])
        pick = self.pick(drawn, opened)
        return opened, pick, self.touched(opened, pick)

    def showing(self, keys):
        """Give the opened Datasets, and positions along their time, that show some blocks."""
        return [
            (opened, k)
            for opened in self.opened
            for k in range(len(opened.dates))
            if self.touched(opened, {"time": [k]}) & set(keys)
        ]

    def wanting(self):
        """Give those that show blocks which the store does not have, and no damaged ones."""
        every = {(date, block) for date in self.dates for block in self.world.blocks}
        hurt = self.showing(self.damaged)
        return [each for each in self.showing(every - self.kept) if each not in hurt]

    def choose_wanting(self, number, two):
        """Choose all pixels of one date that wants blocks, or two; nothing if there is none."""
        wanting = self.wanting()
        for opened, k in some(wanting, number):
            others = [n for each, n in wanting if each is opened and n != k]
            pick = {"time": [k, *others[:two]]}
            yield opened, pick, self.touched(opened, pick)

    def pick(self, drawn, opened):
        """Choose positions along time, y and x: slices, or the whole."""
        _, _, height, width = self.world.served[opened.area].shape
        _, time, *spans = drawn
        chosen = {"time": list(dict.fromkeys(n % len(opened.dates) for n in time))}
        for name, size, span in zip("yx", (height, width), spans, strict=True):
            if span is not None:
                start = span[0] % size
                chosen[name] = slice(start, start + 1 + span[1] % size)
        return chosen

    def touched(self, opened, pick):
        numbers = self.world.numbers[opened.area][pick.get("y", slice(None)), :]
        found = np.unique(numbers[:, pick.get("x", slice(None))])
        return {
            (opened.dates[k], self.world.blocks[n]) for k in pick["time"] for n in found if n >= 0
        }

    def selected(self, opened, pick):
        return opened.dataset.isel(pick)

    def values(self, opened, pick):
        """Load all variables that a Dataset has, each by itself."""
        part = self.selected(opened, pick)
        return {name: part[name].values for name in part.data_vars}

    def see(self, opened, pick, absent=()):
        """Read, and compare with what the sandbox serves."""
        got = self.values(opened, pick)
        days = [DATES.index(opened.dates[k]) for k in pick["time"]]
        y, x = pick.get("y", slice(None)), pick.get("x", slice(None))
        served = self.world.served[opened.area][days][..., y, x].copy()
        numbers = self.world.numbers[opened.area][y, x]
        for k, place in enumerate(pick["time"]):
            for number, block in enumerate(self.world.blocks):
                if (opened.dates[place], block) in absent:
                    served[k][:, numbers == number] = NODATA
        places = [BANDS.index(band) for band in opened.bands]
        np.testing.assert_array_equal(got["reflectance"], served[:, places])
        if "index" in got:
            b8, b4 = (served[:, BANDS.index(name)].astype(float) for name in ("B8", "B4"))
            there = (b8 != NODATA) & (b8 + b4 != 0)
            index = np.full(b8.shape, float(NODATA))
            index[there] = np.clip((b8 - b4)[there] / (b8 + b4)[there], -1, 1) * 32767
            np.testing.assert_allclose(got["index"], index, rtol=0, atol=0.5001)

    # ---- what is known

    def die(self):
        end_process()
        self.granted, self.unsure = 0.0, False
        self.left |= self.pending
        self.pending = False

    @contextmanager
    def hearing(self, *words):
        """Collect the warnings, of which each must hold one of the words."""
        heard = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", "Use `@` matmul", PendingDeprecationWarning)
            yield heard
        heard += [str(each.message) for each in caught]
        assert not [text for text in heard if not any(word in text for word in words)]

    def hear_of_lost(self, heard, *, adopted=False):
        """Whoever adopts the spools of the dead says how many answers were lost, once."""
        told = [int(text.split()[0]) for text in heard if LOST in text]
        assert len(told) <= 1
        if told or adopted:
            assert sum(told) <= self.lost + self.doubtful
            assert sum(told) >= self.lost or self.silent
            self.lost = self.doubtful = 0
            self.silent = False

    def fail(self, dates):
        """Take note of a computation that told nobody what it heard, nor ended what it began."""
        self.silent |= self.lost > 0
        self.doubtful += len(dates)

    def purchases(self):
        return self.world.purchases(self.since)

    def new_purchases(self, before):
        counts = self.purchases()
        counts.subtract(before)
        return +counts

    def group(self):
        return zarr.open_group(self.path, mode="r")

    def days(self):
        seconds = self.group()["time"][:]
        assert not (seconds % 86400).any()
        return [dt.date(1970, 1, 1) + dt.timedelta(int(n) // 86400) for n in seconds]

    def dates_in_files(self):
        days = self.days()
        assert len(set(days)) == len(days)
        return set(days)

    def file(self, key, days=None):
        row, col = key[1]
        index = (days or self.days()).index(key[0])
        return self.path / "reflectance" / "c" / str(index) / "0" / str(row) / str(col)

    def files(self, days=None):
        """Give the blocks whose files are there."""
        days = days or self.days()
        found = set()
        for path in (self.path / "reflectance").glob("c/*/0/*/*"):
            if path.suffix != ".partial":
                index, _, row, col = map(int, path.parts[-4:])
                found.add((days[index], (row, col)))
        return found

    # ---- what holds at any time

    @precondition(lambda self: self.path.exists())
    @invariant()
    def a_block_is_complete_or_absent(self):
        pixels = self.group()["reflectance"]
        days = self.days()
        files = self.files(days)
        assert files == self.kept
        assert files <= set(self.had)
        for key in files - self.damaged:
            path = self.file(key, days)
            stamp = path.stat().st_mtime_ns
            if self.checked.get(path) == stamp:
                continue
            rows, cols = self.world.slices_of(key[1])
            served = self.world.served["whole"][DATES.index(key[0])][:, rows, cols]
            np.testing.assert_array_equal(pixels[days.index(key[0]), :, rows, cols], served)
            self.checked[path] = stamp

    @invariant()
    def nothing_is_bought_twice(self):
        once = +(self.purchases() - self.forgiven)
        assert dict(once) == dict.fromkeys(self.had, 1)

    @precondition(lambda self: self.opened)
    @invariant()
    def fetched_says_what_the_store_has(self):
        opened = self.opened[-1]
        with self.hearing():
            fetched = opened.dataset.clearsky.fetched()
        blocks = list(zip(fetched.row.values.tolist(), fetched.col.values.tolist(), strict=True))
        assert set(blocks) == {
            block for _, block in self.touched(opened, {"time": [0]})
        }  # fmt: skip
        for date, row in zip(opened.dates, fetched.values, strict=True):
            for block, there in zip(blocks, row, strict=True):
                if (date, block) not in self.damaged:
                    assert there == ((date, block) in self.kept)

    def a_new_process_finds_everything(self):
        """At the end: all that was paid for is there, with receipts, for others as well."""
        self.die()
        with self.hearing(LOST) as heard:
            dataset = xr.open_dataset(
                WHOLE, engine="clearsky", store=self.path, time=DATES, mask_and_scale=False,
                **access(self.world.server),
            )  # fmt: skip
        self.hear_of_lost(heard, adopted=True)
        assert self.files() == set(self.had)
        table = dataset.clearsky.receipts()
        keys = [(row.time.date(), (row.row, row.col)) for row in table.itertuples()]
        assert set(keys) == set(self.had)
        for row in table.itertuples():
            assert row.image_date.replace("-", "") == f"{row.time:%Y%m%d}"
        # Each request's credits are shared out among its blocks.
        if not self.forgiven:
            spent = sum(entry.credits for entry in self.world.requests(self.since))
            assert table.credits.sum() == pytest.approx(spent)
        with xr.open_zarr(self.path, chunks=None, mask_and_scale=False) as stored:
            plain = stored.sortby("time")
            assert [day.astype("M8[D]").item() for day in plain.time.values] == DATES
            if not self.damaged:
                served = self.world.served["whole"].copy()
                for k, date in enumerate(DATES):
                    for block in self.world.blocks:
                        if (date, block) not in self.had:
                            served[k][:, *self.world.slices_of(block)] = NODATA
                np.testing.assert_array_equal(plain.reflectance.values, served)
        counts = self.purchases()
        if self.had and not self.damaged:
            with self.hearing():
                for key in self.had:
                    rows, cols = self.world.slices_of(key[1])
                    dataset.reflectance[DATES.index(key[0]), 0, rows, cols].values  # noqa: B018
        assert not self.new_purchases(counts)


def test_a_store_lives_through_anything(serve):
    Life.world = World(serve(memoize=True, compression="none"))
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15, stateful_step_count=16, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
            # Sixteen steps can be read as they are; to make them fewer would take minutes.
            phases=[Phase.generate],
        ),
    )  # fmt: skip
