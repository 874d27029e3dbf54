"""A store made ready for a cube: made if absent, its dates declared, its leftovers put in."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dask.array as da
import xarray as xr
import zarr
from zarr.abc.store import Store as ZarrBase
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from . import _loop
from ._bands import STRATUS, model_bands, resolve_bands, resolve_indices
from ._blocks import SIDE, Blocks
from ._client import AccountInfo
from ._cube import Cube
from ._dataset import to_dataset
from ._layers import NODATA, bands_for
from ._layout import DATES, PIXELS
from ._location import Location
from ._record import Origin, Record, record_for
from ._settings import Missing, Settings, offline
from ._stock import fresh_stock, sidecar_for, stock_of
from ._store import RECORD, consolidate, find, publish, said, zarr_store
from ._stored import FromStore
from .errors import BandLimitError, InvalidBandError, InvalidOptionError, StoreError


def origin_of(info: AccountInfo) -> Origin:
    """Say what an account's pixels are."""
    if info.sandbox is None:
        return "service"
    return "synthetic" if info.sandbox == "synthetic" else "scenes"


@_loop.Alone()
def prepare(cube: Cube, settings: Settings, info: AccountInfo) -> list[str]:
    """Make sure that a cube's pixels can be kept in its store; buys nothing.

    Parameters
    ----------
    cube : Cube
    settings : Settings
        With a store.
    info : AccountInfo

    Returns
    -------
    list of str
        What the user should hear about.

    Raises
    ------
    StoreMismatchError
        The store keeps another cube.
    StoreError
        It cannot be used.
    BandLimitError
        The account's ``MaxTotalBands`` does not allow the bands.
    """
    location = settings.store
    assert location is not None
    origin = origin_of(info)
    stock = fresh_stock(location)
    if stock is None:
        # What cannot be written is found out here, before anything is bought for it.
        with sidecar_for(location).lock():
            if find(location) is None:
                _create(location, cube, info, origin)
        stock = stock_of(location)
    stock.store.check(cube, origin)
    if not set(cube.dates) <= set(stock.store.dates):
        with stock.sidecar.lock():
            try:
                stock.store.declare(cube.dates)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001  stores raise what they like
                raise StoreError(
                    f"dates cannot be added to the store {location.name}: "
                    f"{type(error).__name__}: {error}"[:300],
                    hint="Is it writable? Dates that it has can be opened.",
                ) from None
    notices: list[str] = []
    _loop.run(FromStore(cube, stock, None, "raise", notices).replay())
    return notices


@dataclass(frozen=True, slots=True)
class Stocked:
    """What a store has, to be read without an account.

    Parameters
    ----------
    cube : Cube
    settings : Settings
    origin : {"service", "synthetic", "scenes"}
    """

    cube: Cube
    settings: Settings
    origin: Origin

    def describe(self, *, scaled: bool) -> xr.Dataset:
        """Describe it as a lazy, CF-encoded Dataset."""
        return to_dataset(self.cube, self.settings, self.origin, scaled=scaled)


def stocked(
    location: Location,
    missing: Missing,
    bands: str | Iterable[str] | None,
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None,
) -> Stocked:
    """Find out what a store has, of all its dates."""
    if missing not in ("raise", "nan"):
        raise InvalidOptionError(
            f"missing={missing!r} is unknown",
            hint='"raise" is an error for pixels that were never bought, "nan" shows them as NaN.',
        )
    stock = fresh_stock(location)
    if stock is None:
        raise StoreError(
            f"there is no store at {location.name}",
            hint='xr.open_dataset(area, engine="clearsky", time=..., store=...) makes one.',
        )
    store = stock.store
    own = store.record.cube
    all_of_it = isinstance(bands, str) and bands.strip().lower() == "all"
    cube = replace(
        own,
        dates=tuple(sorted(store.dates)),
        bands=own.bands if all_of_it else resolve_bands(bands, own.model),
        indices=resolve_indices(indices, own.model),
    )
    if not cube.layers:
        raise InvalidBandError("neither bands nor indices were asked for")
    store.check(cube, None)
    return Stocked(cube, offline(location, missing), store.record.origin)


