"""Where the service is, how its key is found, and how to talk to it.

The key itself never lives in a settings object, so that neither a repr nor a
pickle nor a Dask graph can hold it: they carry the *name* of the place where the
process that needs it finds it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import operator
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from ._budget import Purse, checked_limit
from ._location import Location, resolve_location
from .errors import CredentialsError, InvalidOptionError

OnLost = Literal["retry", "raise"]
#: What to do about pixels that a store does not have.
Missing = Literal["buy", "raise", "nan"]

#: The service's address (contract, section 1).
SERVICE: Final = "https://api.clearsky.vision"
#: Stands for the emulator that runs inside the process.
SANDBOX: Final = "sandbox"

KEY_VARIABLE: Final = "CLEARSKY_API_KEY"
URL_VARIABLE: Final = "CLEARSKY_BASE_URL"

_NO_KEY: Final = (
    f"Pass api_key=... or set the environment variable {KEY_VARIABLE}. A key comes with an account "
    'at https://clearsky.vision. To try everything without key and money, pass base_url="sandbox". '
    "Workers of a Dask cluster get it by clearsky_xr.cluster.setup(client)."
)

# Keys that were passed as arguments, by the name that settings carry. The names
# are salted, so that they say nothing about the key outside this process.
_given: dict[str, str] = {}
# Keys out of the environment of another process of a cluster.
_lent: dict[str, str] = {}
_SALT: Final = secrets.token_bytes(16)


@dataclass(frozen=True, slots=True)
class KeyReference:
    """The name of the place where the API key is.

    Parameters
    ----------
    name : str
        ``"env:VARIABLE"``, or ``"given:..."`` for a key that was passed as an
        argument. In a process that was not given it, the latter falls back to
        the environment.
    """

    name: str

    def resolve(self) -> str:
        """Give the key.

        Raises
        ------
        CredentialsError
            This process has no key.
        """
        if key := _given.get(self.name):
            return key
        variable = self.name.removeprefix("env:") if self.name.startswith("env:") else KEY_VARIABLE
        if key := os.environ.get(variable, "").strip():
            return _checked(key)
        if key := _lent.get(self.name):
            return key
        if self.name.startswith("given:"):
            raise CredentialsError(
                f"this process (pid {os.getpid()}) was not given the API key: keys do not travel "
                "in pickles",
                hint="On a Dask cluster call clearsky_xr.cluster.setup(client, api_key=...), or "
                f"set {KEY_VARIABLE} in the environment of the workers.",
            )
        raise CredentialsError(
            f"there is no API key in this process (pid {os.getpid()})", hint=_NO_KEY
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the service; holds no secret.

    Parameters
    ----------
    base_url : str
        Origin of the service, or ``"sandbox"``.
    key : KeyReference
    concurrency : int or None
        Most requests of this cube in flight; None leaves it to the account.
    on_lost : {"retry", "raise"}
        What to do when a download was sent and its answer was lost.
    store : Location or None
        Where paid pixels are kept.
    missing : {"buy", "raise", "nan"}
        What to do about pixels that the store does not have.
    purse : Purse or None
        What may be spent.
    """

    base_url: str
    key: KeyReference
    concurrency: int | None = None
    on_lost: OnLost = "retry"
    store: Location | None = None
    missing: Missing = "buy"
    purse: Purse | None = None


def resolve_settings(
    *,
    api_key: str | None,
    base_url: str | None,
    concurrency: int | None = None,
    on_lost: OnLost = "retry",
    store: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    max_credits: float | None = None,
) -> Settings:
    """Check the options that say how to reach the service.

    Raises
    ------
    InvalidOptionError
        A URL that would expose the key, or an unusable value.
    """
    most = checked_concurrency(concurrency)
    if on_lost not in ("retry", "raise"):
        raise InvalidOptionError(
            f"on_lost={on_lost!r} is unknown",
            hint='"retry" repeats a lost download within a small allowance, "raise" never.',
        )
    url = base_url or os.environ.get(URL_VARIABLE, "").strip() or SERVICE
    where = resolve_location(store, storage_options)
    purse = None if max_credits is None else Purse(secrets.token_hex(8), checked_limit(max_credits))
    return Settings(_checked_url(url), _reference(api_key), most, on_lost, where, purse=purse)


def checked_concurrency(concurrency: Any) -> int | None:
    """Check the ``concurrency`` option.

    Raises
    ------
    InvalidOptionError
        It is no whole number above 0.
    """
    try:
        # operator.index takes numpy's integers as well, and no fractions.
        usable = concurrency is None or (
            not isinstance(concurrency, bool) and operator.index(concurrency) >= 1
        )
    except TypeError:
        usable = False
    if not usable:
        raise InvalidOptionError(
            f"concurrency={concurrency!r} is not a whole number above 0",
            hint="It lowers the account's MaxConcurrentConnections; leave it out to use them all.",
        )
    return None if concurrency is None else operator.index(concurrency)


def keys_to_share(api_key: str | None) -> dict[str, str]:
    """Give the key that other processes of a cluster need, by the names that settings carry.

    Empty if there is none here. What is given is secret.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip() if api_key is None else api_key
    if not key:
        return {}
    return dict.fromkeys((_reference(key).name, f"env:{KEY_VARIABLE}"), _checked(key))


def take_keys(keys: Mapping[str, str]) -> None:
    """Take keys that another process has shared."""
    for name, key in keys.items():
        # The environment of a process comes before what others have in theirs.
        (_lent if name.startswith("env:") else _given)[name] = key


def offline(location: Location, missing: Missing) -> Settings:
    """Give settings under which a store is read and nothing is sent anywhere."""
    return Settings("", KeyReference(f"env:{KEY_VARIABLE}"), store=location, missing=missing)


def _reference(api_key: Any) -> KeyReference:
    if api_key is None:
        return KeyReference(f"env:{KEY_VARIABLE}")
    key = _checked(api_key)
    name = f"given:{hashlib.blake2b(key.encode(), key=_SALT, digest_size=8).hexdigest()}"
    _given[name] = key
    return KeyReference(name)


def _checked(key: Any) -> str:
    """Refuse what cannot be a header value, without showing it."""
    if not isinstance(key, str) or not re.fullmatch(r"[\x21-\x7e]+", key.strip()):
        raise CredentialsError(
            "the API key is not one line of printable characters",
            hint="Was it copied whole, without quotes or line breaks?",
        )
    return key.strip()


def _checked_url(url: Any) -> str:
    """Check an origin before anything is looked up: the key will be sent there."""
    if not isinstance(url, str):
        raise InvalidOptionError(f"base_url must be text, got {type(url).__name__}")
    if url.strip().lower() == SANDBOX:
        return SANDBOX
    text = url.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", text):  # urlsplit would drop line breaks silently
        raise InvalidOptionError("base_url is not a URL")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidOptionError("base_url is not a URL") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidOptionError(
            "base_url holds a user name or password", hint="The key goes into api_key alone."
        )
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidOptionError(
            "base_url is not an http(s) URL", hint=f'Give {SERVICE!r} or "sandbox".'
        )
    if parts.query or parts.fragment:
        raise InvalidOptionError("base_url holds a query or a fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise InvalidOptionError(
            f"base_url={parts.scheme}://{parts.hostname} would send the API key in clear text",
            hint="Use https://; plain http:// is for this machine only.",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
