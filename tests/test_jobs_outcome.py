"""What a person reads when a followed run has ended: at 80 columns, after a failure, a success and Ctrl-C."""

import errno
import json
import os
import threading
from io import StringIO
from pathlib import Path

import pytest

from cluster.errors import StorageAway
from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli import follow as following
from jobs.runs import state as run_state
from jobs.runs.progress_text import describe
from jobs.runs.state import RunState
from tests.conftest import Say
from tests.stack import eventually

METRICS = {
    "split": "test", "n": 360, "accuracy": 0.9722, "auroc": 0.9991, "loss": 0.1234,
    "intervals": {"accuracy": [0.9556, 0.9861], "auroc": [0.9982, 0.9998], "loss": None},
}  # fmt: skip
LONG = "the loss is not finite (NaN or inf) at epoch 3, step 217; use a smaller --lr, or --precision fp32, and retry"


@pytest.fixture
def run(say: Say, shards: str, settings: Settings) -> RunPaths:
    """A training that waits in the queue."""
    return RunPaths.of(settings.storage, say("train", shards, "--weights", "none", "--name", "first-night")[1].strip())


def end(paths: RunPaths, state: run_state.State, why: str | None = None) -> None:
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state(state, why))


def succeed(paths: RunPaths, **result: object) -> None:
    write_json(
        paths.result, {"kind": "train", "checkpoint": str(paths.best), "metrics": METRICS, "seconds": 9.0, **result}
    )
    paths.report.write_text("<html>")
    end(paths, "succeeded")


def test_a_good_run_ends_in_four_lines(say: Say, run: RunPaths, shards: str) -> None:
    succeed(run)

    code, out, err = say("wait", "first-night")

    assert (code, out) == (0, "")
    assert err.splitlines()[1:] == [
        "test     accuracy 0.9722 (0.9556 to 0.9861), auroc 0.9991 (0.9982 to 0.9998), loss 0.1234 (360 images; "
        "95 % intervals in brackets)",
        f"model    {run.best}",
        f"report   {run.report}",
        f"next     nightshift evaluate first-night {shards}",
    ]


def test_a_result_of_one_image_says_one_image(say: Say, run: RunPaths) -> None:
    succeed(run, metrics={"split": "test", "n": 1, "accuracy": 1.0})

    err = say("wait", "first-night")[2]

    assert "test     accuracy 1.0000 (1 image)\n" in err


def test_what_is_undefined_is_said_with_the_reason(say: Say, run: RunPaths) -> None:
    recall = {"recall": None, "precision": None, "f1": None, "support": 0, "intervals": {}}
    succeed(
        run,
        metrics={
            "split": "test", "n": 4, "classes": ["covid", "normal"], "positive": "covid", "positive_stated": False,
            "accuracy": 0.75, "balanced_accuracy": 0.75, "auroc": None, "sensitivity": None, "specificity": 0.75,
            "loss": 0.5, "per_class": {"covid": recall, "normal": {**recall, "recall": 0.75}},
            "undefined": {"auroc": "undefined: all images of this split are normal"},
        },
    )  # fmt: skip

    line = say("wait", "first-night")[2].splitlines()[1]

    assert line == (
        'test     recall of "covid" undefined [this split has no such images], recall of "normal" 0.7500, '
        "auroc undefined [all images of this split are normal], accuracy 0.7500, loss 0.5000 (4 images)"
    )


def test_the_figures_of_several_labels_say_what_they_are_means_of(say: Say, run: RunPaths) -> None:
    label = {"n": 3, "positives": 1, "unknown": 1, "auroc": None, "sensitivity": 1.0, "specificity": 0.5}
    succeed(
        run,
        metrics={
            "split": "test", "n": 4, "known": 3, "multi_label": True, "classes": ["mass"], "positive": "mass",
            "accuracy": 0.75, "auroc": None, "sensitivity": 1.0, "specificity": 0.5, "loss": 0.5,
            "labels": {"mass": label}, "macro": {"labels": {"auroc": 0}},
        },
    )  # fmt: skip

    said = say("wait", "first-night")[2].splitlines()

    assert said[1:3] == [
        'test     micro accuracy 0.7500, macro auroc undefined [mean of 0 of 1 labels], sensitivity of "mass" 1.0000, '
        'specificity of "mass" 0.5000, micro loss 0.5000 (4 images, 3 known targets; macro: mean of the labels, micro: '
        "all known targets)",
        "         mass: auroc undefined, sensitivity 1.0000, specificity 0.5000 (1 of 3 known, 1 unknown)",
    ]


