"""Run one of the peer searches in a separate process; print its best validation loss and its times as JSON.

python -m tests.bench.peers.search_alone plain|strong IMAGES WEIGHTS STORAGE TRIALS EPOCHS
"""

import json
import logging
import sys
from pathlib import Path

import ray

from tests.bench.peers import search

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    images, weights, storage = map(Path, sys.argv[2:5])
    trials, epochs = map(int, sys.argv[5:7])
    found = getattr(search, sys.argv[1])(images, weights, storage, trials=trials, epochs=epochs)
    table = found.get_dataframe()
    reported = {name: table[name].tolist() for name in ("time_total_s", "epoch_seconds")}
    print(json.dumps({"loss": found.get_best_result().metrics["loss"], **reported}))
