"""What reads of cubes would send now: the purchase, gone through without buying."""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ._account import Account, process
from ._blocks import Block
from ._cube import Cube
from ._fetch import Desk, open_desk
from ._graph import Read
from ._holdings import Holdings
from ._pixels import PixelSet, Window
from ._plan import Piece
from ._request import Request
from ._service import FromService, series_of
from ._stored import FromStore

# Side of the cells by which planned pixels are found again, pixels.
_CELL: Final = 512


@dataclass(frozen=True, slots=True)
class Focus:
    """Which pixels the result still tells apart; None along an axis means all of them.

    Parameters
    ----------
    dates : frozenset of datetime.date or None
    rows, cols : tuple of int or None
        On the lattice.
    points : bool
        Whether rows and columns belong together one by one.
    """

    dates: frozenset[dt.date] | None = None
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    points: bool = False

    def mask(self, window: Window) -> NDArray[np.bool_] | None:
        """Give the pixels of a window that are in focus; None if all of them are."""
        rows = _inside(self.rows, window.row0, window.row1)
        cols = _inside(self.cols, window.col0, window.col1)
        if rows is None and cols is None:
            return None
        mask = np.zeros(window.shape, bool)
        if self.points and self.rows is not None and self.cols is not None:
            pairs = np.array([self.rows, self.cols]) - [[window.row0], [window.col0]]
            inside = ((pairs >= 0) & (pairs < np.array([window.shape]).T)).all(0)
            mask[tuple(pairs[:, inside])] = True
        else:
            mask[np.ix_(*(
                np.arange(size) if own is None else own
                for own, size in zip((rows, cols), window.shape, strict=True)
            ))] = True  # fmt: skip
        return mask


def _inside(places: tuple[int, ...] | None, start: int, stop: int) -> NDArray[np.int_] | None:
    """Give those of a range that are in focus, counted from its start; None if all are."""
    if places is None:
        return None
    own = np.unique([place - start for place in places if start <= place < stop]).astype(int)
    return None if len(own) == stop - start else own


@dataclass(slots=True)
class Quote:
    """What would be sent.

    Parameters
    ----------
    requests : list of Request
    useful : list of int
        Pixels of each request that are asked for and in focus.
    alone : float
        Credits if nothing were shared or held.
    whole_blocks : bool
        Whether a store makes requests larger.
    in_turn : bool
        Whether windows overlap in part: who comes first buys what they share.
    """

    requests: list[Request] = field(default_factory=list)
    useful: list[int] = field(default_factory=list)
    alone: float = 0.0
    whole_blocks: bool = False
    in_turn: bool = False


async def quote(reads: Sequence[Read], focus: Focus) -> Quote:
    """Go through reads as a computation would; downloads nothing.

    Whether polygons are billed by their bounding box is asked for where it matters,
    which is free.
    """
    trials: dict[Hashable, _Trial] = {}
    held: dict[int, _Held] = {}  # by holdings: cubes of one account share them
    for read in reads:
        if _name(read) not in trials:
            desk = await open_desk(read.array.cube, read.array.settings)
            trial = _Trial(desk)
            trials[_name(read)] = trial
            # What is held changes on the loop; the plan is of one moment, and made beside it.
            own = held.setdefault(id(trial.holdings), _Held(trial.holdings.copy()))
            trial.held = own
    while True:
        try:
            work = partial(_go_through, [(read, trials[_name(read)]) for read in reads], focus)
            return await process().in_thread(work)
        except _Unsure as unsure:
            await unsure.account.learn_billing(unsure.request)
        for own in held.values():
            own.planned.clear()
            own.blocks.clear()
        for trial in trials.values():
            trial.covers.clear()


def _name(read: Read) -> Hashable:
    return read.array.cube.fingerprint, read.array.settings


class _Unsure(Exception):  # noqa: N818  nothing went wrong
    """Raised where the price depends on how polygons are billed, which is not known yet."""

    def __init__(self, account: Account, request: Request) -> None:
        super().__init__()
        self.account = account
        self.request = request


