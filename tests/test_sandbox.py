"""The sandbox against the contract, through a client that knows nothing but the contract."""

import asyncio
import http.client
import json
import math
import os
import subprocess
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import shapely
from pyproj import Geod
from rasterio.io import MemoryFile

from clearsky_xr.sandbox import Account, Fault, Order, embedded, serve

COMPOSITE = "/api/satelliteimages/process/composite"
SEARCH = "/api/satelliteimages/search/available"
ALL_THREE = ["Sentinel1", "Sentinel2", "Landsat89"]
TEN = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
#: The rectangle of contract section 12, and a field of about 0.3 km2.
REAL = (
    "POLYGON ((13.53241 57.370977, 13.53241 57.585087, 14.230042 57.585087, "
    "14.230042 57.370977, 13.53241 57.370977))"
)
FIELD = "POLYGON ((9.87 56.37, 9.878 56.37, 9.878 56.365, 9.87 56.365, 9.87 56.37))"


def body(**changes):
    """Give a full download body; None removes a property."""
    values = {
        "Wkt": FIELD,
        "Date": "2025-04-01T00:00:00Z",
        "Resolution": 10,
        "EpsgProjection": 32632,
        "Model": "Stratus2",
        "SatelliteConstellations": ALL_THREE,
        "Bandnames": "B4,B3,B2",
        "FileType": "tif",
        "PixelSelectionMode": "intersect",
        "DataType": "INT16",
        "UtmDataSelectionMode": "combined_utm",
        "UtmGridForcePixelResolutionSize": True,
        "AllowPartialImage": False,
        "AutomaticOrderCreation": False,
        "UploadUrl": None,
        "OldPixelSelectionMode": False,
        **changes,
    }
    return {name: value for name, value in values.items() if value is not ...}


class Client:
    """The contract in a few lines of `http.client`."""

    def __init__(self, server, key=None):
        self.server, self.key = server, server.api_key if key is None else key

    def call(self, path, payload=None, *, method=None, raw=None):
        """Give (status, headers, bytes)."""
        data = raw if payload is None else json.dumps(payload).encode()
        method = method or ("GET" if data is None else "POST")
        address = urllib.parse.urlsplit(self.server.url)
        with closing(http.client.HTTPConnection(address.hostname, address.port, 30)) as link:
            headers = {"x-api-key": self.key, "Content-Type": "application/json"}
            link.request(method, path, data, headers)
            answer = link.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, *args, **kwargs):
        status, _, data = self.call(*args, **kwargs)
        return status, json.loads(data)

    def data(self, *args, **kwargs):
        status, envelope = self.json(*args, **kwargs)
        assert (status, envelope["Succeeded"], envelope["Error"]) == (200, True, None)
        return envelope["Data"]

    def code(self, path=COMPOSITE, payload=None, **kwargs):
        status, envelope = self.json(path, payload, **kwargs)
        assert envelope["Succeeded"] is False
        return status, envelope["Error"]["Code"]

    def image(self, **changes):
        """Give (pixels, profile, tags, descriptions) of a download."""
        status, _, data = self.call(COMPOSITE, body(**changes))
        assert status == 200, data[:300]
        with MemoryFile(data) as memory, memory.open() as source:
            return source.read(), source.profile, source.tags(), source.descriptions


@pytest.fixture(scope="module")
def server():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_an_independent_client_gets_from_account_to_pixels(client):
    account = client.data("/api/account/info")
    assert account["MaxConcurrentConnections"] == 4
    found = client.data(SEARCH, {"Wkt": FIELD, "From": "2025-03-30T00:00:01Z", "Until": None})
    (entry,) = found["ModelImageDates"]
    assert set(entry["SatelliteConstellations"]) == set(ALL_THREE)
    (part,) = entry["DatesByGeog"]
    day = part["Dates"][0]
    request = body(Date=f"{day}T00:00:00Z", Model=entry["Model"])
    ready = client.data(COMPOSITE + "/available", request)
    assert len(ready) == 12
    assert all(
        ready[name] for name in ("FullyAvailable", "OrdersCoverPolygon", "DataAvailableForUser")
    )
    price = client.data(COMPOSITE + "/estimate", request)
    status, headers, data = client.call(COMPOSITE, request)
    assert status == 200
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers.get_filename().endswith(".tif")
    assert headers["X-Clearsky-Sandbox"] == "synthetic"
    with MemoryFile(data) as memory, memory.open() as image:
        assert image.tags()["IMAGE_DATE"] == day.replace("-", "")
        assert image.tags()["CLEARSKY_SANDBOX"] == "synthetic"
        assert set(image.tags()["CONSTELLATIONS"].split(",")) == set(ALL_THREE)
        assert image.descriptions == ("B4", "B3", "B2")
        assert image.crs.to_epsg() == 32632
        assert set(image.dtypes) == {"int16"}
        assert image.nodata == -32768
        assert all(edge % 10 == 0 for edge in image.bounds)
    last = client.server.ledger()[-1]
    assert (last.credits, last.bytes) == (price["CreditEstimate"], len(data))


