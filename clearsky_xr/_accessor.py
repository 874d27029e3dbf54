"""``ds.clearsky``: plans, pictures, and what a Dataset of a cube knows of its store."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from . import _loop
from ._account import process
from ._array import opened
from ._blocks import Block
from ._budget import Spent
from ._card import card
from ._cube import Cube
from ._notices import warn
from ._picture import BRIGHT, TRUE_COLOUR, index, plot_rgb, rgb
from ._pixels import PixelSet
from ._planned import Estimate, Plan, estimate_of, plan_of
from ._prefetch import missing, prefetch
from ._selection import Pointwise, Selection, read_key
from ._settings import Settings
from ._stock import Stock, stock_of
from ._variable import behind
from .errors import InputError, InvalidOptionError

# Coordinates along time that receipts give, and their fields.
_TAGS = {
    "model_version": "model_version",
    "image_version": "image_version",
    "image_constellations": "constellations",
}


@xr.register_dataarray_accessor("clearsky")  # type: ignore[no-untyped-call]
class ArrayAccessor:
    """What can be said of any DataArray that hangs on a cube, after any operations."""

    def __init__(self, obj: xr.DataArray | xr.Dataset) -> None:
        self._obj = obj

    def plan(self) -> Plan:
        """Say what computing this would buy now; downloads nothing.

        Returns
        -------
        Plan
            The requests, minus what is held, in the store or loaded.

        Raises
        ------
        PlanIncomplete
            The graph does not tell what will be read.
        """
        return plan_of(self._obj)

    def estimate(self, *, most: int | None = 20) -> Estimate:
        """Let the service price the plan, by its free estimate call; downloads nothing.

        Parameters
        ----------
        most : int or None, default 20
            Most calls: one for each distinct geometry. None allows any number.

        Returns
        -------
        Estimate
            The service's prices beside those of our formula.

        Raises
        ------
        InvalidOptionError
            More calls would be needed.
        """
        return estimate_of(self._obj, most=most)


@xr.register_dataset_accessor("clearsky")  # type: ignore[no-untyped-call]
class ClearSkyAccessor(ArrayAccessor):
    """What belongs to a cube that was opened with the engine ``"clearsky"``.

    It works on the opened Dataset and on what was selected from it, loaded or not,
    as long as the coordinates ``time``, ``y`` and ``x`` are there.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        super().__init__(dataset)
        self._dataset = dataset

    def __repr__(self) -> str:
        return card(self._dataset, *self._whole()).text()

    def _repr_html_(self) -> str:
        return card(self._dataset, *self._whole()).html()

    def _whole(self) -> tuple[Cube, Settings] | tuple[None, None]:
        try:
            return self._origin()
        except InputError:
            return None, None

    def rgb(
        self, bands: Sequence[str] = TRUE_COLOUR, *, vmin: float = 0.0, vmax: float = BRIGHT
    ) -> xr.DataArray:
        """Make a picture out of three bands; lazy if the cube hangs on Dask.

        Parameters
        ----------
        bands : sequence of str, default ("red", "green", "blue")
            Shown as red, green and blue; ids or common names.
        vmin, vmax : float, default 0 and 0.2
            Reflectances that are shown black and white. 0.2 is the vendor's display hint
            (contract, section 7.3).

        Returns
        -------
        xarray.DataArray
            uint8, (..., y, x, rgba). Where a band has no data all four are 0, so that it
            is transparent.

        Raises
        ------
        InvalidBandError
            A band is unknown, or the cube does not have it.
        InvalidOptionError
            Not three bands, or no range of reflectances.
        """
        return rgb(self._dataset, bands, vmin, vmax)

    def plot_rgb(
        self,
        bands: Sequence[str] = TRUE_COLOUR,
        *,
        vmin: float = 0.0,
        vmax: float = BRIGHT,
        **options: Any,
    ) -> Any:
        """Draw a picture, one panel for each date. It buys what it shows.

        Parameters
        ----------
        bands, vmin, vmax
            As for `rgb`.
        **options
            For ``xarray.DataArray.plot.imshow``, such as ``col_wrap``, ``size`` or ``ax``.

        Returns
        -------
        xarray.plot.FacetGrid or matplotlib.image.AxesImage
            The latter for a single date.

        Raises
        ------
        InvalidBandError
            A band is unknown, or the cube does not have it.
        InvalidOptionError
            More than 24 dates, not three bands, or no range of reflectances.
        InputError
            matplotlib is not there.
        """
        return plot_rgb(self._dataset, bands, vmin, vmax, options)

    def index(self, name: str | Mapping[str, Sequence[str]]) -> xr.DataArray:
        """Compute an index from the cube's own bands; nothing is bought beyond them.

        Parameters
        ----------
        name : str or mapping
            As in ``indices=``: a name of the catalogue, or a name of your own and the pair
            (X, Y) of (X - Y) / (X + Y).

        Returns
        -------
        xarray.DataArray
            float32, dims of ``reflectance`` without ``band``; NaN without data and where
            X + Y is 0. Lazy if the cube hangs on Dask.

        Raises
        ------
        InvalidBandError
            The index is unknown, or the cube does not have its bands.
        """
        return index(self._dataset, name)

    def prefetch(self, *, progress: bool = True) -> Spent:
        """Buy everything that the store does not have yet of what is selected.

        It can be interrupted at any moment: what is paid for is kept, and the next
        call goes on where this one stood.

        Parameters
        ----------
        progress : bool, default True
            Show a bar with blocks, megabytes, credits spent and left, and time left.

        Returns
        -------
        Spent
            What this call has spent.

        Raises
        ------
        InvalidOptionError
            The Dataset was opened without ``store=``.
        ClearSkyError
            A request failed; what came before it is kept.
        """
        cube, settings = self._origin()
        self._stock()
        if settings.missing != "buy":
            raise InvalidOptionError(
                "a store that was opened with open_store buys nothing",
                hint='Open it with xr.open_dataset(area, engine="clearsky", time=..., store=...).',
            )
        selection = self._selection(cube)
        need = _loop.run(missing(cube, settings, selection))
        ledger = process().ledger
        before = ledger.spent()

        def since() -> Spent:
            return ledger.spent() - before

        with tqdm(total=len(need.blocks), unit=" blocks", disable=not progress) as bar:

            def done(blocks: int) -> None:
                money = since()
                bar.set_postfix_str(
                    f"{money.bytes / 1e6:.1f} MB, {money.settled:.2f} credits spent, "
                    f"{max(0.0, need.credits - money.settled):.2f} left",
                    refresh=False,
                )
                # Blocks on the edge of two tiles are met twice.
                bar.update(min(blocks, len(need.blocks) - bar.n))

            done(0)
            notices = _loop.run(prefetch(cube, settings, selection, done))
        for notice in dict.fromkeys(notices):
            warn(notice)
        return since()

    def fetched(self) -> xr.DataArray:
        """Say which blocks of what is selected have been bought.

        Returns
        -------
        xarray.DataArray
            bool, (time, block). ``row`` and ``col`` count the blocks of the store
            from its upper left corner, ``y`` and ``x`` are their centres, metres.
        """
        cube, stock = self._origin()[0], self._stock()
        dates, blocks = self._blocks(cube, stock)
        values = np.zeros((len(dates), len(blocks)), bool)
        for k, date in enumerate(dates):
            absent = set(stock.absent(date, blocks))
            values[k] = [block not in absent for block in blocks]
        size = cube.grid.resolution
        centres = [stock.store.blocks.window_of(block) for block in blocks]
        return xr.DataArray(
            values,
            dims=("time", "block"),
            coords={
                "time": np.array(dates, "datetime64[ns]"),
                "row": ("block", np.array([row for row, _ in blocks], int)),
                "col": ("block", np.array([col for _, col in blocks], int)),
                "y": ("block", np.array([-(w.row0 + w.row1) / 2 * size for w in centres], float)),
                "x": ("block", np.array([(w.col0 + w.col1) / 2 * size for w in centres], float)),
            },
            name="fetched",
            attrs={"long_name": "whether the store has the block"},
        )

    def receipts(self) -> pd.DataFrame:
        """Give what came with the pixels that the store has of what is selected.

        Returns
        -------
        pandas.DataFrame
            A row for each block of each date: ``time``, ``row`` and ``col`` of the
            block, ``image_date``, ``model_version``, ``image_version`` and
            ``constellations`` as the service's GeoTIFF tags them, ``credits`` (the
            block's share of its request), ``when`` (UTC) and ``request`` (a
            fingerprint; blocks of one request share it).
        """
        cube, stock = self._origin()[0], self._stock()
        dates, blocks = self._blocks(cube, stock)
        rows = []
        for date in dates:
            absent = set(stock.absent(date, blocks))
            for block in blocks:
                if block not in absent:
                    rows += [
                        {"time": pd.Timestamp(date), "row": block[0], "col": block[1], **receipt}
                        for receipt in stock.store.receipts(stock.index(date), block)
                    ]
        columns = [
            "time",
            "row",
            "col",
            "image_date",
            *_TAGS.values(),
            "credits",
            "when",
            "request",
        ]
        table = pd.DataFrame(rows, columns=columns)
        table["when"] = pd.to_datetime(table["when"], utc=True)
        return table

    def with_receipts(self) -> xr.Dataset:
        """Add what the receipts say as coordinates along ``time``.

        Returns
        -------
        xarray.Dataset
            With ``model_version``, ``image_version`` and ``image_constellations``;
            empty where nothing was bought, or where a date's blocks differ.
        """
        table = self.receipts()
        times = pd.DatetimeIndex(np.atleast_1d(self._dataset["time"].values))
        coordinates = {}
        for name, column in _TAGS.items():
            said = table.groupby("time")[column].agg(
                lambda v: v.iloc[0] if v.nunique() == 1 else ""
            )
            values = said.reindex(times).fillna("").to_numpy(object)
            dims = self._dataset["time"].dims
            coordinates[name] = (dims, values if dims else values[0])
        return self._dataset.assign_coords(coordinates)

    def _origin(self) -> tuple[Cube, Settings]:
        """Find the cube that the Dataset was opened from."""
        for variable in self._dataset.variables.values():
            array = behind(variable)
            if array is not None:
                return array.cube, array.settings
        source = opened(self._dataset.encoding.get("source"))
        if source is None:
            raise InputError(
                "this Dataset does not come from the engine 'clearsky', or no longer shows it",
                hint="Call .clearsky on what was opened, or on a selection of it.",
            )
        return source

    def _stock(self) -> Stock:
        settings = self._origin()[1]
        if settings.store is None:
            raise InvalidOptionError(
                "this cube has no store", hint='Open it with store="fields.zarr".'
            )
        return stock_of(settings.store)

    def _selection(self, cube: Cube) -> Selection:
        """Read from the coordinates what of the cube is selected."""
        try:
            times, ys, xs = (self._dataset[name] for name in ("time", "y", "x"))
        except KeyError as error:
            raise InputError(
                f"the coordinate {error} is gone", hint="Select with isel or sel, which keep it."
            ) from None
        where = {date: k for k, date in enumerate(cube.dates)}
        size, window = cube.grid.resolution, cube.grid.window
        try:
            dates = [
                where[day.astype("datetime64[D]").item()] for day in np.atleast_1d(times.values)
            ]
        except (KeyError, AttributeError):
            raise InputError(
                "the coordinate time has dates that the cube has not",
                hint="Select from what was opened; decode_times=False is not understood here.",
            ) from None
        rows = np.floor(-ys.values / size).astype(int) - window.row0
        cols = np.floor(xs.values / size).astype(int) - window.col0
        inside = (rows >= 0) & (rows < cube.grid.shape[0])
        across = (cols >= 0) & (cols < cube.grid.shape[1])
        if not inside.all() or not across.all():
            raise InputError("the coordinates y and x have pixels that the cube has not")
        shape = (len(cube.dates), len(cube.layers), *cube.grid.shape)
        layers = slice(None)
        if ys.dims and ys.dims == xs.dims:  # points
            first = np.array(dates).reshape(-1, *[1] * ys.ndim)
            return read_key(Pointwise((first, layers, rows[None], cols[None])), shape)
        return read_key((np.array(dates), layers, np.atleast_1d(rows), np.atleast_1d(cols)), shape)

    def _blocks(self, cube: Cube, stock: Stock) -> tuple[list[dt.date], list[Block]]:
        """Give the dates and the blocks that are selected."""
        dates: dict[dt.date, None] = {}
        blocks: set[Block] = set()
        corner = cube.grid.window
        for tile in self._selection(cube).tiles(cube.grid.window.size):
            window = tile.pixels.window.shifted(corner.row0, corner.col0)
            wanted = cube.wanted(PixelSet(window, tile.pixels.mask))
            if wanted is not None:
                blocks.update(stock.store.blocks.touched(wanted))
            dates |= {cube.dates[date]: None for date, _ in tile.dates}
        return sorted(dates), sorted(blocks)
