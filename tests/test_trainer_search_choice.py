"""Which trial a search publishes, and what the value of its best trial is worth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from cluster.files import read_json
from cluster.settings import Settings
from data_shards.index import Shard, ShardIndex
from data_shards.pack.group_counts import GroupCounts
from jobs.runs.trial_rows import rows_of
from tests.multi_label import pack_multi_label
from tests.searched import NOON, attempt_at, events_of, search_spec
from tests.searched import table_of as journal_of
from tests.trained import lease_in, new_run
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.evaluation.objective import objective_of
from trainer.evaluation.scoring import ModelOutputs
from trainer.evaluation.trial_outputs import (
    EpochOutputs,
    TrialOutputs,
    best_written_value,
    read_trial_outputs,
    trial_of,
    write_trial_outputs,
)
from trainer.evaluation.weighted_ranking import weighted_values
from trainer.search import choice, publisher, run
from trainer.search.choice import choose, few_images
from trainer.search.choice_text import choice_lines, correction_sentence
from trainer.search.journal import TrialJournal, copy_trials
from trainer.search.leaderboard import leaderboard
from trainer.search.publisher import BestModelPublisher
from trainer.search.trials import TrialTable

DEFAULT, OTHER = 512, 256  # widths of the head
INDEX = ShardIndex(
    classes=("covid", "normal"),
    shards=(Shard(name="a.tar", split="valid", samples=130, per_class=(20, 110), bytes=1, sha256="0" * 64),),
)


def spec_of(**options):
    return search_spec("shards", **({"space": {"head_width": (OTHER, DEFAULT)}, "best_by": "accuracy"} | options))


def table_of(values, spec, *, default=0, end="finished", why="epochs"):
    """A trial for each value; `default` is the number of the one with the defaults, whose end is given."""
    events = []
    for number, value in enumerate(values):
        width = DEFAULT if number == default else OTHER
        config = {**spec.default_config, "head_width": width, "lr": spec.lr * (1 + (number != default) * number)}
        ended = {"event": end, "why": why, "error": "out of memory"} if number == default else {"event": "finished"}
        events += [
            {"event": "started", "trial": number, "config": config},
            {"event": "epoch", "trial": number, "epoch": 1, "value": value},
            {**ended, "trial": number},
        ]
    return TrialTable.fold(events, spec.best_by)


def outputs_of(*right, units=None):
    """The outputs of a trial for images of which it gets these right; of several, of each of its trainings."""
    labels = np.arange(len(right[0])) % 2
    logits = np.stack([np.eye(2)[np.where(one, labels, 1 - labels)] * 4 for one in right])
    return TrialOutputs(
        logits=logits, labels=labels, units=np.arange(len(labels)) if units is None else np.asarray(units)
    )


def kept_outputs(paths):
    return lambda record: read_trial_outputs(paths.checkpoints, record.trial, record.epoch)


def chosen(values, outputs, spec=None, **how):
    spec = spec or spec_of()
    table = table_of(values, spec, **how)
    return choose(table, spec, lambda record: outputs.get(record.trial), lambda: pytest.fail("groups are known"))


def first(count, of=400):
    return np.arange(of) < count


@pytest.mark.parametrize("metric", ["loss", "accuracy", "balanced_accuracy", "auroc"])
@pytest.mark.parametrize("classes", [2, 3, "labels"])
def test_a_weighted_metric_is_that_of_an_epoch_on_the_drawn_images(metric, classes):
    random, objective = np.random.default_rng(1), objective_of(classes == "labels")
    columns = 3 if classes == "labels" else classes
    logits = random.integers(-4, 5, (60, columns)).astype(float)  # with ties
    labels = random.integers(-1, 2, (60, columns)) if classes == "labels" else random.integers(0, columns, 60)
    weights = np.stack([np.bincount(random.integers(0, 60, 60), minlength=60) for _ in range(5)]).astype(float)

    found = weighted_values(weights, logits, labels, metric)

    rows = [np.repeat(np.arange(60), times.astype(int)) for times in weights]
    expected = [objective.epoch_metrics(logits[drawn], labels[drawn])[metric] for drawn in rows]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_metric_is_undefined_on_images_without_one_of_the_classes():
    one_class = np.array([[1.0, 0.0], [0.0, 1.0]])

    assert np.isnan(weighted_values(one_class, np.eye(2), np.array([0, 1]), "auroc")).all()


def test_the_default_is_published_unless_the_best_is_better_by_more_than_a_standard_error():
    outputs = {0: outputs_of(first(340)), 1: outputs_of(first(360))}

    near = chosen([0.85, 0.86], outputs)
    far = chosen([0.85, 0.9], outputs)

    assert near.standard_error == far.standard_error == pytest.approx((0.05 * 0.95 / 400) ** 0.5, rel=0.1)
    assert (near.keeps_default, near.chosen.trial, near.difference) == (True, 0, pytest.approx(0.01))
    assert (far.keeps_default, far.chosen.trial, far.difference) == (False, 1, pytest.approx(0.05))
    assert near == chosen([0.85, 0.86], outputs)  # a killed search chooses alike


def test_images_of_one_patient_are_drawn_together_and_repeats_are_averaged():
    units = np.arange(400) // 20
    outputs = {number: outputs_of(first(count), first(count), units=units) for number, count in enumerate((340, 360))}

    found = chosen([0.85, 0.9], outputs)

    assert found.standard_error == pytest.approx((0.05 * 0.95 / 20) ** 0.5, rel=0.15)  # one of 20 patients differs


def test_the_value_of_the_best_of_many_equal_trials_is_corrected_to_that_of_all():
    claims, corrections = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        outputs = {number: outputs_of(random.random(200) < 0.8) for number in range(20)}
        values = [float((one.logits[0].argmax(axis=1) == one.labels).mean()) for one in outputs.values()]
        claims.append(max(values))
        corrections.append(chosen(values, outputs).correction)

    assert np.mean(claims) > 0.85
    assert np.mean([one.value for one in corrections]) == pytest.approx(0.8, abs=0.01)
    assert all(one.low < 0.8 < one.high for one in corrections)
    assert {(one.trials, one.resamples) for one in corrections} == {(20, 1000)}


def test_the_sentence_about_the_corrected_value_shows_only_one_itself_as_one():
    corrected = {"trials": 12, "value": 0.9876, "low": 0.9712, "high": 0.99998}
    choice = {"trials": 12, "best_trial": 4, "best_value": 0.99998, "corrected": corrected}

    sentence = correction_sentence(choice, "validation auroc")

    assert sentence == (
        "validation auroc >0.9999 of trial 4, the best of 12 trials; corrected for choosing among 12 trials 0.9876 "
        "(95 % interval 0.9712 to >0.9999)"
    )


def test_the_corrected_value_of_a_trial_that_is_right_on_all_images_has_the_interval_of_their_number():
    outputs = {0: outputs_of(first(40, of=40)), 1: outputs_of(first(40, of=40)), 2: outputs_of(first(30, of=40))}

    found = chosen([1.0, 1.0, 0.75], outputs).correction

    assert (found.value, found.low, found.high) == (1.0, pytest.approx(0.025 ** (1 / 40)), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "auroc", "loss"])
def test_the_corrected_interval_of_the_best_of_equal_trials_contains_the_truth_in_93_percent(metric, monkeypatch):
    monkeypatch.setattr(choice, "RESAMPLES", 200)
    random, labels, shift = np.random.default_rng(0), np.arange(50) % 5 // 4, 3.3
    far = np.random.default_rng(1).normal(size=400_000) + shift / 2
    truth = {
        "accuracy": norm.cdf(shift / 2),
        "auroc": norm.cdf(shift / 2**0.5),
        "loss": np.log1p(np.exp(-2 * far)).mean(),
    }
    covered = 0
    for _ in range(100):
        shared, own = random.normal(size=50), random.normal(size=(14, 50))
        scores = shift * (labels - 0.5) + 0.7**0.5 * shared + 0.3**0.5 * own
        outputs = {
            number: TrialOutputs(logits=np.stack([-one, one], axis=1)[None], labels=labels, units=np.arange(50))
            for number, one in enumerate(scores)
        }
        values = [
            float(weighted_values(np.ones((1, 50)), one.logits[0], labels, metric)[0]) for one in outputs.values()
        ]
        found = chosen(values, outputs, spec_of(best_by=metric)).correction
        covered += found.low <= truth[metric] <= found.high

    assert covered >= 93


def test_the_value_of_a_clear_winner_stays():
    outputs = {0: outputs_of(first(200)), 1: outputs_of(first(380)), 2: outputs_of(first(210))}

    found = chosen([0.5, 0.95, 0.525], outputs)

    assert found.correction.value == pytest.approx(0.95, abs=0.002)


def test_no_corrected_value_is_better_than_the_best_value_itself():
    outputs = {0: outputs_of(first(200)), 1: outputs_of(first(380)), 2: outputs_of(first(210))}

    found = [chosen([0.5, 0.95, 0.525], outputs, spec_of(seed=seed)).correction.value for seed in range(6)]

    assert max(found) == 0.95  # of some resamples the mean is above it by chance
    assert min(found) < 0.95


NOT = "it was not compared with the defaults of train: "
EVEN = {"space": {"lr": {"low": 1e-5, "high": 1e-2, "log": True}}, "algorithm": "grid", "lr": 5e-4}


@pytest.mark.parametrize(
    ("how", "options", "sentence"),
    [
        ({}, {"choose": "best"}, "trial 1 is published, the best in validation accuracy, as --choose best asks"),
        ({"values": [0.9, 0.8]}, {}, "trial 0 is published, the default trial: no other is better in validation acc"),
        ({"end": "failed"}, {}, NOT + "trial 0 with them failed"),
        ({"why": "rung"}, {}, NOT + "no trial with them was trained to its end"),
        ({}, {"space": {"head_width": (8, 16)}}, NOT + "the search space excludes head_width 512"),
        ({}, EVEN, NOT + "no point of the grid has lr 0.0005"),
        ({"missing": 0}, {}, "compared with the default trial 0: the predictions of one of them were not kept"),
        ({"values": [0.85, 0.86]}, {}, "trial 0 is published, the default trial: trial 1 is better by 0.01 in "
         "validation accuracy, not more than one standard error of the difference (0.0"),
        ({}, {}, "trial 1 is published: compared with the default trial 0, it is better by 0.1 in validation accuracy, "
         "more than one standard error of the difference (0.0"),
    ],
)  # fmt: skip
def test_a_sentence_says_what_was_chosen_and_why(how, options, sentence):
    spec, how = spec_of(**options), {"values": [0.8, 0.9], "missing": None, **how}
    outputs = {0: outputs_of(first(340)), 1: outputs_of(first(360))}
    outputs.pop(how.pop("missing"), None)

    found = chosen(how.pop("values"), outputs, spec, **how).to_json(spec, INDEX, "valid")

    assert sentence in found["sentence"]


def test_the_best_is_published_if_the_model_of_the_default_trial_was_not_kept():
    spec, outputs = spec_of(), {0: outputs_of(first(340)), 1: outputs_of(first(360))}
    kept = chosen([0.85, 0.86], outputs, spec)

    found = kept.without_default_model(kept.best)

    assert (kept.chosen.trial, found.chosen.trial, found.correction) == (0, 1, kept.correction)
    assert found.to_json(spec, INDEX, "valid")["sentence"].endswith("default trial 0: its model was not kept")


def test_the_lines_say_best_value_correction_and_too_few_images():
    spec, outputs = spec_of(), {0: outputs_of(first(340)), 1: outputs_of(first(360))}

    choice = chosen([0.85, 0.9], outputs).to_json(spec, INDEX, "valid")

    corrected = choice["corrected"]
    assert choice_lines({"choice": choice})[1:] == [
        ("best", "validation accuracy 0.9 of trial 1, the best of 2 trials; corrected for choosing among 2 trials "
         f"{corrected['value']:.4g} (95 % interval {corrected['low']:.4g} to {corrected['high']:.4g})"),
        ("warning", 'valid has 20 images of "covid", fewer than 100: which trial is best may be mostly chance'),
    ]  # fmt: skip
    assert few_images(spec, INDEX, "valid+test").startswith('valid and test have 20 images of "covid"')
    assert few_images(spec_of(positive="normal"), INDEX, "valid") == ""
    assert choice_lines({"best": {}}) == []


@pytest.mark.parametrize(
    ("positive", "groups", "warning"),
    [
        ("covid", (17, 110), 'valid has 20 images of "covid" in 17 groups, fewer than 100 groups'),
        ("normal", (20, 1), 'valid has 110 images of "normal" in 1 group, fewer than 100 groups'),
        (None, (18, 17), 'valid has 110 images of "normal" in 17 groups, fewer than 100 groups'),
        ("covid", (20, 110), 'valid has 20 images of "covid", fewer than 100'),
    ],
)
def test_images_of_one_group_count_once_in_the_warning(positive, groups, warning):
    known = GroupCounts(every=sum(groups), present=groups)

    assert few_images(spec_of(positive=positive), INDEX, "valid", known) == (
        f"{warning}: which trial is best may be mostly chance"
    )
    assert few_images(spec_of(positive="normal"), INDEX, "valid", GroupCounts(every=120, present=(20, 100))) == ""


def test_without_the_outputs_of_a_trial_the_value_is_not_corrected():
    spec = spec_of()

    choice = chosen([0.85, 0.9, 0.8], {0: outputs_of(first(340)), 1: outputs_of(first(360))}, spec)

    assert (choice.correction, choice.chosen.trial) == (None, 1)
    assert choice.to_json(spec, INDEX, "valid")["correction"].endswith("the predictions of 1 of 3 trials were not kept")
    one_group = {number: outputs_of(first(340), units=np.zeros(400, dtype=int)) for number in range(2)}
    assert chosen([0.85, 0.9], one_group).uncorrected == "too few images or groups to leave some out"


def test_outputs_are_read_as_they_were_written_and_only_the_newest_are_kept(tmp_path):
    logits = np.array([[0.5, -0.25], [1.5, 2.0]])
    outputs = ModelOutputs(logits=logits, labels=np.array([0, 1]), groups=("b", "a"))
    for epoch, value in ((1, 0.5), (3, 0.6), (7, 0.7)):
        about = EpochOutputs(trial=4, epoch=epoch, value=value)
        write_trial_outputs(tmp_path, about, [outputs], lease_in(tmp_path), has_groups=True)

    found = read_trial_outputs(tmp_path, 4, 7)

    assert (found.logits.tolist(), found.labels.tolist()) == ([logits.tolist()], [0, 1])
    assert found.units.tolist() == [1, 0]
    assert read_trial_outputs(tmp_path, 4, 1) is None
    assert (best_written_value(tmp_path, 4), best_written_value(tmp_path, 5)) == (0.7, None)
    assert (trial_of(tmp_path / "trial-000004"), trial_of(tmp_path / "repeat-0")) == (4, None)


def test_the_leaderboard_marks_the_default_trial_and_the_published_one():
    spec = spec_of()

    rows = leaderboard(table_of([0.8, 0.9], spec), "best", published=0, is_default=spec.is_default)

    assert [(row["trial"], row["default"], row["checkpoint"]) for row in rows] == [(1, False, None), (0, True, "best")]


def test_a_search_publishes_what_it_chooses_and_chooses_alike_in_its_next_attempt(tmp_path, monkeypatch):
    shards, _ = pack_multi_label(tmp_path, {"train": 24, "valid": 16})
    space = {"lr": (1e-5, 1.0), "dropout": None, "head_width": None}  # the default trial has 1.0, which does harm
    spec = search_spec(
        shards, trials=2, space=space, lr=1.0, head_width=8, batch_size=8, concurrency=1, algorithm="grid"
    )
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")
    monkeypatch.setattr(run, "write_report", lambda *_: None)

    def attempted():
        paths.result.unlink(missing_ok=True)  # as if the attempt before had been killed before its end
        details = attempt_at(paths, spec).details
        return details["choice"], details["best"]["trial"], read_json(paths.best / "manifest.json")["trial"]

    (choice, *published), again = attempted(), attempted()
    monkeypatch.setattr(publisher, "choose", lambda *given: replace(choose(*given), keeps_default=True))
    kept, *kept_published = attempted()

    assert [event["config"]["lr"] for event in events_of(paths, "started")] == [1.0, 1e-5]
    assert (choice["default_trial"], choice["best_trial"], published) == (0, 1, [1, 1])
    assert choice["difference"] > choice["standard_error"]
    assert again == (choice, *published)
    assert (kept["trial"], kept_published) == (0, [0, 0])
    rows = rows_of(paths, journal_of(paths, spec))
    assert [(row["trial"], row["default"], bool(row["checkpoint"])) for row in rows] == [
        (1, False, False),
        (0, True, True),
    ]

    extended = new_run(tmp_path, spec.model_copy(update={"extend": paths.run_id}), "search-20261123-000001-abcdef")
    attempt = Attempt.of(extended.folder, None, Settings(storage=tmp_path))
    journal = TrialJournal.opened(attempt.lease, spec.best_by, NOON)
    copy_trials(journal, paths, NOON)
    publishing = BestModelPublisher(WorkerTask(attempt=attempt, spec=spec, source=None), journal)
    assert publishing.choose() == publisher.choose(journal.table, spec, kept_outputs(paths), list)
    publishing.update(at_once=True)
    assert read_json(extended.best / "manifest.json")["trial"] == 1  # kept beside the published trial 0
