"""Where the service is and where its key comes from; the key itself is nowhere to be seen."""

import copy
import pickle
import socket
import subprocess
import sys

import pytest

from clearsky_xr import _settings
from clearsky_xr._settings import SERVICE, KeyReference, Settings, resolve_settings
from clearsky_xr.errors import CredentialsError, InvalidOptionError

CANARY = "canary-7f3a-do-not-leak"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("CLEARSKY_API_KEY", raising=False)
    monkeypatch.delenv("CLEARSKY_BASE_URL", raising=False)
    monkeypatch.setattr(_settings, "_given", {})


@pytest.fixture(autouse=True)
def no_name_look_up(monkeypatch):
    def refuse(*args, **_):
        raise AssertionError(f"looked up {args[0]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "gethostbyname", refuse)


def resolve(*, api_key=CANARY, base_url=None, concurrency=None, on_lost="retry"):
    return resolve_settings(
        api_key=api_key, base_url=base_url, concurrency=concurrency, on_lost=on_lost
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.clearsky.vision", "https://api.clearsky.vision"),
        ("https://api.clearsky.vision/", "https://api.clearsky.vision"),
        ("HTTPS://API.ClearSky.Vision", "https://api.clearsky.vision"),
        (" https://example.org:8443 ", "https://example.org:8443"),
        ("https://example.org/gateway/clearsky/", "https://example.org/gateway/clearsky"),
        ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://LOCALHOST", "http://localhost"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.8.9.1", "http://127.8.9.1"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("sandbox", "sandbox"),
        (" Sandbox ", "sandbox"),
    ],
)
def test_usable_urls(url, expected):
    assert resolve(base_url=url).base_url == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://api.clearsky.vision", "clear text"),
        ("http://10.0.0.1", "clear text"),
        ("http://0.0.0.0:80", "clear text"),
        ("http://169.254.1.1", "clear text"),
        ("http://localhost.example.org", "clear text"),
        ("http://127.0.0.1.example.org", "clear text"),
        ("http://128.0.0.1", "clear text"),
        ("http://127.1", "clear text"),
        ("http://[::2]", "clear text"),
        ("https://user@example.org", "user name"),
        ("https://user:word@example.org", "user name"),
        ("https://:word@example.org", "user name"),
        ("https://@example.org", "user name"),
        ("http://localhost@example.org", "user name"),
        ("https://api.clearsky.vision\\@example.org", "user name"),
        ("ftp://user:word@example.org", "user name"),
        ("https://example.org?x=1", "query"),
        ("https://example.org/#part", "fragment"),
        ("ftp://example.org", "http(s)"),
        ("file:///etc/passwd", "http(s)"),
        ("javascript:alert(1)", "http(s)"),
        ("example.org", "http(s)"),
        ("//example.org", "http(s)"),
        ("https://", "http(s)"),
        ("https://:443", "http(s)"),
        ("https:///path", "http(s)"),
        ("https://example.org:99999", "URL"),
        ("https://example.org:port", "URL"),
        ("https://[::1", "URL"),
        ("https://exam ple.org", "URL"),
        ("https://exam\nple.org", "URL"),
        ("https://example.org/a\tb", "URL"),
        (b"https://example.org", "text"),
        (443, "text"),
    ],
)
def test_unusable_urls_are_refused_before_any_look_up(url, words):
    with pytest.raises(InvalidOptionError) as caught:
        resolve(base_url=url)
    assert words in str(caught.value)
    assert "word@" not in str(caught.value)


def test_the_url_comes_from_the_argument_then_the_environment_then_the_service(monkeypatch):
    assert resolve().base_url == SERVICE == "https://api.clearsky.vision"
    monkeypatch.setenv("CLEARSKY_BASE_URL", " https://example.org/ ")
    assert resolve().base_url == "https://example.org"
    assert resolve(base_url="sandbox").base_url == "sandbox"
    monkeypatch.setenv("CLEARSKY_BASE_URL", "http://example.org")
    with pytest.raises(InvalidOptionError, match="clear text"):
        resolve()
    monkeypatch.setenv("CLEARSKY_BASE_URL", "  ")
    assert resolve().base_url == SERVICE


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, 4.0])
def test_bad_concurrency(value):
    with pytest.raises(InvalidOptionError, match="concurrency"):
        resolve(concurrency=value)


