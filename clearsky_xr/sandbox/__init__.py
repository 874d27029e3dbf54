"""An emulator of the service, to try everything without key, money or network.

::

    with clearsky_xr.sandbox.serve() as server:
        ds = xr.open_dataset(
            area, engine="clearsky", time="2025-06", base_url=server.url, api_key=server.api_key
        )
        print(server.ledger())

It speaks the service's contract over real HTTP: accounts, orders, limits, prices and
errors. Its pixels are a synthetic landscape, or your own dated GeoTIFFs. Every answer
says that it comes from a sandbox.
"""

from __future__ import annotations

from ._accounts import Account, Order
from ._embedded import embedded
from ._holes import Hole
from ._ledger import LedgerEntry
from ._serve import serve
from ._server import Server
from .faults import Fault

__all__ = ["Account", "Fault", "Hole", "LedgerEntry", "Order", "Server", "embedded", "serve"]
