"""Stores that are not folders: object storage through fsspec, memory, and zarr's own stores."""

from __future__ import annotations

import http.client
import logging
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle
import dask.base
import fsspec
import moto.settings
import numpy as np
import platformdirs
import pytest
import xarray as xr
import zarr
from moto.core.authorization import ActionAuthenticatorMixin
from moto.server import ThreadedMotoServer
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.errors import ClearSkyWarning
from clearsky_xr.sandbox import Fault, Server

from .conftest import FARM, access
from .test_store_plain import DATES, HALVES, Bought, forget, lazy, served, tree

SECRET = "CANARY-53a8c1f0-violet"
KEY_ID = "AKIACANARY77"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start an S3 server of our own on this machine."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROFILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
            patch.delenv(f"AWS_{name}", raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield f"http://{host}:{port}"
        hang_up()
    server.stop()


@pytest.fixture(scope="module")
def shop() -> Iterator[Server]:
    with clearsky_xr.sandbox.serve(compression="none") as server:
        yield server


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return served(HALVES, DATES[:3])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep out of the user's caches; gives the folder that stands for them."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


def hang_up() -> None:
    """End the process also for fsspec: close its connections and forget its file systems."""
    forget()
    kind = fsspec.get_filesystem_class("s3")
    for files in list(kind._cache.values()):
        creator = getattr(files, "_s3creator", None)
        if creator is None:
            continue
        # Where it lives: the loop of zarr, or that of fsspec.
        if files.asynchronous:
            sync(creator.__aexit__(None, None, None))
        else:
            fsspec.asyn.sync(files.loop, creator.__aexit__, None, None, None)
    kind.clear_instance_cache()


@pytest.fixture(autouse=True)
def other_processes() -> Iterator[None]:
    """Let each test begin in a process of its own, as far as stores can tell."""
    yield
    forget()


def options_for(endpoint: str, secret: str = SECRET) -> dict[str, Any]:
    return {
        "key": KEY_ID,
        "secret": secret,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
    }


@pytest.fixture
def options(endpoint: str) -> dict[str, Any]:
    return options_for(endpoint)


def make_bucket(endpoint: str, name: str) -> str:
    """Make a bucket, not through fsspec, which would know it before the library; gives its URL."""
    with closing(http.client.HTTPConnection(endpoint.removeprefix("http://"))) as link:
        link.request("PUT", f"/{name}")
        assert link.getresponse().status == 200
    return f"s3://{name}"


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> str:
    name = "".join(c for c in request.node.name.lower() if c.isalnum())
    return make_bucket(endpoint, f"b{name[-50:]}")


@pytest.fixture(scope="module")
def kept(endpoint: str, shop: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fill a store with the first of two dates; gives its URL."""
    url = f"{make_bucket(endpoint, 'kept')}/fields.zarr"
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(platformdirs, "user_cache_path", lambda _: cache)
        ds = lazy(shop, url, time=DATES[:2], storage_options=options_for(endpoint))
        ds.isel(time=0).load()
        forget()
    return url


def test_fill_resume_append_and_read_plainly(
    shop: Server, bucket: str, options: dict[str, Any], truth: xr.DataArray, elsewhere: Path
) -> None:
    url = f"{bucket}/some/fields.zarr"
    remote = {"store": url, "area": HALVES, "storage_options": options, "mask_and_scale": False}
    since = Bought(shop)
    first = lazy(shop, time=DATES[1:3], chunks={}, **remote)
    np.testing.assert_array_equal(
        first.reflectance.isel(y=slice(0, 9)).values,
        truth.isel(time=[1, 2], y=slice(0, 9)).values,
    )
    assert len(since.downloads) == 2
    # Two more halves, and a date that is older.
    hang_up()
    more = lazy(shop, time=("2025-04-01", DATES[2]), **remote)
    np.testing.assert_array_equal(more.reflectance.values, truth.values)
    assert len(since.downloads) == 5
    km2 = truth.sizes["y"] * truth.sizes["x"] / 10_000
    assert sum(entry.area_km2 for entry in since.downloads) == pytest.approx(3 * km2, rel=0.04)

    forget()
    read = Bought(shop)
    ds = lazy(shop, time=DATES[:3][::-1], indices="ndvi", **remote)
    np.testing.assert_array_equal(ds.reflectance.values, truth.values)
    assert ds.clearsky.fetched().values.all()
    assert read.downloads == []
    calls = Bought(shop)
    offline = clearsky_xr.open_store(url, storage_options=options, mask_and_scale=False)
    np.testing.assert_array_equal(offline.reflectance.values, truth.values)
    table = offline.clearsky.receipts()
    assert table["credits"].sum() == pytest.approx(since.credits)
    assert (table.image_date == table.time.dt.strftime("%Y%m%d")).all()
    assert calls.all == []

    plain = xr.open_zarr(url, storage_options=options, mask_and_scale=False)
    order = [DATES[1], DATES[2], DATES[0]]
    assert plain.time.values.tolist() == np.array(order, "datetime64[ns]").tolist()
    np.testing.assert_array_equal(plain.sortby("time").reflectance.values, truth.values)
    assert plain.rio.crs.to_epsg() == 32633
    separate = xr.open_zarr(url, storage_options=options, consolidated=False)
    assert separate.reflectance.shape == plain.reflectance.shape
    # What this machine has to remember of it lies in one folder, without any answer by now.
    assert len(list(elsewhere.rglob("lock"))) == 1
    assert list(elsewhere.rglob("*.tif")) == []
    assert list(elsewhere.rglob("*.json")) == []


class GoneError(OSError):
    """A network that is not there any more."""


def cut(monkeypatch: pytest.MonkeyPatch, *, after: int, of: str) -> None:
    """Let writes to object storage fail after some of them whose key has a word in it."""
    real, done = FsspecStore.set, [0]

    async def put(self: FsspecStore, key: str, *args: Any, **kwargs: Any) -> None:
        done[0] += of in key
        if done[0] > after:
            raise GoneError("connection lost")
        await real(self, key, *args, **kwargs)

    monkeypatch.setattr(FsspecStore, "set", put)


def test_a_network_that_ends_in_the_middle_of_a_fill(
    shop: Server, kept: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
) -> None:  # fmt: skip
    remote = {"store": kept, "storage_options": options, "time": DATES[2:4]}
    ds = lazy(shop, concurrency=1, **remote)
    since = Bought(shop)
    with monkeypatch.context() as broken:
        cut(broken, after=1, of="reflectance/c/")
        with pytest.warns(ClearSkyWarning, match=r"cannot be written.*connection lost"):
            values = ds.reflectance.values
    assert len(since.downloads) == 2
    # What the store does not have lies here, and is put in by the next process.
    assert len(list(elsewhere.rglob("*.tif"))) == 1
    forget()
    plain = xr.open_zarr(kept, storage_options=options).sel(time=DATES[2:4])
    assert plain.reflectance.notnull().any(["band", "y", "x"]).values.sum() == 1
    again = lazy(shop, **remote)
    assert list(elsewhere.rglob("*.tif")) == []
    assert again.clearsky.fetched().values.all()
    np.testing.assert_array_equal(again.reflectance.values, values)
    assert len(since.downloads) == 2


def test_a_network_that_ends_while_the_store_is_made(
    shop: Server, bucket: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/fields.zarr"
    remote = {"store": url, "storage_options": options, "time": DATES[:1]}
    since = Bought(shop)
    with monkeypatch.context() as broken:
        cut(broken, after=7, of="")
        with pytest.raises(errors.StoreError, match="connection lost") as caught:
            lazy(shop, **remote)
        assert url in str(caught.value)
    assert since.downloads == []
    forget()
    lazy(shop, **remote).load()
    assert len(since.downloads) == 1


def test_another_program_fills_the_same_store(
    shop: Server, kept: str, options: dict[str, Any]
) -> None:
    """fsspec remembers what a folder holds: a process must not live by old listings."""
    ds = lazy(shop, kept, time=DATES[:2], storage_options=options)
    since = Bought(shop)
    values = ds.reflectance.isel(time=0).values
    assert ds.clearsky.fetched().values.tolist() == [[True], [False]]
    other = fsspec.filesystem("s3", **options)
    target = f"{kept}/reflectance/c/1/0/0/0"
    other.pipe_file(target, other.cat_file(f"{kept}/reflectance/c/0/0/0/0"))
    try:
        assert ds.clearsky.fetched().values.tolist() == [[True], [True]]
        np.testing.assert_array_equal(ds.reflectance.isel(time=1).values, values)
    finally:
        other.rm_file(target)
    assert since.downloads == []


# ---- secrets


def hidden(*things: object) -> None:
    for thing in things:
        blob = thing if isinstance(thing, bytes) else str(thing).encode()
        for secret in (SECRET, KEY_ID):
            assert secret.encode() not in blob, f"a secret is visible in {blob[:300]!r}"


def told(error: BaseException) -> list[str]:
    """Give all that an exception says, with those behind it and their traceback."""
    texts = ["".join(traceback.format_exception(error))]
    one: BaseException | None = error
    while one is not None:
        texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        one = one.__cause__ or one.__context__
    return texts


@pytest.fixture
def whispers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Listen to logs and warnings of all that is ours, or that we call, but for S3's own."""
    for name in ("clearsky_xr", "asyncio", "fsspec", "zarr", "xarray", "dask"):
        caplog.set_level(logging.DEBUG, name)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    hidden(*(warning.message for warning in heard))
    hidden(*(record.getMessage() for record in caplog.records))


@pytest.mark.usefixtures("whispers")
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_secrets_are_in_nothing_that_is_shown(
    shop: Server, kept: str, options: dict[str, Any], chunks: object
) -> None:
    how = {"storage_options": options, "indices": "ndvi", "chunks": chunks}
    for ds in (lazy(shop, kept, time=DATES[:1], **how), clearsky_xr.open_store(kept, **how)):
        hidden(repr(ds), ds._repr_html_(), repr(ds.attrs), repr(ds.encoding))
        for variable in ds.variables.values():
            hidden(repr(variable), repr(variable.attrs), repr(variable.encoding))
            hidden(repr(variable._data))
        for thing in (ds, ds.reflectance, ds.ndvi.mean()) if chunks == {} else ():
            graph = thing.__dask_graph__()
            hidden(repr(graph), repr(dict(graph)), repr(list(graph)), thing.__dask_keys__())
        if chunks == {}:
            hidden(ds.reflectance.data.name, ds.reflectance.data._repr_html_())
        hidden(repr(ds.isel(time=0).load()), repr(ds.clearsky), repr(ds.clearsky.receipts()))


def test_secrets_are_neither_in_the_store_nor_beside_it(
    serve: Callable[..., Server], kept: str, options: dict[str, Any], elsewhere: Path
) -> None:
    server = serve(faults=[Fault.half_pixel()])
    with pytest.raises(errors.GridMismatchError) as caught:
        lazy(server, kept, time=DATES[:2], storage_options=options).load()
    hidden(*told(caught.value))
    assert elsewhere in Path(caught.value.details["kept"]).parents
    here = list(elsewhere.rglob("*"))
    assert len(here) >= 5
    for path in here:
        hidden(str(path), path.read_bytes() if path.is_file() else b"")
    files = fsspec.filesystem("s3", **options)
    contents = files.cat(files.find(kept))
    assert len(contents) > 20
    hidden(*contents, *contents.values())


def test_names_of_chunks_and_tokens_do_not_depend_on_secrets(
    shop: Server, kept: str, endpoint: str
) -> None:
    """A name that is a digest of secrets among other things tells two of them apart."""

    def names(secret: str) -> list[str]:
        forget()
        how = {"storage_options": options_for(endpoint, secret)}
        ds = clearsky_xr.open_timeseries(FARM, DATES[:1], store=kept, **access(shop), **how)
        offline = clearsky_xr.open_store(kept, **how)
        chunks = [thing.reflectance.data.name for thing in (ds, offline)]
        return [*chunks, dask.base.tokenize(ds), dask.base.tokenize(offline)]

    assert names(SECRET) == names("something-else")


def test_what_a_pickle_holds(shop: Server, kept: str, options: dict[str, Any]) -> None:
    """As with zarr's own stores, a pickle carries the options: a worker needs them."""
    for chunks in (None, {}):
        ds = lazy(shop, kept, time=DATES[:1], storage_options=options, chunks=chunks)
        for library in (pickle, cloudpickle):
            blob = library.dumps(ds)
            assert SECRET.encode() in blob
            assert SECRET.encode() in library.dumps(FsspecStore.from_url(kept, options))
            assert shop.api_key.encode() not in blob
    since = Bought(shop)
    forget()
    again = pickle.loads(blob)
    np.testing.assert_array_equal(again.reflectance.values, ds.reflectance.values)
    assert since.downloads == []


def test_errors_name_the_store_and_no_secret(shop: Server, options: dict[str, Any]) -> None:
    since = Bought(shop)
    wrong = {**options, "config_kwargs": {"no_such_option": SECRET}}
    for url, how in (
        ("s3://no-such-bucket/fields.zarr", options),
        # The options themselves are wrong, or fsspec does not know the protocol.
        ("s3://no-such-bucket/fields.zarr", wrong),
        ("nonsense://bucket/fields.zarr", {"key": KEY_ID, "secret": SECRET}),
    ):
        for call in (
            lambda url=url, how=how: lazy(shop, url, time=DATES[:1], storage_options=how),
            lambda url=url, how=how: clearsky_xr.open_store(url, storage_options=how),
        ):
            with pytest.raises(errors.StoreError) as caught:
                call()
            assert url in str(caught.value)
            hidden(*told(caught.value))
    assert since.downloads == []


def test_credentials_that_the_service_of_the_store_refuses(
    shop: Server, kept: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = Bought(shop)
    # From now on the server looks at credentials, and knows none of ours.
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    new = kept.replace("fields", "new")
    how = {"storage_options": options_for(endpoint)}
    for url, call in (
        (kept, lambda: lazy(shop, kept, time=DATES[:1], **how)),
        (kept, lambda: clearsky_xr.open_store(kept, **how)),
        (new, lambda: lazy(shop, new, time=DATES[:1], **how)),
    ):
        with pytest.raises(errors.StoreError, match=r"Forbidden|Access|Permission") as caught:
            call()
        assert url in str(caught.value)
        hidden(*told(caught.value))
    assert since.downloads == []


def test_credentials_that_end_while_a_dataset_is_open(
    shop: Server, kept: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is bought for a store that does not say what it has."""
    ds = lazy(shop, kept, time=DATES[:2], storage_options=options)
    since = Bought(shop)
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    for read in (ds.isel(time=1).load, ds.clearsky.fetched, ds.clearsky.receipts):
        with pytest.raises(errors.StoreError) as caught:
            read()
        assert kept in str(caught.value)
        hidden(*told(caught.value))
    assert since.downloads == []


def test_secrets_in_the_url(shop: Server) -> None:
    for url in (f"s3://{KEY_ID}:{SECRET}@bucket/fields.zarr", f"s3://{SECRET}@bucket/x.zarr"):
        with pytest.raises(errors.InvalidOptionError, match="user name or password") as caught:
            lazy(shop, url, time=DATES[:1])
        assert "storage_options" in caught.value.hint
        hidden(*told(caught.value))


def test_options_that_do_not_fit(shop: Server, tmp_path: Path) -> None:
    since = Bought(shop)
    for store, options, said in (
        (tmp_path / "a.zarr", {"key": SECRET}, "local path"),
        (f"file://{tmp_path}/a.zarr", {"key": SECRET}, "local path"),
        (MemoryStore(), {"key": SECRET}, "takes no storage_options"),
        (None, {"key": SECRET}, "not given"),
        ("memory://x", SECRET, "mapping"),
        (7, None, "must be a path"),
        ("", None, "must be a path"),
    ):
        with pytest.raises(errors.InvalidOptionError, match=said) as caught:
            lazy(shop, store, time=DATES[:1], storage_options=options)
        hidden(*told(caught.value)[1:])
    assert since.all == []
    assert list(tmp_path.rglob("*.zarr*")) == []


def test_the_same_url_in_two_places(
    shop: Server, bucket: str, kept: str, options: dict[str, Any]
) -> None:
    """Where a URL leads may be said by the options alone, such as an S3 server's address."""

    def at(place: str) -> dict[str, Any]:
        target = {"target_protocol": "s3", "target_options": {**options, "asynchronous": True}}
        return {"path": place.removeprefix("s3://"), **target}

    url = "dir://fields.zarr"
    there = clearsky_xr.open_store(url, storage_options=at(kept.removesuffix("/fields.zarr")))
    assert there.sizes["time"] >= 2
    with pytest.raises(errors.StoreError, match="there is no store"):
        clearsky_xr.open_store(url, storage_options=at(bucket))


# ---- memory, and stores of zarr's own


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the URL of a place in fsspec's memory, which is one for the whole process."""
    name = "".join(c for c in request.node.name if c.isalnum())
    yield f"memory://{name}/fields.zarr"
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)
    files.clear_instance_cache()


def test_a_url_of_memory(shop: Server, memory: str) -> None:
    since = Bought(shop)
    ds = lazy(shop, memory, chunks={})
    ds.isel(time=slice(0, 2)).load()
    forget()
    values = lazy(shop, memory).load().reflectance.values
    assert len(since.downloads) == 4
    plain = xr.open_zarr(memory)
    np.testing.assert_allclose(plain.reflectance.values, values, rtol=1e-6)
    forget()
    again = Bought(shop)
    np.testing.assert_array_equal(clearsky_xr.open_store(memory).reflectance.values, values)
    np.testing.assert_array_equal(lazy(shop, memory).reflectance.values, values)
    assert again.downloads == []
    # It is not there in other processes.
    for library in (pickle, cloudpickle):
        with pytest.raises(pickle.PicklingError, match=r"memory.*cannot be shared"):
            library.dumps(ds)


@pytest.mark.parametrize("kind", ["memory", "local", "fsspec"])
def test_a_store_of_zarr(shop: Server, tmp_path: Path, kind: str, memory: str) -> None:
    store = {
        "memory": MemoryStore,
        "local": lambda: LocalStore(tmp_path / "fields.zarr"),
        "fsspec": lambda: FsspecStore.from_url(memory),
    }[kind]()
    since = Bought(shop)
    ds = lazy(shop, store, chunks={})
    ds.isel(time=[2]).load()
    forget()
    values = lazy(shop, store).load().reflectance.values
    assert len(since.downloads) == 4
    again = Bought(shop)
    np.testing.assert_array_equal(lazy(shop, store, chunks={}).reflectance.values, values)
    forget()
    offline = clearsky_xr.open_store(store)
    np.testing.assert_array_equal(offline.reflectance.values, values)
    assert offline.clearsky.fetched().values.all()
    assert len(offline.clearsky.receipts()) == 4
    assert again.downloads == []
    plain = xr.open_zarr(store)
    np.testing.assert_allclose(plain.reflectance.values, values, rtol=1e-6)
    assert zarr.open_group(store, mode="r")["reflectance"].shape == (4, 10, 112, 79)
    if kind == "local":
        # The same as its path.
        by_path = lazy(shop, tmp_path / "fields.zarr")
        np.testing.assert_array_equal(by_path.reflectance.values, values)
        assert again.downloads == []


def test_a_store_in_memory_leaves_one_temporary_folder(shop: Server, tmp_path: Path) -> None:
    store = MemoryStore()
    for _ in range(3):
        lazy(shop, store, time=DATES[:1]).load()
    assert len(list((tmp_path / "temporary").iterdir())) <= 1


def test_two_stores_in_memory_are_two(shop: Server) -> None:
    one, two = MemoryStore(), MemoryStore()
    lazy(shop, one, time=DATES[:1]).load()
    since = Bought(shop)
    lazy(shop, two, time=DATES[:1]).load()
    assert len(since.downloads) == 1


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_read_only_store(shop: Server, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fields.zarr"
    writable = MemoryStore() if kind == "memory" else LocalStore(path)
    lazy(shop, writable).isel(time=[0, 1]).load()
    forget()
    before = tree(path)
    store = writable.with_read_only(read_only=True)
    since = Bought(shop)
    there = lazy(shop, store).isel(time=[0, 1]).load()
    np.testing.assert_array_equal(
        clearsky_xr.open_store(store).reflectance.isel(time=[0, 1]).values,
        there.reflectance.values,
    )
    assert since.downloads == []
    # What is bought cannot be put in: it is given, and said.
    ds = lazy(shop, store)
    with pytest.warns(ClearSkyWarning, match=r"cannot be written.*read.only"):
        values = ds.reflectance.isel(time=2).values
    assert np.isfinite(values).any()
    assert len(since.downloads) == 1
    # And is not bought again in this process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClearSkyWarning)
        np.testing.assert_array_equal(lazy(shop, store).reflectance.isel(time=2).values, values)
    assert len(since.downloads) == 1
    assert tree(path) == before
    # The next process may write: it puts the paid pixels in.
    forget()
    if kind == "local":
        after = lazy(shop, path)
        np.testing.assert_array_equal(after.reflectance.isel(time=2).values, values)
        assert len(since.downloads) == 1


def test_new_dates_for_a_read_only_store(shop: Server, tmp_path: Path) -> None:
    writable = MemoryStore()
    lazy(shop, writable, time=DATES[:1])
    forget()
    since = Bought(shop)
    with pytest.raises(errors.StoreError, match="dates cannot be added") as caught:
        lazy(shop, writable.with_read_only(read_only=True), time=DATES[:2])
    assert "writable" in caught.value.hint
    assert since.downloads == []


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_new_store_where_nothing_can_be_written(shop: Server, tmp_path: Path, kind: str) -> None:
    since = Bought(shop)
    path = tmp_path / "new.zarr"
    store = MemoryStore(read_only=True) if kind == "memory" else LocalStore(path, read_only=True)
    with pytest.raises(errors.StoreError, match=r"cannot be made"):
        lazy(shop, store, time=DATES[:1])
    assert since.downloads == []
    assert not path.exists()


def test_a_read_only_view_does_not_bind_the_path(shop: Server, tmp_path: Path) -> None:
    """Who opens a store read-only first has not closed it for those who may write."""
    path = tmp_path / "fields.zarr"
    lazy(shop, path, time=DATES[:1])
    forget()
    clearsky_xr.open_store(LocalStore(path, read_only=True), missing="nan").load()
    lazy(shop, path, time=DATES[:2]).load()
    assert xr.open_zarr(path).reflectance.notnull().any(["band", "y", "x"]).values.all()


def test_a_file_url_is_a_path(shop: Server, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    since = Bought(shop)
    url = (folder / "fields.zarr").as_uri()
    assert "%20" in url
    lazy(shop, url, time=DATES[:1]).load()
    lazy(shop, folder / "fields.zarr", time=DATES[:1]).load()
    assert len(since.downloads) == 1
    assert {path.name for path in folder.iterdir()} == {"fields.zarr", "fields.zarr.clearsky"}
