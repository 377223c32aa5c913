"""`nightshift train`."""

from typing import Any

from jobs.cli.command import command
from jobs.cli.config_file import CONFIG
from jobs.cli.option_groups import OptionGroup, options, path_argument
from jobs.cli.options import MIN_WORKERS, OUTPUT, TRAINING_WORKERS, WHEN, WHERE
from jobs.cli.submission import submit_options
from jobs.cli.training_options import TRAINING
from trainer.specs import TrainSpec

WORKER_OPTIONS = OptionGroup(WHERE.heading, (TRAINING_WORKERS, MIN_WORKERS, *WHERE.options[1:]))


@command(
    example="nightshift train shards/chest --epochs 5 --workers 4 --wait\n"
    "nightshift train shards/chest --head logistic --folds 5 --repeats 3"
)
@path_argument("shards")
@options(CONFIG, *TRAINING, WORKER_OPTIONS, WHEN, OUTPUT)
def train(shards: str, **given: Any) -> None:
    """Fine-tune EfficientNet-B0 on SHARDS and print the run id.

    SHARDS is the output folder of `nightshift shards pack`, or its URL.
    """
    submit_options(TrainSpec, given, shards=shards)
