"""The functions that users call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from ._budget import Budget, Spent
from ._cube import Cube, PixelMode
from ._location import resolve_location
from ._open import resolve as _resolve
from ._settings import OnLost, resolve_settings
from .errors import InvalidOptionError

if TYPE_CHECKING:
    from ._planned import Plan


def open_timeseries(
    area: Any,
    time: Any,
    *,
    bands: str | Iterable[str] | None = "all",
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None = None,
    resolution: int | None = None,
    crs: Any = "auto",
    like: Any = None,
    model: str = "Stratus2",
    constellations: Iterable[str] | None = None,
    clip: bool = True,
    pixels: PixelMode = "intersect",
    allow_partial: bool = False,
    concurrency: int | None = None,
    on_lost: OnLost = "retry",
    max_credits: float | None = None,
    api_key: str | None = None,
    base_url: str | None = None,
    store: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    chunks: Any = {},  # noqa: B006  never changed; {} is how xarray spells "as preferred"
    cache: bool | None = None,
    drop_variables: str | Iterable[str] | None = None,
    mask_and_scale: bool | None = None,
    decode_times: Any = None,
    concat_characters: bool | None = None,
    decode_coords: Any = None,
    use_cftime: bool | None = None,
    decode_timedelta: Any = None,
) -> xr.Dataset:
    """Open an area over time as a lazy Dataset. Nothing is bought before it is computed.

    Parameters
    ----------
    area : tuple, dict, str, path, geometry, GeoDataFrame, GeoSeries
        ``(west, south, east, north)`` in degrees; GeoJSON as dict, text or file
        path; WKT; a shapely geometry; anything with ``__geo_interface__``; a
        GeoDataFrame or GeoSeries in any CRS.
    time : tuple, slice, str, or list of date-likes
        ``(start, end)`` inclusive, ``slice(start, end)``, ``"2025-06"``,
        ``"2025-04-01/2025-09-30"``: the dates come from the (free) date search.
        A list of days is taken as given and needs no search.
    bands : str, iterable of str or None, default "all"
        Ids in any usual spelling (``"B8A"``, ``"B08"``), common names
        (``"red"``, ``"nir"``), ``"rgb"``, ``"all"``; None for indices only.
        Bands cost nothing: the price depends on area alone.
    indices : str, iterable of str, or mapping of str to pair, optional
        Normalised differences that the service computes: ``"ndvi"``,
        ``["ndvi", "ndmi"]``, ``{"mine": ("B8", "B5")}``. Each becomes a variable
        (time, y, x). By name: ndvi, gndvi, ndre, ndwi, mndwi, ndmi, ndsi, ndbi, nbr,
        nbr2.
    resolution : {10, 20, 40, 80, 160, 320, 640, 1280}, optional
        Metres; 10 if not given, or that of `like`. It does not change the price.
    crs : "auto", int, str or CRS, default "auto"
        A UTM zone; ``"auto"`` is the zone of the area's middle.
    like : GeoBox, Dataset or DataArray, optional
        Take exactly this grid: UTM, with its pixel edges on multiples of the
        resolution.
    model : str, default "Stratus2"
        Or ``"Stratus2Fast"``, ``"Stratus3"``, ...: what the account has ordered.
    constellations : iterable of str, optional
        Satellites that the model reads; by default those of Stratus-2,
        ``Sentinel1``, ``Sentinel2`` and ``Landsat89``.
    clip : bool, default True
        Buy a polygon as a polygon: what lies outside is nodata. False buys its
        bounding rectangle on the grid.
    pixels : {"intersect", "contained"}, default "intersect"
        Which pixels on the edge of a polygon belong to it.
    allow_partial : bool, default False
        Take dates, too, on which a part of the area has no image; that part is
        nodata.
    concurrency : int, optional
        Lowers the account's ``MaxConcurrentConnections``.
    on_lost : {"retry", "raise"}, default "retry"
        A download that was sent and whose answer was lost may have been charged:
        repeat it within a small allowance, or never.
    max_credits : float, optional
        Most that computations of this Dataset, and of what is made from it, may
        spend in this process: a download that would pass the limit is not sent.
    api_key : str, optional
        By default from the environment variable ``CLEARSKY_API_KEY``.
    base_url : str, optional
        By default from ``CLEARSKY_BASE_URL``, else the service. ``"sandbox"`` is
        an emulator inside this process: no key, no network, no cost, and
        synthetic pixels.
    store : path, URL or zarr store, optional
        Keep paid pixels in a Zarr cube there, made if it is not, and never buy them
        again. Whole blocks of 256 x 256 px with all bands of the model are bought
        then. A store keeps one area, grid and model: later on other times, bands,
        indices and parts of the area can be opened with it. On object stores one
        machine at a time may open it for new dates.
    storage_options : mapping, optional
        For a URL, as in `xarray.open_zarr`.
    chunks : int, dict, "auto" or None, default {}
        As in `xarray.open_dataset`. The default is Dask with chunks that suit
        the service. None is xarray's own laziness, under which xarray itself
        loads whole arrays in ``concat``, ``merge``, ``equals`` and ``tokenize``.
    cache : bool, optional
        As in `xarray.open_dataset`.
    drop_variables, mask_and_scale, decode_times, concat_characters, decode_coords, \
