import pytest

from trainer.training.optimizer import lr_factor
from trainer.training.train_state import TrainState


def after(*values, best_by="loss"):
    state, bests = TrainState(), []
    for value in values:
        state, is_best = state.after_epoch({best_by: value}, best_by)
        bests.append(is_best)
    return state, bests


def test_the_epoch_with_the_lowest_loss_is_the_best():
    state, bests = after(0.5, 0.3, 0.4)

    assert bests == [True, True, False]
    assert (state.best_epoch, state.best_value) == (2, 0.3)


def test_the_epoch_with_the_highest_accuracy_is_the_best():
    state, _ = after(0.5, 0.9, 0.7, best_by="accuracy")

    assert state.best_epoch == 2


@pytest.mark.parametrize("best_by", ["loss", "auroc"])
def test_of_equals_the_earlier_stays_the_best(best_by):
    state, _ = after(0.5, 0.5, 0.5, best_by=best_by)

    assert state.best_epoch == 1


def test_an_undefined_metric_is_no_better_than_a_defined_one():
    state, _ = after(None, 0.2, None, best_by="auroc")

    assert state.best_epoch == 2


def test_patience_counts_epochs_since_the_best():
    state, _ = after(0.3, 0.4, 0.5)

    assert not state.should_stop_early(3)
    assert state.should_stop_early(2)
    assert not state.should_stop_early(None)


def test_patience_begins_with_the_phase():
    state, _ = after(0.3, 0.4, 0.5)

    assert state.should_stop_early(2, since=1)
    assert not state.should_stop_early(2, since=2)


def test_a_step_counts_images_and_losses_until_the_epoch_ends():
    state = TrainState().after_step(4).after_step(3).with_losses([6.0, 2.0])

    assert (state.step, state.batch, state.images, state.loss_sum) == (2, 2, 7, 8.0)
    ended, _ = state.after_epoch({"loss": 1.0}, "loss")
    assert (ended.step, ended.epoch, ended.batch, ended.images, ended.loss_sum) == (2, 1, 0, 7, 0.0)


def test_the_rate_climbs_to_its_peak_and_falls_to_almost_nothing():
    rates = [lr_factor(step, 100) for step in range(100)]

    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[20] == 1
    assert rates == sorted(rates[:21]) + sorted(rates[21:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate_too(steps):
    assert all(0 < lr_factor(step, steps) <= 1 for step in range(steps))
