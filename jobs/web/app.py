"""The page as an ASGI application: each address gives HTML to people and JSON to programs."""

import functools
import json
import logging
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import trainer.report
from cluster.access import unreadable
from cluster.errors import ClusterError, InsufficientResources, StorageAway, UnknownRun
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from cluster.storage_marker import refuse_away
from data_shards.errors import ShardError
from jobs.errors import InvalidOption, JobError, QueueUnreachable, Refused
from jobs.queue import actions
from jobs.queue.overview import QueueCheck
from jobs.runs.damage import WRONG_SHAPE
from jobs.runs.progress_text import ago
from jobs.runs.run_filter import KINDS
from jobs.runs.run_index import RunIndex
from jobs.web import forms
from jobs.web.access import Access, RequireToken
from jobs.web.changes import Looks, changes
from jobs.web.compare_page import FIELDS, ComparePage, chosen_address, compare_page
from jobs.web.forms import Fork, FormPage, NotAllowed, read_form
from jobs.web.other_pages import promoted_models, queue_page
from jobs.web.overview import STATES, overview
from jobs.web.run_page import run_page, wall_clock
from jobs.web.shared_work import SharedWork
from trainer.errors import CheckpointError, ModelMismatch, SpecError, TrainerError, WeightsError
from trainer.evaluation.metric_text import figure_text
from trainer.report.environment import moment_text

