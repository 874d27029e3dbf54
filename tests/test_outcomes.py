"""What happens when a download fails: waits, repeats, typed errors, and the ledger."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, errors
from clearsky_xr._client import Timeouts
from clearsky_xr.sandbox import Fault, Server
from clearsky_xr.sandbox.faults import Image

from .conftest import FARM, access, credits_of, paid


def one(server: Server, **options) -> xr.Dataset:
    return xr.open_dataset(
        FARM, engine="clearsky", time=["2025-04-01"], **{**access(server), **options}
    )


CODES = [
    (400, 992, errors.ValidationError),
    (400, 993, errors.ValidationError),
    (400, 994, errors.InsufficientCreditsError),
    (400, 1002, errors.NoImageryError),
    (400, 1004, errors.AreaLimitError),
    (400, 1005, errors.BandLimitError),
    (400, 1006, errors.NotOrderedError),
    (400, 1777, errors.ServiceError),
    (401, 401, errors.CredentialsError),
    (403, 403, errors.CredentialsError),
    (404, 404, errors.ServiceError),
    (200, 994, errors.InsufficientCreditsError),  # a success that says Succeeded: false
]


@pytest.mark.parametrize(("status", "code", "error"), CODES)
def test_each_code_is_a_typed_error_after_one_request(
    serve, status: int, code: int, error: type[errors.ClearSkyError]
) -> None:
    server = serve(
        faults=[
            Fault.status(status, code=code, message="Told by the service.", times=None,
                         fields={"Wkt": ["Wkt must <be> fine\x1b[31m"]}),
        ]
    )  # fmt: skip
    with pytest.raises(error, match="Told by the service") as caught:
        one(server).load()
    assert type(caught.value) is error
    assert caught.value.details["status"] == status
    assert caught.value.details["date"] == "2025-04-01"
    assert "rows" in caught.value.details["window"]
    assert caught.value.hint
    assert caught.value.spent == "no"
    assert "\x1b" not in str(caught.value)
    assert len(server.downloads()) == 1
    assert credits_of(server) == 0
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.details) == (
        error, str(caught.value), caught.value.details,
    )  # fmt: skip
    if error is errors.ServiceError and status == 400:
        assert caught.value.details["code"] == code
    if error is errors.ValidationError:
        assert "Wkt must <be> fine" in str(caught.value)


def test_problem_document_names_its_fields(serve) -> None:
    server = serve(faults=[Fault.problem({"Resolution": ["not a number"]}, times=None)])
    with pytest.raises(errors.ValidationError, match="Resolution: not a number"):
        one(server).load()
    assert len(server.downloads()) == 1


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


def test_retry_after_pauses_the_whole_account(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.status(429, retry_after=30)])
    xr.open_dataset(
        FARM, engine="clearsky", time=[f"2025-04-{d:02d}" for d in (1, 6, 11, 16)], **access(server)
    ).load()
    assert len(paid(server)) == 4
    assert max(fake_time) >= 29


def test_endless_refusals_end_at_the_deadline(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.status(429, times=None)])
    with pytest.raises(errors.RateLimitedError, match="429"):
        one(server).load()
    assert 600 < sum(fake_time) < 3000
    assert credits_of(server) == 0


def test_a_retry_after_behind_the_deadline_raises_at_once(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.status(429, retry_after=86400, times=None)])
    with pytest.raises(errors.RateLimitedError):
        one(server).load()
    assert len(server.downloads()) == 1


def test_five_attempts_at_a_broken_service(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.status(503, times=None)])
    with pytest.raises(errors.ServiceUnavailableError, match="503"):
        one(server).load()
    assert len(server.downloads()) == 5
    assert len(fake_time) >= 4


def test_an_unreachable_service_is_told_after_five_attempts(fake_time: list[float]) -> None:
    server = clearsky_xr.sandbox.serve()
    options = access(server)
    server.close()
    with pytest.raises(errors.ServiceUnavailableError, match="Nothing was sent"):
        xr.open_dataset(FARM, engine="clearsky", time=["2025-04-01"], **options)
    assert 0 < len(fake_time) <= 4


LOST = [Fault.lost(), Fault.short_body(5000), Fault.short_body(5000, charged=False)]


@pytest.mark.parametrize("fault", LOST, ids=["no answer", "short, charged", "short"])
def test_a_lost_download_is_repeated_within_the_allowance(
    serve, fake_time: list[float], fault: Fault
) -> None:
    server = serve(faults=[fault])
    before = clearsky_xr.spent()
    with pytest.warns(errors.ClearSkyWarning, match="may be charged twice"):
        values = one(server).reflectance.values
    assert np.isfinite(values).all()
    assert len(server.downloads()) == 2
    after = clearsky_xr.spent()
    price = paid(server)[-1].credits
    assert after.settled - before.settled == pytest.approx(price)
    assert after.possibly - before.possibly == pytest.approx(price)
    assert after.reserved == 0


def test_a_lost_download_is_not_repeated_if_told_so(serve) -> None:
    server = serve(faults=[Fault.lost(times=None)])
    with pytest.raises(errors.LostDownloadError) as caught:
        one(server, on_lost="raise").load()
    assert caught.value.spent == "maybe"
    assert len(server.downloads()) == 1


def test_a_lost_download_is_repeated_twice_at_most(serve, fake_time: list[float]) -> None:
    server = serve(faults=[Fault.lost(times=None)])
    with pytest.raises(errors.LostDownloadError):
        one(server).load()
    assert len(server.downloads()) == 3


def test_dear_downloads_are_not_repeated(serve) -> None:
    # 1.7 credits a date: more than the allowance of a process that has spent little.
    server = serve(faults=[Fault.lost(times=None)])
    ds = xr.open_dataset(
        (15.05, 46.05, 15.10, 46.10), engine="clearsky", time=["2025-04-01"], clip=False,
        **access(server),
    )  # fmt: skip
    assert clearsky_xr.spent().settled < 50
    with pytest.raises(errors.LostDownloadError):
        ds.load()
    assert len(server.downloads()) == 1


def east(image: Image) -> Image:
    """Move an image by one pixel: on the lattice, but not where it belongs."""
    a, b, c, d, e, f = image.transform[:6]
    return replace(image, transform=rasterio.Affine(a, b, c + a, d, e, f))


def larger(image: Image) -> Image:
    return replace(image, pixels=np.pad(image.pixels, ((0, 0), (0, 1), (0, 0))))


def corrupt(content: bytes) -> bytes:
    return content[:200] + bytes(len(content) - 200)


def another_format(_: bytes) -> bytes:
    return b"II*\0" + b"<VRTDataset/>"


BAD_IMAGES = [
    (Fault.half_pixel(), errors.GridMismatchError, "not on a multiple"),
    (Fault.crs(32632), errors.GridMismatchError, "EPSG:32632, expected EPSG:32633"),
    (Fault.band_count(-1), errors.UnexpectedImageError, "number of bands"),
    (Fault.band_count(1), errors.UnexpectedImageError, "number of bands"),
    (Fault.dtype("float32"), errors.UnexpectedImageError, "data type"),
    (Fault.nodata(0), errors.UnexpectedImageError, "no-data"),
    (Fault.tag("IMAGE_DATE", "20250402"), errors.UnexpectedImageError, "IMAGE_DATE"),
    (Fault.image("moved", east), errors.GridMismatchError, "place"),
    (Fault.image("larger", larger), errors.GridMismatchError, "size"),
    (Fault.garble("corrupt", corrupt), errors.UnexpectedImageError, "image"),
    (Fault.garble("vrt", another_format), errors.UnexpectedImageError, "decoded"),
]


@pytest.mark.parametrize(
    ("fault", "error", "match"), BAD_IMAGES, ids=lambda v: getattr(v, "kind", "")
)
def test_an_image_that_is_not_the_one_asked_is_refused_and_kept(
    serve, fault: Fault, error: type[errors.ClearSkyError], match: str
) -> None:
    server = serve(faults=[replace(fault, times=None)])
    with pytest.raises(error, match=match) as caught:
        one(server).load()
    kept = Path(caught.value.details["kept"])
    assert kept.read_bytes()[:2] == b"II"
    assert str(kept) in str(caught.value)
    assert caught.value.spent == "yes"
    assert len(server.downloads()) == 1
    kept.unlink()
    kept.parent.rmdir()


def test_plain_tiffs_without_descriptions_are_read(serve) -> None:
    described, plain = one(serve()), one(serve(plain=True, compression="lzw"))
    np.testing.assert_array_equal(described.reflectance, plain.reflectance)


def test_bands_in_another_order_are_found_by_their_names(serve) -> None:
    def turn(image):
        return replace(image, pixels=image.pixels[::-1], layers=image.layers[::-1])

    turned = one(serve(faults=[Fault.image("turned", turn)]))
    np.testing.assert_array_equal(turned.reflectance, one(serve()).reflectance)


def test_a_web_page_is_not_an_image(serve) -> None:
    server = serve(faults=[Fault.html(times=None)])
    with pytest.raises(errors.UnexpectedResponseError, match="no TIFF: <!DOCTYPE html>"):
        one(server).load()
    assert len(server.downloads()) == 1


def test_an_endless_body_is_cut(serve) -> None:
    server = serve(faults=[Fault.garble("endless", lambda b: b + bytes(20_000_000))])
    with pytest.raises(errors.UnexpectedResponseError, match="more than the"):
        one(server).load()


def test_slow_answers_are_lost(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    # The timeouts are made short, since they are about real silence on a real socket.
    monkeypatch.setattr(_account, "TIMEOUTS", Timeouts(first_byte=0.3, stall=0.3, total=2.0))
    for fault in (Fault.slow(first_byte=1.5), Fault.stall(1.5)):
        server = serve(faults=[fault])
        with pytest.raises(errors.LostDownloadError, match="too long"):
            one(server, on_lost="raise").load()


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


def test_a_redirect_is_not_followed(serve) -> None:
    from clearsky_xr.sandbox import faults

    target = serve()
    answer = faults.Answer(307, headers={"Location": target.url + "/api/account/info"})
    server = serve(faults=[Fault("redirect", answer, endpoint="account", times=None)])
    with pytest.raises(errors.UnexpectedResponseError, match="redirect"):
        one(server)
    assert target.ledger() == []


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
