"""The options of a training, which `train`, `search` and `k8s render train` share."""

import click

from jobs.cli.completion import complete_path
from jobs.cli.option_groups import OptionGroup
from jobs.cli.option_types import BatchSize
from jobs.cli.options import option
from trainer.specs import TrainSpec

# What a search can vary; `search` has options of its own in their place.
FREEZE = option(
    TrainSpec, "freeze", "Backbone layers to freeze: all, none, or N for the stem and the first N of 7 stages.",
    metavar="all|none|N",
)  # fmt: skip
HEAD_WIDTH = option(TrainSpec, "head_width", "Units of the hidden layer of the head; a multiple of 4.", metavar="UNITS")
DROPOUT = option(TrainSpec, "dropout", "Dropout probability before the output layer.", metavar="P")
AUGMENT_STRENGTH = option(TrainSpec, "augment_strength", "Strength of --augment, from 0 to 4.", metavar="FACTOR")
BATCH_SIZE = option(
    TrainSpec, "batch_size",
    "Global batch size (images per step, over all workers); auto means --batch-size 32 --accumulate.",
    type=BatchSize(), metavar="N|auto",
)  # fmt: skip
LR = option(TrainSpec, "lr", "Peak learning rate of the head.", metavar="RATE")
WEIGHT_DECAY = option(TrainSpec, "weight_decay", "Weight decay of the head.", metavar="RATE")

BEST_BY = option(
    TrainSpec,
    "best_by",
    "Metric on the valid split that selects the best epoch: loss is minimized, the others are maximized.",
)

DATA_AND_MODEL = OptionGroup(
    "Data and model",
    (
        option(
            TrainSpec, "weights", "Initial weights: imagenet (the official file), none (random), or a file.",
            metavar="imagenet|none|FILE", shell_complete=complete_path,
        ),
        FREEZE,
        HEAD_WIDTH,
        DROPOUT,
        option(TrainSpec, "image_size", "Height and width of the input image, in pixels.", metavar="PIXELS"),
        option(TrainSpec, "augment", "Augment training images: random rotation, shift, zoom and contrast."),
        AUGMENT_STRENGTH,
        option(
            TrainSpec, "precision",
            "Precision of the backbone. auto takes bf16 on GPUs that have it, and fp16 on older ones; on CPUs bf16 for "
            "a frozen backbone if the CPU has it, else fp32.",
        ),
        option(
            TrainSpec, "norms",
            "Batch norm statistics of trained backbone layers: kept (running statistics from the weights) or batch "
            "(statistics of each batch); auto is batch with --weights none, else kept.",
        ),
        option(TrainSpec, "cache", "Cache the features of a frozen backbone and reuse them in later runs."),
        option(
            TrainSpec, "positive",
            "Positive class: the one that is to be found, such as covid. Sensitivity, specificity and false negatives "
            "are about it, and the model keeps it.  [default: none; the recall of every class is reported]",
            metavar="CLASS",
        ),
    ),
)  # fmt: skip
OPTIMIZATION = OptionGroup(
    "Optimization",
    (
        option(TrainSpec, "epochs", "Number of passes over the training split.", metavar="N"),
        BATCH_SIZE,
        LR,
        WEIGHT_DECAY,
        click.option(
            "--class-weights/--no-class-weights", default=None,
            help="Weight the loss by inverse class frequency.  "
            "[default: on if a class has more than twice as many images as another; of several labels per image: if "
            "more than twice as many images have a label as lack it, or the reverse]",
        ),
        option(
            TrainSpec, "head_epochs", "Number of epochs at the start that train only the head; used with "
                "--freeze none or N.",
            metavar="N",
        ),
        option(
            TrainSpec, "ema",
            "Decay per step of the exponential moving average (EMA) of the weights, such as 0.999; the averaged "
            "weights are validated and published; 0 disables EMA.",
            metavar="DECAY",
        ),
        click.option(
            "--accumulate", is_flag=True,
            help="Use gradient accumulation if a batch does not fit into GPU memory; "
            "the gradients equal those of the whole batch.",
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
            "Early stopping: stop after this many epochs without improvement; 0 is off.", metavar="EPOCHS",
        ),
    ),
)  # fmt: skip
# Only of `train`: a search varies the options of the mlp head, on one validation split.
HEAD = option(
    TrainSpec, "head",
    "Head on the features: mlp (three layers, trained by steps), or a linear head that is fitted in one step on a "
    "frozen backbone: lda (linear discriminant analysis with shrinkage) or logistic (logistic regression).",
)  # fmt: skip
CROSS_VALIDATION = OptionGroup(
    "Cross-validation",
    (
        option(
            TrainSpec, "folds",
            "Cross-validate on the features of a frozen backbone: divide train and valid into K folds, with groups "
            "kept whole. The predictions out of fold choose the temperature and give the metrics; the published model "
            "is trained on all images of both splits, for all --epochs.",
            metavar="K",
        ),
        option(
            TrainSpec, "repeats",
            "Divide into folds R times; the metrics are those of the repeat with the median loss.", metavar="R",
        ),
    ),
)  # fmt: skip
TRAINING = (
    OptionGroup(DATA_AND_MODEL.heading, (HEAD, *DATA_AND_MODEL.options)),
    OPTIMIZATION,
    VALIDATION,
    CROSS_VALIDATION,
)
