"""The spec of a training: its defaults, and what its options mean."""

from trainer.specs import TrainSpec, build


def test_a_training_runs_30_epochs_and_stops_after_10_without_a_better_one():
    spec = build(TrainSpec, shards="shards")

    assert (spec.epochs, spec.patience) == (30, 10)


def test_a_patience_of_0_is_no_early_stopping_and_stays_so_when_read_back():
    spec = build(TrainSpec, shards="shards", patience=0)

    assert spec.patience is None
    assert (
        build(TrainSpec, **{name: value for name, value in spec.to_json().items() if name != "kind"}).patience is None
    )
