"""Redis over TLS, checked against the CA that the settings name."""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.settings import Settings
from jobs.errors import QueueUnreachable
from jobs.queue.connection import connect


@pytest.fixture
def over_tls(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """The embedded Redis behind a TLS proxy with a self-signed certificate."""
    certificate, key = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = str(settings.storage / "redis" / "socket")
    threading.Thread(target=accept, args=(listener, context, upstream), daemon=True).start()
    password = str(settings.redis_url).split(":")[2].split("@")[0]
    url = f"rediss://:{password}@127.0.0.1:{listener.getsockname()[1]}/0"
    yield replace(settings, redis_url=url, redis_ca=certificate)
    listener.close()


def test_redis_is_reached_over_tls(over_tls: Settings) -> None:
    with connect(over_tls) as connection:
        assert connection.ping()


def test_a_certificate_that_the_ca_did_not_sign_is_refused(over_tls: Settings) -> None:
    with pytest.raises(QueueUnreachable, match="certificate verify failed") as refusal:
        connect(replace(over_tls, redis_ca=None))

    assert ":***" not in str(refusal.value)
    assert str(over_tls.redis_url).split(":")[2].split("@")[0] not in str(refusal.value)


def test_a_certificate_of_another_host_is_refused(over_tls: Settings) -> None:
    elsewhere = str(over_tls.redis_url).replace("127.0.0.1", "localhost")

    with pytest.raises(QueueUnreachable, match="does not answer"):
        connect(replace(over_tls, redis_url=elsewhere))


def test_a_rotated_password_is_told_from_a_redis_that_is_away(settings: Settings) -> None:
    password = str(settings.redis_url).split(":")[2].split("@")[0]
    old = str(settings.redis_url).replace(password, "the-old-one")

    with pytest.raises(QueueUnreachable, match=r"refuses the user or the password; .* restart what") as refusal:
        connect(replace(settings, redis_url=old))

    assert "the-old-one" not in str(refusal.value)


def certify(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nightshift test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kept, secret = folder / "ca.crt", folder / "key.pem"
    kept.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return kept, secret


def accept(listener: socket.socket, context: ssl.SSLContext, upstream: str) -> None:
    while True:
        try:
            raw, _ = listener.accept()
            client = context.wrap_socket(raw, server_side=True)
        except ssl.SSLError:
            raw.close()
            continue
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(upstream)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
    source.close()