def test_the_end_of_a_search_says_which_trial_is_published_and_why(say: Say, run: RunPaths) -> None:
    sentence = "trial 0 is published, the default trial: trial 4 is better by 0.001, not more than one standard error"
    correction = "validation loss 0.21 of trial 4, the best of 12 trials; corrected for choosing among 12 trials 0.22"
    succeed(run, choice={"sentence": sentence, "correction": correction, "warning": ""})

    said = say("wait", "first-night")[2].splitlines()

    assert said[2:4] == [f"chosen   {sentence}", f"best     {correction}"]


def test_the_next_command_quotes_a_path_for_a_shell(say: Say, shards: str, settings: Settings) -> None:
    spaced = Path(shards).rename(Path(shards).with_name("chest films; 2026"))
    run = RunPaths.of(settings.storage, say("train", str(spaced), "--weights", "none", "--name", "spaced")[1].strip())
    succeed(run)

    err = say("wait", "spaced")[2]

    assert err.splitlines()[-1] == f"next     nightshift evaluate spaced '{spaced}'"


CHOICE = {
    "positive": "covid", "min_sensitivity": 0.99, "sensitivity": 1.0, "positives": 25, "lower_bound": 0.8871,
    "negatives": 87, "false_positives": 15, "default_sensitivity": 0.92, "default_false_positives": 5,
    "judged_split": "test", "judged_sensitivity": 0.84, "reached": False,
}  # fmt: skip
EVALUATED = {
    **METRICS, "positive": "covid", "threshold": 0.3127, "threshold_name": "sensitivity-0.99",
    "threshold_choices": [CHOICE],
}  # fmt: skip
SEEN = {"images": 360, "trained": 12, "chosen": 0}


@pytest.fixture
def evaluation(say: Say, run: RunPaths, shards: str) -> RunPaths:
    """An evaluation at a threshold, which has succeeded."""
    paths = RunPaths.of(run.storage, say("evaluate", run.run_id, shards)[1].strip())
    succeed(paths, kind="evaluate", metrics=EVALUATED, seen=SEEN, evaluations_of_split=14)
    return paths


def test_an_evaluation_says_its_decision_the_price_and_what_the_model_has_seen(say: Say, evaluation: RunPaths) -> None:
    _, _, err = say("wait", evaluation.run_id)

    lines = err.splitlines()
    at = lines.index('decision "covid" if its probability is at least 0.3127: sensitivity-0.99')
    assert lines[at + 1 : at + 6] == [
        '         "covid": on the valid split the threshold gives 15 false positives of 87 at a sensitivity of 1.0000; '
        "the default decision gives 5 at 0.9200",
        '         "covid": 25 positives of the valid split support a sensitivity of only 0.887 at this threshold with '
        "95 % confidence (one-sided), not 0.99; that takes 299 independent positives without a miss, chosen with "
        "--min-sensitivity 1",
        '         "covid": the test split does not reach 0.99: its sensitivity is 0.8400',
        "images   warning: the model was trained on 12 of these 360 images; new images will do worse",
        "         the test split of this data set has been evaluated 14 times: choosing by its metrics biases them",
    ]
    assert lines[-1] == "next     nightshift predict first-night IMAGES --threshold sensitivity-0.99"


def test_show_says_the_decision_and_whether_the_split_reached_the_sensitivity(say: Say, evaluation: RunPaths) -> None:
    shown = " ".join(say("show", evaluation.run_id)[1].split())

    assert 'decision "covid" if its probability is at least 0.3127: sensitivity-0.99' in shown
    assert '"covid": the test split does not reach 0.99: its sensitivity is 0.8400' in shown


