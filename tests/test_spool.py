"""Paid answers on disk: written and read back, interrupted anywhere, and one owner at a time."""

import base64
import datetime as dt
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import zlib
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clearsky_xr._pixels import PixelSet, Window
from clearsky_xr._request import Request
from clearsky_xr._sidecar import Sidecar, sidecar_of
from clearsky_xr._spool import DurableSpool, leftovers

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)

ROOT = Path(__file__).resolve().parents[1]
# Long enough for a slow machine under load; what hangs, hangs for ever.
PATIENCE = 60.0


@st.composite
def requests(draw):
    """Any request, with any mask."""
    row, col = draw(st.integers(-900_000, 900_000)), draw(st.integers(0, 90_000))
    window = Window(row, row + draw(st.integers(1, 40)), col, col + draw(st.integers(1, 40)))
    mask = draw(st.none() | hnp.arrays(bool, window.shape))
    text = st.text(max_size=12)
    return Request(
        date=draw(st.dates()),
        pixels=PixelSet(window, mask),
        wkt=draw(text),
        credits=draw(st.floats(0, 2000)),
        layers=tuple(draw(st.lists(text, max_size=12))),
        epsg=draw(st.integers(32601, 32760)),
        resolution=draw(st.sampled_from([10, 1280])),
        model=draw(text),
        constellations=tuple(draw(st.lists(text, max_size=3))),
        allow_partial=draw(st.booleans()),
    )


def request(day=1, size=4):
    mask = np.eye(size, dtype=bool)
    return Request(
        date=dt.date(2025, 4, day),
        pixels=PixelSet(Window(-510_000, -510_000 + size, 50_000, 50_000 + size), mask),
        wkt="POLYGON ((0 0, 1 0, 1 1, 0 0))",
        credits=0.01,
        layers=("B4", "B8"),
        epsg=32633,
        resolution=10,
        model="Stratus2",
        constellations=("Sentinel2",),
        allow_partial=False,
    )


# ---- requests as text


@PROPERTY
@given(requests())
def test_a_request_comes_back_as_it_was(written):
    again = Request.loads(written.dumps())
    assert again.pixels.same(written.pixels)
    assert (again.pixels.mask is None) == (written.pixels.mask is None)
    assert again.body() == written.body()
    assert again.fingerprint == written.fingerprint
    assert (again.date, again.credits) == (written.date, written.credits)
    assert isinstance(again.layers, tuple)
    assert isinstance(again.constellations, tuple)
    assert again.dumps() == written.dumps()


def test_a_large_mask_stays_small():
    rows, cols = np.indices((2560, 2560))
    pixels = PixelSet(Window(0, 2560, 0, 2560), (rows - 1280) ** 2 + (cols - 1280) ** 2 < 1200**2)
    fields = {name: getattr(request(), name) for name in Request.__dataclass_fields__}
    text = Request(**fields | {"pixels": pixels}).dumps()
    assert len(text) < 60_000
    assert Request.loads(text).pixels.same(pixels)


@PROPERTY
@given(requests(), st.floats(0, 1, exclude_max=True))
def test_a_request_that_is_cut_off_is_a_value_error(written, share):
    text = written.dumps()
    with pytest.raises(ValueError, match=r"."):
        Request.loads(text[: int(share * len(text))])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@PROPERTY
@given(
    st.dictionaries(st.sampled_from(sorted(Request.__dataclass_fields__)), json_values, min_size=1),
    st.booleans(),
)
def test_a_garbled_request_is_a_value_error_or_a_request(values, whole):
    fields = json.loads(request().dumps())
    try:
        read = Request.loads(json.dumps(fields | values if whole else values))
    except ValueError:
        return
    assert isinstance(read.date, dt.date)
    assert isinstance(read.pixels, PixelSet)
    mask = read.pixels.mask
    assert mask is None or mask.shape == read.pixels.window.shape


@PROPERTY
@given(st.text() | json_values.map(json.dumps))
def test_what_is_no_request_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        Request.loads(text)


def with_mask(packed, window=(0, 64, 0, 64)):
    return json.dumps(json.loads(request().dumps()) | {"pixels": [*window, packed]})


