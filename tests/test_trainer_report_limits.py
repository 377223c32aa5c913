"""What limits the metrics of a result: few images, what was chosen on them, and what the model has seen."""

import pytest

from data_shards.index import Shard, ShardIndex
from data_shards.pack.group_counts import GroupCounts
from trainer.report.limits import leakage_text, limits

TEMPERATURE = "The temperature was fitted on {}: loss, Brier score and calibration are optimistic."
OPTIMISTIC = "{}: its metrics are optimistic. Evaluate on a test split."
OUT_OF_FOLD = {"folds": 5, "repeats": 1}
UNKNOWN = "It is not known whether the model has seen these images: they are not of the data set it was trained on."


def index_of(counts, *, classes=("covid", "normal"), samples=100, **fields):
    """An index of the splits train, valid and test, each with `counts` images of each class."""
    shards = [
        Shard(
            name=f"{split}-0.tar", split=split, samples=samples, per_class=counts, bytes=1, sha256=f"{n}" * 64, **fields
        )
        for n, split in enumerate(("train", "valid", "test"))
    ]
    return ShardIndex(classes=classes, shards=tuple(shards), multi_label="unknown" in fields)


def metrics_of(split, **others):
    return {"split": split, "positive": "covid", "positive_stated": True, "threshold": None, **others}


@pytest.mark.parametrize(
    ("split", "judged", "details", "lines"),
    [
        ("test", {}, {"best": {}, "choice": {"trials": 9}}, []),
        ("valid", {}, {"precision": "fp32"}, [TEMPERATURE.format("this split")]),
        (
            "valid", {}, {"precision": "fp32", "best_epoch": 3},
            [OPTIMISTIC.format("The best epoch was selected on this split"), TEMPERATURE.format("this split")],
        ),
        (
            "valid", {}, {"choice": {"trials": 9}},
            [
                OPTIMISTIC.format("The trial was chosen among 9 and the best epoch was selected on this split"),
                TEMPERATURE.format("this split"),
            ],
        ),
        (
            "train+valid", {"out_of_fold": OUT_OF_FOLD}, {"precision": "fp32"},
            [TEMPERATURE.format("the predictions out of fold")],
        ),
        (
            "train+valid", {"out_of_fold": OUT_OF_FOLD}, {"choice": {"trials": 9}},
            [
                OPTIMISTIC.format("The trial was chosen among 9 on the predictions out of fold"),
                TEMPERATURE.format("the predictions out of fold"),
            ],
        ),
        (
            "valid", {}, {"seen": {"images": 100, "trained": 0, "chosen": 100}},
            ["Warning: the model was chosen on 100 of these 100 images; the metrics are optimistic."],
        ),
        (
            "test", {}, {"seen": None},
            [UNKNOWN],
        ),
        ("test", {}, {"seen": {"images": 100, "trained": 0, "chosen": 0}}, []),
    ],
)  # fmt: skip
def test_what_was_chosen_on_the_judged_images_is_said(split, judged, details, lines):
    assert limits(index_of((50, 50)), metrics_of(split, **judged), details) == lines


def test_a_class_with_few_images_is_named():
    assert limits(index_of((100, 0)), metrics_of("test"), {}) == [
        'The test split has only 0 "normal" images: the metrics are imprecise, see their intervals.'
    ]


@pytest.mark.parametrize(
    ("counts", "groups", "found"),
    [
        ((25, 100), (17, 66), '25 "covid" images of 17 groups'),
        ((240, 300), (12, 1), '240 "covid" images of 12 groups and 300 "normal" images of 1 group'),
        ((25, 100), (25, 100), '25 "covid" images'),
    ],
)
def test_a_class_with_few_groups_is_named_as_images_of_one_group_are_not_independent(counts, groups, found):
    known = GroupCounts(every=sum(groups), present=groups)

    assert limits(index_of(counts, samples=sum(counts)), metrics_of("test"), {}, known) == [
        f"The test split has only {found}: the metrics are imprecise, see their intervals."
    ]


def test_a_class_with_enough_groups_is_not_named():
    assert limits(index_of((50, 50)), metrics_of("test"), {}, GroupCounts(every=60, present=(30, 30))) == []


def test_a_label_that_few_groups_have_or_lack_is_named():
    index = index_of((50, 40), classes=("mass", "nodule"), unknown=(0, 0))
    known = GroupCounts(every=70, present=(9, 40), absent=(50, 60))

    assert limits(index, metrics_of("test", positive=None, labels={}), {}, known) == [
        'The test split has few images for some labels: 50 with "mass" of 9 groups. The metrics of these labels are '
        "imprecise, see their intervals."
    ]


def test_a_label_that_few_images_have_or_lack_is_named():
    index = index_of((12, 91, 50), classes=("mass", "effusion", "nodule"), unknown=(0, 2, 0))

    assert limits(index, metrics_of("test", positive=None, labels={}), {}) == [
        'The test split has few images for some labels: 12 with "mass", 7 without "effusion". The metrics of these '
        "labels are imprecise, see their intervals."
    ]


def test_the_counts_of_a_cross_validation_are_those_of_both_splits():
    metrics = metrics_of("train+valid", out_of_fold=OUT_OF_FOLD)

    assert limits(index_of((14, 86)), metrics, {"precision": "fp32"})[0].startswith(
        'The train and valid splits have only 28 "covid" images'
    )


@pytest.mark.parametrize(
    ("grouped", "text"),
    [
        (True, "none: no image or group is in two splits"),
        (False, "no image is in two splits; groups are unknown: a patient with several images may be in two"),
    ],
)
def test_without_groups_nothing_is_claimed_about_patients(grouped, text):
    index = index_of((50, 50)).model_copy(update={"grouped": grouped, "options": {"allow_leakage": False}})

    assert leakage_text(index) == text
