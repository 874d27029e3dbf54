"""What the sandbox withholds: holes in the archive, and images that are stored no more."""

from datetime import UTC, date, datetime, timedelta

import pytest

from clearsky_xr.sandbox import Hole, Order, serve

from .test_sandbox import COMPOSITE, FIELD, SEARCH, Client, body

WEST = "POLYGON ((9 56, 9.875 56, 9.875 57, 9 57, 9 56))"


def test_images_are_kept_to_the_end_of_the_next_month_and_longer_if_paid_for():
    today = datetime.now(UTC).date()
    this = today.replace(day=1)
    last = (this - timedelta(days=1)).replace(day=1)
    before = last - timedelta(days=1)
    short, longer = Order(storage_months=0), Order(storage_months=1)
    assert [short.keeps(day) for day in (today, this, last, before)] == [True, True, True, False]
    assert longer.keeps(before)
    assert not longer.keeps(before.replace(day=1) - timedelta(days=1))
    assert not Order(storage_months=2).keeps(date(today.year - 1, 1, 1))
    assert Order(storage_months=24).keeps(date(today.year - 1, 1, 1))
    assert Order().keeps(date(1980, 1, 1))


def test_an_expired_image_exists_and_cannot_be_downloaded():
    with serve(orders=[Order(storage_months=0)]) as server:
        client = Client(server)
        (entry,) = client.data(SEARCH, {"Wkt": FIELD, "From": "2025-04-01", "Until": "2025-04-01"})[
            "ModelImageDates"
        ]
        assert entry["DatesByGeog"][0]["Dates"] == ["2025-04-01"]
        assert client.code(payload=body()) == (400, 1002)
        # One order that keeps it is enough.
    with serve(orders=[Order(storage_months=0), Order(storage_months=600)]) as server:
        assert Client(server).call(COMPOSITE, body())[0] == 200


@pytest.mark.parametrize("kind", ["outside", "pending"])
def test_a_hole_is_nodata_where_partial_images_are_allowed(kind):
    with serve(holes=[Hole(kind, WEST)]) as server:
        client = Client(server)
        pixels = client.image(AllowPartialImage=True)[0][0]
        assert (pixels[:, :25] == -32768).all()
        assert (pixels[:, -15:] != -32768).mean() > 0.9
        # Where there are no data at all, nothing is missing from an image.
        expected = (200, None) if kind == "outside" else (400, 1002)
        status, _, _ = client.call(COMPOSITE, body())
        assert (status, server.ledger()[-1].code) == expected


def test_a_hole_in_time():
    pending = Hole("pending", WEST, start=date(2025, 4, 6), end=date(2025, 4, 6))
    with serve(holes=[pending]) as server:
        client = Client(server)
        assert client.call(COMPOSITE, body())[0] == 200
        assert client.code(payload=body(Date="2025-04-06")) == (400, 1002)
        assert client.call(COMPOSITE, body(Date="2025-04-11"))[0] == 200
        ready = client.data(COMPOSITE + "/available", body(Date="2025-04-06"))
        assert (ready["FullyAvailable"], ready["PartiallyAvailable"]) == (False, True)
        assert ready["AllImagesPredicted"] is False
        (entry,) = client.data(SEARCH, {"Wkt": FIELD, "From": "2025-04-01", "Until": "2025-04-11"})[
            "ModelImageDates"
        ]
        assert [len(part["Dates"]) for part in entry["DatesByGeog"]] == [2, 3]


def test_a_restricted_area_is_searched_but_not_served():
    with serve(holes=[Hole("restricted", WEST)]) as server:
        client = Client(server)
        (entry,) = client.data(SEARCH, {"Wkt": FIELD, "From": "2025-04-01", "Until": "2025-04-01"})[
            "ModelImageDates"
        ]
        assert [part["Dates"] for part in entry["DatesByGeog"]] == [["2025-04-01"]]
        assert client.code(payload=body()) == (400, 1002)
        assert client.code(payload=body(AllowPartialImage=True)) == (400, 1002)
        east = "POLYGON ((9.875 56.37, 9.878 56.37, 9.878 56.365, 9.875 56.365, 9.875 56.37))"
        assert client.call(COMPOSITE, body(Wkt=east))[0] == 200


def test_nothing_is_left_of_an_area_that_is_all_hole():
    with serve(holes=[Hole("outside")]) as server:
        client = Client(server)
        (entry,) = client.data(SEARCH, {"Wkt": FIELD})["ModelImageDates"]
        assert entry["DatesByGeog"] == []
        ready = client.data(COMPOSITE + "/available", body())
        assert (ready["PolygonInDataArea"], ready["IntersectedActiveZones"]) == (False, False)
        assert client.code(payload=body(AllowPartialImage=True)) == (400, 1002)


def test_halves_of_different_rhythm_are_partial_on_most_days():
    east = WEST.replace("9 56", "9.9 56").replace("9 57", "9.9 57")
    orders = [Order(WEST, frequency=2), Order(east, frequency=3)]
    with serve(orders=orders, cadence_days=1) as server:
        client = Client(server)
        assert client.call(COMPOSITE, body(Date="2025-01-07"))[0] == 200
        assert client.code(payload=body(Date="2025-01-03")) == (400, 1002)
        pixels = client.image(Date="2025-01-03", AllowPartialImage=True)[0][0]
        assert (pixels[:, -15:] == -32768).all()
        assert client.code(payload=body(Date="2025-01-02", AllowPartialImage=True)) == (400, 1002)


@pytest.mark.parametrize(
    "wrong", [lambda: Hole("water"), lambda: Order(storage_months=-1)], ids=["kind", "months"]
)
def test_unusable_values_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        wrong()
