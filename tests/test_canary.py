"""The API key comes out nowhere: a canary is sought in all that the package gives away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cloudpickle
import dask
import dask.base
import pytest
import xarray as xr

import clearsky_xr
from clearsky_xr import _account, _loop, errors
from clearsky_xr._settings import KeyReference, resolve_settings
from clearsky_xr.sandbox import Fault, Server, faults

from .conftest import FARM, SPRING, access, paid

KEY = "CANARY-7f3e91c05a2b4d68-yellow"
DAY = ["2025-04-01"]


def forms(key: str) -> dict[str, bytes]:
    """Write a key in the ways in which it might come out, unsalted digests among them."""
    raw = key.encode()
    found = {
        "plain": raw,
        "utf-16": key.encode("utf-16-le"),
        "hex": raw.hex().encode(),
        "base64": base64.b64encode(raw).rstrip(b"=")[:-1],
        "half": raw[: len(raw) * 2 // 3],
    }
    for name in ("md5", "sha1", "sha256", "blake2b"):
        digest = hashlib.new(name, raw)
        found[name] = digest.digest()
        found[f"{name} hex"] = digest.hexdigest()[:16].encode()
    return found


FORMS = forms(KEY)


def hidden(*things: object) -> None:
    """Assert that the canary is in none of these texts and bytes."""
    for thing in things:
        blob = thing if isinstance(thing, bytes) else str(thing).encode("utf-8", "replace")
        seen = [name for name, form in FORMS.items() if form in blob]
        assert not seen, f"the key is visible ({seen}) in {blob[:300]!r}"


def pickled(value: object) -> bytes:
    """Pickle with both libraries; what cannot be pickled gives its error's text."""
    blobs = []
    for library in (pickle, cloudpickle):
        try:
            blobs.append(library.dumps(value))
        except Exception as error:  # noqa: BLE001  sockets and threads do not pickle
            blobs.append("".join(traceback.format_exception(error)).encode())
    return b"\n".join(blobs)


@pytest.fixture
def canary(serve: Callable[..., Server]) -> Server:
    return serve(api_key=KEY)