def test_the_real_rectangle_costs_what_it_cost(client):
    data = client.data(COMPOSITE + "/estimate", {"Wkt": REAL})
    assert data == {"AreaEstimateKm2": 997.94, "CreditEstimate": 99.79}


def _geodesic_km2(wkt):
    """Area by another road: triangulated and summed ring by ring."""
    geod, total = Geod(ellps="WGS84"), 0.0
    for part in shapely.get_parts(shapely.from_wkt(wkt)):
        for sign, ring in [(1, part.exterior), *((-1, hole) for hole in part.interiors)]:
            total += sign * abs(geod.polygon_area_perimeter(*ring.xy)[0])
    return total / 1e6


POLYGONS = [
    FIELD,
    # Smaller than the minimum.
    "POLYGON ((9.87 56.37, 9.871 56.37, 9.871 56.3695, 9.87 56.3695, 9.87 56.37))",
    # Clockwise, with a hole.
    "POLYGON ((9 56, 9 56.2, 9.2 56.2, 9.2 56, 9 56), (9.1 56.1, 9.1 56.15, 9.15 56.1, 9.1 56.1))",
    "MULTIPOLYGON (((10 56, 10.01 56, 10 56.01, 10 56)), ((11 56, 11.01 56, 11 56.01, 11 56)))",
]


@pytest.mark.parametrize("wkt", POLYGONS)
@pytest.mark.parametrize("billing", ["geometry", "bbox"])
def test_ledger_and_balance_follow_the_formula(wkt, billing):
    billed = wkt if billing == "geometry" else shapely.box(*shapely.from_wkt(wkt).bounds).wkt
    km2 = _geodesic_km2(billed)
    units = max(0.01, round(km2 * 0.1, 2))
    with serve(billing=billing, balance=100) as server:
        client = Client(server)
        price = client.data(COMPOSITE + "/estimate", body(Wkt=wkt))
        assert price == {"AreaEstimateKm2": round(km2, 2), "CreditEstimate": units}
        assert server.balance == 100
        client.image(Wkt=wkt, Resolution=40)
        assert client.code(payload=body(Wkt=wkt, Resolution=11)) == (400, 992)
        estimate, paid, refused = server.ledger()
        assert (estimate.credits, refused.credits) == (0, 0)
        assert paid.credits == units
        assert paid.area_km2 == pytest.approx(km2, rel=1e-9)
        assert server.balance == pytest.approx(100 - units)
        assert client.data("/api/apikey/info")["CreditAmount"] == server.balance
        assert paid.wkt == wkt
        assert paid.date == date(2025, 4, 1)
        assert (paid.bandnames, paid.resolution, paid.epsg) == ("B4,B3,B2", 40, 32632)


