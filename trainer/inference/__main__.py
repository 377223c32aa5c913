"""Predicts here and at once, for `nightshift predict --now`: without queue, run folder and Ray, on the CPU.

`python -m trainer.inference` reads the request as a line of JSON from stdin. It writes the table to stdout, and what it
says to stderr. The exit code is 0, or 1 if the prediction failed, or 2 if it can never work.
"""

import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

import torch

from cluster.errors import ClusterError
from cluster.files import atomic_write
from cluster.guard import STATUS_OF_SIGNAL
from cluster.process_env import openmp_threads
from cluster.process_exit import end_process
from cluster.resources import cpu_count
from data_shards.errors import ShardError
from data_shards.read.shard_cache import limit_default_cache
from trainer.data.images import ImageSource, image_sources
from trainer.errors import SpecError, TrainerError
from trainer.inference.prediction_rows import RowCounts, check_sizes, read_batches, reading, rows_of
from trainer.inference.prediction_table import PredictionRow, open_rows
from trainer.inference.predictor import Predictor
from trainer.specs import PredictSpec, build

PROGRESS_SECONDS = 5.0
# Names of files need not be valid UTF-8, and csv writes its own ends of lines.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}

logger = logging.getLogger(__name__)


def main() -> int:
    """Predict what stdin asks for and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(**TEXT)
    request = json.loads(sys.stdin.readline())
    try:
        _predict(build(PredictSpec, **request["spec"]), Path(request["folder"]), request["shard_cache_bytes"])
    except (TrainerError, ShardError, ClusterError) as error:
        logger.error("Error: %s", error)
        return 2 if isinstance(error, SpecError) else 1
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        logger.error("Error: the table cannot be written (%s); free space there and retry", error.strerror)
        return 1
    return 0


def _predict(spec: PredictSpec, folder: Path, shard_cache_bytes: int) -> None:
    limit_default_cache(shard_cache_bytes)
    torch.set_num_threads(openmp_threads() or cpu_count())
    with reading((str(folder), *spec.images)):
        predictor = Predictor.load(folder, torch.device("cpu"), spec.threshold)
        parts = image_sources(spec.images, spec.split)
        check_sizes(parts, predictor.config.image_size)
    counts = RowCounts(ignored=sum(part.ignored for part in parts))
    classes, multi_label = predictor.config.classes, predictor.config.multi_label
    with ExitStack() as stack:
        files: list[IO[str]] = [sys.stdout]
        if spec.output is not None:
            draft = stack.enter_context(atomic_write(Path(spec.output)))
            files.append(stack.enter_context(draft.open("w", **TEXT)))
        as_json = spec.form == "json"
        writers = [
            stack.enter_context(open_rows(file, classes, as_json=as_json, multi_label=multi_label)) for file in files
        ]
        for row in _rows(parts, predictor, spec):
            counts.add(row)
            for write in writers:
                write(row)
    sys.stdout.flush()
    counts.outcome(predictor)


def _rows(parts: tuple[ImageSource, ...], predictor: Predictor, spec: PredictSpec) -> Iterator[PredictionRow]:
    progress = _Progress(total=sum(len(part) for part in parts))
    for batch in read_batches(parts, spec, predictor.config):
        yield from rows_of(batch, predictor)
        progress.add(len(batch.files))


@dataclass
class _Progress:
    """Logs every few seconds how many images are done."""

    total: int
    done: int = 0
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def add(self, images: int) -> None:
        self.done += images
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS and self.done < self.total:
            self._said, speed = now, self.done / max(now - self._began, 1e-9)
            logger.info("%d of %d images, %.0f images/s", self.done, self.total, speed)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(STATUS_OF_SIGNAL + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # so that the draft of the table is removed
    sys.exit(end_process(main()))
