"""What a fault does to an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ._raster import Image


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer this instead, without looking at the request.

    Parameters
    ----------
    status : int
        HTTP status; 0 resets the connection without an answer.
    body : bytes
        Body as it goes out.
    content_type : str
        Its type.
    headers : mapping of str to str
        More headers, e.g. ``Retry-After``.
    code : int or None
        ``Error.Code`` of the body, for the ledger.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Tamper:
    """Change the raster before it is written. The download is charged.

    Parameters
    ----------
    change : callable
        Gives the changed one.
    """

    change: Callable[[Image], Image]


@dataclass(frozen=True, slots=True)
class Garble:
    """Change the bytes of a successful answer. The download is charged.

    Parameters
    ----------
    change : callable
        Gives the changed one.
    """

    change: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Deliver a successful answer badly.

    Parameters
    ----------
    before : float
        Seconds of silence before the first byte.
    after_bytes : int or None
        Bytes of the body after which `stall` and `cut` take place.
    stall : float
        Seconds of silence then.
    cut : bool
        Whether the connection is then closed without the rest; the declared
        ``Content-Length`` stays that of the whole body. With `after_bytes` None it is
        reset before the first byte of the answer.
    bandwidth : float or None
        Bytes per second instead of the server's own.
    chunked : bool
        Send without ``Content-Length``, in chunks; a cut then ends without the last.
    until_close : bool
        Send without any length, as servers of old do: the body ends with the connection.
    gzip : bool
        Compress the body, whether that was asked for or not.
    endless : bool
        Go on with zeros after the body, in chunks, until the client leaves.
    charged : bool
        Whether the download is charged although it is never complete.
    """

    before: float = 0.0
    after_bytes: int | None = None
    stall: float = 0.0
    cut: bool = False
    bandwidth: float | None = None
    chunked: bool = False
    until_close: bool = False
    gzip: bool = False
    endless: bool = False
    charged: bool = True


@dataclass(frozen=True, slots=True)
class Together:
    """Several effects on one answer: rasters are changed first, then bytes, then the delivery.

    Parameters
    ----------
    effects : tuple of Tamper, Garble or Delivery
        In the order in which those of a kind are applied; at most one `Delivery`.

    Raises
    ------
    ValueError
        There is an `Answer` among them, which replaces all else, or two deliveries.
    """

    effects: tuple[Tamper | Garble | Delivery, ...]

    def __post_init__(self) -> None:
        if any(isinstance(effect, Answer | Together) for effect in self.effects):
            raise ValueError("an Answer replaces the whole answer and goes together with nothing")
        if sum(isinstance(effect, Delivery) for effect in self.effects) > 1:
            raise ValueError("an answer is delivered once: give one Delivery with all its options")


Effect = Answer | Tamper | Garble | Delivery | Together


def parts(effect: Effect | None) -> tuple[Answer | Tamper | Garble | Delivery, ...]:
    """Give the single effects."""
    if effect is None:
        return ()
    return effect.effects if isinstance(effect, Together) else (effect,)