BAD_FIELDS = {
    "unknown": ({"Extra": 1}, "Extra"),
    "number as text": ({"Resolution": "10"}, "Resolution"),
    "true is no number": ({"Resolution": True}, "Resolution"),
    "resolution": ({"Resolution": 30}, "Resolution"),
    "no resolution": ({"Resolution": ...}, "Resolution"),
    "null resolution": ({"Resolution": None}, "Resolution"),
    "no date": ({"Date": ...}, "Date"),
    "date": ({"Date": "2025-13-01"}, "Date"),
    "no model": ({"Model": ...}, "Model"),
    "model": ({"Model": "Stratus9"}, "Model"),
    "no constellations": ({"SatelliteConstellations": ...}, "SatelliteConstellations"),
    "one missing": ({"SatelliteConstellations": ALL_THREE[:2]}, "SatelliteConstellations"),
    "one unknown": ({"SatelliteConstellations": [*ALL_THREE, "X"]}, "SatelliteConstellations"),
    "no bands": ({"Bandnames": ...}, "Bandnames"),
    "band": ({"Bandnames": "B4,B99"}, "Bandnames"),
    "common name": ({"Bandnames": "red"}, "Bandnames"),
    "band of another model": ({"Bandnames": "B1"}, "Bandnames"),
    "band twice": ({"Bandnames": "B4,b4"}, "Bandnames"),
    "empty item": ({"Bandnames": "B4,"}, "Bandnames"),
    "file": ({"FileType": "png"}, "FileType"),
    "data": ({"DataType": "UINT8"}, "DataType"),
    "mode": ({"PixelSelectionMode": "touch"}, "PixelSelectionMode"),
    "utm mode": ({"UtmDataSelectionMode": "any"}, "UtmDataSelectionMode"),
    "flag": ({"AllowPartialImage": "false"}, "AllowPartialImage"),
    "orders": ({"AutomaticOrderCreation": True}, "AutomaticOrderCreation"),
    "upload": ({"UploadUrl": "https://example.org/put"}, "UploadUrl"),
    "level": ({"Level": 1}, "Level"),
    "epsg": ({"EpsgProjection": 4326}, "EpsgProjection"),
    "zone 61": ({"EpsgProjection": 32661}, "EpsgProjection"),
    "zone far away": ({"EpsgProjection": 32610}, "EpsgProjection"),
    "no geometry": ({"Wkt": None}, "Wkt"),
    "two geometries": ({"GeoJson": {"type": "Polygon", "coordinates": []}}, "GeoJson"),
    "not wkt": ({"Wkt": "POLYGON"}, "Wkt"),
    "point": ({"Wkt": "POINT (1 2)"}, "Wkt"),
    "empty": ({"Wkt": "POLYGON EMPTY"}, "Wkt"),
    "bow tie": ({"Wkt": "POLYGON ((9 56, 9.1 56.1, 9.1 56, 9 56.1, 9 56))"}, "Wkt"),
    "off the globe": ({"Wkt": "POLYGON ((9 91, 9 92, 10 92, 9 91))"}, "Wkt"),
    "feature": ({"Wkt": None, "GeoJson": {"type": "Feature"}}, "GeoJson"),
    "contained nothing": (
        {"Wkt": POLYGONS[1], "PixelSelectionMode": "contained", "Resolution": 1280},
        "Geometry",
    ),
}


