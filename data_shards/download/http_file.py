"""A file at an http or https address: Range requests, redirects and what the server's answers mean."""

import base64
import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin

from data_shards.download.address import HTTP, ascii_url, host_of, shown_url, split_http
from data_shards.download.transfer import Interrupted, Transfer
from data_shards.errors import DownloadFailed

TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 10
MAX_WAIT_SECONDS = 60.0
REDIRECTS = (301, 302, 303, 307, 308)
DENIED, GONE = (401, 403, 407), (404, 410)
OK, PARTIAL, RANGE_REFUSED = 200, 206, 416
BUSY = (408, 425, 429, *range(500, 600))
NETWORK_FAULTS = (OSError, http.client.HTTPException)
# A name that cannot be found or a port that refuses: at the first request rather a wrong address than a fault.
UNREACHABLE = (socket.gaierror, ConnectionRefusedError)
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (socket.gaierror, "the host {} is not known"),
    (ConnectionRefusedError, "{} refuses the connection"),
    (TimeoutError, f"{{}} does not answer for {TIMEOUT_SECONDS:.0f} s"),
    (ssl.SSLError, "{} does not speak TLS as expected"),
    (http.client.IncompleteRead, "the connection was cut"),
    (ConnectionError, "the connection was cut"),
    (http.client.HTTPException, "{} does not answer as an HTTP server"),
)
CHECK_ADDRESS = "check the address and the network"