def test_concurrency_and_on_lost():
    assert resolve(concurrency=2).concurrency == 2
    assert resolve().concurrency is None
    assert resolve(on_lost="raise").on_lost == "raise"
    for value in ("ignore", None, True):
        with pytest.raises(InvalidOptionError, match="on_lost"):
            resolve(on_lost=value)


def shown(value):
    """Everything that could give a value away."""
    return "".join(
        [
            repr(value),
            str(value),
            f"{value}",
            repr(copy.deepcopy(value)),
            *(pickle.dumps(value, protocol).decode("latin-1") for protocol in range(6)),
        ]
    )


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_key_is_in_no_settings(monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("CLEARSKY_API_KEY", CANARY)
    settings = resolve(api_key=CANARY if how == "argument" else None)
    for value in (settings, settings.key, [settings], {"settings": settings}):
        assert CANARY not in shown(value)
        assert CANARY[:12] not in shown(value)
    assert settings.key.resolve() == CANARY
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert pickle.loads(pickle.dumps(settings)).key.resolve() == CANARY


def test_the_name_of_a_key_says_nothing_about_it(monkeypatch):
    one, same, other = (resolve(api_key=key).key.name for key in ("abc", " abc\n", "abd"))
    assert one == same != other
    assert one.startswith("given:")
    monkeypatch.setattr(_settings, "_SALT", b"another process")
    assert resolve(api_key="abc").key.name != one


def test_the_environment_is_read_when_the_key_is_needed(monkeypatch):
    key = resolve(api_key=None).key
    assert key == KeyReference("env:CLEARSKY_API_KEY")
    monkeypatch.setenv("CLEARSKY_API_KEY", f"  {CANARY} ")
    assert key.resolve() == CANARY
    monkeypatch.setenv("CLEARSKY_API_KEY", "another")
    assert key.resolve() == "another"


def test_other_variables_can_be_named(monkeypatch):
    monkeypatch.setenv("MY_KEY", CANARY)
    assert KeyReference("env:MY_KEY").resolve() == CANARY


def test_without_a_key_the_error_says_where_to_get_one_and_how_to_do_without():
    with pytest.raises(CredentialsError) as caught:
        resolve(api_key=None).key.resolve()
    for words in ("CLEARSKY_API_KEY", "https://clearsky.vision", 'base_url="sandbox"', "api_key"):
        assert words in caught.value.hint


def test_a_given_key_in_a_process_that_was_not_given_it(monkeypatch):
    reference = resolve().key
    monkeypatch.setattr(_settings, "_given", {})  # as in a worker that unpickles the settings
    with pytest.raises(CredentialsError, match="was not given the API key") as caught:
        reference.resolve()
    assert "CLEARSKY_API_KEY" in caught.value.hint
    assert CANARY not in shown(caught.value)
    monkeypatch.setenv("CLEARSKY_API_KEY", "of-the-worker")
    assert reference.resolve() == "of-the-worker"


def test_settings_travel_to_another_process_without_the_key():
    program = (
        "import pickle, sys; settings = pickle.load(sys.stdin.buffer)\n"
        "try: print(settings.key.resolve())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(resolve()),
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"CredentialsError")
    assert CANARY.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "key",
    ["", "  ", "two words", f"{CANARY}\nX-Evil: 1", f"{CANARY}\r\n\r\nGET /", f"{CANARY}\x00",
     f"{CANARY}é", 5, b"bytes", ["list"]],
)  # fmt: skip
def test_what_cannot_be_a_header_is_no_key_and_is_not_shown(monkeypatch, key):
    with pytest.raises(CredentialsError) as caught:
        resolve(api_key=key)
    assert "canary" not in shown(caught.value)
    assert caught.value.__cause__ is None
    if isinstance(key, str) and key.strip() and "\x00" not in key:
        monkeypatch.setenv("CLEARSKY_API_KEY", key)
        with pytest.raises(CredentialsError) as caught:
            resolve(api_key=None).key.resolve()
        assert "canary" not in shown(caught.value)


def test_settings_are_values():
    assert resolve() == resolve()
    assert hash(resolve()) == hash(resolve())
    with pytest.raises(AttributeError):
        resolve().base_url = "http://example.org"
    assert isinstance(resolve(), Settings)
