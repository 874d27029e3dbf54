"""The command ``clearsky-xr``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from clearsky_xr.cli import main

from .conftest import FARM, SPRING, access, credits_of

PATIENCE = 60.0


def test_help_names_the_commands_and_their_options() -> None:
    top = CliRunner().invoke(main, ["--help"])
    assert top.exit_code == 0
    assert re.search(r"^  demo +Load", top.output, re.MULTILINE)
    assert re.search(r"^  sandbox +Run", top.output, re.MULTILINE)
    for name, command in main.commands.items():
        told = CliRunner().invoke(main, [name, "--help"])
        assert told.exit_code == 0
        for parameter in command.params:
            option = parameter.opts[0]
            written = option if option.startswith("-") else option.upper()
            assert getattr(parameter, "hidden", False) or written in told.output
    told = CliRunner().invoke(main, ["sandbox", "--help"]).output
    for option in ("--port", "--latency", "--scenes", "--billing"):
        assert option in told
    assert "/sandbox/ledger" in told


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.split()[-1] == importlib.metadata.version("clearsky-xr")


def test_the_command_is_installed() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="clearsky-xr")
    assert entry.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "many"],
        ["--scenes", "no such folder"],
        ["--billing", "weight"],
        ["--latency", "-1x"],
        ["--max-connections", "0"],
        ["--host", "256.0.0.1"],
        ["extra"],
    ],
    ids=lambda a: a[0],
)
def test_wrong_options_end_with_a_message(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["sandbox", *arguments])
    assert result.exit_code in (1, 2)
    assert "Error: " in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


class Sandbox:
    """``clearsky-xr sandbox`` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        # A shell that runs the tests in the background has interrupts ignored.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from clearsky_xr.cli import main; main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "sandbox", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.told: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line.strip())
            if "Ctrl-C" in line:
                return
        pytest.fail(self.process.communicate()[1])

    def exported(self, name: str) -> str:
        """Give the value that the user is told to export."""
        (line,) = [line for line in self.told if line.startswith(f"export {name}=")]
        return line.partition("=")[2]

    @property
    def url(self) -> str:
        return self.exported("CLEARSKY_BASE_URL")

    @property
    def api_key(self) -> str:
        return self.exported("CLEARSKY_API_KEY")

    def ledger(self) -> dict[str, Any]:
        # Its address as it was printed.
        (address,) = [line.split()[-1] for line in self.told if line.startswith("Ledger at")]
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:  # noqa: S310  http
            assert answer.headers["Content-Type"].startswith("application/json")
            found: dict[str, Any] = json.load(answer)
            return found

    def interrupt(self) -> tuple[str, str, int]:
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=PATIENCE)
        return out, err, self.process.returncode


@pytest.fixture
def sandbox() -> Iterator[Any]:
    started: list[Sandbox] = []

    def start(*arguments: str) -> Sandbox:
        started.append(Sandbox(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_sandbox_in_a_process_of_its_own(sandbox, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sandbox("--port", "0", "--max-connections", "2", "--max-bands", "11")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", process.url)
    assert process.told[0] == f"Sandbox (synthetic) at {process.url}"
    assert process.ledger() == {"requests": 0, "downloads": 0, "credits": 0, "entries": []}

    # As the printed lines say.
    monkeypatch.setenv("CLEARSKY_BASE_URL", process.url)
    monkeypatch.setenv("CLEARSKY_API_KEY", process.api_key)
    ds = xr.open_dataset(FARM, engine="clearsky", time=SPRING, indices="ndvi").load()

    # The same pixels and the same price as from a sandbox in this process.
    here = serve()
    mine = xr.open_dataset(
        FARM, engine="clearsky", time=SPRING, indices="ndvi", **access(here)
    ).load()
    np.testing.assert_array_equal(ds.reflectance, mine.reflectance)
    ledger = process.ledger()
    assert ledger["requests"] == 6  # the account, the date search, four images
    assert ledger["downloads"] == 4
    assert ledger["credits"] == pytest.approx(credits_of(here))
    entries = [entry for entry in ledger["entries"] if entry["endpoint"] == "composite"]
    assert sorted(entry["date"] for entry in entries) == [str(t)[:10] for t in ds.time.values]
    assert {(entry["status"], entry["epsg"], entry["resolution"]) for entry in entries} == {
        (200, 32633, 10)
    }
    assert max(entry["in_flight"] for entry in entries) <= 2
    assert process.api_key not in json.dumps(ledger)

    out, err, code = process.interrupt()
    assert (code, err) == (0, "")
    assert out.strip() == "6 requests served."


def test_options_reach_the_sandbox(sandbox, scenes: Path) -> None:
    process = sandbox("--scenes", str(scenes), "--api-key", "chosen", "--max-bands", "12")
    assert process.api_key == "chosen"
    assert process.told[0].startswith("Sandbox (scenes) at")
    request = urllib.request.Request(  # noqa: S310  http
        f"{process.url}/api/account/info", headers={"x-api-key": "chosen"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        assert json.load(answer)["Data"]["MaxTotalBands"] == 12


def test_a_port_in_use_is_told(sandbox) -> None:
    port = sandbox("--port", "0").url.rpartition(":")[2]
    result = CliRunner().invoke(main, ["sandbox", "--port", port])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "in use" in result.output