@pytest.mark.parametrize(("changes", "field"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_bad_field_is_named(client, changes, field):
    before = client.server.balance
    status, envelope = client.json(COMPOSITE, body(**changes))
    assert (status, envelope["Error"]["Code"]) == (400, 992)
    assert envelope["Data"][field][0].startswith(f"{field} must") or field == "Extra"
    assert client.server.balance == before
    assert client.server.ledger()[-1].code == 992


def test_every_bad_field_is_named_at_once(client):
    _, envelope = client.json(COMPOSITE, body(Resolution=1, Model=7, Nonsense=None))
    assert set(envelope["Data"]) == {"Resolution", "Model", "Nonsense"}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_gets_the_problem_document(client, raw):
    status, document = client.json(COMPOSITE, raw=raw)
    assert (status, document["status"]) == (400, 400)
    assert {"title", "errors", "traceId"} <= set(document)


def test_names_paths_and_enums_bind_in_any_case(client):
    lower = {name.lower(): value for name, value in body().items()}
    lower |= {"model": "STRATUS2", "datatype": "int16", "pixelselectionmode": "Contained"}
    lower["satelliteconstellations"] = ["sentinel2", "LANDSAT89", "Sentinel1"]
    status, _, _ = client.call("/API/SatelliteImages/Process/Composite", lower)
    assert status == 200


def test_names_given_twice_in_two_cases_are_refused(client):
    assert client.code(payload={**body(), "wkt": FIELD}) == (400, 992)


def test_geojson_is_as_good_as_wkt(client):
    geometry = json.loads(shapely.to_geojson(shapely.from_wkt(FIELD)))
    pixels = client.image(Wkt=None, GeoJson=geometry)[0]
    assert np.array_equal(pixels, client.image()[0])
    assert shapely.from_wkt(client.server.ledger()[-2].wkt).equals(shapely.from_wkt(FIELD))


@pytest.mark.parametrize("key", ["", "wrong", "\u00fc"])
def test_no_known_key_is_401_before_anything_else(client, key):
    stranger = Client(client.server, key)
    for path in ("/api/account/info", "/api/tasking/models"):
        assert stranger.code(path) == (401, 401)
    assert stranger.code(raw=b"no json") == (401, 401)


def test_unknown_paths_and_methods(client):
    assert client.code("/api/nothing") == (404, 404)
    assert client.code(COMPOSITE, method="GET") == (405, 405)


# Each limit is broken together with all later ones: the earliest has to win.
ORDER = [
    ({"Resolution": 11}, 992),
    ({"Wkt": None}, 992),
    ({"Bandnames": "B77"}, 992),
    ({"Bandnames": "B2,B3,B4"}, 1005),
    ({"Wkt": REAL}, 1004),
    (None, 1003),
    ({"SatelliteConstellations": ["Sentinel1", "Sentinel2"], "Model": "Stratus2Fast"}, 1006),
    ({"Date": "2025-04-02"}, 1002),
    ({"Wkt": REAL.replace("57.585087", "57.38").replace("14.230042", "13.55")}, 994),
]


@pytest.mark.parametrize("at", range(len(ORDER)))
def test_checks_come_in_the_order_of_the_contract(at):
    _, code = ORDER[at]
    payload = body(Bandnames="B2,B3", Wkt=FIELD)
    for later, _ in reversed(ORDER[at:]):
        payload |= later or {}
    with serve(max_bands=2, max_area_km2=500, max_connections=1, balance=0.05) as server:
        client = Client(server)
        busy = server._state.holders[0].slot("1003") if at <= 5 else nullcontext()
        with busy:
            assert client.code(payload=payload) == (400, code)
        assert server.ledger()[-1].credits == 0
        assert server.balance == 0.05


def test_orders_bound_area_model_period_and_cadence():
    west = "POLYGON ((9 56, 9.875 56, 9.875 57, 9 57, 9 56))"
    weekly = Order(west, start=date(2025, 1, 1), end=date(2025, 5, 31), frequency=7)
    with serve(orders=[weekly], cadence_days=1) as server:
        client = Client(server)
        # FIELD lies across the border of the order.
        assert client.code(payload=body(Date="2025-04-02")) == (400, 1006)
        part = client.image(Date="2025-04-02", AllowPartialImage=True)[0][0]
        whole = Client(embedded()).image(Date="2025-04-01")[0][0]
        assert part.shape == whole.shape
        assert (part[:, -15:] == -32768).all()
        assert (part[:, :30] != -32768).any()
        inside = body(Wkt=FIELD.replace("9.878", "9.874"))
        assert client.code(payload=inside | {"Date": "2025-04-03"}) == (400, 1002)
        assert client.code(payload=inside | {"Date": "2025-06-04"}) == (400, 1006)
        assert client.code(payload=inside | {"Model": "Stratus3"}) == (400, 1006)
        ready = client.data(COMPOSITE + "/available", body(Date="2025-04-02"))
        assert (ready["OrdersCoverPolygon"], ready["DataAvailableForUser"]) == (False, True)
        assert client.call(COMPOSITE, inside | {"Date": "2025-04-02"})[0] == 200


def test_the_search_splits_by_order():
    halves = [
        Order("POLYGON ((9 56, 9.875 56, 9.875 57, 9 57, 9 56))", frequency=2),
        Order("POLYGON ((9.874 56, 9.9 56, 9.9 57, 9.874 57, 9.874 56))", frequency=3),
        Order(model="Stratus2Fast", constellations=("Sentinel1", "Sentinel2")),
    ]
    span = {"Wkt": FIELD, "From": "2025-01-01", "To": "2025-01-07"}
    with serve(orders=halves, cadence_days=1) as server:
        client = Client(server)
        first, fast = client.data(SEARCH, span)["ModelImageDates"]
        assert fast["Model"] == "Stratus2Fast"
        assert len(fast["DatesByGeog"][0]["Dates"]) == 7
        parts = {tuple(p["Dates"]): shapely.from_wkt(p["Wkt"]) for p in first["DatesByGeog"]}
        days = {tuple(int(day[-2:]) for day in dates) for dates in parts}
        assert days == {(1, 3, 5, 7), (1, 4, 7), (1, 3, 4, 5, 7)}
        assert shapely.union_all(list(parts.values())).equals(shapely.from_wkt(FIELD))
        assert math.isclose(sum(p.area for p in parts.values()), shapely.from_wkt(FIELD).area)
        only = client.data(SEARCH, span | {"Model": "stratus2fast"})["ModelImageDates"]
        assert [entry["Model"] for entry in only] == ["Stratus2Fast"]


@pytest.mark.parametrize(
    ("span", "count"),
    [
        ({"From": "2025-01-01", "Until": "2025-01-31"}, 7),
        ({"From": "2025-01-01T00:00:01Z", "To": "2025-01-31T00:00:00Z"}, 7),
        ({"From": "2025-01-02", "Until": "2025-01-05"}, 0),
        ({"From": "1999-01-01", "Until": "2016-12-31"}, 0),
    ],
)
def test_search_bounds_are_inclusive(client, span, count):
    entry = client.data(SEARCH, {"Wkt": FIELD, **span})["ModelImageDates"][0]
    assert len(entry["DatesByGeog"][0]["Dates"]) == count


def test_the_archive_ends_yesterday(client):
    entry = client.data(SEARCH, {"Wkt": FIELD})["ModelImageDates"][0]
    days = entry["DatesByGeog"][0]["Dates"]
    assert days[0] == "2017-01-03"  # the first day a multiple of 5 days before 2025-01-01
    assert date.fromisoformat(days[-1]) < datetime.now(UTC).date()
    assert client.code(payload=body(Date=str(date(2025, 1, 1) + timedelta(5000)))) == (400, 1002)


def test_until_and_to_together_are_refused(client):
    span = {"Wkt": FIELD, "Until": "2025-01-01", "To": "2025-01-01"}
    assert client.code(SEARCH, span) == (400, 992)


@pytest.mark.parametrize(("overload", "answer"), [("1003", (400, 1003)), ("429", (429, 1003))])
def test_too_many_connections(overload, answer):
    slow = Fault.slow(first_byte=0.3, times=2)
    with serve(max_connections=2, overload=overload, faults=[slow]) as server:
        client = Client(server)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.image) for _ in range(2)]
            while server.in_flight < 2:
                pass
            assert client.code(payload=body()) == answer
            for each in waiting:
                each.result()
        assert server.peak_in_flight == 3
        assert server.in_flight == 0
        assert sorted(e.in_flight for e in server.downloads()) == [0, 1, 2]
        assert client.image()[0].size