@pytest.fixture(autouse=True)
def eavesdropper(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Listen to every logger at its lowest level, to asyncio's debug mode, and to both streams."""
    # Loggers with a level of their own would keep their whispers from the root.
    own = {
        name: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    for name in own:
        logging.getLogger(name).setLevel(1)
    caplog.set_level(0)
    loop = _loop.background()
    debug = loop.get_debug()
    loop.set_debug(True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    loop.set_debug(debug)
    for name, level in own.items():
        logging.getLogger(name).setLevel(level)
    for record in (*caplog.get_records("setup"), *caplog.get_records("call")):
        hidden(record.getMessage(), repr(record.args), record.exc_text or "")
        if record.exc_info:
            hidden("".join(traceback.format_exception(*record.exc_info)))
    hidden(*capfd.readouterr(), *(warning.message for warning in heard))


def test_the_search_finds_what_is_there() -> None:
    for form in FORMS.values():
        with pytest.raises(AssertionError, match="visible"):
            hidden(b"before " + form + b" after")
    with pytest.raises(AssertionError, match="visible"):
        hidden(pickled({"headers": {"x-api-key": KEY}}))


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("loaded", [False, True], ids=["", "loaded"])
def test_a_dataset(canary: Server, chunks: object, *, loaded: bool) -> None:
    ds = xr.open_dataset(
        FARM, engine="clearsky", time=SPRING, indices="ndvi", chunks=chunks, **access(canary)
    )
    if loaded:
        ds.reflectance.isel(x=slice(0, 5)).compute()
        assert len(paid(canary)) == 4  # so the key was in use
    hidden(repr(ds), str(ds), ds._repr_html_(), repr(ds.reflectance), ds.reflectance._repr_html_())
    hidden(pickled(ds), pickled(ds.reflectance), pickled(ds.isel(time=0).ndvi))
    info = io.StringIO()
    ds.info(info)
    hidden(info.getvalue())
    for variable in ds.variables.values():
        hidden(repr(variable), repr(variable.attrs), repr(variable.encoding))
    hidden(repr(ds.attrs), repr(ds.encoding), ds.encoding["source"])


def test_a_dask_graph_its_names_and_its_tokens(canary: Server) -> None:
    ds = clearsky_xr.open_timeseries(FARM, SPRING, indices="ndvi", **access(canary))
    ratio = ds.reflectance.sel(band="B8") / ds.reflectance.sel(band="B4")
    for thing in (ds, ds.reflectance, ratio, dask.optimize(ratio)[0]):
        graph = thing.__dask_graph__()
        hidden(cloudpickle.dumps(graph), repr(graph), repr(dict(graph)), repr(list(graph)))
        hidden(repr(thing.__dask_keys__()), dask.base.tokenize(thing))
    hidden(ds.reflectance.data.name, ds.reflectance.data._repr_html_())


def test_dask_names_do_not_depend_on_the_key(serve) -> None:
    """A name that is a digest of the key among other things tells two keys apart."""
    accounts = [clearsky_xr.sandbox.Account(key=key) for key in (KEY, "another-key")]
    server = serve(accounts=accounts)
    cube = clearsky_xr.resolve(FARM, DAY, base_url=server.url, api_key=KEY)

    def name(key: str) -> str:
        ds = clearsky_xr.open_timeseries(FARM, DAY, base_url=server.url, api_key=key)
        return ds.reflectance.data.name

    assert name(KEY) == name("another-key")
    hidden(dask.base.tokenize(cube))


def test_objects_behind_a_dataset(canary: Server) -> None:
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, **access(canary))
    ds.reflectance.isel(x=0, y=0).compute()
    array = ds.reflectance.variable._data
    while not type(array).__name__.startswith("ClearSky"):
        array = array.array
    cube = clearsky_xr.resolve(FARM, SPRING, **access(canary))
    settings = resolve_settings(api_key=KEY, base_url=canary.url, concurrency=None, on_lost="retry")
    assert settings.key.resolve() == KEY
    owner = _account.process().accounts[canary.url, KEY]
    held = [answer for answers in owner.holdings._held.values() for answer in answers]
    assert len(held) == 4
    for thing in (
        array, cube, settings, settings.key, KeyReference("env:CLEARSKY_API_KEY"), canary,
        owner, owner.client, owner.gate, owner.holdings, _account.process(), *held,
        clearsky_xr.spent(), canary._state.holders[0], canary._state.holders[0].account,
    ):  # fmt: skip
        hidden(repr(thing), str(thing), f"{thing}")
    for thing in (array, cube, settings, canary, owner, owner.client, held, clearsky_xr.spent()):
        hidden(pickled(thing))
    for thing in (array, cube, settings):
        hidden(dask.base.tokenize(thing))
    hidden(repr(canary.ledger()), pickled(canary.ledger()))
    hidden(*(str(entry.to_json()) for entry in canary.ledger()))


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_files(canary: Server, tmp_path: Path, chunks: object) -> None:
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, chunks=None, **access(canary))
    if chunks is not None:
        ds = clearsky_xr.open_timeseries(FARM, SPRING, **access(canary))
    ds.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    ds.isel(time=0).reflectance.rio.to_raster(tmp_path / "image.tif")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    folder = _account.process().spool._folder
    assert folder is not None
    spooled = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in spooled) > 4 * 10_000
    for path in (*files, *spooled):
        hidden(str(path), path.read_bytes())


def test_logs_are_heard_and_free_of_the_key(
    canary: Server, caplog: pytest.LogCaptureFixture
) -> None:
    # Slow enough for the debug mode of asyncio to report it.
    monitored = _loop.background()
    monitored.slow_callback_duration = 0
    try:
        clearsky_xr.open_timeseries(FARM, SPRING, **access(canary)).load()
    finally:
        monitored.slow_callback_duration = 0.1
    # The fixture reads them; here is only shown that there was something to read.
    assert {"asyncio", "rasterio"} <= {record.name.split(".")[0] for record in caplog.records}
    assert any(record.levelno == logging.DEBUG for record in caplog.records)