@pytest.mark.parametrize(
    "packed",
    [
        "", "no base64", "AAAA", 3, [1], True,
        base64.b64encode(zlib.compress(b"")).decode(),
        base64.b64encode(zlib.compress(bytes(511))).decode(),
        base64.b64encode(zlib.compress(bytes(512))[:-8]).decode()[:-4],
    ],
    ids=repr,
)  # fmt: skip
def test_a_mask_that_is_cut_off_is_a_value_error(packed):
    with pytest.raises(ValueError, match=r"."):
        Request.loads(with_mask(packed))


def test_a_mask_that_would_swell_is_read_as_far_as_its_window():
    bomb = base64.b64encode(zlib.compress(bytes(10**8))).decode()
    assert len(Request.loads(with_mask(bomb)).pixels) == 0


@pytest.mark.parametrize(
    "window",
    [
        (float("inf"), 64, 0, 64),
        (float("nan"), 64, 0, 64),
        (0, 64, 0),
        (0, 64, 0, 64, 5),
        (0, 64, 0, None),
        (64, 0, 64, 0),
        (0, 10**9, 0, 10**9),
        (0, 10**30, 0, 10**30),
    ],
)
def test_a_window_that_is_none_is_a_value_error(window):
    packed = base64.b64encode(zlib.compress(bytes(512))).decode()
    with pytest.raises(ValueError, match=r"."):
        Request.loads(with_mask(packed, window))


DEEP = "[" * 99_999 + "]" * 99_999


@pytest.mark.parametrize("text", ["[" * 200_000, with_mask(None)[:-1] + f', "model": {DEEP}}}'],
                         ids=["deep", "deep inside"])  # fmt: skip
def test_deep_nesting_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        Request.loads(text)


# ---- the durable spool, ended anywhere


class Killed(BaseException):
    """The process ends here."""


