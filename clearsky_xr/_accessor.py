"""``ds.clearsky``: plans, pictures, and what a Dataset of a cube knows of its store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from . import _loop
from ._account import process
from ._budget import Spent
from ._card import card
from ._cube import Cube
from ._export import to_geotiff
from ._notices import warn
from ._picture import BRIGHT, TRUE_COLOUR, index, plot_rgb, rgb
from ._planned import Estimate, Plan, estimate_of, plan_of
from ._prefetch import missing, prefetch
from ._progress import tqdm
from ._receipts import fetched, receipts, stock_behind, with_receipts
from ._settings import Settings
from ._shown import cube_of, selection_of
from .errors import InputError, InvalidOptionError


@xr.register_dataarray_accessor("clearsky")  # type: ignore[no-untyped-call]
class ArrayAccessor:
    """What can be said of any DataArray that hangs on a cube, after any operations.

    It is ``array.clearsky``, and never made by hand.

    Parameters
    ----------
    obj : xarray.DataArray
    """

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
    as long as the coordinates ``time``, ``y`` and ``x`` are there. It is
    ``dataset.clearsky``, and never made by hand; the name serves annotations.

    Parameters
    ----------
    dataset : xarray.Dataset
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
            return cube_of(self._dataset)
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
        cube, settings = cube_of(self._dataset)
        stock_behind(self._dataset)
        if settings.missing != "buy":
            raise InvalidOptionError(
                "a store that was opened with open_store buys nothing",
                hint='Open it with xr.open_dataset(area, engine="clearsky", time=..., store=...).',
            )
        selection = selection_of(self._dataset, cube)
        need = _loop.run(missing(cube, settings, selection))
        shared = process()
        ledger, bound = shared.ledger, shared.bound()
        before = ledger.spent()

        def since() -> Spent:
            return ledger.spent() - before

        with tqdm(total=len(need.blocks), unit=" blocks", disable=not progress) as bar:
            left = need.credits

            def done(blocks: int, price: float) -> None:
                nonlocal left
                left -= price
                money = since()
                bar.set_postfix_str(
                    f"{money.bytes / 1e6:.1f} MB, {money.settled:.2f} credits spent, "
                    f"{abs(left):.2f} left",  # of -0 as well
                    refresh=False,
                )
                bar.update(blocks)

            done(0, 0.0)
            notices = _loop.run(prefetch(cube, settings, selection, need, done, bound=bound))
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
        return fetched(self._dataset)

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
        return receipts(self._dataset)

    def with_receipts(self) -> xr.Dataset:
        """Add what the receipts say as coordinates along ``time``.

        Returns
        -------
        xarray.Dataset
            With ``model_version``, ``image_version`` and ``image_constellations``;
            empty where nothing was bought, or where a date's blocks differ.
        """
        return with_receipts(self._dataset)

    def to_geotiff(
        self,
        folder: str | os.PathLike[str],
        *,
        stac: bool = False,
        overwrite: bool = False,
        progress: bool = True,
    ) -> list[Path]:
        """Write a cloud-optimised GeoTIFF for each date. It buys what it writes.

        Each file holds all variables as bands of int16: numbers and scale are the
        service's, so that what was served is written as it came, and ``CLEARSKY_SANDBOX``
        is among the tags if it is no imagery. ``IMAGE_DATE``, ``MODEL_VERSION``,
        ``IMAGE_VERSION`` and ``CONSTELLATIONS`` are, too, where this process or the store
        knows them.

        A few dates are loaded at a time. A date whose file is complete is skipped and not
        bought: a call that was interrupted goes on where it stood. What is paid for of
        the dates under way is written before an error is raised.

        Parameters
        ----------
        folder : str or path
            Made if it is not there. Files are called ``2025-06-05.tif``.
        stac : bool, default False
            Write a STAC collection of all files of the folder beside them, with an
            item for each. Needs ``pip install 'clearsky-xr[stac]'``.
        overwrite : bool, default False
            Write, and buy if it is not held, what is there already.
        progress : bool, default True
            Show a bar.

        Returns
        -------
        list of pathlib.Path
            A file for each date, ascending.

        Raises
        ------
        InputError
            The pixels are no rectangle of the cube, a variable cannot be written as
            int16, or pystac is not there; nothing was bought.
        InvalidOptionError
            The folder cannot be written to, or has other images of these dates.
        BudgetError
            A download does not fit into a budget; what fitted is written.
        ClearSkyError
            A request failed; what came before it is written.
        OSError
            A file could not be written, or the disk may not hold the next dates, which
            then are not bought. What was there before is as it was.
        """
        return to_geotiff(
            self._dataset, Path(folder), stac=stac, overwrite=overwrite, progress=progress
        )
