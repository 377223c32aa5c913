"""A job worker as `nightshift worker` starts it, but with the fake trainer: `python -m tests.fake_worker [--burst]`."""

import logging
import sys

from cluster.launch import LocalLauncher
from cluster.settings import Settings
from jobs.worker import work

FAKE_TRAINER = (sys.executable, "-m", "tests.fake_trainer")

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    work(Settings.read(), launcher=LocalLauncher(FAKE_TRAINER), burst="--burst" in sys.argv, drain_seconds=5)
