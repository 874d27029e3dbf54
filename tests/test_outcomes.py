"""What happens when a download fails: waits, repeats, typed errors, and the ledger."""

from __future__ import annotations

import traceback
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr._client import Timeouts
from clearsky_xr.sandbox import Fault, Server

from .conftest import FARM, access, credits_of, paid


def one(server: Server, **options) -> xr.Dataset:
    return xr.open_dataset(
        FARM, engine="clearsky", time=["2025-04-01"], **{**access(server), **options}
    )


def test_a_wrong_key_is_told_at_open(server: Server) -> None:
    with pytest.raises(errors.CredentialsError, match="refuses the API key"):
        one(server, api_key="wrong")


@pytest.mark.parametrize(
    "fault",
    [Fault.status(429, retry_after=7), Fault.status(400, code=1003), Fault.status(503),
     Fault.status(500), Fault.status(502), Fault.status(504)],
    ids=lambda f: f.kind,
)  # fmt: skip
def test_passing_faults_are_waited_out(serve, fake_time: list[float], fault: Fault) -> None:
    server = serve(faults=[replace(fault, times=3)])
    values = one(server).reflectance.values
    assert np.isfinite(values).all()
    assert [e.status for e in server.downloads()][-1] == 200
    assert len(server.downloads()) == 4
    assert credits_of(server) == paid(server)[0].credits
    assert sum(fake_time) >= 3 * (7 if "429" in fault.kind else 0.5)


def test_an_unreachable_service_is_told_after_five_attempts(fake_time: list[float]) -> None:
    server = clearsky_xr.sandbox.serve()
    options = access(server)
    server.close()
    with pytest.raises(errors.ServiceUnavailableError, match="Nothing was sent"):
        xr.open_dataset(FARM, engine="clearsky", time=["2025-04-01"], **options)
    assert 0 < len(fake_time) <= 4


def test_plain_tiffs_without_descriptions_are_read(serve) -> None:
    described, plain = one(serve()), one(serve(plain=True, compression="lzw"))
    np.testing.assert_array_equal(described.reflectance, plain.reflectance)


def test_bands_in_another_order_are_found_by_their_names(serve) -> None:
    def turn(image):
        return replace(image, pixels=image.pixels[::-1], layers=image.layers[::-1])

    turned = one(serve(faults=[Fault.image("turned", turn)]))
    np.testing.assert_array_equal(turned.reflectance, one(serve()).reflectance)


def test_a_free_call_that_hangs_does_not_hold_up_opening_for_long(
    serve, monkeypatch: pytest.MonkeyPatch, fake_time: list[float]
) -> None:
    monkeypatch.setattr(_account, "TIMEOUTS", Timeouts(free=0.1))
    server = serve(faults=[Fault.stall(1.5, after_bytes=10, endpoint="account", times=None)])
    with pytest.raises(errors.ServiceUnavailableError, match="free") as caught:
        one(server)
    assert caught.value.spent == "no"
    assert [e.endpoint for e in server.ledger()].count("account") == 5
    assert not server.downloads()


def test_one_failure_stops_the_rest_and_keeps_what_came(serve) -> None:
    import datetime as dt

    server = serve(
        max_connections=1, faults=[Fault.status(400, code=1002, date=dt.date(2025, 4, 11))]
    )
    days = [f"2025-04-{d:02d}" for d in (1, 6, 11, 16, 21, 26)]
    ds = xr.open_dataset(FARM, engine="clearsky", time=days, **access(server))
    with pytest.raises(errors.NoImageryError) as caught:
        ds.load()
    assert caught.value.details["date"] == "2025-04-11"
    sent = len(server.downloads())
    assert sent < 6
    ds.load()  # the fault has passed
    assert len(paid(server)) == 6
    assert len(server.downloads()) == 7


def test_the_traceback_does_not_carry_the_http_library(serve) -> None:
    server = serve(faults=[Fault.lost(times=None)])
    with pytest.raises(errors.LostDownloadError) as caught:
        one(server, on_lost="raise").load()
    assert "aiohttp." not in "".join(traceback.format_exception(caught.value))