@pytest.mark.parametrize("threshold", [None, "damage", {}])
def test_an_evaluation_without_a_threshold_used_the_default_decision(
    say: Say, run: RunPaths, shards: str, threshold: object
) -> None:
    paths = RunPaths.of(run.storage, say("evaluate", run.run_id, shards)[1].strip())
    succeed(paths, kind="evaluate", metrics={**METRICS, "threshold": threshold, "threshold_choices": threshold})

    _, _, err = say("wait", paths.run_id)

    assert "decision the most probable class (default)" in err.splitlines()


@pytest.mark.parametrize(
    ("state", "cure"),
    [
        ("failed", "after fixing the cause: nightshift retry {id}   (the log: nightshift logs {id})"),
        ("lost", "try again: nightshift retry {id}   (the log: nightshift logs {id})"),
        ("cancelled", "continue from the last checkpoint: nightshift retry {id}"),
    ],
)
def test_a_bad_end_has_its_whole_reason_and_its_cure(
    say: Say, run: RunPaths, state: run_state.State, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    end(run, state, LONG)

    code, out, err = say("wait", run.run_id)

    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{run.run_id}: {state}", f"{run.run_id} {state}: {LONG}", cure.format(id=run.run_id),
    ]  # fmt: skip


def test_a_wait_that_gives_up_says_that_the_run_goes_on(say: Say, run: RunPaths) -> None:
    code, _, err = say("wait", run.run_id, "--timeout", "1s")

    assert code == 1
    assert err.splitlines()[-1] == f"stopped waiting; the run goes on: nightshift wait {run.run_id}"