def search_all(error: BaseException) -> None:
    """Look at an exception, and at all that it was raised from or during."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or any(one is known for known in seen):
            continue
        seen.append(one)
        left += [one.__cause__, one.__context__]
        left += [part for part in one.args if isinstance(part, BaseException)]
        left += getattr(one, "exceptions", ())
        # Its request_info holds the headers that were sent.
        assert not type(one).__module__.startswith("aiohttp"), f"{one!r} holds its request"
        hidden(str(one), repr(one), repr(one.args), repr(vars(one)), pickled(one))
        hidden(*getattr(one, "__notes__", ()))
    hidden("".join(traceback.format_exception(error)))
    if isinstance(error, errors.ClearSkyError):
        hidden(repr(error.details), error.hint, error.message)


AT_LOAD: dict[str, Fault] = {
    "401": Fault.status(401),
    "403": Fault.status(403),
    "404": Fault.status(404),
    **{str(code): Fault.status(400, code=code, fields={"Wkt": ["no"]})
       for code in (992, 993, 994, 1002, 1003, 1004, 1005, 1006, 1777)},
    "success that failed": Fault.status(200, code=994),
    "problem": Fault.problem(),
    "429": Fault.status(429),
    "429 for a day": Fault.status(429, retry_after=86400),
    "500": Fault.status(500),
    "502": Fault.status(502),
    "503": Fault.status(503),
    "redirect": Fault("redirect", faults.Answer(302, headers={"Location": "https://else.example"})),
    "html": Fault.html(),
    "html 503": Fault.html(503),
    "reset": Fault.reset(),
    "lost": Fault.lost(),
    "short": Fault.short_body(500),
    "endless": Fault.garble("endless", lambda b: b + bytes(20_000_000)),
    "half pixel": Fault.half_pixel(),
    "bands": Fault.band_count(),
    "date": Fault.tag("IMAGE_DATE", "20250402"),
    "corrupt": Fault.garble("corrupt", lambda b: b[:200] + bytes(len(b) - 200)),
    "vrt": Fault.garble("vrt", lambda _: b"II*\0<VRTDataset/>"),
}  # fmt: skip


@pytest.mark.usefixtures("fake_time")
@pytest.mark.parametrize("name", AT_LOAD)
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_an_error_of_a_download(
    serve, name: str, chunks: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The key comes from the environment, so that no frame of the caller has it.
    monkeypatch.setenv("CLEARSKY_API_KEY", KEY)
    server = serve(api_key=KEY, faults=[replace(AT_LOAD[name], times=None)])
    ds = xr.open_dataset(FARM, engine="clearsky", time=DAY, chunks=chunks, base_url=server.url)
    with pytest.raises(errors.ClearSkyError) as caught:
        ds.load()
    assert server.downloads()
    search_all(caught.value)
    # IPython's verbose mode and error trackers print the variables of every frame.
    frames = [
        f
        for f, _ in traceback.walk_tb(caught.tb)
        if f.f_globals["__name__"].startswith("clearsky_xr.")
    ]
    assert frames
    for frame in frames:
        hidden(*(f"{name} = {value!r}" for name, value in frame.f_locals.items()))
    if "kept" in caught.value.details:
        kept = Path(caught.value.details["kept"])
        hidden(kept.read_bytes(), str(kept))
        kept.unlink()
        kept.parent.rmdir()


AT_OPEN: dict[str, Fault] = {
    "account 401": Fault.status(401, endpoint="account"),
    "account 503": Fault.status(503, endpoint="account"),
    "account html": Fault.html(endpoint="account"),
    "account reset": Fault.reset(endpoint="account"),
    "search 401": Fault.status(401, endpoint="search"),
    "search 992": Fault.status(400, code=992, endpoint="search"),
    "search problem": Fault.problem(endpoint="search"),
    "search 503": Fault.status(503, endpoint="search"),
    "search reset": Fault.reset(endpoint="search"),
    "search list": Fault("list", faults.Answer(200, b"[]"), endpoint="search"),
    "search redirect": Fault(
        "redirect", faults.Answer(308, headers={"Location": "http://else.example"}),
        endpoint="search",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("fake_time")
@pytest.mark.parametrize("name", AT_OPEN)
def test_an_error_of_opening(serve, name: str) -> None:
    server = serve(api_key=KEY, faults=[replace(AT_OPEN[name], times=None)])
    with pytest.raises(errors.ClearSkyError) as caught:
        clearsky_xr.open_timeseries(FARM, SPRING, **access(server))
    search_all(caught.value)


def test_free_questions(canary: Server) -> None:
    options = access(canary)
    for thing in (
        clearsky_xr.account(**options),
        clearsky_xr.models(**options),
        clearsky_xr.dates(FARM, SPRING, **options),
        clearsky_xr.availability(FARM, DAY, **options),
    ):
        hidden(repr(thing), str(thing), pickled(thing))
    assert {e.endpoint for e in canary.ledger()} == {
        "account", "apikey", "models", "search", "available",
    }  # fmt: skip


# The key comes back in the old account call, and in pages that show what was sent.
GIVEN_BACK = {
    "list": faults.Answer(200, b'{"Data": ["%s"]}' % KEY.encode()),
    "cut": faults.Answer(200, b'{"Data": {"Key": "%s", "Cre' % KEY.encode()),
    "page": faults.Answer(500, b"<pre>x-api-key: %s</pre>" % KEY.encode(), "text/html"),
    "message": faults.Answer(
        400, b'{"Error": {"Message": "no %s", "Code": 7}, "Data": {"%s": "a"}}'
        % (KEY.encode(), KEY.encode()),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("fake_time")
@pytest.mark.parametrize("name", GIVEN_BACK)
@pytest.mark.parametrize("endpoint", ["account", "apikey", "models", "composite"])
def test_an_answer_that_gives_the_key_back(
    serve, name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(
        api_key=KEY, faults=[Fault("given back", GIVEN_BACK[name], endpoint=endpoint, times=None)]
    )
    options = access(server)
    try:
        if endpoint == "composite":
            xr.open_dataset(FARM, engine="clearsky", time=DAY, **options).load()
        elif endpoint == "models":
            clearsky_xr.models(**options)
        else:
            hidden(repr(clearsky_xr.account(**options)))
            assert endpoint == "apikey"  # what is refused for good is left unknown
    except errors.ClearSkyError as error:
        search_all(error)
        hidden(str(error).replace("(key)", ""))
    else:
        assert endpoint == "apikey"


@pytest.mark.usefixtures("fake_time")
def test_an_unreachable_service(serve) -> None:
    server = serve(api_key=KEY)
    options = access(server)
    ds = xr.open_dataset(FARM, engine="clearsky", time=DAY, **options)
    server.close()
    with pytest.raises(errors.ClearSkyError) as caught:
        ds.load()
    search_all(caught.value)
    with pytest.raises(errors.ServiceUnavailableError) as caught:
        # A port that nothing listens on, and that this process has not spoken to.
        clearsky_xr.resolve(FARM, SPRING, base_url="http://127.0.0.1:9", api_key=KEY)
    search_all(caught.value)


@pytest.mark.usefixtures("fake_time")
def test_a_host_without_a_valid_name() -> None:
    with pytest.raises(errors.ServiceUnavailableError) as caught:
        clearsky_xr.resolve(FARM, SPRING, base_url="https://nowhere.invalid", api_key=KEY)
    search_all(caught.value)


def test_a_key_that_the_service_refuses(server: Server) -> None:
    with pytest.raises(errors.CredentialsError) as caught:
        clearsky_xr.open_timeseries(FARM, SPRING, base_url=server.url, api_key=KEY)
    search_all(caught.value)
    # The two calls go out together: the second one may still be on its way.
    assert 401 in {entry.status for entry in server.ledger()}


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": f"{KEY}\nsecond line"},
        {"api_key": f"'{KEY} '".replace("-", " -")},
        {"api_key": KEY.encode()},
        {"api_key": f"{KEY}\u201d"},
        {"api_key": KEY, "base_url": "http://example.org"},
        {"api_key": KEY, "base_url": 7},
        {"api_key": KEY, "concurrency": 0},
        {"base_url": f"https://{KEY}@example.org"},
        {"base_url": f"https://user:{KEY}@example.org"},
        {"base_url": f"https://example.org?key={KEY}"},
        {"base_url": f"https://example.org#{KEY}"},
        {"base_url": f"https://[{KEY}"},
        {"base_url": KEY, "api_key": "https://example.org"},  # the two taken for each other
    ],
    ids=range(13),
)
def test_a_key_in_the_wrong_place_or_shape(options: dict[str, object]) -> None:
    with pytest.raises((errors.InputError, errors.CredentialsError)) as caught:
        clearsky_xr.open_timeseries(FARM, SPRING, **options)
    search_all(caught.value)


def test_a_broken_key_in_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARSKY_API_KEY", f"{KEY} and more")
    with pytest.raises(errors.CredentialsError) as caught:
        clearsky_xr.open_timeseries(FARM, SPRING, base_url=server.url)
    search_all(caught.value)
    assert not server.ledger()


def test_wrong_options_beside_a_key(canary: Server) -> None:
    for wrong in ({"bands": "B99"}, {"resolution": 7}, {"crs": 4326}, {"pixels": "all"}):
        with pytest.raises(errors.InputError) as caught:
            clearsky_xr.open_timeseries(FARM, SPRING, **access(canary), **wrong)
        search_all(caught.value)
    assert not canary.ledger()


def test_a_proxy_of_the_environment_is_not_used(
    serve, canary: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = serve()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, other.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    xr.open_dataset(FARM, engine="clearsky", time=DAY, **access(canary)).load()
    assert len(paid(canary)) == 1
    assert other.ledger() == []


def test_cancelled_readers(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARSKY_API_KEY", KEY)
    server = serve(api_key=KEY, latency=0.3)
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, base_url=server.url)

    async def impatient() -> None:
        async with asyncio.timeout(0.1):
            await ds.load_async()

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(impatient())
    search_all(caught.value)