use_cftime, decode_timedelta
        As in `xarray.open_dataset`.

    Returns
    -------
    xarray.Dataset
        ``reflectance`` (time, band, y, x), float32, 1 = all light reflected, NaN
        where there is no data; or int16 as served under ``mask_and_scale=False``.
        One variable (time, y, x) for each index, float32 from -1 to 1.
        Coordinates: ``time`` (datetime64, UTC midnight), ``band``, ``y``
        descending and ``x`` ascending (pixel centres, metres), ``spatial_ref``;
        along ``band`` ``common_name``, ``band_name``, ``wavelength`` and
        ``bandwidth`` (nm).

    Raises
    ------
    InputError
        Something of the above is wrong; nothing was sent.
    CredentialsError
        There is no key, or the service refuses it.
    NoImageryError
        No date in the range.
    BandLimitError
        More layers than the account's ``MaxTotalBands``.
    StoreMismatchError
        The store keeps another cube.
    StoreError
        What is at its place is no store, or cannot be used.

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox"
    ... )
    >>> dict(ds.sizes)
    {'time': 4, 'band': 10, 'y': 112, 'x': 79}
    """
    settings = resolve_settings(
        api_key=api_key, base_url=base_url, concurrency=concurrency, on_lost=on_lost, store=store,
        storage_options=storage_options, max_credits=max_credits,
    )  # fmt: skip
    cube = _resolve(
        area, time, settings, bands=bands, indices=indices, resolution=resolution, crs=crs,
        like=like, model=model, constellations=constellations, clip=clip, pixels=pixels,
        allow_partial=allow_partial,
    )  # fmt: skip
    # A resolved cube, not the arguments: Dask's names then follow what the date search found.
    dataset = xr.open_dataset(
        cube,  # type: ignore[arg-type]  # xarray's types know paths only
        engine="clearsky", chunks=chunks, cache=cache, concurrency=concurrency,
        on_lost=on_lost, max_credits=max_credits, api_key=api_key, base_url=base_url, store=store,
        storage_options=storage_options, drop_variables=drop_variables,
        mask_and_scale=mask_and_scale, decode_times=decode_times,
        concat_characters=concat_characters, decode_coords=decode_coords, use_cftime=use_cftime,
        decode_timedelta=decode_timedelta,
    )  # fmt: skip
    for coordinate in dataset.coords.values():
        coordinate.load()  # a few words a band, which xarray has turned into Dask arrays
    return dataset


def resolve(
    area: Any,
    time: Any,
    *,
    bands: str | Iterable[str] | None = "all",
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None = None,
    resolution: int | None = None,
    crs: Any = "auto",
    like: Any = None,
    model: str = "Stratus2",
    constellations: Iterable[str] | None = None,
    clip: bool = True,
    pixels: PixelMode = "intersect",
    allow_partial: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Cube:
    """Search the dates and settle the grid, without opening anything.

    The cube can be kept, compared, pickled and opened any number of times with
    ``xr.open_dataset(cube, engine="clearsky")``, which makes no call.

    Parameters
    ----------
    area, time, bands, indices, resolution, crs, like, model, constellations, clip, pixels, \