def test_the_timeout_of_a_wait_bounds_the_wait_for_a_storage_that_is_away(
    say: Say, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/storage")

    monkeypatch.setattr(run_state, "all_ids", away)

    code, _, err = say("wait", run.run_id[:-1], "--timeout", "1s")

    assert (code, err.splitlines()[-1]) == (
        1,
        "stopped waiting, as the storage does not answer (/storage cannot be read: Input/output error); "
        f"wait again: nightshift wait {run.run_id[:-1]}",
    )


def test_the_timeout_of_a_wait_bounds_the_last_read_of_a_run(
    say: Say, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: RunPaths) -> None:
        raise StorageAway("the server does not answer")

    monkeypatch.setattr("jobs.cli.outcome.read_record", away)

    code, _, err = say("wait", run.run_id, "--timeout", "1s")

    assert (code, err.splitlines()[-1]) == (
        1,
        "stopped waiting, as the storage does not answer (the server does not answer); "
        f"wait again: nightshift wait {run.run_id}",
    )


def test_ctrl_c_stops_the_watching_and_not_the_run(
    say: Say, run: RunPaths, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", press_ctrl_c)

    code, out, err = say("wait", run.run_id)

    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"stopped watching; the run goes on: nightshift wait {run.run_id}"
    assert run_state.read_state(run).state == "queued"


def test_wait_with_json_prints_the_run_and_nothing_else(say: Say, run: RunPaths) -> None:
    succeed(run)

    code, out, _ = say("wait", run.run_id, "--json")

    assert code == 0
    assert json.loads(out)["result"]["metrics"]["accuracy"] == 0.9722


def test_the_table_of_a_prediction_is_all_of_stdout(say: Say, run: RunPaths, settings: Settings, shards: str) -> None:
    table = [{"file": "a.png", "decision": "covid", "probabilities": {"covid": 0.9, "normal": 0.1}, "error": None}]

    def predict() -> None:
        assert eventually(lambda: len(run_state.all_ids(settings.storage)) == 2)
        paths = RunPaths.of(settings.storage, run_state.all_ids(settings.storage)[-1])
        paths.predicted("json").write_text(json.dumps(table))
        write_json(paths.result, {"kind": "predict", "checkpoint": None, "metrics": {}, "seconds": 1.0})
        end(paths, "succeeded")

    worker = threading.Thread(target=predict)
    worker.start()
    code, out, _ = say("predict", "first-night", shards, "--json", "--wait")
    worker.join()

    assert code == 0
    assert json.loads(out) == table


def test_a_list_at_80_columns_shows_ids_and_states_whole(
    say: Say, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    end(run, "cancelled", LONG)

    lines = say("list")[1].splitlines()

    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith(f"{run.run_id}  first-night")
    assert "  cancelled  " in lines[1]


def test_a_list_in_a_pipe_cuts_nothing(say: Say, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", None)
    end(run, "failed", LONG)

    assert LONG in say("list")[1]


def test_show_wraps_a_long_reason_and_names_the_cure(say: Say, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    end(run, "failed", LONG)

    shown = say("show", run.run_id)[1].splitlines()

    assert shown[:3] == [
        run.run_id,
        "state     failed: the loss is not finite (NaN or inf) at epoch 3, step 217; use",
        "          a smaller --lr, or --precision fp32, and retry",
    ]
    assert f"nightshift retry {run.run_id}" in " ".join(" ".join(shown).split())


def test_a_search_counts_trials_a_training_epochs_and_a_fit_steps() -> None:
    state = RunState(id="search-20261123-203000-a1b2c3", kind="search", state="running", created="x")

    searching = describe(
        state, {"phase": "train", "epoch": 2, "epochs": 12, "trials": {"running": 1}, "eta_seconds": 60}
    )
    training = describe(state, {"phase": "train", "epoch": 2, "epochs": 12})
    fitting = describe(state, {"phase": "train", "epoch": 37, "epochs": 0})

    assert searching == "trial 3/12, 1m00s left"
    assert training == "train, epoch 2/12"
    assert fitting == "train, step 37"


def test_a_log_has_a_line_for_each_epoch_but_not_for_each_step_of_a_fit() -> None:
    state = RunState(id="search-20261123-203000-a1b2c3", kind="search", state="running", created="x")
    epochs = [(state, {"phase": "train", "epoch": number, "epochs": 2}) for number in (1, 2)]
    steps = [(state, {"phase": "evaluate", "epoch": number, "epochs": 0}) for number in range(1, 9)]
    out = StringIO()

    following._with_lines(iter([*epochs, *steps]), out)

    assert [line.partition(": ")[2] for line in out.getvalue().splitlines()] == [
        "train, epoch 1/2",
        "train, epoch 2/2",
        "evaluate, step 1",
    ]


def test_show_says_where_the_time_went_and_the_parts_add_up_to_the_time_since_the_submit(
    say: Say, run: RunPaths
) -> None:
    succeed(
        run, timing={"report": 5.5, "queue": 0.3, "start": 2.0, "features": 0.2, "training": 61.0, "evaluation": 1.2}
    )
    with run_state.changing(run) as state:
        times = {"created": "2026-11-23T10:00:00.000Z", "started": "2026-11-23T10:00:00.250Z"}
        run_state.write_state(run, state.with_changes(**times, ended="2026-11-23T10:01:13.500Z"))

    out = " ".join(say("show", run.run_id)[1].split())

    parts = (
        "timing queue 0.3 s, start 2.0 s, features 0.2 s, training 61.0 s, evaluation 1.2 s, report 5.5 s, other 3.3 s"
    )
    assert f"ended 2026-11-23 10:01:13Z (1m13s) {parts}" in out


def test_figures_wrap_between_words_at_the_width_of_the_terminal_and_commands_stay_whole(
    say: Say, run: RunPaths, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(run)
    whole = say("wait", run.run_id)[2].splitlines()
    monkeypatch.setenv("COLUMNS", "40")

    narrow = say("wait", run.run_id)[2].splitlines()

    figures = [line for line in narrow if line.startswith(("test ", " " * 9))]
    assert max(map(len, figures)) <= 40
    assert " ".join(" ".join(figures).split()) in [" ".join(line.split()) for line in whole]
    assert [line for line in whole if line.startswith("next ")] == [line for line in narrow if line.startswith("next ")]
