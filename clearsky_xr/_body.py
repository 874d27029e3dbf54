"""The body of an answer: no larger than it may be, and whole as far as its bytes can tell."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ._answers import clean, unexpected

# First bytes of a TIFF, in both byte orders, classic and Big.
TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Bytes of a value by its TIFF type; unknown types count as one.
_SIZES: Final = {2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8,
                 18: 8}  # fmt: skip
# Tags that hold where the strips or tiles lie, and of which size they are.
_PLACES: Final = {273: 279, 324: 325}


class Body:
    """Puts a body together.

    Compression was not asked for, but servers and what stands before them do as they like. It is
    undone here rather than by the HTTP library, where a few bytes may swell without bound.

    Parameters
    ----------
    path : str
        What was asked for.
    headers : mapping of str to str
        Of the answer.
    cap : int
        Bytes after which it is not read further.

    Raises
    ------
    Failed
        It is compressed in a way that is not known.
    """

    def __init__(self, path: str, headers: Mapping[str, str], cap: int) -> None:
        self._path, self._cap = path, cap
        # Joined once: each other way copies a large body twice.
        self._parts: list[bytes] = []
        self._size = 0
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise unexpected(f"{path} answered in the encoding {clean(encoding)!r}, unasked")
        gzipped = encoding != "identity"
        self._zip = zlib.decompressobj(zlib.MAX_WBITS | 32) if gzipped else None
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._framed = chunked or "Content-Length" in headers

    def add(self, part: bytes) -> None:
        """Take the next bytes.

        Raises
        ------
        zlib.error
            They are damaged.
        Failed
            They are too many.
        """
        room = self._cap + 1 - self._size
        self._parts.append(part if self._zip is None else self._zip.decompress(part, room))
        self._size += len(self._parts[-1])
        if self._size > self._cap:
            raise unexpected(
                f"{self._path} answered more than the {self._cap:,} bytes that its answer can need"
            )

    @property
    def content(self) -> bytes:
        """What has come."""
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing.

        HTTP itself tells where a body has a length or comes in chunks. One that merely ends with
        the connection must end its compression, or hold all that its TIFF speaks of.
        """
        if self._zip is not None:
            return self._zip.eof
        return self._framed or not self.content.startswith(TIFF) or holds_all(self.content)


def holds_all(content: bytes) -> bool:
    """Say whether a file goes as far as the tables of its TIFF say.

    Parameters
    ----------
    content : bytes
        Begins like a TIFF.
    """
    try:
        return all(end <= len(content) for end in _ends(content))
    except (struct.error, OverflowError):
        return False  # a table is cut off itself


def _ends(content: bytes) -> Iterator[int]:
    """Yield where each part that is spoken of ends, directory by directory."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    word, count_of, width = ("Q", "Q", 20) if big else ("I", "H", 12)
    size = struct.calcsize(word)

    def number(form: str, place: int) -> int:
        return int(struct.unpack_from(order + form, content, place)[0])

    place = number(word, 8 if big else 4)
    seen: set[int] = set()
    while place and place not in seen:
        seen.add(place)
        values: dict[int, tuple[str, int, int]] = {}
        count = number(count_of, place)
        first = place + struct.calcsize(count_of)
        yield first + count * width + size
        for entry in range(first, first + count * width, width):
            tag, kind, length = number("H", entry), number("H", entry + 2), number(word, entry + 4)
            bytes_each = _SIZES.get(kind, 1)
            inside = bytes_each * length <= size
            start = entry + 4 + size if inside else number(word, entry + 4 + size)
            yield start + (size if inside else bytes_each * length)
            form = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if form is not None:
                values[tag] = (form, length, start)
        for tag, sizes in _PLACES.items():
            if tag in values and sizes in values:
                yield from map(sum, zip(*(_listed(values[t], number) for t in (tag, sizes)),
                                        strict=False))  # fmt: skip
        place = number(word, first + count * width)


def _listed(value: tuple[str, int, int], number: Callable[[str, int], int]) -> Iterator[int]:
    form, length, start = value
    step = struct.calcsize(form)
    return (number(form, start + k * step) for k in range(length))
