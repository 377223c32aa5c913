"""A connection to the queue's Redis, checked before it is used."""

import ssl
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from cluster.settings import Settings
from jobs.errors import QueueUnreachable, Refused
from jobs.queue import embedded_redis
from jobs.queue.tls_mismatch import tls_mismatch

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Patience:
    """How long a caller waits for Redis.

    Attributes:
        retries: Tries after the first one.
        answer_seconds: For each answer of a Redis that accepts the connection and is stopped, or starved.
        connect_seconds: For each connection over the network.
    """

    retries: int
    answer_seconds: float
    connect_seconds: float


COMMAND = Patience(retries=3, answer_seconds=10, connect_seconds=5)  # about a second of tries: a person is waiting
# Tries for about half a minute, longer than a restart of Redis takes; answers may take longer than RQ's blocking reads.
WORKER = Patience(retries=20, answer_seconds=60, connect_seconds=5)
GLANCE = Patience(retries=0, answer_seconds=1, connect_seconds=1)  # for what can be left unsaid

CERTIFICATE_FAULTS = {  # by the codes of X509_verify_cert_error_string(3)
    9: ("is not valid yet", "correct the clock of this machine, or that of the machine that issued it"),
    10: ("has expired", "renew it and restart Redis, or, if it has not, correct the clock of this machine"),
    62: (
        "is for another host name",
        "use a name of the certificate in NIGHTSHIFT_REDIS_URL, or issue one for this name",
    ),
    64: (
        "is for another address",
        "use a name of the certificate in NIGHTSHIFT_REDIS_URL, or issue one for this address",
    ),
}


def connect(settings: Settings, patience: Patience = COMMAND) -> redis.Redis:
    """Return a connection to the queue's Redis; without an address, to the embedded Redis, which is started if needed.

    Args:
        settings: The address of Redis and the options of the connection.
        patience: How long to wait for it.

    Raises:
        QueueUnreachable: Redis does not answer, or its certificate is not accepted.
        Refused: The connection would send the password over the network without encryption.
    """
    url = settings.redis_url or embedded_redis.ensure_running(settings.storage).url
    refuse_plain(url, allowed=settings.redis_plain)
    if url.startswith("rediss:"):
        _refuse_damaged_authority(settings)
    try:
        client = redis.Redis.from_url(url, **_options(url, settings, patience))
        client.ping()
    except (TypeError, ValueError) as error:
        raise QueueUnreachable(
            f"the address of Redis, {without_password(url)}, has an invalid part; correct NIGHTSHIFT_REDIS_URL"
        ) from error
    except redis.AuthenticationError as error:
        raise QueueUnreachable(
            f"Redis at {without_password(url)} refuses the user or the password; correct NIGHTSHIFT_REDIS_URL, or "
            "restart what still has the old one (on Kubernetes: `kubectl rollout restart statefulset,deployment`)"
        ) from error
    except redis.ResponseError as error:
        full = "MISCONF" in str(error)
        cure = "free space on its disk" if full else "correct NIGHTSHIFT_REDIS_URL"
        raise QueueUnreachable(f"Redis at {without_password(url)} refuses to serve ({error}); {cure}") from error
    except (redis.RedisError, OSError) as error:
        if refusal := _certificate_refusal(error):
            raise QueueUnreachable(f"Redis at {without_password(url)} has a TLS certificate that {refusal}") from error
        # A server that speaks TLS ends a plain connection; one that keeps it and says nothing is not asked again.
        silent = isinstance(error, redis.TimeoutError) and not url.startswith("rediss:")
        silent = silent or isinstance(error, redis.BusyLoadingError)
        if not silent and (mismatch := tls_mismatch(url)):
            raise QueueUnreachable(f"Redis at {without_password(url)} {mismatch}") from error
        raise QueueUnreachable(
            f"Redis at {without_password(url)} does not answer ({error}); start it or correct NIGHTSHIFT_REDIS_URL"
        ) from error
    return client


def _refuse_damaged_authority(settings: Settings) -> None:
    """Refuse a file of authorities that cannot be used; redis-py would say that Redis does not answer.

    Raises:
        QueueUnreachable: It is missing or holds no certificate.
    """
    try:
        ssl.create_default_context(cafile=settings.redis_ca)
    except OSError as error:  # SSLError is one
        why = "holds no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read ({error.strerror})"
        raise QueueUnreachable(
            f"NIGHTSHIFT_REDIS_CA names {settings.redis_ca}, which {why}; name the certificate of Redis's authority"
        ) from error


def _certificate_refusal(error: BaseException) -> str | None:
    """Return why a certificate was not accepted, and the cure; None if something else failed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    why, cure = CERTIFICATE_FAULTS.get(
        cause.verify_code,
        (
            f"this machine does not trust ({cause.verify_message})",
            "name the certificate of its authority in NIGHTSHIFT_REDIS_CA",
        ),
    )
    return f"{why}; {cure}"


def with_running_redis(settings: Settings, patience_seconds: float = embedded_redis.START_SECONDS) -> Settings:
    """Return the settings with the address of the embedded Redis, which is not started.

    Args:
        settings: The storage; an address of Redis is kept.
        patience_seconds: How long to ask an embedded Redis that loads its file or is stopped.

    Raises:
        QueueUnreachable: It does not run, or belongs to another user.
    """
    if settings.redis_url:
        return settings
    server = embedded_redis.running(settings.storage, patience_seconds)
    if server is None:
        raise QueueUnreachable("no Redis runs for this storage; `nightshift up` starts it")
    return replace(settings, redis_url=server.url)


def refuse_plain(url: str, *, allowed: bool) -> None:
    """Refuse a Redis of another machine without TLS.

    Raises:
        Refused: The password and the jobs would cross the network unencrypted.
    """
    parts = urlsplit(url)
    if parts.scheme == "redis" and (parts.hostname or "localhost") not in LOOPBACK and not allowed:
        raise Refused(
            f"{without_password(url)} is plain Redis on another machine; use rediss://, or set "
            "NIGHTSHIFT_REDIS_ALLOW_PLAIN=1 where the network is closed"
        )


def without_password(url: str) -> str:
    """Return an address without its password, for messages and logs."""
    parts = urlsplit(url)
    place = parts.hostname or ""
    path = (
        parts.path if parts.scheme == "unix" else ""
    )  # otherwise a database number, or part of a password in a malformed address
    return f"{parts.scheme}://{place}{f':{parts.port}' if parts.port else ''}{path}"


def _options(url: str, settings: Settings, patience: Patience) -> dict[str, object]:
    options: dict[str, object] = {
        "retry": Retry(ExponentialWithJitterBackoff(base=0.1, cap=2), patience.retries),
        "socket_timeout": patience.answer_seconds,
        "health_check_interval": 30,
    }
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": patience.connect_seconds, "socket_keepalive": True}
    if url.startswith("rediss:") and settings.redis_ca:
        options["ssl_ca_certs"] = str(settings.redis_ca)
    return options
