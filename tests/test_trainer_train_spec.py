"""The spec of a training: its defaults, and what its options mean."""

import pytest

from trainer.errors import CheckpointError, SpecError
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build, read_spec


def test_a_training_runs_30_epochs_and_stops_after_10_without_a_better_one():
    spec = build(TrainSpec, shards="shards")

    assert (spec.epochs, spec.patience) == (30, 10)


def test_a_patience_of_0_is_no_early_stopping_and_stays_so_when_read_back():
    spec = build(TrainSpec, shards="shards", patience=0)

    assert spec.patience is None
    assert (
        build(TrainSpec, **{name: value for name, value in spec.to_json().items() if name != "kind"}).patience is None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "logistic", "epochs": 5}, "--head logistic is fitted in one step: --epochs has no effect"),
        ({"head": "lda", "batch_size": "auto"}, "--accumulate has no effect"),
        ({"head": "lda", "freeze": "3"}, "--head lda needs the features of a frozen backbone; leave out --freeze 3"),
        ({"head": "lda", "augment": True}, "--head lda reads the features of each image once; leave out --augment"),
        ({"folds": 5, "augment": True}, "--folds 5 reads the features of each image once; leave out --augment"),
        ({"folds": 5, "patience": 3}, "--folds 5 trains all epochs of each fold: --patience has no"),
        ({"folds": 5, "workers": 2}, "--folds 5 trains small heads in one process; leave out --workers"),
        ({"folds": 1}, "folds 1 is below 2; use 2 or more"),
    ],
)  # fmt: skip
def test_options_without_effect_on_linear_heads_and_folds_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        build(TrainSpec, shards="shards", **options)


def test_a_linear_head_has_no_batches_to_divide_over_its_workers():
    assert build(TrainSpec, shards="shards", head="lda", workers=3).workers == 3


def test_a_missing_spec_has_a_cure(tmp_path):
    with pytest.raises(SpecError, match=r"does not exist; restore it from a backup, or submit the run again$"):
        read_spec(tmp_path / "spec.json")


def test_a_missing_configuration_of_a_model_has_a_cure(tmp_path):
    with pytest.raises(CheckpointError, match=r"head\.json does not exist; export or publish the model again$"):
        HeadConfig.read(tmp_path / "head.json")
