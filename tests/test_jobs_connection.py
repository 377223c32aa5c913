"""Redis over TLS, checked against the CA that the settings name."""

import contextlib
import datetime
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from cluster.settings import Settings
from jobs.cli.doctor import redis_findings
from jobs.errors import QueueUnreachable
from jobs.queue import embedded_redis, queues
from jobs.queue.connection import connect, without_password
from tests.conftest import Say
from tests.cutting_proxy import CuttingProxy


@pytest.fixture
def over_tls(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """The embedded Redis behind a TLS proxy with a self-signed certificate."""
    with tls_proxy(settings, tmp_path) as behind:
        yield behind


@contextlib.contextmanager
def tls_proxy(settings: Settings, folder: Path, *, first_day: int = -1, last_day: int = 1) -> Iterator[Settings]:
    """Serve the embedded Redis over TLS; the certificate is valid between two days, counted from today."""
    certificate, key = certify(folder, first_day, last_day)
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
    with pytest.raises(QueueUnreachable, match="this machine does not trust") as refusal:
        connect(replace(over_tls, redis_ca=None))

    assert str(refusal.value) == (
        f"Redis at {without_password(str(over_tls.redis_url))} has a TLS certificate that this machine does not trust "
        "(self-signed certificate); name the certificate of its authority in NIGHTSHIFT_REDIS_CA"
    )

    assert ":***" not in str(refusal.value)
    assert str(over_tls.redis_url).split(":")[2].split("@")[0] not in str(refusal.value)


def test_an_address_without_tls_of_a_redis_with_tls_names_the_mismatch(over_tls: Settings) -> None:
    plain = replace(over_tls, redis_url=str(over_tls.redis_url).replace("rediss:", "redis:"))

    with pytest.raises(QueueUnreachable) as refusal:
        connect(plain)

    assert str(refusal.value) == (
        f"Redis at {without_password(str(plain.redis_url))} speaks TLS; write rediss:// in NIGHTSHIFT_REDIS_URL"
    )


def test_an_address_with_tls_of_a_redis_without_tls_names_the_mismatch(settings: Settings) -> None:
    proxy = CuttingProxy(str(settings.storage / "redis" / "socket"), every=0)
    with_tls = replace(settings, redis_url=f"rediss://:secret@127.0.0.1:{proxy.port}/0")

    with contextlib.closing(proxy), pytest.raises(QueueUnreachable) as refusal:
        connect(with_tls)

    assert str(refusal.value) == (
        f"Redis at {without_password(str(with_tls.redis_url))} speaks no TLS; turn it on in the server, "
        "or write redis:// in NIGHTSHIFT_REDIS_URL"
    )


def test_a_server_that_is_not_there_has_no_mismatch(settings: Settings) -> None:
    for scheme in ("redis", "rediss"):
        with pytest.raises(QueueUnreachable, match="does not answer"):
            connect(replace(settings, redis_url=f"{scheme}://127.0.0.1:1/0"))


def test_a_certificate_of_another_host_is_refused(over_tls: Settings) -> None:
    elsewhere = str(over_tls.redis_url).replace("127.0.0.1", "localhost")

    with pytest.raises(QueueUnreachable) as refusal:
        connect(replace(over_tls, redis_url=elsewhere))

    assert str(refusal.value) == (
        f"Redis at {without_password(elsewhere)} has a TLS certificate that is for another host name; "
        "use a name of the certificate in NIGHTSHIFT_REDIS_URL, or issue one for this name"
    )


@pytest.mark.parametrize(
    ("first_day", "last_day", "why"),
    [
        (-9, -2, "has expired; renew it and restart Redis, or, if it has not, correct the clock of this machine"),
        (2, 9, "is not valid yet; correct the clock of this machine, or that of the machine that issued it"),
    ],
)
def test_a_certificate_out_of_its_time_is_told_from_a_redis_that_is_away(
    settings: Settings, tmp_path: Path, first_day: int, last_day: int, why: str
) -> None:
    with tls_proxy(settings, tmp_path, first_day=first_day, last_day=last_day) as behind:
        (found,), _ = redis_findings(behind)

    fault, _, cure = why.partition("; ")
    place = without_password(str(behind.redis_url))
    assert (found.ok, found.found) == (False, f"Redis at {place} has a TLS certificate that {fault}")
    assert found.cure == cure


def test_a_file_of_authorities_that_is_missing_or_holds_none_is_named(over_tls: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty.crt").write_text("no certificate\n")
    why = []

    for name in ("missing.crt", "empty.crt"):
        with pytest.raises(QueueUnreachable) as refusal:
            connect(replace(over_tls, redis_ca=tmp_path / name))
        why.append(str(refusal.value))

    cure = "name the certificate of Redis's authority"
    assert why == [
        f"NIGHTSHIFT_REDIS_CA names {tmp_path}/missing.crt, which cannot be read (No such file or directory); {cure}",
        f"NIGHTSHIFT_REDIS_CA names {tmp_path}/empty.crt, which holds no certificate; {cure}",
    ]


def test_a_rotated_password_is_told_from_a_redis_that_is_away(settings: Settings) -> None:
    password = str(settings.redis_url).split(":")[2].split("@")[0]
    old = str(settings.redis_url).replace(password, "the-old-one")

    with pytest.raises(QueueUnreachable, match=r"refuses the user or the password; .* restart what") as refusal:
        connect(replace(settings, redis_url=old))

    assert "the-old-one" not in str(refusal.value)


def certify(folder: Path, first_day: int, last_day: int) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nightshift test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + datetime.timedelta(days=first_day))
        .not_valid_after(now + datetime.timedelta(days=last_day))
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


def test_a_command_that_redis_refuses_ends_in_one_line(
    say: Say, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis.from_url(str(settings.redis_url)) as admin:
        admin.acl_setuser(
            "reader", enabled=True, passwords=["+word"], categories=["+@read", "+@connection"], keys=["*"]
        )
    address = urlsplit(str(settings.redis_url))
    monkeypatch.setenv(
        "NIGHTSHIFT_REDIS_URL", address._replace(netloc=f"reader:word@{address.netloc.rpartition('@')[2]}").geturl()
    )

    code, _, said = say("queue", "pause")

    assert code == 1
    assert said.startswith("Error: Redis refuses a command (")
    assert said.endswith("; correct its configuration, or the user in NIGHTSHIFT_REDIS_URL\n")
    assert said.count("\n") == 1


def test_a_connection_that_is_lost_within_a_command_ends_it_in_one_line(
    say: Say, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(connection: Redis) -> None:
        server = embedded_redis.running(settings.storage)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        connection.set("key", "value")

    monkeypatch.setattr(queues, "pause", lose)

    code, _, said = say("queue", "pause")

    assert code == 1
    assert said.startswith("Error: the connection to Redis was lost (")
    assert said.endswith("); start Redis and repeat the command\n")
