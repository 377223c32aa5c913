"""Serves the page until SIGINT or SIGTERM."""

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import SplitResult, urlsplit

import uvicorn

from cluster.settings import Settings
from jobs.errors import InvalidOption, JobError
from jobs.queue.connection import LOOPBACK
from jobs.web.access import COOKIE, PARAMETER, Access
from jobs.web.app import Page, create_app
from jobs.web.forms import Fork

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 -- refused without an address that browsers can use
STOP_SECONDS = 5  # for open answers


class PageError(JobError):
    """The page cannot be served."""


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where the page listens.

    Attributes:
        host: Address of an interface.
        port: TCP port; 0 means a free one.
        certificate: PEM file with the certificate, for TLS.
        key: PEM file with its private key.
        public_url: https address by which browsers reach the page, if it is another one: that of a proxy that does TLS,
            or this machine's name.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    public_url: str | None = None

    def check(self) -> None:
        """Refuse what would send the token over a network unencrypted.

        Raises:
            InvalidOption: It would, or an option is invalid or lacks another.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidOption("--tls-cert and --tls-key belong together; give both")
        if self.public_url is not None:
            parts = _parts(self.public_url)
            if parts is None or parts.scheme != "https" or parts.path.strip("/") or parts.query or parts.fragment:
                raise InvalidOption(
                    f"--public-url {self.public_url!r} is not an https address without a path; write it as "
                    "https://nightshift.example.org"
                )
        if self.host in WILDCARDS and self.public_url is None:
            raise InvalidOption(
                f"--host {self.host} is every address of this machine; add --public-url with the https address that "
                f"browsers use, such as https://{socket.gethostname()}:{self.port}"
            )
        if not is_loopback(self.host) and self.certificate is None and self.public_url is None:
            raise InvalidOption(
                f"--host {self.host} would send the token over the network unencrypted; give --tls-cert and --tls-key, "
                "or --public-url with the https address of a proxy in front of the page"
            )

    @property
    def has_tls(self) -> bool:
        """Whether browsers reach the page by https."""
        return self.certificate is not None or self.public_url is not None


def _parts(url: str) -> SplitResult | None:
    """Return the parts of an address, None if it has no valid host and port."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    settings: Settings, listen: Listen, *, fork: Fork, is_read_only: bool, on_start: Callable[[str], None]
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        settings: The storage and the queue.
        listen: Where to listen.
        fork: Submits a run again with changes.
        is_read_only: Whether nobody may act.
        on_start: Called with the address of the page, the token in it, once browsers can connect.

    Raises:
        InvalidOption: See `Listen.check`.
        PageError: The address or the certificate cannot be used.
    """
    listen.check()
    with _bound(listen) as bound:
        port = bound.getsockname()[1]
        access = Access(cookie=f"{COOKIE}_{port}", is_secure=listen.has_tls)
        public = urlsplit(listen.public_url).hostname if listen.public_url else None
        hosts = [*LOOPBACK, listen.host, *([public] if public else [])]
        page = Page(settings=settings, access=access, hosts=hosts, fork=fork, is_read_only=is_read_only)
        config = uvicorn.Config(
            create_app(page), log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off",
            proxy_headers=False, timeout_graceful_shutdown=STOP_SECONDS,
            ssl_certfile=listen.certificate, ssl_keyfile=listen.key,
        )  # fmt: skip
        try:
            config.load()
        except OSError as error:  # ssl.SSLError is one
            raise PageError(
                f"--tls-cert {listen.certificate} and --tls-key {listen.key} are not a certificate and its key in PEM "
                "format, or the key is encrypted; give files that your web server could use"
            ) from error
        on_start(f"{_origin(listen, port)}/?{PARAMETER}={access.token}")
        # So that the first filter over many runs does not wait for all of them to be read.
        threading.Thread(target=page.index.fill, args=(page.is_stopping,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in order, then raises the signal again
            _Server(config, page.is_stopping).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Ends the streams of events of open pages when it is asked to stop: they do not end by themselves."""

    def __init__(self, config: uvicorn.Config, is_stopping: threading.Event) -> None:
        super().__init__(config)
        self.is_stopping = is_stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.is_stopping.set()
        super().handle_exit(sig, frame)


def _origin(listen: Listen, port: int) -> str:
    if listen.public_url:
        return listen.public_url.rstrip("/")
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{'https' if listen.has_tls else 'http'}://{host}:{port}"


def _bound(listen: Listen) -> socket.socket:
    """Return a listening socket, so that a browser that follows the printed address at once waits for the server."""
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        return socket.create_server((listen.host, listen.port), family=family)
    except OSError as error:
        if error.errno is not None and error.errno < 0:  # of getaddrinfo
            raise PageError(
                f"--host {listen.host} has no address; give a name or IP address of this machine"
            ) from error
        raise PageError(
            f"{listen.host} port {listen.port} cannot be opened ({os.strerror(error.errno or 0)}); choose another port"
        ) from error