@dataclass(frozen=True, kw_only=True)
class HttpFile:
    """A file at an http or https address.

    Attributes:
        url: The address; a user name and password in it are sent to its host alone.
        allow_http: Follow a redirect from https to http too.
        on_redirect: Called with the address that a redirect leads to, without credentials.
    """

    url: str
    allow_http: bool = False
    on_redirect: Callable[[str], None] = lambda _: None

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return shown_url(split_http(self.url))

    def open(self, offset: int, version: str | None) -> Transfer:
        """Ask for the bytes from `offset` on if the file still has this version, else for all of them.

        Raises:
            DownloadFailed: It cannot be downloaded, and another try does not help.
            Interrupted: Another try may help.
        """
        # If-Range: the server sends the whole file if it is not the same any more.
        asked = {"Range": f"bytes={offset}-", "If-Range": version} if offset and version else {}
        response = self._follow(asked, is_first=not offset)
        try:
            return self._transfer(response, offset, version)
        except BaseException:
            response.close()
            raise

    def _transfer(self, response: Any, offset: int, version: str | None) -> Transfer:
        sent = _version_of(response)
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status == RANGE_REFUSED and span and span[2] == str(offset):
            return self._opened(response, offset, offset, version, chunks=_no_chunks())  # it is complete already
        if response.status == PARTIAL and span and span[1] == str(offset) and sent in (None, version):
            total = None if span[2] == "*" else int(span[2])
            return self._opened(response, offset, total, version)
        if response.status in (PARTIAL, RANGE_REFUSED):  # another part or another version than was asked for
            response.close()
            return self.open(0, None) if offset else self._refuse(response)
        if response.status != OK:
            self._refuse(response)
        return self._opened(response, 0, _length_of(response), sent)

    def _opened(
        self,
        response: Any,
        start: int,
        total: int | None,
        version: str | None,
        chunks: Generator[bytes, None, None] | None = None,
    ) -> Transfer:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise DownloadFailed(
                self.shown, f"the server sends it in the encoding {encoding[:20]!r}", "use another one"
            )
        return Transfer(
            start=start,
            total=total,
            version=version,
            gzipped="gzip" in encoding,
            chunks=_chunks_of(response) if chunks is None else chunks,
        )

    def _follow(self, headers: dict[str, str], *, is_first: bool) -> Any:
        """Return the answer after all redirects, whatever its status."""
        here = split_http(self.url)
        for _ in range(MAX_REDIRECTS):
            response = self._request(here, headers, is_first=is_first)
            if response.status not in REDIRECTS:
                return response
            response.close()
            here = self._redirected(here, response.headers.get("Location", ""))
            self.on_redirect(shown_url(here))
        raise DownloadFailed(self.shown, f"there are more than {MAX_REDIRECTS} redirects", CHECK_ADDRESS)

    def _redirected(self, here: SplitResult, location: str) -> SplitResult:
        try:
            target = urljoin(ascii_url(here), location.strip())
            scheme = target.partition(":")[0].lower()
            if scheme not in HTTP:
                reason = f"it redirects to an address with the scheme {scheme[:20]!r}, which is not allowed"
                raise DownloadFailed(self.shown, reason, "give the address of the file itself")
            there = split_http(target)
        except ValueError as error:
            raise DownloadFailed(self.shown, "it redirects to an invalid address", CHECK_ADDRESS) from error
        if here.scheme == "https" and there.scheme == "http" and not self.allow_http:
            reason = f"it redirects from https to {shown_url(there)}, which others can read and change on the way"
            raise DownloadFailed(self.shown, reason, "use --allow-http-redirect if you accept that")
        return there

    def _request(self, parts: SplitResult, headers: dict[str, str], *, is_first: bool) -> Any:
        own = split_http(self.url)
        sent = {"User-Agent": "nightshift", "Accept-Encoding": "identity", **headers}
        if own.username is not None and (own.scheme, host_of(own)) == (parts.scheme, host_of(parts)):
            pair = f"{unquote(own.username)}:{unquote(own.password or '')}"
            sent["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            request = urllib.request.Request(ascii_url(parts), headers=sent)  # noqa: S310 (http or https)
            return _opener().open(request, timeout=TIMEOUT_SECONDS)
        except NETWORK_FAULTS as error:
            raise self._fault(error, host_of(parts), is_first=is_first) from error

    def _fault(self, error: Exception, host: str, *, is_first: bool) -> Exception:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            cure = "set SSL_CERT_FILE to a file with the CA certificates of your network"
            return DownloadFailed(self.shown, f"the certificate of {host} is not trusted", cure)
        reason = _reason(cause if isinstance(cause, Exception) else error, host)
        if is_first and isinstance(cause, UNREACHABLE):
            return DownloadFailed(self.shown, reason, CHECK_ADDRESS)
        return Interrupted(reason)

    def _refuse(self, response: Any) -> Transfer:
        """Raise what a status without the file means."""
        status = response.status
        if status in BUSY:
            wait = response.headers.get("Retry-After", "")
            seconds = float(wait) if wait.isdecimal() else 0.0
            raise Interrupted(f"the server answers with status {status}", min(seconds, MAX_WAIT_SECONDS))
        if status in DENIED:
            cure = "check the address and the user name and password in it: https://USER:PASSWORD@HOST/FILE.zip"
            raise DownloadFailed(self.shown, f"the server denies access (status {status})", cure)
        if status in GONE:
            raise DownloadFailed(self.shown, f"there is no such file (status {status})", "check the address")
        raise DownloadFailed(self.shown, f"the server answers with status {status}", "check the address")


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that follows no redirect and returns answers of every status; it knows proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    return opener


def _chunks_of(response: Any) -> Generator[bytes, None, None]:
    with response:
        try:
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
        except NETWORK_FAULTS as error:
            raise Interrupted(_reason(error, "the server")) from error


def _no_chunks() -> Generator[bytes, None, None]:
    yield from ()


def _version_of(response: Any) -> str | None:
    """Return what If-Range takes: a strong ETag, or the time of the last change."""
    tag: str | None = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    changed: str | None = response.headers.get("Last-Modified")
    return changed


def _length_of(response: Any) -> int | None:
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if length.isdecimal() and response.length is not None else None


def _reason(error: Exception, host: str) -> str:
    return next((text.format(host) for kind, text in REASONS if isinstance(error, kind)), f"{host} cannot be reached")
