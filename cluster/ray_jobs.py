"""Start the trainer as a Ray job on a cluster that stands, over its Jobs API. Speaks HTTP and does not import ray.

The submission id is run id and attempt, so that whoever watches may go and another come. Ray's word counts where it
is sure (an exit code); otherwise the run's own beat does: a head that restarts calls jobs failed that go on, and one
that vanished says nothing at all.
"""

import json
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ClusterUnreachable, LaunchError
from cluster.exit_codes import ExitCode
from cluster.lease import heartbeat_is_ours, heartbeat_of
from cluster.run_paths import RunPaths

TRAINER = ("python", "-m", "trainer")  # the cluster's own python
POLL_SECONDS = 2.0
ANSWER_SECONDS = 8.0  # well below a lease: who waits here does not beat


@dataclass(frozen=True)
class RayJobs:
    """The Jobs API of a cluster."""

    url: str
    token: str | None = field(default=None, repr=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer's JSON.

        Raises:
            urllib.error.HTTPError: The cluster refused.
            OSError, ValueError: It does not answer, or with something else.
        """
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", data, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310, checked by settings
            return json.loads(answer.read() or b"null")

    def version(self) -> str:
        """Return the cluster's version of Ray; errors as `call` has them."""
        return str(self.call("GET", "/api/version")["ray_version"])


@dataclass(frozen=True)
class RayJobLauncher:
    """The trainer as a job of a standing Ray cluster that mounts the same storage at the same place.

    Attributes:
        jobs: The cluster.
        lease_seconds: A trainer whose heart has not beaten for so long is gone.
        command: What is run there with the run's folder and attempt number as arguments.
        environment: Of that command, besides what marks the run.
    """

    jobs: RayJobs
    lease_seconds: float
    command: tuple[str, ...] = TRAINER
    environment: tuple[tuple[str, str], ...] = ()
    place: str = "ray"

    def start(self, paths: RunPaths, attempt: int) -> "RayRun":
        """Submit the job; its output is appended to the run's log.

        Raises:
            LaunchError: The cluster refuses.
            PlaceAway: It does not answer.
        """
        order = [*self.command, str(paths.folder), "--attempt", str(attempt)]
        marks = {"NIGHTSHIFT_STORAGE": str(paths.storage), "NIGHTSHIFT_RUN": paths.run_id}
        wish = {
            "entrypoint": f"exec {shlex.join(order)} >> {shlex.quote(str(paths.log))} 2>&1",
            "submission_id": submission_id(paths, attempt),
            "runtime_env": {"env_vars": {**marks, **dict(self.environment)}},
            "metadata": {"run": paths.run_id},
        }
        try:
            self.jobs.call("POST", "/api/jobs/", wish)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip().splitlines() or [str(error.reason)]
            if "already exists" not in said[-1]:  # else an earlier answer was lost on its way
                raise LaunchError(f"Ray at {self.jobs.url} refused {paths.run_id}: {said[-1]}") from error
        except (OSError, ValueError) as error:
            raise ClusterUnreachable(f"Ray at {self.jobs.url} does not answer: {error}") from error
        return self.attach(paths, attempt)

    def attach(self, paths: RunPaths, attempt: int) -> "RayRun":
        """Watch a job that somebody submitted."""
        return RayRun(self.jobs, paths, attempt, self.lease_seconds)


def submission_id(paths: RunPaths, attempt: int) -> str:
    """Return the id by which Ray knows an attempt."""
    return f"{paths.run_id}-{attempt}"


@dataclass
class RayRun:
    """A trainer on a Ray cluster; it may wait there for long until it begins."""

    jobs: RayJobs
    paths: RunPaths
    attempt: int
    lease_seconds: float
    _send_heartbeat: object = None
    _life_seen: float = field(default_factory=time.monotonic)
    _asked: float = float("-inf")

    @property
    def sends_own_heartbeat(self) -> bool:
        """Whether the trainer has begun to beat; until then whoever watches does it."""
        return not heartbeat_is_ours(self.paths, self.attempt)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code once it is known, `ExitCode.UNKNOWN` when cluster and heart are silent, else None."""
        until = time.monotonic() + seconds
        if until - self._asked >= POLL_SECONDS:
            self._asked = time.monotonic()
            if (code := self._exit_code()) is not None:
                return code
        time.sleep(max(0.0, until - time.monotonic()))
        return None

    def kill(self) -> None:
        """Stop the job and wait until Ray says that it has ended, or its heart stands still."""
        try:
            self.jobs.call("POST", f"/api/jobs/{submission_id(self.paths, self.attempt)}/stop", {})
        except (OSError, ValueError):
            return  # it does not answer: the lease fences off whatever still runs there
        until = time.monotonic() + self.lease_seconds
        while self._exit_code() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 4)

    def _exit_code(self) -> int | None:
        try:
            job = self.jobs.call("GET", f"/api/jobs/{submission_id(self.paths, self.attempt)}")
        except (OSError, ValueError):
            return self._judge_by_beat()
        status, code = job.get("status"), job.get("driver_exit_code")
        if status in ("PENDING", "RUNNING"):
            self._life_seen = time.monotonic()
            return None
        if status == "STOPPED":
            return ExitCode.UNKNOWN
        if code is None:
            return 0 if status == "SUCCEEDED" else self._judge_by_beat()
        return int(code) if code >= 0 else 128 - int(code)

    def _judge_by_beat(self) -> int | None:
        heartbeat = heartbeat_of(self.paths)
        if self.sends_own_heartbeat and heartbeat != self._send_heartbeat:
            self._send_heartbeat, self._life_seen = heartbeat, time.monotonic()
        return None if time.monotonic() - self._life_seen < self.lease_seconds else ExitCode.UNKNOWN