allow_partial, api_key, base_url
        As in `open_timeseries`.

    Returns
    -------
    Cube

    Raises
    ------
    InputError, CredentialsError, NoImageryError, BandLimitError
        As in `open_timeseries`.
    """
    settings = resolve_settings(api_key=api_key, base_url=base_url)
    return _resolve(
        area, time, settings, bands=bands, indices=indices, resolution=resolution, crs=crs,
        like=like, model=model, constellations=constellations, clip=clip, pixels=pixels,
        allow_partial=allow_partial,
    )  # fmt: skip


def open_store(
    store: Any,
    *,
    missing: Literal["raise", "nan"] = "raise",
    bands: str | Iterable[str] | None = "all",
    indices: str | Iterable[str] | Mapping[str, Sequence[str]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    chunks: Any = {},  # noqa: B006  as above
    mask_and_scale: bool | None = None,
) -> xr.Dataset:
    """Open what a store has, offline: no account, no key, no call.

    Plain ``xr.open_zarr`` reads the same pixels, but shows those that were never
    bought as nodata, dates in the order in which they arrived, and float64.

    Parameters
    ----------
    store : path, URL or zarr store
    missing : {"raise", "nan"}, default "raise"
        What happens when a computation touches pixels of the area that were never
        bought.
    bands, indices, storage_options, chunks, mask_and_scale
        As in `open_timeseries`.

    Returns
    -------
    xarray.Dataset
        As from `open_timeseries`, with the store's whole area and all its dates.

    Raises
    ------
    StoreError
        There is no store, or it cannot be read.

    Examples
    --------
    >>> import clearsky_xr, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fields.zarr"
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox",
    ...     store=path,
    ... ).load()
    >>> again = clearsky_xr.open_store(path)
    >>> bool((again.reflectance == ds.reflectance).sum() == ds.reflectance.notnull().sum())
    True
    """
    from ._prepare import stocked

    location = resolve_location(store, storage_options)
    if location is None:
        raise InvalidOptionError("store= must be a path, a URL or a zarr store")
    dataset = xr.open_dataset(
        stocked(location, missing, bands, indices),  # type: ignore[arg-type]  # paths only
        engine="clearsky", chunks=chunks, mask_and_scale=mask_and_scale,
    )  # fmt: skip
    for coordinate in dataset.coords.values():
        coordinate.load()
    return dataset


def budget(limit: float) -> Budget:
    """Limit what may be spent inside a ``with`` block.

    A download that would pass the limit is refused before it is sent. The limit
    holds for all threads of this process, and on a Dask cluster that
    `clearsky_xr.cluster.setup` has set up for everything that its processes buy
    meanwhile; budgets nest.

    Parameters
    ----------
    limit : float
        Credits.

    Returns
    -------
    Budget
        A context manager with ``left`` (credits) and ``report()``, a `Spent`.

    Raises
    ------
    InvalidOptionError
        The limit is no number of 0 or more.
    BudgetError
        Inside the block: a download does not fit.

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-04-01", "2025-04-20"), base_url="sandbox"
    ... )
    >>> with clearsky_xr.budget(0.05) as b:
    ...     pixel = ds.isel(x=13, y=14).compute()
    >>> b
    <clearsky_xr budget of 0.05 credits, 0.01 left>
    """
    from ._account import process

    shared = process()
    return Budget(limit, shared.ledger, lambda: shared.link)


def plan(*objects: Any) -> Plan:
    """Say what computing some objects together would buy now; downloads nothing.

    Pixels that they share are bought once, and all variables of a date in one
    request.

    Parameters
    ----------
    *objects : xarray.Dataset, xarray.DataArray, xarray.Variable, or Dask collection
        Lazy, after any operations; what is loaded costs nothing.

    Returns
    -------
    Plan

    Raises
    ------
    PlanIncomplete
        The graph does not tell what will be read.
    InputError
        An object that cannot be computed.

    Examples
    --------
    >>> import clearsky_xr
    >>> ds = clearsky_xr.open_timeseries(
    ...     (15.05, 46.05, 15.06, 46.06), ("2025-05-01", "2025-05-20"), base_url="sandbox"
    ... )
    >>> red, nir = (ds.reflectance.sel(band=band) for band in ("B4", "B8"))
    >>> clearsky_xr.plan(red.mean(), nir.mean()).credits
    0.36
    """
    from ._planned import plan_of

    return plan_of(*objects)


def spent() -> Spent:
    """Say what this process, and the cluster it has set up, has spent.

    By the contract's formula, in credits.

    Returns
    -------
    Spent
        ``settled`` for complete answers, ``possibly`` for downloads that were
        sent and lost, ``reserved`` for those in flight, and ``requests``.
    """
    from ._account import process

    shared = process()
    own, link = shared.ledger.spent(), shared.link
    return own if link is None else own + link.others(shared.holders)
