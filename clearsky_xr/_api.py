"""The functions that users call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from ._budget import Spent
from ._cube import Cube, PixelMode
from ._open import resolve as _resolve
from ._settings import OnLost, resolve_settings


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
    api_key: str | None = None,
    base_url: str | None = None,
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
    api_key : str, optional
        By default from the environment variable ``CLEARSKY_API_KEY``.
    base_url : str, optional
        By default from ``CLEARSKY_BASE_URL``, else the service. ``"sandbox"`` is
        an emulator inside this process: no key, no network, no cost, and
        synthetic pixels.
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
        api_key=api_key, base_url=base_url, concurrency=concurrency, on_lost=on_lost
    )
    cube = _resolve(
        area, time, settings, bands=bands, indices=indices, resolution=resolution, crs=crs,
        like=like, model=model, constellations=constellations, clip=clip, pixels=pixels,
        allow_partial=allow_partial,
    )  # fmt: skip
    # A resolved cube, not the arguments: Dask's names then follow what the date search found.
    dataset = xr.open_dataset(
        cube,  # type: ignore[arg-type]  # xarray's types know paths only
        engine="clearsky", chunks=chunks, cache=cache, concurrency=concurrency,
        on_lost=on_lost, api_key=api_key, base_url=base_url, drop_variables=drop_variables,
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
    settings = resolve_settings(
        api_key=api_key, base_url=base_url, concurrency=None, on_lost="retry"
    )
    return _resolve(
        area, time, settings, bands=bands, indices=indices, resolution=resolution, crs=crs,
        like=like, model=model, constellations=constellations, clip=clip, pixels=pixels,
        allow_partial=allow_partial,
    )  # fmt: skip


def spent() -> Spent:
    """Say what this process has spent, credits by the contract's formula.

    Returns
    -------
    Spent
        ``settled`` for complete answers, ``possibly`` for downloads that were
        sent and lost, ``reserved`` for those in flight, and ``requests``.
    """
    from ._account import process

    return process().ledger.spent()
