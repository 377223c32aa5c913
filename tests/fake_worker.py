"""A job worker as `nightshift worker` starts it, but with the fake trainer: `python -m tests.fake_worker [--warm]`."""

import contextlib
import logging
import sys
from pathlib import Path

from rq.exceptions import StopRequested

from cluster.launch import Launcher, LocalLauncher
from cluster.ray_jobs import RayJobLauncher, RayJobs
from cluster.settings import Settings
from cluster.warm_launch import ForkServer, WarmLauncher
from jobs.queue.job_worker import JobWorker, work
from tests.fake_fork_server import fork_server

FAKE_TRAINER = (sys.executable, "-m", "tests.fake_trainer")
ROOT = str(Path(__file__).parent.parent)


def launcher(settings: Settings) -> Launcher:
    if "--ray" not in sys.argv:
        module = sys.argv[sys.argv.index("--trainer") + 1] if "--trainer" in sys.argv else FAKE_TRAINER[-1]
        real = module == "trainer"
        cold = LocalLauncher() if real else LocalLauncher((*FAKE_TRAINER[:-1], module), folder=Path(ROOT))
        if "--warm" not in sys.argv:
            return cold
        return WarmLauncher(ForkServer(settings.storage) if real else fork_server(settings.storage, module), cold)
    jobs = RayJobs(str(settings.ray_jobs_url), settings.ray_token)
    return RayJobLauncher(jobs, settings.lease_seconds, FAKE_TRAINER, (("PYTHONPATH", ROOT),))


def lose_first_stop() -> None:
    """Let the first exception that stops an idle worker be ignored, as redis-py may do."""
    shutdown = JobWorker._shutdown

    def ignored(worker: JobWorker) -> None:
        with contextlib.suppress(StopRequested):
            shutdown(worker)  # type: ignore[no-untyped-call]

    JobWorker._shutdown = ignored  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    if "--lose-first-stop" in sys.argv:
        lose_first_stop()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    here = Settings.read()
    seconds = float(sys.argv[sys.argv.index("--drain-seconds") + 1]) if "--drain-seconds" in sys.argv else 5.0
    work(here, launcher=launcher(here), burst="--burst" in sys.argv, drain_seconds=seconds)