class _Held:
    """What would be held if everything planned so far had been bought."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self.planned: dict[Hashable, list[tuple[PixelSet, frozenset[str]]]] = {}
        self.blocks: set[tuple[dt.date, Block]] = set()
        #: Whether planned windows overlap in part, so that their order matters.
        self.in_part = False

    def missing(
        self, series: Hashable, layers: tuple[str, ...], pixels: PixelSet
    ) -> PixelSet | None:
        missing = lacking = self._holdings.find(series, layers, pixels)[2]
        own, wanted = pixels.window, set(layers)
        for cell in _cells(own):
            for planned, brings in self.planned.get((series, cell), ()):
                if missing is None:
                    return None
                other = planned.window
                apart = (
                    other.row1 <= own.row0
                    or own.row1 <= other.row0
                    or other.col1 <= own.col0
                    or own.col1 <= other.col0
                )
                if not apart and brings >= wanted:
                    rest = missing.without(planned)
                    # The same object if nothing was taken away: covers are found again by it.
                    missing = missing if rest is not None and len(rest) == len(missing) else rest
        self.in_part |= missing is not None and missing is not lacking
        return missing

    def add(self, series: Hashable, layers: tuple[str, ...], pixels: PixelSet) -> None:
        entry = pixels, frozenset(layers)
        for cell in _cells(pixels.window):
            self.planned.setdefault((series, cell), []).append(entry)


class _Trial:
    """A desk at which nothing is bought."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        source = desk.source
        self.store = source if isinstance(source, FromStore) else None
        service = source.service if isinstance(source, FromStore) else source
        assert service is None or isinstance(service, FromService)
        self.service = service
        self.holdings = Holdings() if service is None else service.holdings
        self.held: _Held
        self.covers: dict[PixelSet, tuple[Piece, ...]] = {}
        self._wanted: dict[Hashable, PixelSet | None] = {}
        self._areas: dict[Hashable, PixelSet | None] = {}
        self._blocks: dict[PixelSet, tuple[Block, ...]] = {}
        self._series: dict[dt.date, Hashable] = {}

    def wanted(self, pixels: PixelSet) -> PixelSet | None:
        """Keep what belongs to the area; the same object for equal pixels."""
        mask = None if pixels.mask is None else pixels.mask.tobytes()
        name = (pixels.window, mask)
        if name not in self._wanted:
            self._wanted[name] = self.desk.cube.wanted(pixels)
        return self._wanted[name]

    def send(self, date: dt.date, wanted: PixelSet) -> list[Request]:
        """Give the requests that would be sent for a date's pixels, and take note of them."""
        service = self.service
        if service is None:
            return []
        lacking: PixelSet | None = wanted
        if self.store is not None:
            absent = [
                block
                for block in self.store.stock.absent(date, self._touched(wanted))
                if (date, block) not in self.held.blocks
            ]
            self.held.blocks.update((date, block) for block in absent)
            lacking = self._area(tuple(absent)) if absent else None
        if lacking is None:
            return []
        if date not in self._series:
            self._series[date] = series_of(service.cube, date)
        series = self._series[date]
        missing = self.held.missing(series, service.cube.layers, lacking)
        if missing is None:
            return []
        requests = [service.request(date, piece) for piece in self.cover(date, missing)]
        for request in requests:
            self.held.add(series, request.layers, request.pixels)
        return requests

    def alone(self, date: dt.date, wanted: PixelSet) -> float:
        """Give the price if nothing were held."""
        if self.service is None:
            return 0.0
        lacking: PixelSet | None = wanted
        if self.store is not None:
            blocks = self._touched(wanted)
            lacking = self._area(blocks) if blocks else None
        return sum(p.credits for p in self.cover(date, lacking)) if lacking is not None else 0.0

    def cover(self, date: dt.date, pixels: PixelSet) -> tuple[Piece, ...]:
        """Choose requests, once for all dates that want the same."""
        service = self.service
        assert service is not None
        if pixels not in self.covers:
            pieces = service.pieces(pixels)
            unsure = next((piece for piece in pieces if piece.unsure), None)
            if unsure is not None and service.account.billing is None:
                raise _Unsure(service.account, service.request(date, unsure))
            self.covers[pixels] = pieces
        return self.covers[pixels]

    def _touched(self, wanted: PixelSet) -> tuple[Block, ...]:
        """Find the store's blocks that hold pixels, once for all dates that want the same."""
        assert self.store is not None
        if wanted not in self._blocks:
            known = self.store.known(wanted)
            blocks = self.store.stock.store.blocks
            self._blocks[wanted] = () if known is None else tuple(blocks.touched(known))
        return self._blocks[wanted]

    def _area(self, blocks: tuple[Block, ...]) -> PixelSet | None:
        assert self.store is not None
        if blocks not in self._areas:
            store = self.store.stock.store
            whole = store.blocks.whole(blocks)
            self._areas[blocks] = (
                self.wanted(whole) if self.store.same else store.record.cube.wanted(whole)
            )
        return self._areas[blocks]


