"""A connection to the queue's Redis, checked before it is used."""

from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from cluster.settings import Settings
from jobs.errors import QueueUnreachable, Refused
from jobs.queue import embedded_redis

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COMMAND_RETRIES = 3  # about a second: a person waits
WORKER_RETRIES = 20  # about half a minute: longer than a restart of Redis


def connect(settings: Settings, *, patient: bool = False) -> redis.Redis:
    """Return a connection to the queue's Redis; with nothing set, the embedded one, started if it does not run.

    Args:
        settings: Where it is and how to speak with it.
        patient: Try for half a minute before each failure, as a job worker should, instead of a second.

    Raises:
        QueueUnreachable: It does not answer.
        Refused: Speaking with it would show the password to the network.
    """
    url = settings.redis_url or embedded_redis.ensure_running(settings.storage).url
    refuse_plain(url, allowed=settings.redis_plain)
    try:
        client = redis.Redis.from_url(url, **_options(url, settings, patient=patient))
        client.ping()
    except (TypeError, ValueError) as error:
        raise QueueUnreachable(
            f"Redis at {without_password(url)}: its address has a part that Redis does not know; "
            "correct NIGHTSHIFT_REDIS_URL"
        ) from error
    except redis.ResponseError as error:
        full = "MISCONF" in str(error)
        cure = "free space on its disk" if full else "correct NIGHTSHIFT_REDIS_URL"
        raise QueueUnreachable(f"Redis at {without_password(url)} refuses to serve ({error}); {cure}") from error
    except (redis.RedisError, OSError) as error:
        raise QueueUnreachable(
            f"Redis at {without_password(url)} does not answer ({error}); start it or correct NIGHTSHIFT_REDIS_URL"
        ) from error
    return client


def refuse_plain(url: str, *, allowed: bool) -> None:
    """Refuse a Redis of another machine without TLS.

    Raises:
        Refused: Its password and jobs would cross the network for all to read.
    """
    parts = urlsplit(url)
    if parts.scheme == "redis" and (parts.hostname or "localhost") not in LOOPBACK and not allowed:
        raise Refused(
            f"{without_password(url)} is plain Redis on another machine; use rediss://, or set "
            "NIGHTSHIFT_REDIS_ALLOW_PLAIN=1 where the network is closed"
        )


def without_password(url: str) -> str:
    """Return an address fit for messages and logs."""
    parts = urlsplit(url)
    place = parts.hostname or ""
    path = parts.path if parts.scheme == "unix" else ""  # else a database, or what a bad address has of a password
    return f"{parts.scheme}://{place}{f':{parts.port}' if parts.port else ''}{path}"


def _options(url: str, settings: Settings, *, patient: bool) -> dict[str, object]:
    retries = WORKER_RETRIES if patient else COMMAND_RETRIES
    options: dict[str, object] = {
        "retry": Retry(ExponentialWithJitterBackoff(base=0.1, cap=2), retries),
        "socket_timeout": 60,
        "health_check_interval": 30,
    }
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": 5, "socket_keepalive": True}
    if url.startswith("rediss:") and settings.redis_ca:
        options["ssl_ca_certs"] = str(settings.redis_ca)
    return options