def test_a_client_that_keeps_to_the_limit_is_never_refused():
    async def run(server):
        gate = asyncio.Semaphore(4)
        headers = {"x-api-key": server.api_key}
        async with aiohttp.ClientSession(server.url, headers=headers) as session:

            async def one():
                async with gate, session.post(COMPOSITE, json=body(Resolution=20)) as answer:
                    await answer.read()
                    return answer.status

            return await asyncio.gather(*(one() for _ in range(80)))

    with serve(memoize=True) as server:
        assert set(asyncio.run(run(server))) == {200}
        assert server.peak_in_flight <= 4
        assert all(entry.status == 200 for entry in server.ledger())


def test_a_client_that_has_gone_holds_its_connection():
    slow = Fault.slow(first_byte=0.2)
    with serve(faults=[slow]) as server:
        address = urllib.parse.urlsplit(server.url)
        link = http.client.HTTPConnection(address.hostname, address.port)
        link.request("POST", COMPOSITE, json.dumps(body()), {"x-api-key": server.api_key})
        while not server.in_flight:
            pass
        link.close()
        assert server.in_flight == 1
        Client(server).image()
        assert server.peak_in_flight == 2
        while server.in_flight:
            pass
        assert server.ledger()[0].credits > 0


def test_requests_run_side_by_side():
    with serve(latency=0.3) as server:
        client = Client(server)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: client.image(), range(4)))
        assert server.peak_in_flight == 4


def test_a_hard_counter_refuses_a_second_download():
    east = FIELD.replace("9.87 ", "9.879 ").replace("9.878", "9.885")
    with serve(api_requests=1) as server:
        client = Client(server)
        client.image()
        assert client.code(payload=body()) == (400, 994)
        client.image(Wkt=east)
        client.image(Date="2025-04-06")
        assert len([e for e in server.ledger() if e.credits]) == 3


