"""Wrong calls: what is asked for is refused before anything is sent."""

from __future__ import annotations

import datetime as dt
import inspect
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import clearsky_xr
from clearsky_xr import errors

from .. import test_area, test_dates
from .bench import DAY, FARM, KEY, Bench
from .board import row


def certificate(folder: Path) -> Path:
    """Make a certificate that nobody has signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    return path


class Listener:
    """Accepts connections, and keeps whatever it is told on them; behind TLS or not."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self.port = self._door.getsockname()[1]
        self.connections = 0
        self.told = b""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection = self._door.accept()[0]
            except OSError:
                return
            self.connections += 1
            with suppress(OSError), connection:
                connection.settimeout(5)
                if self._context is not None:
                    with self._context.wrap_socket(connection, server_side=True) as secure:
                        self.told += secure.recv(2**16)
                else:
                    self.told += connection.recv(2**16)

    def close(self) -> None:
        """Listen no more."""
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()


@row(
    25,
    "`http://` or user-info in the URL, bad TLS",
    "refused before any name look-up; no switch to disable TLS checks",
)
def addresses(bench: Bench) -> dict[str, Any]:
    pauses = bench.fake_pauses()
    looked_up = []
    genuine = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        looked_up.append(host)
        return genuine(host, *arguments, **options)

    bench.patch.setattr(socket, "getaddrinfo", look_up)
    wrong = [
        "http://example.org", "http://api.clearsky.vision", "http://127.0.0.1.example.org",
        "http://localhost.example.org", "http://0177.0.0.1", "http://[::ffff:127.0.0.1%25x]",
        "https://user@example.org", f"https://user:{KEY}@example.org", "https://:@example.org",
        "http://127.0.0.1@example.org", "https://example.org?a=b", "https://example.org#a",
        "ftp://example.org", "file:///etc/passwd", "//example.org", "example.org", "https://",
        "https://example.org:99999", "https://exa mple.org", "https://example.org\r\nX: y", 7,
    ]  # fmt: skip
    for url in wrong:
        with bench.raises(errors.InvalidOptionError, "base_url", spent="no"):
            clearsky_xr.open_timeseries(FARM, DAY, base_url=url, api_key=KEY)
    assert looked_up == []

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(bench.folder))
    # What switches checks off elsewhere does not do so here.
    for name, value in (
        ("PYTHONHTTPSVERIFY", "0"), ("CURL_CA_BUNDLE", ""), ("REQUESTS_CA_BUNDLE", ""),
        ("SSL_VERIFY", "0"), ("AIOHTTP_NO_SSL", "1"), ("CLEARSKY_VERIFY", "0"),
    ):  # fmt: skip
        bench.patch.setenv(name, value)
    for listener in (Listener(context), Listener(None)):
        with bench.raises(errors.ServiceUnavailableError, "cannot connect", spent="no"):
            clearsky_xr.open_timeseries(
                FARM, DAY, base_url=f"https://localhost:{listener.port}", api_key=KEY
            )
        listener.close()
        assert listener.connections
        assert KEY.encode() not in listener.told
    for door in (clearsky_xr.open_timeseries, clearsky_xr.resolve, clearsky_xr.dates):
        names = inspect.signature(door).parameters
        assert not [n for n in names if any(w in n for w in ("ssl", "tls", "verify", "insecure"))]
    (bench.folder / "server.pem").unlink()
    return {"addresses refused": len(wrong), "names looked up": 0, "pauses": len(pauses)}


@row(
    26,
    "area: self-intersecting, empty, NaN, zero area, a line, outside ±180/±90, swapped lon/lat, "
    "antimeridian, poles",
    "`InvalidAreaError` with a hint (or a correct split at the antimeridian), zero requests",
)
def areas(bench: Bench) -> dict[str, Any]:
    server = bench.serve()
    for area, words in test_area.BAD.values():
        with bench.raises(errors.InvalidAreaError, spent="no") as caught:
            clearsky_xr.open_timeseries(area, DAY, base_url=server.url, api_key=KEY)
        assert words in str(caught.value)
        assert caught.value.hint
    assert server.ledger() == []
    return {"areas refused": len(test_area.BAD), "calls": 0}


@row(
    27,
    "dates: reversed, impossible, tz-aware, future, empty range",
    "typed error or an empty cube where that is the true answer, zero downloads",
)
def times(bench: Bench) -> dict[str, Any]:
    server = bench.serve()
    for time in test_dates.BAD.values():
        with bench.raises(errors.InvalidTimeError, spent="no"):
            clearsky_xr.open_timeseries(FARM, time, base_url=server.url, api_key=KEY)
    assert server.ledger() == []
    # Only the service knows that there is nothing.
    for empty in (("2025-04-02", "2025-04-05"), ("1999-01-01", "1999-12-31")):
        with bench.raises(errors.NoImageryError, spent="no"):
            bench.open(server, empty)
    asked = {entry.endpoint for entry in server.ledger()}
    assert asked == {"account", "search"}
    return {"times refused": len(test_dates.BAD), "empty ranges": 2}


@row(
    28,
    "unknown or repeated band, bad index, resolution not offered, too many bands",
    "error with near matches, zero downloads",
)
def bands(bench: Bench) -> dict[str, Any]:
    server = bench.serve()
    grid, band, option = errors.InvalidGridError, errors.InvalidBandError, errors.InvalidOptionError
    wrong: list[tuple[dict[str, Any], type[errors.ClearSkyError], str]] = [
        ({"bands": ["B8B"]}, band, "did you mean B8, B8A"),
        ({"bands": ["rred"]}, band, "did you mean red"),
        ({"bands": ["B13"]}, band, "did you mean B"),
        ({"bands": ["B4", "red"]}, band, "more than once: B4"),
        ({"bands": "B4,B4"}, band, "more than once"),
        ({"bands": 5}, band, "got int"),
        ({"bands": ["[B8_B4]"]}, band, "there is no band"),
        ({"indices": "nvdi"}, band, "did you mean .*ndvi"),
        ({"indices": ["xyzzy"]}, band, "Known: ndvi"),
        ({"indices": {"mine": ("B8", "B99")}}, band, "there is no band 'B99'"),
        ({"indices": {"mine": ("B8", "nir")}}, band, "more than once"),
        ({"indices": {"y": ("B8", "B4")}}, band, "coordinate|name"),
        ({"resolution": 7}, grid, "10"),
        ({"resolution": -10}, grid, "10"),
        ({"resolution": "fine"}, grid, "10"),
        ({"crs": 4326}, grid, "UTM|projected"),
        ({"crs": "nothing"}, grid, "CRS"),
        ({"pixels": "all"}, option, "intersect"),
    ]
    for options, kind, words in wrong:
        with bench.raises(kind, words, spent="no") as caught:
            clearsky_xr.open_timeseries(FARM, DAY, base_url=server.url, api_key=KEY, **options)
        assert caught.value.hint
    assert server.ledger() == []
    few = bench.serve(max_bands=5)
    with bench.raises(errors.BandLimitError, "10.*5|5.*10", spent="no"):
        bench.open(few)
    assert not few.downloads()
    return {"calls refused": len(wrong) + 1}
