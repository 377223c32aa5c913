"""Who may use the page, and what a browser may do with it.

A token in the address that `nightshift ui` prints opens the page; a cookie then holds it. An act also needs the form
token, which only the page's own forms contain, so that no other site can act in a person's name.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.evaluation.csv_cells import escaped_controls

TOKEN_BYTES = 32
COOKIE = "nightshift_token"
PARAMETER = "token"
DENIED = "Open the address that `nightshift ui` printed: it contains the token of this page.\n"
WRONG_HOST = (
    "{host} is not an address of this page; open the one that `nightshift ui` printed, start it with --public-url, or "
    "let the proxy in front of it pass on the Host header of the browser\n"
)
# No inline script and nothing from another host; no other site may show the page in a frame. Charts choose their
# colours by inline style attributes.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """The secrets of one page, and its cookie.

    Attributes:
        token: Opens the page.
        cookie: Name of the cookie. Browsers send cookies to all ports of a host, so it contains the port.
        is_secure: Whether browsers reach the page by https only.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)
    cookie: str = COOKIE
    is_secure: bool = False

    @property
    def form_token(self) -> str:
        """The token of the page's forms."""
        return hmac.new(self.token.encode(), b"form", hashlib.sha256).hexdigest()

    def opens(self, token: str | None) -> bool:
        """Whether a token opens the page."""
        return token is not None and _is_equal(token, self.token)

    def allows_act(self, form_token: str | None) -> bool:
        """Whether a form is one of this page."""
        return form_token is not None and _is_equal(form_token, self.form_token)


class RequireToken:
    """ASGI middleware that answers 401 without the token, and adds the headers that restrict the browser.

    Another site whose name leads to this machine (DNS rebinding) is refused: `hosts` are the names and addresses by
    which a browser may ask.
    """

    def __init__(self, app: ASGIApp, access: Access, hosts: tuple[str, ...]) -> None:
        self.app, self.access, self.hosts = app, access, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_restricted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(Request(scope)) or self.app
        await answer(scope, receive, send_restricted)

    def _answer(self, request: Request) -> Response | None:
        """Return what ends the request: a redirect that stores the token, or 401; None to pass it on."""
        host = request.headers.get("host", "")
        if _name_of(host) not in self.hosts:
            return PlainTextResponse(WRONG_HOST.format(host=escaped_controls(host)), status_code=400)
        given = request.query_params.get(PARAMETER)
        if given is not None and self.access.opens(given) and request.method == "GET":
            return self._with_cookie(request)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if self.access.opens(request.cookies.get(self.access.cookie)):
            return None
        if scheme.lower() == "bearer" and self.access.opens(bearer.strip()):
            return None
        return PlainTextResponse(DENIED, status_code=401, headers={"www-authenticate": "Bearer"})

    def _with_cookie(self, request: Request) -> Response:
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != PARAMETER]
        query = f"?{urlencode(rest)}" if rest else ""
        path = "/" + request.url.path.lstrip("/")  # two slashes would lead to another host
        answer = RedirectResponse(f"{path}{query}", status_code=303)
        # "strict" would not send it after a click on a link in a chat or a notebook; acts need the form token anyway.
        answer.set_cookie(
            self.access.cookie, self.access.token, httponly=True, samesite="lax", secure=self.access.is_secure
        )
        return answer


def _name_of(host: str) -> str | None:
    """Return the name or address in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())
