"""The Zarr cube of paid pixels: plain enough for others, complete or absent block by block.

One object holds one block of one date with all bands, so that it is there or not;
its receipt is written before it. Whoever writes blocks never touches metadata; dates
are declared in one step, under the sidecar's lock, that ends with the consolidated
metadata.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrBase
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from ._blocks import Block, Blocks
from ._cube import Cube
from ._layout import EPOCH, PIXELS, RECEIPTS, Odd, check_arrays, read_dates
from ._location import Location
from ._pixels import Window
from ._record import Origin, Record, loads
from .errors import StoreError, StoreMismatchError

#: Attribute of the root group that makes a Zarr cube a store.
RECORD: Final = "clearsky_store"

#: Root group of a store that is still being made, or whose maker has died.
UNFINISHED: Final = json.dumps(
    {"zarr_format": 3, "node_type": "group", "attributes": {RECORD: "unfinished"}}
).encode()

# Changing the warnings filter is not thread-safe.
_quiet = threading.Lock()


class Damaged(Exception):  # noqa: N818  it never reaches a user
    """Blocks cannot be read: their bytes are not those that were written."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        self.blocks = tuple(blocks)


class Store:
    """A store on whatever Zarr can write to; safe under threads.

    Parameters
    ----------
    location : Location

    Attributes
    ----------
    record : Record
        What it keeps.
    blocks : Blocks
    dates : dict of datetime.date to int
        Where each date lies along ``time``, in order of arrival.

    Raises
    ------
    StoreError
        What is there is not a store, or cannot be reached.
    """

    record: Record
    blocks: Blocks
    dates: Mapping[dt.date, int]

    def __init__(self, location: Location) -> None:
        self.location = location
        self._zarr = zarr_store(location)
        self.load()

    def load(self) -> None:
        """Read the metadata anew: another process may have declared dates."""
        self._stamp = self._seen()
        try:
            root = self._root("r")
        except Exception as error:  # noqa: BLE001  stores raise what they like
            raise _foreign(self.location, said(error)) from None
        if RECORD not in root.attrs:
            raise _foreign(self.location, "it is a Zarr group without the record of a store")
        try:
            self.record = loads(root.attrs[RECORD])
        except StoreError as error:
            raise error.at(store=self.location.name) from None
        self.blocks = Blocks(self.record.cube.grid.window)
        try:
            arrays = check_arrays(root, self.record.cube, self.blocks)
            self.dates = read_dates(arrays, self.record.cube.grid, self.record.cube.bands)
        except Exception as error:  # noqa: BLE001  whatever it is, it was found in the store
            raise self._broken(error) from None
        self._pixels, self._receipts = arrays[PIXELS], arrays[RECEIPTS]
        self._writers: tuple[Any, Any] | None = None

    def check(self, cube: Cube, origin: Origin | None) -> None:
        """Make sure that a cube can be read from it, and bought into it; see `Record.check`.

        Raises
        ------
        StoreMismatchError
            It names what differs, and the store.
        """
        try:
            self.record.check(cube, origin)
        except StoreMismatchError as error:
            raise error.at(store=self.location.name) from None

    def changed(self) -> bool:
        """Say whether something has written metadata since they were read; on a local disk."""
        seen = self._seen()
        return seen is not None and seen != self._stamp

    def is_current(self) -> bool:
        """Say whether nothing has written metadata since they were read; on a local disk."""
        seen = self._seen()
        return seen is not None and seen == self._stamp

    def _seen(self) -> tuple[int, int] | None:
        if self.location.folder is None:
            return None
        try:
            stat = (self.location.folder / "zarr.json").stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    # ---- pixels

    def present(self, index: int, blocks: Iterable[Block]) -> set[Block]:
        """Say which blocks of a date are there."""
        folder = self.location.folder
        keys = {block: self._key(index, block) for block in blocks}
        if folder is not None:
            # A Path for each block would cost more than to ask for it.
            place = str(folder)
            return {
                block
                for block, key in keys.items()
                if os.path.exists(f"{place}/{key}")  # noqa: PTH110
            }
        try:
            found = sync(_exist(self._zarr, list(keys.values())))
        except Exception as error:  # noqa: BLE001  stores raise what they like
            raise _unreachable(self.location, error) from None
        return {block for block, there in zip(keys, found, strict=True) if there}

    def read(self, index: int, window: Window, bands: Sequence[str]) -> NDArray[np.int16]:
        """Read bands of a date; what is not there reads as nodata.

        Parameters
        ----------
        index : int
            Of the date, along ``time``.
        window : Window
            Inside the grid.
        bands : sequence of str

        Returns
        -------
        ndarray of int16, shape (bands, y, x)

        Raises
        ------
        Damaged
            Some of the blocks cannot be decoded.
        StoreError
            The store cannot be reached.
        """
        own = self.record.cube.bands
        places = [own.index(band) for band in bands]
        first, last = min(places), max(places) + 1
        rows, cols = self.blocks.window.slices(window)
        try:
            values = np.asarray(self._pixels[index, first:last, rows, cols])
        except Exception as error:  # noqa: BLE001  stores raise what they like
            raise self._reason(index, window, error) from None
        if places == list(range(first, last)):
            return values
        return values[[place - first for place in places]]

    def _reason(self, index: int, window: Window, error: Exception) -> Exception:
        """Find the blocks that a failed read is due to."""
        damaged = []
        for block in self.blocks.touched(_all(window)):
            rows, cols = self.blocks.window.slices(self.blocks.window_of(block))
            try:
                self._pixels[index, :1, rows, cols]
            except (ValueError, RuntimeError):  # what checksums and decompressors raise
                damaged.append(block)
            except Exception:  # noqa: BLE001
                damaged = []
                break
        if damaged:
            return Damaged(damaged)
        return StoreError(f"the store {self.location.name} cannot be read: {said(error)}")

    def write(
        self,
        index: int,
        values: NDArray[np.int16],
        receipts: Mapping[Block, Sequence[object]],
    ) -> None:
        """Write the blocks of a rectangle with all bands, and before them their receipts.

        Parameters
        ----------
        index : int
            Of the date, along ``time``.
        values : ndarray of int16, shape (bands, y, x)
            On the pixels of the rectangle.
        receipts : mapping of Block to sequence
            JSON values, for each block of the rectangle.
        """
        folder = self.location.folder
        if folder is not None and self._seen() is None:
            raise FileNotFoundError("the store has been removed")
        if self.changed():
            now = Store(self.location)
            if now.record != self.record or not self.dates.items() <= now.dates.items():
                raise FileNotFoundError("the store has been replaced")
            self._stamp = now._stamp
        if self._writers is None:
            root = self._root("r+")
            # Written even if all of it is nodata: a block that is absent was never bought.
            whole = root[PIXELS].with_config({"write_empty_chunks": True})
            self._writers = whole, root[RECEIPTS]
        pixels, cells = self._writers
        (row0, col0), (row1, col1) = min(receipts), max(receipts)
        texts = np.empty((row1 + 1 - row0, col1 + 1 - col0), object)
        for (row, col), said_of_it in receipts.items():
            texts[row - row0, col - col0] = json.dumps(said_of_it)
        cells[index, row0 : row1 + 1, col0 : col1 + 1] = texts
        rows, cols = self.blocks.window.slices(self.blocks.whole(receipts).window)
        pixels[index, :, rows, cols] = values

    def remove(self, index: int, block: Block) -> None:
        """Remove a damaged block: what is at the edge is read before it is written."""
        sync(self._zarr.delete(self._key(index, block)))

    def _key(self, index: int, block: Block) -> str:
        return f"{PIXELS}/c/{index}/0/{block[0]}/{block[1]}"

    def receipts(self, index: int, block: Block) -> list[dict[str, Any]]:
        """Give the receipts of a block."""
        try:
            text = str(self._receipts[index, block[0], block[1]])
            values = json.loads(text) if text else []
        except Exception as error:  # noqa: BLE001  stores raise what they like
            raise StoreError(
                f"a receipt of the store {self.location.name} cannot be read: {said(error)}",
                hint="Its pixels can. Delete the object of the receipt to read the others.",
                key=f"{RECEIPTS}/c/{index}/{block[0]}/{block[1]}",
            ) from None
        return [value for value in values if isinstance(value, dict)]

    def sweep(self, index: int, block: Block) -> None:
        """Remove what an interrupted write of a block has left; only its buyer may."""
        folder = self.location.folder
        if folder is not None:
            for array in (f"{PIXELS}/c/{index}/0/{block[0]}", f"{RECEIPTS}/c/{index}/{block[0]}"):
                for rest in (folder / array).glob(f"{block[1]}.*.partial"):
                    rest.unlink(missing_ok=True)

    # ---- metadata: only under the sidecar's lock

    def declare(self, dates: Iterable[dt.date]) -> None:
        """Add dates that the store does not have yet, at the end."""
        self.load()
        new = sorted(set(dates) - set(self.dates))
        if not new:
            return
        # Not what is consolidated: an interrupted step may have changed the arrays.
        root = self._root("r+", consolidated=False)
        try:
            check_arrays(root, self.record.cube, self.blocks, declared=len(self.dates))
        except Exception as error:  # noqa: BLE001  whatever it is, it was found in the store
            raise self._broken(error) from None
        folder = self.location.folder
        if folder is not None:
            for pattern in ("**/zarr.*.partial", "time/**/*.partial"):
                for rest in folder.glob(pattern):
                    rest.unlink(missing_ok=True)
        known, total = len(self.dates), len(self.dates) + len(new)
        time = root["time"]
        time.resize((total,))
        time[known:total] = np.array([(day - EPOCH).days * 86400 for day in new], np.int64)
        for name in (PIXELS, RECEIPTS):
            root[name].resize((total, *root[name].shape[1:]))
        consolidate(self._zarr)
        self.load()

    # ---- help

    def _root(self, mode: Any, *, consolidated: bool | None = None) -> Any:
        return zarr.open_group(self._zarr, mode=mode, use_consolidated=consolidated, zarr_format=3)

    def _broken(self, error: Exception) -> StoreError:
        why = str(error) if isinstance(error, Odd) else said(error)
        return StoreError(
            f"the store {self.location.name} is damaged: {why}",
            hint="It was changed by something else. Nothing was written to it.",
        )


