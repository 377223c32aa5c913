"""A web server on loopback that serves one file and fails as a test tells it to."""

import contextlib
import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Answer = Callable[["Request"], None]


@dataclass
class WebServer:
    """What the server does and what it was asked.

    Attributes:
        content: The file; under every path.
        coming: How the next requests are answered, in order; then as a good server does.
        ranges: Whether it knows Range requests.
        tag: Its ETag; None for none, "" for the digest of the content.
        headers: Further headers of each answer.
        requests: Path and headers of each request.
    """

    url: str
    content: bytes = b""
    coming: list[Answer] = field(default_factory=list)
    ranges: bool = True
    tag: str | None = ""
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def etag(self) -> str | None:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"' if self.tag == "" else self.tag

    def asked_ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


class Request(BaseHTTPRequestHandler):
    """One request."""

    web: WebServer

    def do_GET(self):
        self.web.requests.append((self.path, dict(self.headers.items())))
        answer = self.web.coming.pop(0) if self.web.coming else Request.good
        with contextlib.suppress(ConnectionError):
            answer(self)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def good(self, upto: int | None = None, length: int | None = None) -> None:
        """Send the file or the part that was asked for; cut it after `upto` bytes, or announce another length."""
        web, etag = self.web, self.web.etag()
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, etag)
        begin = int(start[1]) if start and web.ranges and same else 0
        if begin and begin >= len(web.content):
            self.status(416, {"Content-Range": f"bytes */{len(web.content)}"})
            return
        self.send_response(206 if begin else 200)
        if etag is not None:
            self.send_header("ETag", etag)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(web.content) - 1}/{len(web.content)}")
        body = web.content[begin:]
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in web.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:upto])
        self.close_connection = True

    def status(self, code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def cut(upto: int) -> Answer:
    return lambda request: request.good(upto)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda request: request.status(code, {name.replace("_", "-"): text for name, text in headers.items()}, body)


def redirect(location: str) -> Answer:
    return status(302, Location=location)


@contextlib.contextmanager
def web_server(certificate: Path | None = None) -> Iterator[WebServer]:
    """Start a server, with TLS if it has a certificate; it ends with the block."""
    web = WebServer(url="")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Request,), {"web": web}))
    server.handle_error = lambda *_: None  # a client that refuses the certificate is what a test wants
    web.url = f"http://127.0.0.1:{server.server_port}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        web.url = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate_for(folder: Path) -> Path:
    """Write a certificate of localhost with its key to `host.pem`; return the file that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "host.pem").write_bytes(private + public)
    (folder / "trusted.pem").write_bytes(public)
    return folder / "trusted.pem"
