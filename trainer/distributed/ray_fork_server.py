"""Forks the Python processes of a Ray on this machine from one that has imported them, which takes milliseconds each.

Ray starts Python for its agents, its controllers and each worker, and each imports Ray and torch again: with two
workers that is most of the time until the first step. A trainer that will start Ray forks this server first, while it
has one thread:

    trainer ── control ── fork server
    │                     └── Ray's agents, controllers and workers: forks
    └── raylet, and other processes that Ray starts
        └── `ray_fork_client.py` for each fork ── socket in Ray's folder

Ray starts `sys.executable`, so that is the client while Ray starts. A fork has the streams, environment, working
directory and blocked signals of its client, ends with it, and with the fork server, which ends with the trainer.
Whatever is not one of `SCRIPTS` is started as always, and so is everything when the fork server has ended.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import os
import resource
import runpy
import selectors
import shlex
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cluster import guard, stack_dumps
from cluster.process_env import keep_arrow_single_threaded, replace_environment
from cluster.process_exit import end_process
from cluster.process_title import show_command
from trainer.distributed import ray_fork_client
from trainer.distributed.ray_fork_client import FORKED, STREAMS
from trainer.distributed.ray_fork_imports import (
    JOB,
    can_fork_ray,
    import_ray_agents,
    import_ray_for_forks,
    ray_was_imported_too_early,
    seed_fork,
)

WORKER = "_private/workers/default_worker.py"
WORKER_SETUP = "_private/workers/setup_worker.py"
SETUP_MODULE = "ray._private.workers.setup_worker"
SCRIPTS = (
    WORKER_SETUP,
    "_private/log_monitor.py",
    "_private/runtime_env/agent/main.py",
    "dashboard/agent.py",
)  # of Ray, below its folder

REQUEST_SECONDS = 10.0  # a client that is stopped within its request must not block the others

logger = logging.getLogger(__name__)


class _State:
    """What this process has done.

    Attributes:
        control: The trainer's end of the control socket; None without a fork server.
    """

    control: socket.socket | None = None


def start_fork_server(preload: Callable[[], object]) -> None:
    """Fork a server for the Ray that this process will start; call it while there is one thread.

    Args:
        preload: Imports what the workers need, as far as this process has not; called when Ray starts.
    """
    if ray_was_imported_too_early():
        return
    ours, servers = socket.socketpair()
    trainer = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        forked = os.fork()
    except OSError as error:  # no memory or no more processes
        logger.warning("Ray's processes start without a fork server: %s", error)
        return
    if forked:
        servers.close()
        _State.control = ours
        return
    try:
        guard.die_with_parent(trainer, signal.SIGKILL)
        ours.close()
        _serve(servers, preload)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


@contextlib.contextmanager
def forking_python(folder: str) -> Iterator[None]:
    """Let what is started as `sys.executable` during the block, and what Ray starts later, be forked if it can.

    Args:
        folder: A private folder that lasts as long as Ray.
    """
    if (control := _State.control) is None:
        yield
        return
    own = Path(tempfile.mkdtemp(prefix="forks-", dir=folder))  # Ray may be started again in the same folder
    python, address, client = sys.executable, own / "socket", own / "python"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        command = shlex.join([python, "-I", "-S", ray_fork_client.__file__, str(address), python])
        client.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        client.chmod(0o700)
        # Below a mount with noexec nothing can be started.
        is_served = os.access(client, os.X_OK) and _was_sent(listener, control)
    try:
        if is_served:
            sys.executable = str(client)
        yield
    finally:
        sys.executable = python


def _was_sent(listener: socket.socket, control: socket.socket) -> bool:
    """Send the fork server the socket on which clients ask; return whether it lives."""
    try:
        socket.send_fds(control, [b"1"], [listener.fileno()])
    except OSError:  # it has ended, and said why
        _State.control = None
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a client asks for: a process with its own arguments, working directory, environment, streams and so on.

    Attributes:
        blocked: Numbers of the signals that are blocked.
        niceness: As `nice` shows it.
        oom_score: Content of `/proc/self/oom_score_adj`.
        open_files: Soft and hard limit of open files; Ray raises the soft one.
        streams: File descriptors of stdin, stdout and stderr, in this process.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    blocked: list[int]
    niceness: int
    oom_score: str
    open_files: tuple[int, int]
    streams: list[int]

    @property
    def script(self) -> str:
        """The Python file that is to run."""
        return next((argument for argument in self.arguments if not argument.startswith("-")), "")

    @property
    def is_of_worker(self) -> bool:
        """Whether it becomes a worker of Ray."""
        return self.script.endswith(WORKER_SETUP)

    @classmethod
    def received_from(cls, client: socket.socket) -> "_Request | None":
        """Read a request to its end; None if the client ended before."""
        first, streams, _, _ = socket.recv_fds(client, 1, len(STREAMS))
        line = b""
        try:
            with client.makefile("rb") as lines:
                line = first + lines.readline()
        finally:
            is_whole = len(streams) == len(STREAMS) and line.endswith(b"\n")
            if not is_whole:
                _close(streams)
        return cls(**json.loads(line), streams=streams) if is_whole else None


@dataclass
class _Forks:
    """The processes that were forked, by their clients.

    Attributes:
        scripts: The files that may run.
        selector: Waits for the end of clients.
    """

    scripts: frozenset[str]
    selector: selectors.BaseSelector
    clients: dict[int, socket.socket] = field(default_factory=dict)

    def accept(self, listener: socket.socket) -> None:
        """Fork what a client asks for."""
        try:
            client, _ = listener.accept()
        except OSError:  # too many open files: the client waits until some are closed
            return
        request = None
        with contextlib.suppress(OSError):  # the client has ended, or does not go on
            client.settimeout(REQUEST_SECONDS)
            request = _Request.received_from(client)
            client.settimeout(None)
        if request is None:
            client.close()
            return
        pid = None
        if request.script in self.scripts and request.environment.get("RAY_JOB_ID", JOB) == JOB:
            with contextlib.suppress(OSError):  # no memory or no more processes: the client starts Python
                pid = os.fork()
        if pid == 0:
            _become(request)
        _close(request.streams)
        if pid is None:
            client.close()
            return
        self.clients[pid] = client
        self.selector.register(client, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):  # its end is noticed when it is read
            client.sendall(FORKED)

    def end(self, pid: int) -> None:
        """End a fork whose client has ended."""
        self._forget(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Tell the clients of forks that have ended how they ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.clients:
                with contextlib.suppress(OSError):  # the client has ended too
                    self.clients[pid].sendall(str(status).encode())
                self._forget(pid)

    def _forget(self, pid: int) -> None:
        client = self.clients.pop(pid)
        self.selector.unregister(client)
        client.close()


def _serve(control: socket.socket, preload: Callable[[], object]) -> None:
    """Fork what clients ask for until the trainer ends."""
    _as_after_imports({control.fileno()})
    keep_arrow_single_threaded()
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, a signal wakes nobody
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    forks: _Forks | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ, "control")
        selector.register(woken, selectors.EVENT_READ, "woken")
        while True:
            for key, _ in selector.select():
                if key.data == "control":
                    message, files, _, _ = socket.recv_fds(control, 1, 1)
                    if not message:
                        return
                    forks = forks or _prepared(preload, selector)
                    selector.register(socket.socket(fileno=files[0]), selectors.EVENT_READ, "listener")
                elif key.data == "woken":
                    os.read(woken, 4096)
                elif forks and key.data == "listener":
                    forks.accept(key.fileobj)  # type: ignore[arg-type]
                elif forks and key.data in forks.clients:
                    forks.end(key.data)
            if forks:
                forks.reap()


def _prepared(preload: Callable[[], object], selector: selectors.BaseSelector) -> _Forks:
    """Import what forks need."""
    import_ray_for_forks()
    preload()
    for module in (SETUP_MODULE, "ray.train.torch"):
        importlib.import_module(module)
    import_ray_agents()
    if not can_fork_ray():
        os._exit(0)
    gc.collect()
    gc.freeze()  # the collector of a fork does not touch, and so not copy, what is shared
    folder = Path(sys.modules["ray"].__file__ or "").parent
    return _Forks(frozenset(str(folder / script) for script in SCRIPTS), selector)


def _as_after_imports(keep: set[int]) -> None:
    """Drop the files, log handlers and signal handlers of the trainer.

    A file is replaced, not closed: its number cannot become that of another, which an object of the trainer that is
    freed here would close. A lock on a file that is kept open would not end with the trainer.
    """
    faulthandler.unregister(stack_dumps.SIGNAL)
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in Path("/proc/self/fd").iterdir():
        number = int(file.name)
        if number not in keep and number not in STREAMS and number != nothing and file.is_symlink():
            os.dup2(nothing, number, inheritable=False)


def _become(request: _Request) -> NoReturn:
    """Run the script of a request in this process, a fork, as Python would run it."""
    code = 1
    try:
        guard.die_with_parent(os.getppid(), signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, file in zip(STREAMS, request.streams, strict=True):
            os.dup2(file, stream)
        _as_after_imports(set())
        signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
        os.chdir(request.folder)
        os.setpriority(os.PRIO_PROCESS, 0, request.niceness)
        Path("/proc/self/oom_score_adj").write_text(request.oom_score)
        resource.setrlimit(resource.RLIMIT_NOFILE, request.open_files)
        replace_environment(request.environment)
        if not request.is_of_worker:  # Ray shows what a worker does, in the place of our arguments
            show_command([sys.executable, *request.arguments])
        seed_fork()
        after = request.arguments[request.arguments.index(request.script) + 1 :]
        if request.is_of_worker:
            _run_worker(after)
        else:
            _run(request.script, after)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        end_process(code)
        os._exit(code)


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _run_worker(arguments: list[str]) -> None:
    """Apply the runtime environment and run the worker, in one process instead of Ray's two."""
    setup, utils = sys.modules[SETUP_MODULE], importlib.import_module("ray._private.utils")
    options, rest = setup.parser.parse_known_args(arguments)
    context = setup.RuntimeEnvContext.deserialize(options.serialized_runtime_env_context or "{}")
    is_plain = not context.command_prefix and not context.override_worker_entrypoint
    if options.language != "PYTHON" or not is_plain or context.py_executable != sys.executable:
        context.exec_worker(rest, setup.Language.Value(options.language))
    if not rest[0].endswith(WORKER):
        raise ValueError(f"{rest[0]} is not Ray's worker")
    utils.update_envs(context.env_vars)
    # Ray numbers the GPUs of a worker in what was visible when it was imported; the run has leased its GPUs since then.
    worker = sys.modules["ray._private.worker"].global_worker
    worker.original_visible_accelerator_ids = utils.get_visible_accelerator_ids()
    _run(rest[0], rest[1:])


def _run(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
