import pytest
import torch

from data_shards.index import Addition, Shard, ShardIndex
from tests.trained import lease_in
from trainer.errors import SpecError
from trainer.evaluate import _check_images_to_choose_on
from trainer.evaluation.seen_images import (
    count_evaluation,
    evaluation_lines,
    feature_precisions,
    seen_images,
    shards_of_model,
)
from trainer.model.checkpoint_folder import write_checkpoint_folder


def index_of(*names, salt=""):
    """An index of shards of 10 images whose content follows from their names and `salt`."""
    shards = tuple(
        Shard(
            name=f"{name}.tar", split=name.split("-")[0], samples=10, per_class=(4, 6), bytes=1,
            sha256=f"{salt}{name}".encode().hex().ljust(64, "0"),
        )
        for name in names
    )  # fmt: skip
    return ShardIndex(classes=("covid", "normal"), shards=shards).sealed()


BASE = index_of("train-0", "train-1", "valid-0", "test-0")


def manifest_of(index, **more):
    return {"data": index.digest, "shards": shards_of_model(index), **more}


@pytest.mark.parametrize(("split", "trained", "chosen"), [("train", 20, 0), ("valid", 0, 10), ("test", 0, 0)])
def test_the_images_of_each_split_that_a_model_has_seen_are_counted(split, trained, chosen):
    seen = seen_images(manifest_of(BASE), BASE, split)

    assert seen == {"images": 20 if split == "train" else 10, "trained": trained, "chosen": chosen}


def test_a_refit_has_learnt_from_the_validation_split():
    assert seen_images(manifest_of(BASE, refit={"epochs": 3}), BASE, "valid") == {
        "images": 10, "trained": 10, "chosen": 0
    }  # fmt: skip


def test_images_are_recognised_in_a_data_set_that_grew_or_was_split_anew():
    grown = index_of("train-0", "train-1", "valid-0", "test-0", "test-1")
    other = ShardIndex(
        classes=BASE.classes,
        shards=tuple(s.model_copy(update={"split": "test"}) for s in BASE.shards if s.name in {"train-0.tar"}),
    ).sealed()

    assert seen_images(manifest_of(BASE), grown, "test") == {"images": 20, "trained": 0, "chosen": 0}
    assert seen_images(manifest_of(BASE), other, "test") == {"images": 10, "trained": 10, "chosen": 0}


def test_a_manifest_of_version_0_1_0_is_read_by_the_digest_of_its_data():
    assert seen_images({"data": BASE.digest}, BASE, "train") == {"images": 20, "trained": 20, "chosen": 0}
    assert seen_images({"data": "0" * 64}, BASE, "train") is None


def test_of_an_unrelated_data_set_nothing_is_claimed():
    unrelated = index_of("train-0", "valid-0", "test-0", salt="x")

    assert seen_images(manifest_of(BASE), unrelated, "test") is None
    assert evaluation_lines({"seen": None}, "test") == [
        "it is not known whether the model has seen these images: they are not of the data set it was trained on"
    ]


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        ((20, 0), "warning: the model was trained on 20 of these 20 images; new images will do worse"),
        ((0, 5), "warning: the model was chosen on 5 of these 20 images; the metrics are optimistic"),
        ((0, 0), "the model was neither trained nor chosen on any of these 20 images"),
    ],
)
def test_the_line_warns_of_images_that_the_model_has_seen(seen, line):
    details = {"seen": {"images": 20, "trained": seen[0], "chosen": seen[1]}}

    assert evaluation_lines(details, "test") == [line]


@pytest.mark.parametrize(
    ("trained", "evaluated", "lines"),
    [
        ({}, "fp32", []),
        ({"feature_precision": "fp32"}, "fp32", []),
        ({"feature_precision": "bf16"}, "bf16", ["the features were stored in bf16"]),
        ({}, "bf16", ["the features were stored in bf16"]),
        (
            {"feature_precision": "bf16"},
            "fp32",
            [
                "warning: the model was trained on features stored in bf16 and is evaluated on features in fp32; with "
                "NIGHTSHIFT_CACHE_PRECISION=bf16 both are the same"
            ],
        ),
    ],
)
def test_the_line_names_features_that_are_not_those_of_the_training(trained, evaluated, lines):
    details = feature_precisions(manifest_of(BASE, **trained), evaluated)

    assert details["feature_precision"] == evaluated
    assert evaluation_lines(details, "valid") == lines


def test_the_evaluations_of_a_test_split_are_counted_once_a_run(tmp_path):
    counts = [count_evaluation(tmp_path, BASE, "test", run) for run in ("a", "b", "b", "c")]

    assert counts == [1, 2, 2, 3]
    assert count_evaluation(tmp_path, BASE, "valid", "a") == 1
    assert evaluation_lines({"evaluations_of_split": 3}, "test") == [
        "the test split of this data set has been evaluated 3 times: choosing by its metrics biases them"
    ]
    assert evaluation_lines({"evaluations_of_split": 3}, "valid") == []


def test_evaluations_before_images_were_added_count_too(tmp_path):
    before = index_of("train-0", "valid-0", "test-0")
    addition = Addition(
        digest=before.digest, shards=3, widths=(8, 8, 8), heights=(8, 8, 8), time="2026-01-02T03:04:05Z"
    )
    after = before.model_copy(update={"shards": BASE.shards, "history": (addition,), "digest": "e" * 64})
    count_evaluation(tmp_path, before, "test", "a")
    count_evaluation(tmp_path, before, "test", "b")

    assert count_evaluation(tmp_path, after, "test", "b") == 2
    assert count_evaluation(tmp_path, after, "test", "c") == 3


def test_no_threshold_is_chosen_on_a_validation_split_that_a_refit_on_a_later_version_has_learnt_from(tmp_path):
    later = index_of("train-0", "train-1", "valid-0", "valid-1", "test-0")
    write_checkpoint_folder(
        tmp_path / "best",
        lease=lease_in(tmp_path),
        tensors={"model.safetensors": {"w": torch.zeros(2)}},
        json_files={},
        manifest=manifest_of(later, refit=True),
    )

    with pytest.raises(SpecError, match="--min-sensitivity needs a validation split without training images"):
        _check_images_to_choose_on(tmp_path / "best", BASE, "shards")


def test_a_storage_that_cannot_be_written_does_not_fail_the_evaluation(tmp_path, caplog):
    (tmp_path / "evaluations").write_text("a file")

    assert count_evaluation(tmp_path, BASE, "test", "a") is None
    assert "this evaluation is not counted" in caplog.text