def find(location: Location) -> Store | None:
    """Open a store; None if there is nothing at its place.

    Raises
    ------
    StoreError
        Something else is there, or the place cannot be reached.
    """
    return None if _is_empty(location) else Store(location)


def consolidate(store: ZarrBase) -> None:
    """Put the metadata of all arrays where xarray reads them at once."""
    with _quiet, warnings.catch_warnings():
        # Consolidated metadata are not in the specification yet, but what xarray reads.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)


def zarr_store(location: Location) -> ZarrBase:
    """Open what Zarr writes to at a place."""
    target = location.target
    if not isinstance(target, str):
        return target  # type: ignore[no-any-return]
    folder = location.folder
    if folder is not None:
        return LocalStore(folder)
    try:
        options = None if location.options is None else dict(location.options)
        return FsspecStore.from_url(target, storage_options=options)
    except Exception as error:  # noqa: BLE001  such as a missing package of fsspec's
        raise StoreError(
            f"the store {location.name} cannot be opened: {said(error)}",
            hint="fsspec opens URLs: it needs a package for each kind, such as s3fs for s3://.",
        ) from None


def _is_empty(location: Location) -> bool:
    folder = location.folder
    if folder is not None:
        if folder.is_symlink() and not folder.exists():
            raise _foreign(location, "it is a link that leads nowhere")
        if not folder.exists():
            return True
        if not folder.is_dir():
            raise _foreign(location, "it is a file")
        own = folder / "zarr.json"
        return not any(folder.iterdir()) or (own.is_file() and own.read_bytes() == UNFINISHED)
    store = zarr_store(location)
    try:
        root = sync(store.get("zarr.json", default_buffer_prototype()))
        if root is not None:
            return bool(root.to_bytes() == UNFINISHED)
        if sync(store.is_empty("")):
            return True
    except Exception as error:  # noqa: BLE001  stores raise what they like
        raise _unreachable(location, error) from None
    raise _foreign(location, "it has no zarr.json")


