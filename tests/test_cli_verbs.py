"""The verbs of ``clearsky-xr``: what they print, what they buy, and how they end."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import geopandas
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result

import clearsky_xr
from clearsky_xr import errors
from clearsky_xr.cli import _buy, _end, main
from clearsky_xr.sandbox import Fault, Hole, Order, Server

from .conftest import FARM, credits_of, paid

AREA = ",".join(map(str, FARM))
WEST = "-1.5,50.7,-1.49,50.706"
APRIL = "2025-04-01/2025-04-20"  # four images
DAYS = ["2025-04-01", "2025-04-06", "2025-04-11", "2025-04-16"]
Run = Callable[..., Result]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command against a sandbox, as a shell would that has the key in its environment."""
    return runner(server, monkeypatch, tmp_path)


def runner(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    monkeypatch.setenv("CLEARSKY_BASE_URL", server.url)
    monkeypatch.setenv("CLEARSKY_API_KEY", server.api_key)
    monkeypatch.chdir(folder)

    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        assert server.api_key not in result.output
        assert "Traceback" not in result.output
        return result

    return call


def told(result: Result) -> Any:
    """Read JSON, which is alone on standard output."""
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_account(run: Run) -> None:
    status = told(run("account", "--json"))
    assert (status["connections"], status["credits"], status["sandbox"]) == (
        4, 100_000, "synthetic",
    )  # fmt: skip
    assert "nothing here is real" in run("account").stdout


def test_models(run: Run) -> None:
    table = told(run("models", "--json"))
    assert [row["model"] for row in table] == ["Stratus2", "Stratus2Fast", "Stratus3"]
    assert table[1] == {
        "model": "Stratus2Fast", "required": ["Sentinel1", "Sentinel2"], "optional": ["Landsat89"],
    }  # fmt: skip
    assert "Stratus2Fast  Sentinel1, Sentinel2" in run("models").stdout


@pytest.mark.parametrize("area", [AREA, WEST, f" {WEST.replace(',', ', ')}"])
def test_dates(run: Run, server: Server, area: str) -> None:
    rows = told(run("dates", area, "--time", APRIL, "--json"))
    assert [row["date"] for row in rows] == DAYS
    assert {row["whole"] for row in rows} == {True}
    lines = run("dates", "--time", APRIL, area).stdout.splitlines()
    assert [line.split()[0] for line in lines] == DAYS
    assert server.downloads() == []


def test_dates_of_a_part(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    west, south, east, north = FARM
    half = shapely.box(west, south, (west + east) / 2, north)
    day = dt.date(2025, 4, 6)
    server = serve(holes=[Hole("pending", half.wkt, start=day, end=day)])
    run = runner(server, monkeypatch, tmp_path)
    lines = run("dates", AREA, "--time", APRIL).stdout.splitlines()
    (part,) = [line for line in lines if "sub-area" in line]
    assert part.startswith("2025-04-06")
    assert len(lines) == 4
    whole = run("dates", AREA, "--time", APRIL, "--whole").stdout.splitlines()
    assert [line.split()[0] for line in whole] == [DAYS[0], *DAYS[2:]]


def test_no_dates(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = Order(shapely.box(0, 0, 1, 1).wkt)
    run = runner(serve(orders=[elsewhere]), monkeypatch, tmp_path)
    result = run("dates", AREA, "--time", APRIL)
    assert result.stdout == ""
    assert "is there an order" in result.stderr
    assert told(run("dates", AREA, "--time", APRIL, "--json")) == []
    assert "there is no image" in run("estimate", AREA, "--time", APRIL, code=4).stderr


def test_available(run: Run) -> None:
    assert run("available", WEST, "2025-04-06").stdout == "It can be downloaded.\n"
    assert "rhythm" in run("available", WEST, "2025-04-07", code=4).stdout
    answer = told(run("available", AREA, "2025-04-07", "--json", code=4))
    assert (answer["ready"], answer["kind"]) == (False, "off_cadence")
    assert answer["orders_cover_polygon"] is True
    assert "one day" in run("available", AREA, "2025-04", code=2).stderr


AREAS = {
    "geojson": lambda box, path: box.to_file(path),
    "gpkg": lambda box, path: box.to_file(path),
    "wkt": lambda box, _: str(box.geometry[0].wkt),
    "text": lambda box, _: shapely.to_geojson(box.geometry[0]),
}


@pytest.mark.parametrize("kind", AREAS)
def test_areas_of_all_forms(run: Run, tmp_path: Path, kind: str) -> None:
    box = geopandas.GeoDataFrame(geometry=[shapely.box(*FARM)], crs=4326)
    if kind == "gpkg":
        box = box.to_crs(32633)
    area = AREAS[kind](box, tmp_path / f"area.{kind}") or f"area.{kind}"
    plain = told(run("estimate", AREA, "--time", APRIL, "--json"))
    assert told(run("estimate", area, "--time", APRIL, "--json"))["credits"] == plain["credits"]


def test_estimate_is_what_a_download_costs(run: Run, server: Server, tmp_path: Path) -> None:
    price = told(run("estimate", WEST, "--time", APRIL, "--json"))
    assert price["dates"] == DAYS
    assert price["downloads"] == 4
    assert price["credits"] == price["credits_of_service"]
    assert price["sandbox"] is True
    assert server.downloads() == []
    assert f"{price['credits']:.2f} credits" in run("estimate", WEST, "--time", APRIL).stdout
    # With a store that is not there, none is made.
    stored = told(run("estimate", WEST, "--time", APRIL, "--store", "a.zarr", "--json"))
    assert list(tmp_path.iterdir()) == []

    done = told(run("download", WEST, "--time", APRIL, "--geotiff", "out", "--yes", "--json"))
    assert done["credits"] == credits_of(server) == price["credits"]
    assert done["downloads"] == len(paid(server)) == 4
    assert done["files"] == [f"out/{day}.tif" for day in DAYS]
    run("download", WEST, "--time", APRIL, "--store", "a.zarr", "--yes")
    assert credits_of(server) == pytest.approx(price["credits"] + stored["credits"])


def test_download_into_a_store_goes_on(run: Run, server: Server) -> None:
    first = run("download", AREA, "--time", "2025-04-01/2025-04-10", "--store", "a.zarr", "--yes")
    assert first.stderr == ""  # quiet in a pipe
    assert first.stdout.startswith("a.zarr: 2 dates, 2 downloads, ")
    assert "(of a sandbox)" in first.stdout
    left = told(run("estimate", AREA, "--time", APRIL, "--store", "a.zarr", "--json"))
    assert left["downloads"] == 2
    run("download", AREA, "--time", APRIL, "--store", "a.zarr", "--yes")
    assert len(paid(server)) == 4
    # All of it is there: nothing is asked.
    again = run("download", AREA, "--time", APRIL, "--store", "a.zarr", "--geotiff", "out")
    assert "0 downloads, 0.00 credits" in again.stdout
    assert len(paid(server)) == 4
    assert sorted(path.name for path in Path("out").glob("*.tif")) == [f"{d}.tif" for d in DAYS]


def test_download_of_geotiffs_goes_on(run: Run, server: Server) -> None:
    options = ["--geotiff", "out", "--indices", "ndvi,mine=B8/B5", "--bands", "none", "--stac"]
    run("download", AREA, "--time", "2025-04-06", *options, "--yes")
    run("download", AREA, "--time", APRIL, *options, "--yes")
    assert [str(entry.date) for entry in paid(server)].count("2025-04-06") == 1
    assert len(paid(server)) == 4
    with rasterio.open(f"out/{DAYS[3]}.tif") as file:
        assert file.descriptions == ("ndvi", "mine")
    assert len(json.loads(Path("out/collection.json").read_text())["links"]) == 5
    other = run("download", AREA, "--time", APRIL, "--geotiff", "out", "--yes", code=2)
    assert "not the image" in other.stderr
    assert len(paid(server)) == 4


def test_nothing_is_bought_that_was_not_agreed_to(run: Run, server: Server, tmp_path: Path) -> None:
    for options in (["--store", "a.zarr"], ["--geotiff", "out"]):
        result = run("download", AREA, "--time", APRIL, *options, code=_end.DECLINED)
        assert "--yes agrees" in result.stderr
        assert "credits" in result.stderr
        limit = ["--yes", "--max-credits", "0.2"]
        result = run("download", AREA, "--time", APRIL, *options, *limit, code=_end.DECLINED)
        assert "more than --max-credits 0.2" in result.stderr
    assert server.downloads() == []
    assert list(tmp_path.iterdir()) == []
    # 0.14 km2: downloads of 0.01 credits that are reserved with 0.02.
    corner = "POLYGON ((15.05 46.05, 15.054 46.05, 15.05 46.054, 15.05 46.05))"
    price = told(run("estimate", corner, "--time", APRIL, "--json"))["credits"]
    exactly = ["--yes", "--max-credits", str(price)]
    run("download", corner, "--time", APRIL, "--geotiff", "out", *exactly)
    assert credits_of(server) == price == 0.04


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_a_no_buys_nothing(
    run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(_buy, "_somebody_is_there", lambda: True)
    command = ["download", AREA, "--time", APRIL, "--store", "a.zarr"]
    result = CliRunner().invoke(main, command, input=answer)
    assert result.exit_code == _end.DECLINED
    assert "Buy it for 0.36 credits? [y/N]" in result.stderr
    assert server.downloads() == []
    assert list(tmp_path.iterdir()) == []


def test_who_sits_at_a_terminal_is_asked_and_sees_a_bar(server: Server, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text(f"{server.api_key}\n")
    leader, follower = pty.openpty()
    termios.tcsetwinsize(leader, (24, 100))
    command = ["download", AREA, "--time", APRIL, "--store", "a.zarr", "--key-file", "key.txt"]
    process = subprocess.Popen(
        [sys.executable, "-m", "clearsky_xr", *command, "--base-url", server.url],
        stdin=follower, stdout=subprocess.PIPE, stderr=follower, cwd=tmp_path,
    )  # fmt: skip
    os.close(follower)
    os.write(leader, b"y\n")
    out, _ = process.communicate(timeout=60)
    seen = b""
    with suppress(OSError):  # once the other end is closed
        while chunk := os.read(leader, 10_000):
            seen += chunk
    os.close(leader)
    assert process.returncode == 0
    assert b"Buy it for 0.36 credits? [y/N]" in seen
    assert b"SYNTHETIC" in seen
    assert b"4/4" in seen  # the bar
    assert out.strip().startswith(b"a.zarr: 4 dates, 4 downloads, 0.36 credits")
    assert len(paid(server)) == 4


WRONG = {
    "three numbers": ["dates", "1,2,3", "--time", "2025"],
    "three numbers, west": ["dates", "-1,2,3", "--time", "2025"],
    "no numbers": ["dates", "1,e,3,4", "--time", "2025"],
    "no file": ["dates", "no.geojson", "--time", "2025"],
    "broken text": ["dates", "POLYGON((0 0, 1", "--time", "2025"],
    "no vector file": ["dates", "a.gpkg", "--time", "2025"],
    "upside down": ["dates", "1,3,2,2", "--time", "2025"],
    "no time": ["dates", AREA],
    "no such month": ["dates", AREA, "--time", "2025-13"],
    "no such option": ["dates", AREA, "--time", "2025", "--tmie", "1"],
    "no such verb": ["date"],
    "a key": ["dates", AREA, "--time", "2025", "--api-key", "secret"],
    "no key file": ["account", "--key-file", "no.txt"],
    "no url": ["account", "--base-url", "ftp://x"],
    "no such band": ["estimate", AREA, "--time", APRIL, "--bands", "B99"],
    "no such index": ["estimate", AREA, "--time", APRIL, "--indices", "nope,mine=B8/B5"],
    "no pair": ["estimate", AREA, "--time", APRIL, "--indices", "mine=B8"],
    "no layers": ["estimate", AREA, "--time", APRIL, "--bands", "none"],
    "no resolution": ["estimate", AREA, "--time", APRIL, "--resolution", "15"],
    "no place": ["download", AREA, "--time", APRIL],
    "stac of what": ["download", AREA, "--time", APRIL, "--store", "a.zarr", "--stac"],
    "a file for a folder": ["download", AREA, "--time", APRIL, "--geotiff", "a.gpkg", "--yes"],
    "no parent": ["download", AREA, "--time", APRIL, "--geotiff", "no/such", "--yes"],
    "no connections": [
        "download", AREA, "--time", APRIL, "--store", "a.zarr", "--concurrency", "0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_and_nothing_is_bought(run: Run, server: Server, name: str) -> None:
    Path("a.gpkg").write_text("nothing")
    result = run(*WRONG[name], code=_end.WRONG)
    assert "Error: " in result.stderr
    assert result.stdout == ""
    assert "secret" not in result.output
    assert "api_key=" not in result.stderr
    assert "__geo_interface__" not in result.stderr
    assert server.downloads() == []


def test_keys(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "refuse" in runner_with(monkeypatch, "wrong", run).stderr
    monkeypatch.delenv("CLEARSKY_API_KEY")
    result = run("account", code=_end.KEY)
    assert "CLEARSKY_API_KEY, or give --key-file" in result.stderr
    Path("key").write_text(f"\ufeff{server.api_key}\r\n", encoding="utf-8")
    run("account", "--key-file", "key")
    for content in (b"", b"two words", b"\xff\xfe\x00"):
        Path("key").write_bytes(content)
        result = run("account", "--key-file", "key", code=_end.KEY)
        assert "does not hold one key" in result.stderr


def runner_with(monkeypatch: pytest.MonkeyPatch, key: str, run: Run) -> Result:
    monkeypatch.setenv("CLEARSKY_API_KEY", key)
    return run("account", code=_end.KEY)


FAULTS = {
    "not ordered": (Fault.status(400, code=1006, times=None), _end.REFUSED),
    "no credits": (Fault.status(400, code=994, times=None), _end.REFUSED),
    "busy": (Fault.status(503, times=None), _end.AGAIN),
    "lost": (Fault.lost(times=None), _end.AGAIN),
    "another image": (Fault.half_pixel(times=None), _end.STRANGE),
    "revoked": (Fault.status(403, times=None), _end.KEY),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_failure_has_its_code(
    serve, fake_time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    fault, code = FAULTS[name]
    run = runner(serve(faults=[fault]), monkeypatch, tmp_path)
    options = ["--geotiff", "out", "--yes", "--on-lost", "raise"]
    result = run("download", AREA, "--time", DAYS[0], *options, code=code)
    assert "2025-04-01" in result.stderr
    assert ("may have been spent" in result.stderr) is (name in ("busy", "lost"))
    assert ("was paid for" in result.stderr) is (name == "another image")
    assert list(Path("out").glob("*.tif")) == []


def test_a_full_disk_has_its_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clearsky_xr._export.write", write)
    result = run("download", AREA, "--time", APRIL, "--geotiff", "out", "--yes", code=_end.PLACE)
    assert "No space left" in result.stderr


def test_an_interrupt_has_its_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clearsky_xr._export.write", write)
    code = _end.INTERRUPTED
    result = run("download", AREA, "--time", APRIL, "--geotiff", "out", "--yes", code=code)
    assert "the same command goes on" in result.stderr


def test_a_mistake_of_ours_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def account(**options: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(clearsky_xr, "account", account)
    assert "unexpected RuntimeError: boom" in run("account", code=_end.FAILED).stderr
    shown = CliRunner().invoke(main, ["--traceback", "account"])
    assert isinstance(shown.exception, RuntimeError)


def test_every_error_has_a_code_that_the_help_tells() -> None:
    def below(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(each for sub in kind.__subclasses__() for each in below(sub))]

    codes = {kind.__name__: _end._said(kind("x"))[1] for kind in below(errors.ClearSkyError)}
    assert {name for name, code in codes.items() if code == _end.FAILED} == {
        "ClearSkyError", "PlanIncomplete",
    }  # fmt: skip
    assert codes["StoreMismatchError"] == _end.WRONG
    assert codes["NotBoughtError"] == _end.PLACE
    for code in {0, *codes.values(), _end.INTERRUPTED}:
        assert f" {code}  " in _end.CODES


def test_a_lost_download_is_a_warning_of_one_line(
    serve, fake_time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = runner(serve(faults=[Fault.lost()]), monkeypatch, tmp_path)
    result = run("download", AREA, "--time", DAYS[0], "--geotiff", "out", "--yes")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Warning: the answer for 2025-04-01")
    assert "and possibly 0.09 for lost downloads" in result.stdout


def test_info(run: Run, server: Server) -> None:
    run("download", AREA, "--time", "2025-04-01/2025-04-10", "--store", "a.zarr", "--yes")
    asked = len(server.ledger())
    clearsky_xr.open_timeseries(
        FARM, APRIL, store="a.zarr", base_url=server.url, api_key=server.api_key
    )
    asked = len(server.ledger())
    found = told(run("info", "a.zarr", "--json"))
    assert found["dates"] == DAYS
    assert found["complete_dates"] == DAYS[:2]
    assert (found["blocks"], found["blocks_bought"], found["sandbox"]) == (4, 2, True)
    assert found["bytes"] > 10_000
    assert "2 of 4 bought" in run("info", "a.zarr").stdout
    receipts = told(run("info", "a.zarr", "--receipts", "--json"))
    assert sum(row["credits"] for row in receipts) == pytest.approx(credits_of(server))
    assert "image_version" in run("info", "a.zarr", "--receipts").stdout
    assert len(server.ledger()) == asked  # offline
    for place in ("no.zarr", "."):
        assert "Error: " in run("info", place, code=_end.PLACE).stderr


def test_the_embedded_sandbox_needs_neither_key_nor_server() -> None:
    result = CliRunner().invoke(main, ["account", "--base-url", "sandbox", "--json"])
    assert result.exit_code == 0
    assert told(result)["sandbox"] == "synthetic"
