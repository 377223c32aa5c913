"""Addresses of files to download: which are allowed, and how they are shown and told apart without credentials."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from data_shards.errors import SourceError
from data_shards.locations import CREDENTIALS

Kind: TypeAlias = Literal["http", "bucket", "drive", "kaggle"]

HTTP = ("http", "https")
BUCKETS = {scheme: CREDENTIALS[scheme] for scheme in ("s3", "gs")}
CURE = "use a path, or an address that begins with http://, https://, s3://, gs:// or kaggle:"
DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
DRIVE_ID = re.compile(r"/file/(?:u/\d+/)?d/([-\w]{10,})")
KAGGLE = re.compile(r"kaggle:([\w.-]+/[\w.-]+(?:/versions/[1-9]\d*)?)")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Query parameters that hold credentials and never say which file is meant, such as those of presigned addresses.
SECRET = re.compile(
    r"x-(amz|goog)-.*|signature|sig|expires|awsaccesskeyid|googleaccessid|(access_?|auth_?)?token|api_?key|password",
    re.IGNORECASE,
)
QUOTED = "/%:=&?~#+!$,;'@()*[]"  # stays as it is when an address is written in ASCII
KEY_DIGITS = 24


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a file is. `str()` gives the address without credentials, which may be printed.

    Attributes:
        kind: Which code downloads it.
        url: The address with its credentials; the id of a Drive file, or OWNER/NAME of a Kaggle data set.
        shown: The address without user name, password and query.
        identity: What tells it from other addresses, without credentials.
    """

    kind: Kind
    url: str = field(repr=False)
    shown: str
    identity: str = field(repr=False)

    def __str__(self) -> str:
        return self.shown

    @property
    def key(self) -> str:
        """The name of its folder among the downloads."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def file_name(self) -> str:
        """The last part of its path, with safe characters only."""
        name = unquote(self.shown.removesuffix("?...").rstrip("/").rpartition("/")[2])
        return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:100] or "download"


def is_address(text: str) -> bool:
    """Whether a text is meant as an address and not as a path. `file://` is a path."""
    scheme = SCHEME.match(text)
    return text.startswith("kaggle:") or (scheme is not None and scheme[1].lower() != "file")


def parse_address(text: str) -> Address:
    """Return the address that a text means.

    Raises:
        SourceError: Its scheme is not allowed, or it names no file. The text has no credentials.
    """
    if not text.isprintable():
        raise SourceError("the address has control characters; type it again")
    if text.startswith("kaggle:"):
        return _kaggle(text)
    scheme = (SCHEME.match(text) or ["", ""])[1].lower()
    if scheme in BUCKETS:
        return _bucket(scheme, text.partition("://")[2])
    if scheme in HTTP:
        return _http(text)
    raise SourceError(f"an address with the scheme {scheme!r} is not allowed; {CURE}")


def shown_url(parts: SplitResult) -> str:
    """Return an http address without user name, password, query and fragment."""
    path = quote(parts.path, safe=QUOTED)  # a terminal may obey other characters
    return f"{parts.scheme}://{host_of(parts)}{path}{'?...' if parts.query else ''}"


def host_of(parts: SplitResult) -> str:
    """Return host and port of an address without user name and password."""
    return parts.netloc.rpartition("@")[2]


def ascii_url(parts: SplitResult) -> str:
    """Return an http address in ASCII, without user name, password and fragment, as a request needs it."""
    host = host_of(parts)
    if not host.isascii():
        host = host.encode("idna").decode()
    query = f"?{quote(parts.query, safe=QUOTED)}" if parts.query else ""
    return f"{parts.scheme}://{host}{quote(parts.path, safe=QUOTED) or '/'}{query}"


def split_http(url: str) -> SplitResult:
    """Return the parts of an http address.

    Raises:
        ValueError: It has no host, or a port or characters that no address may have.
    """
    if any(ord(character) < ord(" ") or character == "\x7f" for character in url):  # urlsplit leaves some out
        raise ValueError("control characters")
    parts = urlsplit(url)
    if not parts.hostname or " " in parts.netloc or parts.port == 0:
        raise ValueError("no host")
    ascii_url(parts)
    return parts


def _http(text: str) -> Address:
    try:
        parts = split_http(text)
    except ValueError as error:  # its text may hold the password
        raise SourceError("the address has no valid host or port; write https://HOST/FILE.zip") from error
    if parts.hostname in DRIVE_HOSTS:
        return _drive(parts)
    # A new signature of a presigned address is the same file; any other parameter may be another file.
    kept = [
        (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not SECRET.fullmatch(name)
    ]
    identity = f"{parts.scheme}://{host_of(parts).lower()}{parts.path}?{urlencode(kept)}"
    return Address(kind="http", url=text, shown=shown_url(parts), identity=identity)


def _bucket(scheme: str, path: str) -> Address:
    bucket, _, name = path.partition("/")
    if "@" in bucket:
        raise SourceError(f"an {scheme}:// address takes no credentials; set {BUCKETS[scheme]} instead")
    url = f"{scheme}://{path}"
    if not bucket or not name.strip("/"):
        raise SourceError(f"{url} names no file; write {scheme}://BUCKET/FILE.zip")
    return Address(kind="bucket", url=url, shown=url, identity=url)


def _drive(parts: SplitResult) -> Address:
    query = dict(parse_qsl(parts.query))
    if "/folders/" in parts.path:
        raise SourceError(f"{shown_url(parts)} is a Drive folder; give the link of one .zip or .tar file in Drive")
    found = DRIVE_ID.search(parts.path)
    file_id = found[1] if found else query.get("id", "")
    if not re.fullmatch(r"[-\w]{10,}", file_id):
        raise SourceError(f"{shown_url(parts)} names no file in Drive; copy its link with Share, Copy link")
    shown = f"https://drive.google.com/file/d/{file_id}"
    return Address(kind="drive", url=file_id, shown=shown, identity=shown)


def _kaggle(text: str) -> Address:
    found = KAGGLE.fullmatch(text)
    if found is None:
        raise SourceError(f"{text!r} names no data set; write kaggle:OWNER/NAME or kaggle:OWNER/NAME/versions/N")
    return Address(kind="kaggle", url=found[1], shown=text, identity=text)