# A report runs nothing and loads nothing: names of classes and files in it come from the data.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
REPORT_STYLES = [Path(trainer.report.__file__).with_name(name) for name in ("report.css", "comparison.css")]
UNBUFFERED = {"x-accel-buffering": "no"}  # nginx, also as an ingress, would keep events back until they fill a buffer
OURS = (ClusterError, ShardError, TrainerError, JobError)  # errors whose text is one line for people
log = logging.getLogger("nightshift.web")
NOT_FOUND, NOT_ALLOWED, CONFLICT, WRONG, UNAVAILABLE, FAILED = 404, 403, 409, 400, 503, 500


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the application serves.

    Attributes:
        settings: The storage and the queue.
        access: Who may use it.
        hosts: Names of this machine by which a browser may ask, without ports: another site's name that resolves to
            this machine is refused.
        fork: Submits a run again with changes; None: nobody may fork a run.
        is_read_only: Whether nobody may act.
        is_stopping: Set when the server stops: streams of events do not end by themselves.
    """

    settings: Settings
    access: Access
    hosts: Sequence[str]
    fork: Fork | None = None
    is_read_only: bool = False
    is_stopping: threading.Event = field(default_factory=threading.Event)

    @functools.cached_property
    def index(self) -> RunIndex:
        """The states of all runs."""
        return RunIndex(self.settings.storage)


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
        Route("/runs/{run_id}/kill", handlers.kill, methods=["POST"]),
        Route("/runs/{run_id}/retry", handlers.retry, methods=["POST"]),
        Route("/runs/{run_id}/fork", handlers.fork, methods=["GET", "POST"]),
        Route("/runs/{run_id}/edit", handlers.edit, methods=["GET", "POST"]),
        Route("/runs/{run_id}/promote", handlers.promote, methods=["GET", "POST"]),
        Route("/compare", handlers.compare),
        Route("/models", handlers.models),
        Route("/queue", handlers.queue),
        *(Route(f"/static/{style.name}", _file_of(style)) for style in REPORT_STYLES),
        Mount("/static", StaticFiles(packages=[("jobs.web", "static")])),
    ]
    kinds = (*OURS, NotAllowed, OSError, HTTPException, *WRONG_SHAPE, ClientDisconnect)
    errors = dict.fromkeys(kinds, handlers.error)
    middleware = [Middleware(RequireToken, access=page.access, hosts=tuple(page.hosts))]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=errors)


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.web", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    templates.filters["figure"] = figure_text
    templates.filters["moment"] = moment_text
    templates.filters["wall_clock"] = wall_clock
    templates.filters["ago"] = ago
    templates.tests["run_id"] = lambda text: bool(text and RUN_ID.fullmatch(text))
    return templates


class _Handlers:
    """A function for each address. Starlette calls those that are not `async` in a thread."""

    def __init__(self, page: Page) -> None:
        self.page, self.settings, self.storage = page, page.settings, page.settings.storage
        self.looks, self.shared = Looks(self.storage), SharedWork[Response]()
        self.queue_check = QueueCheck(self.settings)

    async def runs(self, request: Request) -> Response:
        return await self.shared.result(_asked(request), lambda: self._runs(request))

    def _runs(self, request: Request) -> Response:
        found = overview(self.page.index, request.query_params, are_paused=self.queue_check.are_known_paused)
        refuse_away(self.settings.runs)  # last: a storage that is away looks like one without runs
        return self._answer(request, "runs.html.j2", found.to_json, found=found, kinds=KINDS, states=STATES)

    async def run(self, request: Request) -> Response:
        return await self.shared.result(_asked(request), lambda: self._run(request))

    def _run(self, request: Request) -> Response:
        paths = self._paths(request)
        try:
            found = run_page(paths, with_files=wants_json(request), are_paused=self.queue_check.are_known_paused)
        except FileNotFoundError as error:  # deleted while it was read
            raise UnknownRun(f"run {paths.run_id} does not exist; the page of runs lists those that do") from error
        return self._answer(request, "run.html.j2", found.to_json, found=found)

    def compare(self, request: Request) -> Response:
        query = request.query_params
        if "run" in query:
            return RedirectResponse(chosen_address(query.getlist("run")), status_code=303)
        try:
            found, text, status = compare_page(self.storage, query), "", 200
        except OURS as error:
            if wants_json(request):
                raise
            found = ComparePage(fields={name: query.get(name, "") for name in FIELDS})
            text, status = _line(error), _status(error)
        return self._answer(request, "compare.html.j2", found.to_json, status=status, found=found, error=text)

    def models(self, request: Request) -> Response:
        found = promoted_models(self.storage)
        refuse_away(self.settings.runs)
        return self._answer(request, "models.html.j2", lambda: [one.to_json() for one in found], models=found)

    async def queue(self, request: Request) -> Response:
        return await self.shared.result(_asked(request), lambda: self._queue(request))

    def _queue(self, request: Request) -> Response:
        found = queue_page(self.settings)
        return self._answer(request, "queue.html.j2", found.to_json, found=found)

    def report(self, request: Request) -> Response:
        paths = self._paths(request)
        if not paths.report.is_file():
            raise UnknownRun(f"{paths.run_id} has no report; a run writes it when it succeeds")
        return FileResponse(paths.report, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    async def changes(self, request: Request) -> Response:
        run_id = request.path_params.get("run_id")
        if run_id is not None and not await run_in_threadpool(self._paths(request).folder.is_dir):
            raise UnknownRun(f"run {run_id} does not exist; the page of runs lists those that do")
        events = changes(request, self.looks, run_id, self.page.is_stopping)
        return StreamingResponse(events, media_type="text/event-stream", headers=UNBUFFERED)

    async def cancel(self, request: Request) -> Response:
        await self._check_form(request)
        return await self._act(request, lambda paths: actions.request_cancel(self.settings, paths))

    async def kill(self, request: Request) -> Response:
        await self._check_form(request)
        return await self._act(request, lambda paths: actions.request_cancel(self.settings, paths, at_once=True))

    async def retry(self, request: Request) -> Response:
        await self._check_form(request)
        return await self._act(request, lambda paths: actions.retry(self.settings, paths))

    async def fork(self, request: Request) -> Response:
        submit = self.page.fork
        if submit is None:
            raise NotAllowed("this page forks no runs; use `nightshift fork`")
        return await self._form(
            request,
            "fork.html.j2",
            forms.fork_page,
            lambda paths, fields: forms.fork(self.settings, paths, fields, submit),
        )

    async def edit(self, request: Request) -> Response:
        return await self._form(request, "edit.html.j2", forms.edit_page, forms.edit)

    async def promote(self, request: Request) -> Response:
        return await self._form(
            request,
            "promote.html.j2",
            forms.promote_page,
            lambda paths, fields: forms.promote(self.settings, paths, fields),
        )

    async def error(self, request: Request, error: Exception) -> Response:
        if isinstance(error, WRONG_SHAPE):
            log.error("%s cannot be shown", request.url.path, exc_info=error)
        text, code = _line(error), _status(error)
        return self._answer(request, "error.html.j2", lambda: {"error": text}, text=text, status=code)

    def _paths(self, request: Request) -> RunPaths:
        return RunPaths.of(self.storage, request.path_params["run_id"])

    async def _act(self, request: Request, act: Callable[[RunPaths], Any]) -> Response:
        paths = self._paths(request)
        await run_in_threadpool(act, paths)
        return RedirectResponse(f"/runs/{paths.run_id}", status_code=303)

    async def _check_form(self, request: Request) -> dict[str, str]:
        return await read_form(request, self.page.access, is_read_only=self.page.is_read_only)

    async def _form(
        self,
        request: Request,
        template: str,
        show: Callable[[RunPaths, forms.Fields], FormPage],
        act: Callable[[RunPaths, forms.Fields], str],
    ) -> Response:
        """Show a form; take it when it is sent, and show it again if that is refused."""
        forms.refuse_read_only(is_read_only=self.page.is_read_only)
        paths, fields, text, status = self._paths(request), dict[str, str](), "", 200
        if request.method == "POST":
            fields = await self._check_form(request)
            try:
                return RedirectResponse(await run_in_threadpool(act, paths, fields), status_code=303)
            except OURS as error:
                if wants_json(request):
                    raise
                text, status = _line(error), _status(error)
        found = await run_in_threadpool(show, paths, fields)
        return self._answer(request, template, found.to_json, status=status, found=found, error=text)

    def _answer(
        self, request: Request, template: str, to_json: Callable[[], Any], *, status: int = 200, **content: Any
    ) -> Response:
        if wants_json(request):
            text = json.dumps(without_nan(to_json()), allow_nan=False)
            return Response(text, status_code=status, media_type="application/json")
        html = _templates().get_template(template).render(
            content, status=status, path=request.url.path, form_token=self.page.access.form_token,
            is_read_only=self.page.is_read_only, can_fork=self.page.fork is not None,
        )  # fmt: skip
        # A file's name that is not UTF-8 has characters that cannot be encoded.
        return Response(html.encode(errors="replace"), status_code=status, media_type="text/html")


def without_nan(content: Any) -> Any:
    """Return the content with null for numbers that JSON does not have, such as the loss of a diverged training."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def wants_json(request: Request) -> bool:
    """Whether a program asks: it accepts JSON and not HTML."""
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def _asked(request: Request) -> Hashable:
    """Return what two requests have in common that get the same answer."""
    return request.url.path, request.url.query, wants_json(request)


def _file_of(file: Path) -> Callable[[Request], Response]:
    return lambda _request: FileResponse(file)


def _line(error: Exception) -> str:
    return " ".join(_text(error).split())


def _text(error: Exception) -> str:
    if isinstance(error, HTTPException):  # Starlette's own: an address that does not exist, or a wrong method
        return f"{error.detail}; follow the links of the page"
    if isinstance(error, OSError):
        return unreadable(error, "the storage")
    if isinstance(error, WRONG_SHAPE):
        return f"a file that this page shows is damaged ({type(error).__name__}); the log of `nightshift ui` has more"
    return str(error)


def _status(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    codes = {UnknownRun: NOT_FOUND, NotAllowed: NOT_ALLOWED, InvalidOption: WRONG, Refused: CONFLICT,
             QueueUnreachable: UNAVAILABLE, StorageAway: UNAVAILABLE, SpecError: WRONG, CheckpointError: CONFLICT,
             ModelMismatch: CONFLICT, WeightsError: CONFLICT, ShardError: CONFLICT,
             InsufficientResources: CONFLICT}  # fmt: skip
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)
