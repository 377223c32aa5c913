"""The options of a training, which `train`, `search` and `k8s render train` share."""

import click

from jobs.cli.option_types import BatchSize
from jobs.cli.options import OptionGroup, option
from trainer.specs import TrainSpec

# What a search can vary; `search` has options of its own in their place.
FREEZE = option(
    TrainSpec, "freeze", "Frozen part of the backbone: all, none, or the stem and the first N of 7 stages.",
    metavar="all|none|N",
)  # fmt: skip
HEAD_WIDTH = option(TrainSpec, "head_width", "Units of the head's first layer, a multiple of 4.", metavar="UNITS")
DROPOUT = option(TrainSpec, "dropout", "Dropout probability before the last layer.", metavar="P")
AUGMENT_STRENGTH = option(TrainSpec, "augment_strength", "Strength of --augment, 0 to 4.", metavar="FACTOR")
BATCH_SIZE = option(
    TrainSpec, "batch_size", "Images per step over all workers together; auto is 32 with --accumulate.",
    type=BatchSize(), metavar="N|auto",
)  # fmt: skip
LR = option(TrainSpec, "lr", "Peak learning rate of the head.", metavar="RATE")
WEIGHT_DECAY = option(TrainSpec, "weight_decay", "Weight decay of the head.", metavar="RATE")

BEST_BY = option(
    TrainSpec, "best_by", "Validation metric that selects the best epoch: the lowest loss, the highest of the others."
)

DATA_AND_MODEL = OptionGroup(
    "Data and model",
    (
        option(
            TrainSpec, "weights", "Initial weights: imagenet (the official file), none (random), or a file.",
            metavar="imagenet|none|FILE",
        ),
        FREEZE,
        HEAD_WIDTH,
        DROPOUT,
        option(TrainSpec, "image_size", "Side of the square input image, in pixels.", metavar="PIXELS"),
        option(TrainSpec, "augment", "Augment training images: random rotation, shift, zoom and contrast."),
        AUGMENT_STRENGTH,
        option(TrainSpec, "precision", "Precision of the backbone; auto is bf16 where the hardware supports it."),
        option(
            TrainSpec, "norms",
            "Batch norm statistics while the backbone trains: kept from the weights, or of each batch; "
            "auto keeps them unless --weights none.",
        ),
        option(TrainSpec, "cache", "Store the features of a frozen backbone, and reuse them in later runs."),
    ),
)  # fmt: skip
OPTIMIZATION = OptionGroup(
    "Optimization",
    (
        option(TrainSpec, "epochs", "Passes over the training split.", metavar="N"),
        BATCH_SIZE,
        LR,
        WEIGHT_DECAY,
        click.option(
            "--class-weights/--no-class-weights", default=None,
            help="Weight the loss by class balance.  [default: on if a class has over twice the images of another]",
        ),
        option(
            TrainSpec, "head_epochs", "Epochs at the start that train only the head; for --freeze none or N.",
            metavar="N",
        ),
        option(
            TrainSpec, "ema",
            "Decay per step of the exponential moving average (EMA) of the weights, such as 0.999; the averaged "
            "weights are validated and published. 0 turns it off.",
            metavar="DECAY",
        ),
        click.option(
            "--accumulate", is_flag=True,
            help="Use gradient accumulation where a batch does not fit into GPU memory; the gradients are the same.",
        ),
        option(TrainSpec, "seed", "Random seed.", metavar="N"),
    ),
)  # fmt: skip
VALIDATION = OptionGroup(
    "Validation",
    (
        BEST_BY,
        option(
            TrainSpec, "patience",
            "Early stopping: end after this many epochs without a better epoch.  [default: off]", metavar="EPOCHS",
        ),
    ),
)  # fmt: skip
TRAINING = (DATA_AND_MODEL, OPTIMIZATION, VALIDATION)
