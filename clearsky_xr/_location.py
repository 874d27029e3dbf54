"""Where a store is: a folder, a URL, or a zarr store object."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from .errors import InvalidOptionError

_CREDENTIAL: Final = re.compile(
    "key|secret|token|pass|cred|user|anon|sas|connection", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, eq=False)
class Location:
    """Where a store is.

    Parameters
    ----------
    target : str or zarr.abc.store.Store
        An absolute path, a URL, or a store object.
    options : mapping, optional
        ``storage_options`` of fsspec; never shown, since they may hold secrets.

    Attributes
    ----------
    folder : pathlib.Path or None
        The folder of a store on a local disk; None for others.
    """

    target: Any
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    folder: Path | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            folder = None if "://" in self.target else Path(self.target)
        else:
            root = getattr(self.target, "root", None)
            folder = _real(root) if isinstance(root, Path) else None
        # Once: whether a block is there is asked for each block of each date.
        object.__setattr__(self, "folder", folder)

    @property
    def name(self) -> str:
        """What is shown."""
        return str(self.folder or self.target)

    @property
    def place(self) -> str:
        """What tells places apart: the name, and where the options lead; without credentials."""
        options = _addresses(self.options or {})
        return json.dumps([self.name, options], sort_keys=True, default=repr)

    @property
    def read_only(self) -> bool:
        """Whether it is a store object that refuses to be written."""
        return bool(getattr(self.target, "read_only", False))

    @property
    def digest(self) -> str:
        """A short name for folders that belong to the store."""
        return hashlib.sha256(self.place.encode()).hexdigest()[:16]

    @property
    def in_memory(self) -> bool:
        """Whether the store ends with the process."""
        return self.name.startswith("memory://")

    def __deepcopy__(self, memo: Any) -> Location:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.in_memory:
            raise pickle.PicklingError(
                f"a store in memory ({self.name}) cannot be shared with other processes: use a "
                "folder or a URL"
            )
        return Location, (self.target, self.options)

    def __dask_tokenize__(self) -> Hashable:
        return ("clearsky_xr.Location", self.digest)


def resolve_location(store: Any, storage_options: Any) -> Location | None:
    """Check the ``store`` option.

    Raises
    ------
    InvalidOptionError
        It is no path, URL or store, or a URL that shows a password.
    """
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise InvalidOptionError("storage_options must be a mapping")
    if store is None:
        if storage_options is not None:
            raise InvalidOptionError("storage_options belong to store=, which is not given")
        return None
    if any(base.__module__ == "zarr.abc.store" for base in type(store).__mro__):
        if storage_options is not None:
            raise InvalidOptionError("a zarr store object takes no storage_options")
        return Location(store)
    return _written(store, storage_options)


def _written(store: Any, storage_options: Mapping[str, Any] | None) -> Location:
    """Read a path or a URL."""
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise InvalidOptionError(
            f"store= must be a path, a URL or a zarr store, got {type(store).__name__}",
            hint='Examples: store="fields.zarr", store="s3://bucket/fields.zarr".',
        )
    text = os.fspath(store)
    if not isinstance(text, str):
        raise InvalidOptionError("store= is not a path of text")
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "file":
        text, separator = unquote(rest.removeprefix("localhost")), ""
    if "\0" in text or (separator and not _is_url(text)):
        raise InvalidOptionError("store= is neither a path nor a URL")
    if re.search("://[^/]*@", text):
        raise InvalidOptionError(
            "the URL of store= holds a user name or password",
            hint="Put them into storage_options, or into the environment.",
        )
    if not separator:
        if storage_options is not None:
            raise InvalidOptionError("a local path takes no storage_options")
        try:
            return Location(str(_real(Path(text).expanduser())))
        except RuntimeError:
            raise InvalidOptionError(f"store={text!r} names a home that is not there") from None
    return Location(text.rstrip("/"), dict(storage_options) if storage_options else None)


def _addresses(options: Any) -> Any:
    """Leave out of options what may be a credential, or may change without leading elsewhere."""
    if isinstance(options, Mapping):
        return {
            str(name): _addresses(value)
            for name, value in options.items()
            if not _CREDENTIAL.search(str(name))
        }
    return (
        options if isinstance(options, str | int | float | bool | None) else type(options).__name__
    )


def _real(path: Path) -> Path:
    """Name a folder by its one name, whichever links lead to it."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # it is not there yet, or its last link leads nowhere
        path = Path(os.path.normpath(path.absolute()))
        return Path(os.path.realpath(path.parent)) / path.name


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text.rpartition("::")[2])  # fsspec chains several
    except ValueError:
        return False
    return bool(parts.scheme and text.partition("://")[2].strip("/"))
