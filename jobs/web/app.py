"""The page as an ASGI application: each address gives HTML to people and JSON to programs."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import trainer.report
from cluster.errors import ClusterError, UnknownRun
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.errors import InvalidOption, JobError, QueueUnreachable, Refused
from jobs.queue import actions
from jobs.runs.run_filter import KINDS
from jobs.web.access import Access, RequireToken
from jobs.web.changes import changes
from jobs.web.other_pages import named_models, queue_page
from jobs.web.overview import STATES, overview
from jobs.web.run_page import run_page
from trainer.errors import TrainerError

FORM_FIELD = "form_token"
FORM_HEADER = "x-form-token"
MOST_FORM_BYTES = 4096
# A report runs nothing and loads nothing: names of classes and files in it come from the data.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
REPORT_STYLE = Path(trainer.report.__file__).with_name("report.css")
NOT_FOUND, NOT_ALLOWED, CONFLICT, WRONG, UNAVAILABLE, FAILED = 404, 403, 409, 400, 503, 500


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the application serves.

    Attributes:
        settings: The storage and the queue.
        access: Who may use it.
        hosts: Names of this machine by which a browser may ask, without ports: another site's name that resolves to
            this machine is refused.
        is_read_only: Whether nobody may act.
    """

    settings: Settings
    access: Access
    hosts: Sequence[str]
    is_read_only: bool = False


class NotAllowed(Exception):
    """A request that the page refuses."""


def create_app(page: Page) -> Starlette:
    """Return the application."""
    handlers = _Handlers(page)
    routes = [
        Route("/", handlers.runs),
        Route("/changes", handlers.changes),
        Route("/runs/{run_id}", handlers.run),
        Route("/runs/{run_id}/changes", handlers.changes),
        Route("/runs/{run_id}/report", handlers.report),
        Route("/runs/{run_id}/cancel", handlers.cancel, methods=["POST"]),
        Route("/runs/{run_id}/retry", handlers.retry, methods=["POST"]),
        Route("/models", handlers.models),
        Route("/queue", handlers.queue),
        Route("/static/report.css", handlers.report_style),
        Mount("/static", StaticFiles(packages=[("jobs.web", "static")])),
    ]
    errors = {ClusterError: handlers.error, JobError: handlers.error, TrainerError: handlers.error,
              NotAllowed: handlers.error, OSError: handlers.error, HTTPException: handlers.error}  # fmt: skip
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(page.hosts)),
        Middleware(RequireToken, access=page.access),
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=errors)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.web", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


class _Handlers:
    """A function for each address. Starlette calls those that are not `async` in a thread."""

    def __init__(self, page: Page) -> None:
        self.page, self.settings, self.storage = page, page.settings, page.settings.storage

    def runs(self, request: Request) -> Response:
        found = overview(self.storage, request.query_params)
        return self._answer(request, "runs.html.j2", found.to_json, found=found, kinds=KINDS, states=STATES)

    def run(self, request: Request) -> Response:
        found = run_page(self._paths(request))
        return self._answer(request, "run.html.j2", found.to_json, found=found)

    def models(self, request: Request) -> Response:
        found = named_models(self.storage)
        return self._answer(request, "models.html.j2", lambda: [one.to_json() for one in found], models=found)

    def queue(self, request: Request) -> Response:
        found = queue_page(self.settings)
        return self._answer(request, "queue.html.j2", found.to_json, found=found)

    def report(self, request: Request) -> Response:
        paths = self._paths(request)
        if not paths.report.is_file():
            raise UnknownRun(f"{paths.run_id} has no report; a run writes it when it succeeds")
        return FileResponse(paths.report, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    def report_style(self, _request: Request) -> Response:
        return FileResponse(REPORT_STYLE)

    async def changes(self, request: Request) -> Response:
        run_id = request.path_params.get("run_id")
        if run_id is not None:
            RunPaths.of(self.storage, run_id)
        return StreamingResponse(changes(request, self.storage, run_id), media_type="text/event-stream")

    async def cancel(self, request: Request) -> Response:
        fields = await self._checked_form(request)
        at_once = fields.get("now") == ["1"]
        return await self._act(request, lambda paths: actions.request_cancel(self.settings, paths, at_once=at_once))

    async def retry(self, request: Request) -> Response:
        await self._checked_form(request)
        return await self._act(request, lambda paths: actions.retry(self.settings, paths))

    async def error(self, request: Request, error: Exception) -> Response:
        text, code = " ".join(_text(error).split()), _status(error)
        return self._answer(request, "error.html.j2", lambda: {"error": text}, text=text, status=code)

    def _paths(self, request: Request) -> RunPaths:
        return RunPaths.of(self.storage, request.path_params["run_id"])

    async def _act(self, request: Request, act: Callable[[RunPaths], Any]) -> Response:
        paths = self._paths(request)
        await run_in_threadpool(act, paths)
        return RedirectResponse(f"/runs/{paths.run_id}", status_code=303)

    async def _checked_form(self, request: Request) -> dict[str, list[str]]:
        """Return the fields of a form of this page.

        Raises:
            NotAllowed: The page is read-only, or the form is not one of this page.
        """
        if self.page.is_read_only:
            raise NotAllowed(
                "this page is read-only; use the command line, or start `nightshift ui` without --read-only"
            )
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_FORM_BYTES:
                raise NotAllowed(f"the form is longer than {MOST_FORM_BYTES} bytes; use the buttons of the page")
        fields = parse_qs(body.decode(errors="replace"))
        given = request.headers.get(FORM_HEADER) or next(iter(fields.get(FORM_FIELD, [])), None)
        if not self.page.access.allows_act(given):
            raise NotAllowed("the form does not have this page's form token; load the page again and use its buttons")
        return fields

    def _answer(
        self, request: Request, template: str, to_json: Callable[[], Any], *, status: int = 200, **content: Any
    ) -> Response:
        if wants_json(request):
            return JSONResponse(to_json(), status_code=status)
        html = _templates().get_template(template).render(
            content, status=status, path=request.url.path, form_token=self.page.access.form_token,
            is_read_only=self.page.is_read_only,
        )  # fmt: skip
        return HTMLResponse(html, status_code=status)


def wants_json(request: Request) -> bool:
    """Whether a program asks: it accepts JSON and not HTML."""
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def _text(error: Exception) -> str:
    if isinstance(error, HTTPException):  # Starlette's own: an address that does not exist, or a wrong method
        return f"{error.detail}; follow the links of the page"
    return str(error)


def _status(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    codes = {UnknownRun: NOT_FOUND, NotAllowed: NOT_ALLOWED, InvalidOption: WRONG, Refused: CONFLICT,
             QueueUnreachable: UNAVAILABLE}  # fmt: skip
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)
