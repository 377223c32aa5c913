"""`search`, `trials` and `best` as people type them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.files import append_line, read_json
from cluster.resources import this_machine
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.follow import follow
from jobs.cli.search import follow_search
from jobs.runs import state as run_state
from tests import queued_search
from tests.conftest import Say
from tests.queued_search import end, play
from trainer.specs import SearchSpec, read_spec

search = queued_search.search


def test_search_prints_its_id_alone_and_stores_a_checked_spec(
    say: Say, settings: Settings, digits_shards: Path
) -> None:
    code, out, err = say(
        "search", str(digits_shards), "--weights", "none", "--trials", "8", "--lr", "1e-4:1e-2", "--head-width", "64",
        "--dropout", "0.1,0.3", "--batch-size", "16,32", "--seeds", "3", "--epochs", "20",
        "--choose", "best",
    )  # fmt: skip

    spec = read_spec(RunPaths.of(settings.storage, out.strip()).spec)

    assert code == 0
    assert f"`nightshift trials {out.strip()}` shows the leaderboard" in err
    assert isinstance(spec, SearchSpec)
    assert (spec.trials, spec.repeats, spec.epochs, spec.head_width) == (8, 3, 20, 64)
    forked = json.loads(say("fork", out.strip(), "--set", "choose=default", "--dry-run")[1])
    assert (spec.choose, forked["choose"]) == ("best", "default")
    assert spec.space.head_width is None
    assert (spec.space.lr.low, spec.space.lr.high, spec.space.lr.log) == (1e-4, 1e-2, True)
    assert (spec.space.dropout, spec.space.batch_size) == ((0.1, 0.3), (16, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", "1e-2:1e-4"), "range 0.01:0.0001 is empty or reversed; write the lower bound first"),
        (("--head-width", "128,130"), "head_width 130 is not a multiple of 4"),
        (("--algorithm", "grid", "--trials", "200"), "200 trials are more than the 100 points of the grid; "
         "use --trials 100, or more points as in --lr 1e-5:1e-2:9"),
        (("--until", "2020-01-01T00:00+00:00"), "--until 2020-01-01 00:00 is in the past; give a later time"),
        (("--trials", "+5"), "--trials '+5' is not a number; write --trials 64, or +50 with --extend"),
        (("--workers", "999", "--batch-size", "1998"), "999 workers need 999 CPUs and this machine has {cpus}; "
         "use --workers {cpus}"),
        (("--head", "lda"), "a search varies options of the mlp head, and --head lda has none of them; "
         "use `nightshift train SHARDS --head lda`"),
        (("--lr", "x:y"), "lr 'x:y' is no range; write it as low:high, or low:high:points for a grid"),
    ],
)  # fmt: skip
def test_a_search_that_can_never_work_is_one_line_and_queues_nothing(
    say: Say, settings: Settings, digits_shards: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, err = say("search", str(digits_shards), "--weights", "none", *options)

    assert (code, out) == (1 if "--workers" in options else 2, "")  # too few CPUs are no wrong usage
    assert err == f"Error: {message.format(cpus=this_machine().cpus)}\n"
    assert not run_state.all_ids(settings.storage)


def test_a_window_that_never_opens_is_a_wrong_use(say: Say, settings: Settings, digits_shards: Path) -> None:
    code, _, err = say("search", str(digits_shards), "--weights", "none", "--window", "20:00-20:00")

    assert code == 2
    assert "window 20:00-20:00 never opens; its start and end must differ" in err
    assert not run_state.all_ids(settings.storage)


@pytest.mark.parametrize(("option", "what"), [("--window", "window {} never opens"), ("--at", "--at {} is not")])
def test_a_search_that_is_over_before_it_can_begin_is_refused(
    say: Say, settings: Settings, digits_shards: Path, option: str, what: str
) -> None:
    now = datetime.now().astimezone()
    until, later = now + timedelta(hours=2), now + timedelta(hours=3)
    text = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}" if option == "--window" else f"{later:%Y-%m-%d %H:%M}"

    code, _, err = say("search", str(digits_shards), "--weights", "none", "--until", until.isoformat(), option, text)

    assert code == 2
    assert err == f"Error: {what.format(text)} before --until {until:%Y-%m-%d %H:%M}; give a later --until\n"
    assert not run_state.all_ids(settings.storage)


def test_a_window_is_kept_by_the_queue_and_known_to_the_search(
    say: Say, settings: Settings, digits_shards: Path
) -> None:
    _, out, _ = say(
        "search", str(digits_shards), "--weights", "none", "--window", "20:00-07:00", "--max-duration", "8h"
    )

    paths = RunPaths.of(settings.storage, out.strip())
    spec, job = read_json(paths.spec), read_json(paths.job)

    assert (spec["window"], job["window"]) == ("20:00-07:00", "20:00-07:00")
    assert (spec["max_duration_seconds"], job["max_duration_seconds"]) == (8 * 3600, None)


def test_extend_keeps_the_options_and_adds_trials(say: Say, settings: Settings, search: RunPaths) -> None:
    play(search, 0.8, 0.9)
    end(search)

    code, out, err = say("search", "--extend", search.run_id, "--trials", "+5", "--lr", "1e-4:1e-3")
    spec = read_spec(RunPaths.of(settings.storage, out.strip()).spec)

    assert code == 0, err
    assert isinstance(spec, SearchSpec)
    assert (spec.trials, spec.extend, spec.best_by) == (7, search.run_id, "auroc")
    assert (spec.space.lr.low, spec.space.lr.high) == (1e-4, 1e-3)
    assert spec.space.dropout == SearchSpec(shards="x").space.dropout


def test_trials_outside_of_a_grid_take_none_of_its_points(say: Say, settings: Settings, search: RunPaths) -> None:
    play(search, 0.8, 0.9)
    end(search)
    grid = ("--algorithm", "grid", "--lr", "1e-4,1e-5", "--dropout", "0", "--head-width", "8")

    code, out, err = say("search", "--extend", search.run_id, "--trials", "+2", *grid)

    assert code == 0, err
    assert read_spec(RunPaths.of(settings.storage, out.strip()).spec).trials == 4
    assert "no trial has the defaults of train: no point of the grid has lr 0.0005; the best trial will be" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "31"), "--epochs 31 cannot extend {id}, which has 30"),
        (("--metric", "loss"), "--metric loss cannot extend {id}, which has auroc"),
        (("--ema", "0.9"), "--ema 0.9 cannot extend {id}, which has 0.0"),
        (("--trials", "1"), "--trials 1 adds none to the 1 of {id}; write --trials +1"),
        (("--head-width", "32,33"), "head_width 33 is not a multiple of 4"),
        (
            ("--algorithm", "grid", "--dropout", "0", "--lr", "1e-3,1e-4", "--head-width", "8"),
            "5 more trials are too many for a grid with 2 untried points; "
            "use fewer, or more points as in --lr 1e-5:1e-2:9",
        ),
    ],
)
def test_a_search_that_cannot_join_is_refused(
    say: Say, search: RunPaths, options: tuple[str, ...], message: str
) -> None:
    play(search, 0.8)
    end(search)

    code, _, err = say("search", "--extend", search.run_id, "--trials", "+5", *options)

    assert (code, err) == (2, f"Error: {message.format(id=search.run_id)}\n")


def test_everything_that_a_training_has_of_strength_can_be_searched(
    say: Say, settings: Settings, digits_shards: Path
) -> None:
    code, out, err = say(
        "search", str(digits_shards), "--weights", "none", "--augment", "--augment-strength", "0:2",
        "--weight-decay", "1e-6:1e-2", "--batch-size", "16,32", "--freeze", "all,none,5",
    )  # fmt: skip

    assert code == 0, err
    space = read_spec(RunPaths.of(settings.storage, out.strip()).spec).space
    assert (space.augment_strength.low, space.augment_strength.high, space.augment_strength.log) == (0, 2, False)
    assert (space.weight_decay.low, space.weight_decay.log) == (1e-6, True)
    assert (space.batch_size, space.freeze) == ((16, 32), ("all", "none", "5"))


def test_a_search_that_has_not_ended_cannot_be_extended(say: Say, search: RunPaths) -> None:
    code, _, err = say("search", "--extend", search.run_id, "--trials", "+5")

    assert (code, err) == (1, f"Error: {search.run_id} has not ended; cancel it first, or wait for it\n")


def test_until_is_a_time_in_the_spec(say: Say, settings: Settings, digits_shards: Path) -> None:
    later = datetime.now(UTC) + timedelta(hours=3)

    _, out, _ = say("search", str(digits_shards), "--weights", "none", "--until", later.isoformat())

    assert read_spec(RunPaths.of(settings.storage, out.strip()).spec).until == later


def test_a_search_that_is_followed_on_a_terminal_tells_once_of_damaged_lines(
    say: Say, search: RunPaths, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(search, 0.9)
    append_line(search.trials, {"event": "epoch", "trial": 0})
    end(search)
    last = next(follow(settings.storage, search.run_id))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    monkeypatch.setattr("jobs.cli.search.follow", lambda *_: [last] * 3)

    follow_search(settings.storage, search.run_id, metric="auroc")

    err = capsys.readouterr().err
    assert "TRIAL" in err
    assert err.count("are damaged and left out") + err.count("is damaged and left out") == 1


def test_repeats_are_those_of_folds_for_a_person_and_the_seeds_in_a_spec(
    say: Say, settings: Settings, digits_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "night.yaml").write_text("folds: 5\nrepeats: 3\n")
    words = ("search", str(digits_shards), "--weights", "none", "--dry-run")

    folds = json.loads(say(*words, "--config", str(tmp_path / "night.yaml"))[1])
    seeds = json.loads(say(*words, "--seeds", "3")[1])
    (tmp_path / "spec.json").write_text(json.dumps(seeds))
    again = json.loads(say("search", "--config", str(tmp_path / "spec.json"), "--dry-run")[1])

    assert (folds["folds"], folds["fold_repeats"], folds["repeats"]) == (5, 3, 1)
    assert (again["fold_repeats"], again["repeats"]) == (1, 3)
    refused = say(*words, "--repeats", "3")
    assert refused[0] == 2
    assert refused[2].startswith("Error: --repeats 3 repeats the folds of --folds; add --folds 5, or use --seeds 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", "4"), "--folds 4 cannot extend {id}, which has 5"),
        (("--repeats", "2"), "--repeats 2 cannot extend {id}, which has 1"),
        (("--seed", "7"), "--seed 7 cannot extend {id}, which has 0"),
        (("--seeds", "2"), "--seeds 2 cannot extend {id}, which has 1"),
    ],
)
def test_a_search_with_other_folds_is_not_extended(
    say: Say, settings: Settings, digits_shards: Path, options: tuple[str, ...], message: str
) -> None:
    paths = RunPaths.of(
        settings.storage, say("search", str(digits_shards), "--weights", "none", "--folds", "5")[1].strip()
    )
    play(paths, 0.8)
    end(paths)

    code, _, err = say("search", "--extend", paths.run_id, "--trials", "+5", *options)

    assert (code, err) == (2, f"Error: {message.format(id=paths.run_id)}\n")
    same = say("search", "--extend", paths.run_id, "--trials", "+5", "--folds", "5", "--seed", "0", "--dry-run")
    assert (same[0], json.loads(same[1])["folds"]) == (0, 5)