def publish(made: ZarrBase, store: ZarrBase) -> None:
    """Copy a new store to where it is to be; until the last object it is not one."""

    async def copy() -> None:
        prototype = default_buffer_prototype()
        await store.set("zarr.json", prototype.buffer.from_bytes(UNFINISHED))
        keys = [key async for key in made.list()]
        for key in sorted(keys, key=lambda key: key == "zarr.json"):
            content = await made.get(key, prototype)
            assert content is not None
            await store.set(key, content)

    sync(copy())


def _unreachable(location: Location, error: Exception) -> StoreError:
    return StoreError(
        f"the store {location.name} cannot be reached: {said(error)}",
        hint="Credentials, endpoint and region go into storage_options=, as fsspec takes them.",
    )


def _foreign(location: Location, why: str) -> StoreError:
    return StoreError(
        f"what is at {location.name} is not a store of clearsky_xr: {why}",
        hint="Nothing was overwritten. Choose another path for store=.",
    )


async def _exist(store: ZarrBase, keys: list[str]) -> list[bool]:
    import asyncio

    return list(await asyncio.gather(*(store.exists(key) for key in keys)))


def _all(window: Window) -> Any:
    from ._pixels import PixelSet

    return PixelSet(window)


def said(error: Exception) -> str:
    """Shorten what a store has raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:300]