def _go_through(reads: Sequence[tuple[Read, _Trial]], focus: Focus) -> Quote:
    found = Quote()
    wants: dict[tuple[Hashable, dt.date], dict[PixelSet, None]] = {}
    series: list[Hashable] = []
    for read, trial in reads:
        found.whole_blocks |= trial.store is not None
        for date, wanted in _wants(read.array.cube, read, trial):
            wants.setdefault((id(trial.holdings), date), {})[wanted] = None
            found.alone += trial.alone(date, wanted)
            sent = trial.send(date, wanted)
            found.requests += sent
            series += [id(trial.holdings)] * len(sent)
    found.in_turn = any(trial.held.in_part for _, trial in reads)
    found.useful = _used(found.requests, series, wants, focus)
    return found


def _used(
    requests: Sequence[Request],
    series: Sequence[Hashable],
    wants: Mapping[tuple[Hashable, dt.date], Iterable[PixelSet]],
    focus: Focus,
) -> list[int]:
    """Count the pixels of each request that any reader asks for, and that are in focus."""
    near: dict[tuple[Hashable, dt.date, tuple[int, int]], list[PixelSet]] = {}
    for (name, date), wanted in wants.items():
        for pixels in wanted:
            for cell in _cells(pixels.window):
                near.setdefault((name, date, cell), []).append(pixels)
    counted: dict[tuple[PixelSet, tuple[PixelSet, ...]], int] = {}
    useful = []
    for request, name in zip(requests, series, strict=True):
        if focus.dates is not None and request.date not in focus.dates:
            useful.append(0)
            continue
        cells = _cells(request.pixels.window)
        readers = tuple(
            dict.fromkeys(p for cell in cells for p in near.get((name, request.date, cell), ()))
        )
        pair = request.pixels, readers
        if pair not in counted:  # all dates of a window have the same
            counted[pair] = _count(*pair, focus)
        useful.append(counted[pair])
    return useful


def _count(brought: PixelSet, readers: Iterable[PixelSet], focus: Focus) -> int:
    """Count the pixels of a request that are asked for and in focus."""
    seen = focus.mask(brought.window)
    asked = np.zeros(brought.window.shape, bool)
    for wanted in readers:
        shared = brought.window & wanted.window
        if shared.size:
            asked[brought.window.slices(shared)] |= wanted.crop(shared).dense
    if brought.mask is not None:
        asked &= brought.mask
    return int(np.count_nonzero(asked if seen is None else asked & seen))


def _wants(cube: Cube, read: Read, trial: _Trial) -> Iterable[tuple[dt.date, PixelSet]]:
    for tile in trial.desk.tiles(read.selection):
        wanted = trial.wanted(tile.pixels)
        if wanted is not None:
            for date, _ in tile.dates:
                yield cube.dates[date], wanted


@lru_cache(4096)  # all dates have the same windows
def _cells(window: Window) -> tuple[tuple[int, int], ...]:
    rows = range(window.row0 // _CELL, (window.row1 - 1) // _CELL + 1)
    cols = range(window.col0 // _CELL, (window.col1 - 1) // _CELL + 1)
    return tuple(product(rows, cols))