def test_units_are_given_back_when_nothing_is_selected():
    with serve(api_requests=1, balance=1) as server:
        client = Client(server)
        nothing = body(Resolution=1280, PixelSelectionMode="contained")
        assert client.code(payload=nothing) == (400, 992)
        assert server.balance == 1
        client.image()


def test_accounts_are_apart():
    rich, poor = Account(max_bands=3), Account(balance=0, max_connections=1)
    with serve(accounts=[rich, poor]) as server:
        assert server.api_keys == (rich.key, poor.key)
        Client(server).image()
        other = Client(server, poor.key)
        assert other.code(payload=body()) == (400, 994)
        infos = [Client(server, key).data("/api/account/info") for key in server.api_keys]
        assert infos[0]["TenantId"] != infos[1]["TenantId"]
        assert [info["MaxTotalBands"] for info in infos] == [3, 20]
        assert [entry.account for entry in server.ledger()[:2]] == ["account-1", "account-2"]


def test_models_say_what_may_be_left_out(client):
    listed = client.data("/api/tasking/models")["TaskingModels"]
    optional = {
        entry["Model"]: [
            one["SatelliteConstellation"]
            for one in entry["SupportedSatelliteConstellations"]
            if one["Optional"]
        ]
        for entry in listed
    }
    assert optional == {"Stratus2": [], "Stratus2Fast": ["Landsat89"], "Stratus3": []}


def test_the_key_is_in_no_ledger_and_no_repr():
    canary = "canary-5f2d7c"
    with serve(api_key=canary) as server:
        client = Client(server)
        client.image()
        client.data("/api/apikey/info")
        client.code(payload=body(Resolution=1))
        status, headers, ledger = client.call("/sandbox/ledger")
        assert status == 200
        summary = json.loads(ledger)
        assert summary["requests"] == 3
        assert summary["downloads"] == 1
        assert summary["credits"] == server.ledger()[0].credits
        shown = [ledger.decode(), str(headers), repr(server), repr(server.ledger())]
        shown += [repr(server._state), repr(Account(canary)), repr(server._state.holders[0])]
        assert not any(canary in text for text in shown)


def test_the_embedded_server_is_one_per_process():
    with ThreadPoolExecutor(8) as pool:
        assert len({id(server) for server in pool.map(lambda _: embedded(), range(16))}) == 1
    assert Client(embedded()).data("/api/account/info")


FORK = """
import os, sys
from clearsky_xr.sandbox import embedded
parent = embedded()
child = os.fork()
if child == 0:
    parent.close()
    mine = embedded()
    os._exit(0 if mine is not parent and mine.url != parent.url else 1)
failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert "running" in repr(parent)
sys.exit(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_an_embedded_server_of_its_own():
    # In a process of its own, because forking one with threads is what is tried here.
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, cwd=root, timeout=60, check=False)  # our own
    assert done.returncode == 0


def test_closing_is_quick_and_does_no_harm_twice():
    server = serve(faults=[Fault.stall(60)])
    address = urllib.parse.urlsplit(server.url)
    link = http.client.HTTPConnection(address.hostname, address.port)
    with closing(link):
        link.request("POST", COMPOSITE, json.dumps(body()), {"x-api-key": server.api_key})
        link.getresponse()
        begin = datetime.now(UTC)
        server.close()
        server.close()
        assert datetime.now(UTC) - begin < timedelta(seconds=2)
    assert "closed" in repr(server)
    with pytest.raises(OSError, match="refused"):
        Client(server).call("/api/account/info")


@pytest.mark.parametrize(
    "options",
    [
        {"latency": -1},
        {"bandwidth": 0},
        {"billing": "free"},
        {"overload": "500"},
        {"compression": "jpeg"},
        {"cadence_days": 0},
        {"max_connections": 0},
        {"api_key": ""},
        {"accounts": []},
        {"accounts": [Account("same"), Account("same")]},
    ],
    ids=str,
)
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError, match=r".+"):
        serve(**options)


def test_a_port_in_use_raises_here(server):
    with pytest.raises(OSError, match="in use"):
        serve(port=int(server.url.rsplit(":", 1)[1]))
