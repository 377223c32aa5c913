"""Start the trainer as a job of a Ray cluster through the Ray Jobs API, over HTTP and without importing ray.

The submission id is made from run id and attempt, so that another job worker can watch the job later. An exit code
from Ray is final. Without one, the run's own heartbeat decides: after a restart, Ray's head node reports jobs as
failed that are still running, and a head node that is gone reports nothing.
"""

import http.client
import json
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ClusterUnreachable, LaunchError
from cluster.exit_codes import ExitCode
from cluster.guard import STATUS_OF_SIGNAL
from cluster.lease import heartbeat_is_ours, heartbeat_of
from cluster.run_paths import RunPaths

TRAINER = ("python", "-P", "-m", "trainer")  # the python of the cluster's image
POLL_SECONDS = 2.0
ANSWER_SECONDS = 8.0  # well below the lease: a caller that waits here sends no heartbeat


@dataclass(frozen=True)
class RayJobs:
    """Client of a cluster's Ray Jobs API."""

    url: str
    token: str | None = field(default=None, repr=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of the response.

        Raises:
            urllib.error.HTTPError: The cluster refused the request.
            OSError, ValueError: There is no response, or it is not JSON.
        """
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310, checked by settings
                return json.loads(answer.read() or b"null")
        except http.client.HTTPException as error:
            if isinstance(error, OSError):  # the connection was closed without an answer
                raise
            raise ValueError(f"the answer is not HTTP ({type(error).__name__})") from error

    def version(self) -> str:
        """Return the Ray version of the cluster; raises what `call` raises."""
        return str(self.call("GET", "/api/version")["ray_version"])


@dataclass(frozen=True)
class RayJobLauncher:
    """Starts the trainer as a job of a Ray cluster that mounts the same storage at the same path.

    Attributes:
        jobs: The cluster.
        lease_seconds: A trainer without a heartbeat for this long is taken for dead.
        command: The command, to which the run's folder and attempt number are added.
        environment: Environment variables of the command besides storage and run id.
    """

    jobs: RayJobs
    lease_seconds: float
    command: tuple[str, ...] = TRAINER
    environment: tuple[tuple[str, str], ...] = ()
    place: str = "ray"

    def start(self, paths: RunPaths, attempt: int) -> "RayRun":
        """Submit the job; its output is appended to the run's log.

        Raises:
            LaunchError: The cluster refuses the job.
            ClusterUnreachable: The cluster does not answer.
        """
        command = [*self.command, str(paths.folder), "--attempt", str(attempt)]
        variables = {"NIGHTSHIFT_STORAGE": str(paths.storage), "NIGHTSHIFT_RUN": paths.run_id}
        job = {
            "entrypoint": f"exec {shlex.join(command)} >> {shlex.quote(str(paths.log))} 2>&1",
            "submission_id": submission_id(paths, attempt),
            "runtime_env": {"env_vars": {**variables, **dict(self.environment)}},
            "metadata": {"run": paths.run_id},
        }
        try:
            self.jobs.call("POST", "/api/jobs/", job)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip().splitlines() or [str(error.reason)]
            if "already exists" not in said[-1]:  # otherwise the response to an earlier request was lost
                raise LaunchError(f"Ray at {self.jobs.url} refused {paths.run_id}: {said[-1]}") from error
        except (OSError, ValueError) as error:
            raise ClusterUnreachable(f"Ray at {self.jobs.url} does not answer: {error}") from error
        return self.attach(paths, attempt)

    def attach(self, paths: RunPaths, attempt: int) -> "RayRun":
        """Watch a job that was submitted before."""
        return RayRun(self.jobs, paths, attempt, self.lease_seconds)


def submission_id(paths: RunPaths, attempt: int) -> str:
    """Return Ray's submission id for an attempt."""
    return f"{paths.run_id}-{attempt}"


@dataclass
class RayRun:
    """A trainer on a Ray cluster. It may be pending for a long time before it starts."""

    jobs: RayJobs
    paths: RunPaths
    attempt: int
    lease_seconds: float
    _last_heartbeat: object = None
    _last_alive: float = field(default_factory=time.monotonic)
    _last_poll: float = float("-inf")

    @property
    def sends_own_heartbeat(self) -> bool:
        """Whether the trainer writes the heartbeat. Until it starts, the job worker does."""
        return not heartbeat_is_ours(self.paths, self.attempt)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; `ExitCode.UNKNOWN` if cluster and heartbeat are silent; None while the job runs."""
        until = time.monotonic() + seconds
        if until - self._last_poll >= POLL_SECONDS:
            self._last_poll = time.monotonic()
            if (code := self._exit_code()) is not None:
                return code
        time.sleep(max(0.0, until - time.monotonic()))
        return None

    def dump_stacks(self) -> None:
        """Do nothing: the processes are on other machines. Their watchdogs write the stacks of a hanging collective."""

    def kill(self) -> None:
        """Stop the job and wait until Ray reports its end, or the heartbeat stops."""
        try:
            self.jobs.call("POST", f"/api/jobs/{submission_id(self.paths, self.attempt)}/stop", {})
        except (OSError, ValueError):
            return  # no response: the lease prevents whatever still runs there from publishing
        until = time.monotonic() + self.lease_seconds
        while self._exit_code() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 4)

    def _exit_code(self) -> int | None:
        try:
            job = self.jobs.call("GET", f"/api/jobs/{submission_id(self.paths, self.attempt)}")
        except (OSError, ValueError):
            return self._exit_code_by_heartbeat()
        status, code = job.get("status"), job.get("driver_exit_code")
        if status in ("PENDING", "RUNNING"):
            self._last_alive = time.monotonic()
            return None
        if status == "STOPPED":
            return ExitCode.UNKNOWN
        if code is None:
            return 0 if status == "SUCCEEDED" else self._exit_code_by_heartbeat()
        return int(code) if code >= 0 else STATUS_OF_SIGNAL - int(code)

    def _exit_code_by_heartbeat(self) -> int | None:
        heartbeat = heartbeat_of(self.paths)
        if self.sends_own_heartbeat and heartbeat != self._last_heartbeat:
            self._last_heartbeat, self._last_alive = heartbeat, time.monotonic()
        return None if time.monotonic() - self._last_alive < self.lease_seconds else ExitCode.UNKNOWN