class Disk:
    """Counts what is done to files, and ends the process at one of these steps.

    Files that are written appear empty, then cut off, then whole.
    """

    def __init__(self, steps):
        self.left = steps

    def _step(self):
        if self.left == 0:
            raise Killed
        self.left -= 1

    @contextmanager
    def in_use(self):
        unlink, replace = Path.unlink, Path.replace

        def write(path, content):
            with path.open("wb") as file:
                self._step()
                file.write(content[: len(content) // 2])
                file.flush()
                self._step()
                file.write(content[len(content) // 2 :])
            self._step()

        def write_text(path, text, encoding=None):
            write(path, text.encode(encoding))

        def unlink_(path, *, missing_ok=False):
            if path.exists():
                self._step()
            unlink(path, missing_ok=missing_ok)

        def replace_(path, target):
            self._step()
            return replace(path, target)

        with (
            mock.patch.object(Path, "write_bytes", write),
            mock.patch.object(Path, "write_text", write_text),
            mock.patch.object(Path, "unlink", unlink_),
            mock.patch.object(Path, "replace", replace_),
        ):
            yield


class Life:
    """A process with a durable spool, and what one may know of it when it has ended."""

    def __init__(self, folder):
        self.folder = folder / "spool"
        self.refused = folder / "refused"
        self.spool = DurableSpool(self._new_folder, self.refused)
        self.asked = {}
        self.answered = {}
        self.aside = {}
        #: What was being done when the process ended, and for which request.
        self.broken = (None, None)

    def _new_folder(self):
        self.folder.mkdir()
        return self.folder

    def do(self, what, day):
        """Take a step of a request's life, if it is one that it can take now."""
        self.broken = (what, day)
        if what == "begin" and day not in self.asked:
            self.asked[day] = self.spool.begin(request(day))
        elif what == "write" and day in self.asked and day not in self.answered:
            self.spool.write(self.asked[day], f"answer {day}".encode() * 9)
            self.answered[day] = f"answer {day}".encode() * 9
        elif what == "drop" and day in self.asked:
            self.spool.drop(self.asked[day])
            del self.asked[day]
            self.answered.pop(day, None)
        elif what == "aside" and day in self.answered:
            self.aside[day] = self.spool.set_aside(self.asked[day])
            del self.asked[day]
            del self.answered[day]
        self.broken = (None, None)


actions = st.lists(
    st.tuples(st.sampled_from(["begin", "begin", "write", "write", "drop", "aside"]),
              st.integers(1, 4)),
    max_size=14,
)  # fmt: skip


def found_in(folder):
    """Give what was left, by day: its bytes, or None if no answer came."""
    found = {}
    for left in leftovers(folder):
        assert left.request.date.day not in found
        assert left.request.body() == request(left.request.date.day).body()
        assert left.answered == left.path.exists()
        found[left.request.date.day] = left.path.read_bytes() if left.answered else None
    return found


@settings(PROPERTY, max_examples=200)
@given(actions, st.integers(0, 40))
def test_what_is_left_is_what_was_asked_and_not_dropped(steps, end):
    with tempfile.TemporaryDirectory() as name:
        life = Life(Path(name))
        try:
            with Disk(end).in_use():
                for what, day in steps:
                    life.do(what, day)
        except Killed:
            pass
        expected = {day: life.answered.get(day) for day in life.asked}
        found = found_in(life.folder)
        what, day = life.broken
        if what is not None:
            # The step that was broken off is done, or not: nothing in between.
            possible = {
                "begin": [{}, {day: None}],
                "write": [{day: None}, {day: f"answer {day}".encode() * 9}],
                "drop": [{day: expected.get(day)}, {}],
                "aside": [{day: expected.get(day)}, {day: None}, {}],
            }[what]
            got = {day: found.pop(day)} if day in found else {}
            assert got in possible
            expected.pop(day, None)
            if what == "aside" and got != {day: f"answer {day}".encode() * 9}:
                kept = [path.read_bytes() for path in life.refused.iterdir()]
                assert f"answer {day}".encode() * 9 in kept  # paid bytes are somewhere
        assert found == expected
        for day, path in life.aside.items():
            assert path.parent == life.refused
            assert path.read_bytes() == f"answer {day}".encode() * 9
        # Nothing is left but what can be used, and looking again finds the same.
        known = {f"{stem}{end}" for stem in _stems(life.folder) for end in (".json", ".tif")}
        known |= {f"{stem}.part" for stem in _stems(life.folder)}
        there = {path.name for path in life.folder.iterdir()} if life.folder.exists() else set()
        assert there <= known
        assert (not there) == (not life.folder.exists())  # an empty folder goes, too
        if what is None:
            assert found_in(life.folder) == expected


def _stems(folder):
    return {path.stem for path in folder.glob("*.json")}


@settings(PROPERTY, max_examples=60)
@given(st.lists(st.sampled_from([True, False]), min_size=1, max_size=4), st.integers(0, 12))
def test_who_adopts_may_be_ended_too(answered, end):
    """Leftovers are dropped while they are read; an end in the middle loses none of the rest."""
    with tempfile.TemporaryDirectory() as name:
        life = Life(Path(name))
        for day, answer in enumerate(answered, 1):
            life.do("begin", day)
            if answer:
                life.do("write", day)
        dropped, dropping = [], None
        try:
            with Disk(end).in_use():
                for left in leftovers(life.folder):
                    dropping = left.request.date.day
                    life.spool.drop(left.path)
                    dropped.append(dropping)
                    dropping = None
        except Killed:
            pass
        rest = found_in(life.folder)
        expected = {day: life.answered.get(day) for day in life.asked if day not in dropped}
        if dropping in expected and dropping not in rest:
            del expected[dropping]
        assert rest == expected


def test_orphans_are_swept(tmp_path):
    life = Life(tmp_path)
    life.do("begin", 1)
    life.do("write", 1)
    for orphan in ("00000009-2025-04-09.tif", "00000009-2025-04-09.part", "x.part"):
        (life.folder / orphan).write_bytes(b"orphan")
    (life.folder / "00000008-2025-04-08.json").write_text(request(8).dumps()[:-9])
    (life.folder / "00000007-2025-04-07.json").write_text("")
    assert set(found_in(life.folder)) == {1}
    assert sorted(path.suffix for path in life.folder.iterdir()) == [".json", ".tif"]


def test_a_paid_answer_with_an_unreadable_request_is_not_thrown_away(tmp_path):
    life = Life(tmp_path)
    life.do("begin", 1)
    life.do("write", 1)
    life.asked[1].with_suffix(".json").write_text("{}")
    assert found_in(life.folder) == {}
    assert life.asked[1].read_bytes() == life.answered[1]


def test_each_request_has_a_place_of_its_own(tmp_path):
    life = Life(tmp_path)
    paths = {life.spool.begin(request(1)) for _ in range(3)}
    assert len(paths) == 3
    assert len(list(leftovers(life.folder))) == 3


def test_refused_answers_do_not_overwrite_each_other(tmp_path):
    kept = set()
    for number in range(2):  # two processes count from 1
        life = Life(tmp_path / str(number))
        life.folder.parent.mkdir()
        life.spool = DurableSpool(life._new_folder, tmp_path / "refused")
        life.do("begin", 1)
        life.do("write", 1)
        kept.add(life.spool.set_aside(life.asked[1]))
        assert found_in(life.folder) == {}
    assert len(kept) == 2
    assert all(path.read_bytes() == b"answer 1" * 9 for path in kept)


def test_what_cannot_be_set_aside_stays(tmp_path):
    life = Life(tmp_path)
    life.do("begin", 1)
    life.do("write", 1)
    life.refused.write_text("in the way")
    assert life.spool.set_aside(life.asked[1]) == life.asked[1]
    assert found_in(life.folder) == {1: life.answered[1]}


def test_a_folder_that_was_never_there_holds_nothing(tmp_path):
    assert list(leftovers(tmp_path / "nothing")) == []


# ---- the sidecar, between processes

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there each buys for itself")


class Other:
    """Another process with the same sidecar, which does what it is told."""

    CODE = """
        import sys
        from pathlib import Path
        from clearsky_xr._sidecar import Sidecar

        sidecar = Sidecar(Path(sys.argv[1]))
        held = []
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "lock":
                held.append(sidecar.lock())
                answer = held[-1].__enter__()
            elif word == "unlock":
                answer = held.pop().__exit__(None, None, None)
            elif word == "adopt":
                answer = [folder.name for folder in sidecar.adopt()]
            else:
                answer = getattr(sidecar, word)(*map(int, rest))
            print(answer, flush=True)
    """

    def __init__(self, sidecar):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(self.CODE), str(sidecar.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def tell(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def ask(self, line):
        self.tell(line)
        return self.answer()

    def answer(self):
        answer = self._process.stdout.readline().strip()
        assert answer, "the other process has failed"
        return answer

    def kill(self):
        self._process.kill()
        self._process.communicate()

    def end(self):
        """Let it end by itself."""
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0


@pytest.fixture
def sidecar(tmp_path):
    return Sidecar(tmp_path)


@needs_locks
def test_a_block_is_claimed_by_one_process(sidecar):
    with Other(sidecar) as one, Other(sidecar) as two:
        assert one.ask("claim 7") == "True"
        assert two.ask("claim 7") == "False"
        assert not sidecar.claim(7)
        assert two.ask("claim 8") == "True"
        assert sidecar.claim(6)
        assert one.ask("claim 6") == "False"
        # Within a process the caller keeps the order.
        assert one.ask("claim 7") == "True"
        one.ask("release 7")
        assert two.ask("claim 7") == "True"
        assert one.ask("claim 7") == "False"
        assert not sidecar.claim(7)
        # What was never claimed can be given back.
        sidecar.release(7)
        assert not sidecar.claim(7)


@needs_locks
def test_numbers_of_many_dates_and_blocks_can_be_claimed(sidecar):
    most = 100_000 * 10_000
    with Other(sidecar) as other:
        assert other.ask(f"claim {most}") == "True"
        assert not sidecar.claim(most)
        assert sidecar.claim(most - 1)
    assert (sidecar.folder / "claims").stat().st_size == 0


@needs_locks
def test_claims_end_with_their_process(sidecar):
    with Other(sidecar) as other:
        assert other.ask("claim 7") == "True"
        assert not sidecar.claim(7)
        other.kill()
    assert sidecar.claim(7)


@needs_locks
def test_without_locks_everyone_may_buy(sidecar, monkeypatch):
    def refuse(*_):
        raise OSError(37, "no locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert sidecar.claim(7)
    sidecar.release(7)


def test_one_process_at_a_time_has_the_lock(sidecar):
    def is_free():
        lock = FileLock(sidecar.folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    with Other(sidecar) as one, Other(sidecar) as two:
        one.ask("lock")
        assert not is_free()
        two.tell("lock")
        one.ask("unlock")
        assert two.answer() == "None"
        assert not is_free()
        two.kill()
        assert is_free()
        with sidecar.lock():
            assert not is_free()
        assert is_free()


def test_the_spool_of_a_process_is_adopted_after_its_death_only(sidecar):
    with Other(sidecar) as owner, Other(sidecar) as heir:
        folder = Path(owner.ask("new_spool"))
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0  # for this user only
        (folder / "x.json").write_text(request().dumps())
        assert heir.ask("adopt") == "[]"
        assert list(sidecar.adopt()) == []
        owner.kill()
        assert heir.ask("adopt") == str([folder.name])
        # It is the heir's own now: nobody gets it, and the heir not twice.
        assert heir.ask("adopt") == "[]"
        assert list(sidecar.adopt()) == []
        assert (folder / "x.json").exists()
        heir.kill()
        assert list(sidecar.adopt()) == [folder]


def test_one_of_two_adopters_gets_a_spool(sidecar):
    with Other(sidecar) as one, Other(sidecar) as two:
        for _ in range(5):
            with Other(sidecar) as owner:
                folder = Path(owner.ask("new_spool"))
            one.tell("adopt")
            two.tell("adopt")
            assert sorted([one.answer(), two.answer()]) == sorted(["[]", str([folder.name])])


def test_several_spools_are_adopted_each_once(sidecar):
    names = []
    for _ in range(3):
        with Other(sidecar) as owner:
            names += [Path(owner.ask("new_spool")).name, Path(owner.ask("new_spool")).name]
    assert sorted(folder.name for folder in sidecar.adopt()) == sorted(names)
    assert list(sidecar.adopt()) == []


def test_a_process_does_not_adopt_its_own_spool(sidecar):
    own = sidecar.new_spool()
    assert list(sidecar.adopt()) == []
    assert list(Sidecar(sidecar.folder).adopt()) == []
    assert own.is_dir()


def test_an_empty_spool_goes_with_its_process(sidecar):
    with Other(sidecar) as owner:
        folder = Path(owner.ask("new_spool"))
        owner.end()
    assert list(folder.parent.iterdir()) == []


def test_a_spool_with_answers_outlives_its_process(sidecar):
    with Other(sidecar) as owner:
        folder = Path(owner.ask("new_spool"))
        (folder / "x.tif").write_bytes(b"paid")
        owner.end()
    assert (folder / "x.tif").read_bytes() == b"paid"
    assert list(sidecar.adopt()) == [folder]


def test_a_sidecar_without_spools_has_nothing_to_adopt(sidecar):
    assert list(sidecar.adopt()) == []
    (sidecar.folder / "spool").mkdir()
    (sidecar.folder / "spool" / "a file").touch()
    assert list(sidecar.adopt()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_its_parent_s_spool_alone(sidecar):
    folder = sidecar.new_spool()
    child = multiprocessing.get_context("fork").Process(target=len, args=([],))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert folder.is_dir()
    with Other(sidecar) as heir:
        assert heir.ask("adopt") == "[]"


# ---- where the sidecar is


def test_a_sidecar_lies_beside_its_store(tmp_path):
    made = sidecar_of(tmp_path / "deep" / "fields.zarr", "digest", lasting=True)
    assert made.folder == tmp_path / "deep" / "fields.zarr.clearsky"
    assert not (tmp_path / "deep" / "fields.zarr").exists()
    assert made.refused.parent == made.folder


def test_the_user_s_cache_has_the_sidecars_of_other_stores(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = sidecar_of(None, "digest", lasting=True)
    assert remote.folder.is_relative_to(tmp_path)
    assert remote.folder.name == "digest"
    assert sidecar_of(None, "digest", lasting=True).folder == remote.folder
    assert sidecar_of(None, "other", lasting=True).folder != remote.folder
    # Also where nothing can be put beside the store.
    (tmp_path / "file").touch()
    blocked = sidecar_of(tmp_path / "file" / "fields.zarr", "digest", lasting=True)
    assert blocked.folder == remote.folder


def test_a_store_in_memory_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, other = (sidecar_of(None, "digest", lasting=False) for _ in range(2))
    assert one.folder == other.folder  # one for each store, however often it is looked for
    assert one.folder.parent == tmp_path
    assert not (tmp_path / "cache").exists()