def _create(location: Location, cube: Cube, info: AccountInfo, origin: Origin) -> None:
    offered = model_bands(cube.model)
    if offered == STRATUS and (info.bands is None or len(offered) <= info.bands):
        bands = offered  # all of them, since they cost nothing
    else:
        # What another model offers is not sure, and an account may have fewer.
        bands = tuple(band for band in offered if band in bands_for(cube.layers))
    if info.bands is not None and len(bands) > info.bands:
        raise BandLimitError(
            f"the cube needs {len(bands)} bands; the account's MaxTotalBands is {info.bands}",
            hint="A store computes indices from bands, so their bands count.",
        )
    record = record_for(cube, bands, origin)
    template = to_dataset(record.cube, offline(location, "raise"), origin, scaled=False)
    _make(location, record, template, sidecar_for(location).folder)


def _make(location: Location, record: Record, template: xr.Dataset, workshop: Path) -> None:
    """Make a store without dates; only under the sidecar's lock, where nothing is.

    Parameters
    ----------
    location : Location
    record : Record
    template : xarray.Dataset
        The encoded cube without dates: its coordinates and attributes are taken.
    workshop : pathlib.Path
        The sidecar's folder. A store on the same disk is made there and moved into
        place at once, so that it is there or not.
    """
    folder = location.folder
    if location.read_only:
        raise _unmade(location, "it is read-only")
    try:
        if folder is not None and folder.parent == workshop.parent:
            for rest in workshop.glob("new-*"):
                shutil.rmtree(rest, ignore_errors=True)
            place = workshop / f"new-{uuid.uuid4().hex}"
            _write(LocalStore(place), record, template)
            place.replace(folder)
        else:
            made = MemoryStore()
            _write(made, record, template)
            publish(made, zarr_store(location))
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001  stores raise what they like
        raise _unmade(location, said(error)) from None


def _unmade(location: Location, why: str) -> StoreError:
    return StoreError(
        f"the store {location.name} cannot be made: {why}",
        hint="Is the place writable, and is its parent folder or bucket there?",
    )


def _write(store: ZarrBase, record: Record, template: xr.Dataset) -> None:
    cube = record.cube
    pixels = template[PIXELS].variable
    lazy = xr.Variable(
        pixels.dims,
        # One Dask chunk that is never computed: only the metadata are written.
        da.zeros(pixels.shape, dtype=pixels.dtype, chunks=-1),
        {**pixels.attrs, "grid_mapping": "spatial_ref"},
        {"coordinates": "spatial_ref"},
    )
    blocks = Blocks(cube.grid.window)
    template.assign({PIXELS: lazy}).to_zarr(
        store, mode="w", compute=False, consolidated=False, zarr_format=3,
        encoding={
            PIXELS: {
                "chunks": (1, len(cube.bands), SIDE, SIDE),
                # Measured (docs/decisions.md): half of lz4's size for little time, and
                # the checksum, without which blosc lets a flipped bit pass, for none.
                "compressors": [
                    BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()
                ],
                "fill_value": NODATA,
            },
            "time": {"chunks": (DATES,)},
            **{name: {"chunks": template[name].shape} for name in ("band", "y", "x")},
        },
    )  # fmt: skip
    root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
    root.create_group("receipts").create_array(
        "receipt", shape=(0, *blocks.shape), chunks=(1, 1, 1), dtype="str",
        dimension_names=("time", "block_y", "block_x"),
        attributes={"long_name": "what came with the pixels of a block, JSON"},
    )  # fmt: skip
    # From here on it is a store.
    root.attrs.update({RECORD: record.dumps()})
    consolidate(store)
