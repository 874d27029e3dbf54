"""The front door: options in, a running server out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import date

from ._accounts import Account, Order, Overload
from ._archive import Archive
from ._billing import Billing
from ._holes import Hole
from ._imagery import Imagery
from ._landscape import Landscape
from ._raster import Compression
from ._scenes import Scenes
from ._server import Server
from ._state import Behaviour, make_state
from .faults import Fault


def serve(
    *,
    latency: float = 0.0,
    bandwidth: float | None = None,
    max_connections: int = 4,
    max_area_km2: int = 2500,
    max_bands: int = 20,
    balance: float = 100_000.0,
    orders: Iterable[Order] | None = None,
    api_requests: int | None = None,
    api_key: str | None = None,
    accounts: Iterable[Account] | None = None,
    scenes: str | os.PathLike[str] | None = None,
    start_date: date = date(2017, 1, 1),
    end_date: date | None = None,
    cadence_days: int = 5,
    reference_date: date = date(2025, 1, 1),
    billing: Billing = "geometry",
    overload: Overload = "1003",
    faults: Iterable[Fault] = (),
    holes: Iterable[Hole] = (),
    plain: bool = False,
    compression: Compression = "deflate",
    memoize: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Server:
    """Start a sandbox in a thread of its own.

    Parameters
    ----------
    latency : float
        Seconds of processing before the first byte of a download.
    bandwidth : float, optional
        Bytes per second of each download.
    max_connections : int
        ``MaxConcurrentConnections`` of the account; 4 is the service's default
        (contract, section 9).
    max_area_km2 : int
        ``MaxCompositeAreaKm2``. The service publishes no figure; 2500 km2 is a square
        of 50 km.
    max_bands : int
        ``MaxTotalBands``. The service publishes no figure; 20 leaves room for ten
        indices beside ten bands.
    balance : float
        Processing units of the account at the start.
    orders : iterable of Order, optional
        What the account may read; by default Stratus2 with Sentinel1, Sentinel2 and
        Landsat89 everywhere, on every day of the archive.
    api_requests : int, optional
        The hard counter of contract section 8.3: how often any piece of an area may be
        downloaded for one date.
    api_key : str, optional
        Key of the account; a random one by default.
    accounts : iterable of Account, optional
        Several accounts, instead of the one that the seven options above describe.
    scenes : path, optional
        Folder of GeoTIFFs with ``yyyymmdd`` in their names, int16, ten bands in the
        order of the service's ``all`` or with the bands' names as descriptions. They
        are served instead of the synthetic landscape.
    start_date, end_date : date
        First and last day of the synthetic archive; None is yesterday (UTC).
    cadence_days : int
        Days between its images.
    reference_date : date
        Anchor of that cadence.
    billing : {"geometry", "bbox"}
        Whether the geometry or its lon/lat bounding box is billed. Both are possible
        readings of the contract, section 14.
    overload : {"1003", "429"}
        How a request beyond `max_connections` is refused.
    faults : iterable of Fault
        What goes wrong, and when.
    holes : iterable of Hole
        Where there are no images although they were ordered: outside the data, access
        restricted, or still to be predicted.
    plain : bool
        Striped GeoTIFFs without band descriptions.
    compression : {"deflate", "lzw", "zstd", "none"}
        Of the GeoTIFFs.
    memoize : bool
        Answer a repeated body with the bytes of the first answer, for benchmarks. It
        is charged all the same.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.

    Returns
    -------
    Server
        Running. Use it as a context manager, or `Server.close` it.

    Raises
    ------
    ValueError
        An option has an unusable value.
    OSError
        The address is in use, or `scenes` cannot be read.

    Examples
    --------
    >>> with serve(max_connections=2) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """
    if accounts is None:
        account = Account(
            max_connections=max_connections,
            max_area_km2=max_area_km2,
            max_bands=max_bands,
            balance=balance,
            api_requests=api_requests,
        )
        if api_key is not None:
            account = replace(account, key=api_key)
        if orders is not None:
            account = replace(account, orders=tuple(orders))
        accounts = [account]
    imagery: Imagery
    if scenes is None:
        imagery = Landscape(Archive(start_date, end_date, cadence_days, reference_date))
    else:
        imagery = Scenes(scenes)
    behaviour = Behaviour(latency, bandwidth, billing, overload, plain, compression, memoize)
    return Server(make_state(accounts, imagery, behaviour, faults, holes), host, port)
