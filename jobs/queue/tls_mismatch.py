"""Whether a Redis that does not answer speaks TLS while its address does not say so, or the reverse."""

import contextlib
import socket
import ssl
from urllib.parse import urlsplit

PORT = 6379
PROBE_SECONDS = 1.0
PING = b"PING\r\n"  # as a plain client would begin; no password is sent


def tls_mismatch(url: str) -> str | None:
    """Return the fault and its cure if the server speaks TLS and the address does not, or the reverse; else None.

    Args:
        url: The address of a Redis that did not answer, redis://, rediss:// or unix:.
    """
    parts = urlsplit(url)
    with contextlib.suppress(OSError, ValueError):
        place = (parts.hostname or "localhost", parts.port or PORT)
        if parts.scheme == "redis" and _speaks_tls(place):
            return "speaks TLS; write rediss:// in NIGHTSHIFT_REDIS_URL"
        if parts.scheme == "rediss" and _answers_plainly(place):
            return "speaks no TLS; turn it on in the server, or write redis:// in NIGHTSHIFT_REDIS_URL"
    return None


def _speaks_tls(place: tuple[str, int]) -> bool:
    """Whether a TLS handshake succeeds; certificates do not matter, because nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(place, timeout=PROBE_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=place[0]),
    ):
        return True


def _answers_plainly(place: tuple[str, int]) -> bool:
    """Whether a line of Redis's protocol comes back: an answer, or an error such as that of a missing password."""
    with socket.create_connection(place, timeout=PROBE_SECONDS) as connection:
        connection.sendall(PING)
        return connection.recv(1) in (b"+", b"-")
