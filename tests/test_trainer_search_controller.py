"""The decisions of a search without Ray: the controller, its trial journal and a clock."""

import errno
import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import LeaseLost
from cluster.lease import Lease
from tests.searched import NOON, SimulatedSearch, events_of, search_spec, simulated_search, table_of
from tests.trained import new_run
from trainer.errors import InfrastructureError, StorageFull, TrainerError
from trainer.search.journal import copy_trials
from trainer.search.trial_messages import TrialEnd, TrialReport, TrialStep


def synthetic_loss(trial, epoch):
    """A loss that depends only on the trial and the epoch."""
    return 1.0 / (1 + epoch) + ((trial * 7919) % 13) / 50


def play(search, *, deaths=frozenset(), reports=0):
    """Run a sequential search until it ends, or is killed at a report in `deaths`; return the number of reports."""
    while (trial := search.start()) is not None:
        for epoch in range(1, search.spec.epochs + 1):
            reports += 1
            if reports in deaths:
                return reports
            if not search.epoch(trial, epoch, synthetic_loss(trial, epoch)):
                break
    return reports


def configs(paths, spec):
    return {number: trial.config for number, trial in table_of(paths, spec).trials.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deaths=st.sets(st.integers(1, 150), min_size=1, max_size=5), algorithm=st.sampled_from(["tpe", "random", "grid"])
)
def test_a_search_killed_anywhere_makes_the_same_trials_and_decisions(tmp_path_factory, deaths, algorithm):
    spec = search_spec("shards", trials=12, epochs=9, algorithm=algorithm)
    undisturbed, killed = (new_run(tmp_path_factory.mktemp(name), spec) for name in ("undisturbed", "killed"))
    play(SimulatedSearch(undisturbed, spec))

    reports = 0
    for _ in range(len(deaths) + 1):
        reports = play(SimulatedSearch(killed, spec), deaths=deaths, reports=reports)

    one, other = table_of(undisturbed, spec), table_of(killed, spec)
    assert configs(undisturbed, spec) == configs(killed, spec)
    assert [(t.number, t.state, t.why, t.epochs) for t in one.ended] == [
        (t.number, t.state, t.why, t.epochs) for t in other.ended
    ]
    assert other.finished == 12
    assert (one.best().trial, one.best().epoch) == (other.best().trial, other.best().epoch)
    assert len(events_of(killed, "finished")) == 12


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), torn=st.integers(0, 60))
def test_a_search_resumes_from_a_journal_cut_anywhere_even_within_a_line(tmp_path_factory, cut, torn):
    spec = search_spec("shards", trials=8, epochs=9, space={"head_width": (8, 16, 512)})  # 512 is the default
    undisturbed, killed = (new_run(tmp_path_factory.mktemp(name), spec) for name in ("undisturbed", "killed"))
    play(SimulatedSearch(undisturbed, spec))
    lines = undisturbed.trials.read_text().splitlines(keepends=True)
    kept = int(cut * len(lines))
    killed.trials.write_text("".join(lines[:kept]) + "".join(lines[kept : kept + 1])[:torn])

    play(SimulatedSearch(killed, spec))

    one, other = table_of(undisturbed, spec), table_of(killed, spec)
    assert configs(undisturbed, spec) == configs(killed, spec)
    assert [(t.number, t.why, t.epochs) for t in one.ended] == [(t.number, t.why, t.epochs) for t in other.ended]


def test_early_stopping_is_on_for_long_trials_and_off_on_request(tmp_path):
    long, short = simulated_search(tmp_path / "a", epochs=9), simulated_search(tmp_path / "b", epochs=5)
    disabled = simulated_search(tmp_path / "c", epochs=9, early_stopping=False)

    for search in (long, short, disabled):
        assert search.whole(search.start(), [0.5] * 9) == search.spec.epochs

    lag = [search.whole(search.start(), [0.9] * 9) for search in (long, short, disabled)]
    assert lag == [3, 5, 9]
    assert long.controller.journal.table.trials[1].why == "rung"


@pytest.mark.parametrize(("choose", "epochs", "beat"), [("default", 9, None), ("best", 3, 0.5)])
def test_the_default_trial_is_not_stopped_early_and_keeps_its_own_best_model(tmp_path, choose, epochs, beat):
    search = simulated_search(tmp_path, epochs=9, space={"head_width": (8, 512)}, choose=choose, algorithm="random")
    default, other = search.start(), search.start()
    search.whole(other, [0.5] * 9)

    assert search.whole(default, [0.9] * 9) == epochs
    again = SimulatedSearch(new_run(tmp_path / "again", search.spec), search.spec)
    again.start()
    again.epoch(again.start(), 1, 0.5)
    again.pause(0)
    again.controller.paused.clear()
    assert again.controller.next_trial().value_to_beat == beat


def test_every_epoch_of_a_message_is_recorded(tmp_path):
    search = simulated_search(tmp_path, epochs=9, trials=4)
    trial = search.start()
    reports = tuple(TrialReport(epoch=number, value=1 / number, seconds=1.0) for number in (1, 2, 3))
    last = TrialReport(epoch=4, value=0.9, seconds=1.0)

    continues = search.controller.record(trial, TrialStep(reports=reports))
    search.controller.record(trial, TrialStep(reports=(last,), end=TrialEnd.failed("out of GPU memory")))

    recorded = search.controller.journal.table.trials[trial]
    assert continues
    assert recorded.error == "out of GPU memory"
    assert {epoch: record.value for epoch, record in recorded.reports.items()} == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.9}


def test_a_failed_trial_keeps_its_error_and_the_search_runs_until_too_many_have_failed(tmp_path):
    search = simulated_search(tmp_path, max_failures=1, trials=8)

    for _ in range(2):
        search.fail(search.start(), "the loss is not finite (NaN or inf) at step 3 of epoch 1")

    table = search.controller.journal.table
    assert [trial.error for trial in table.ended] == ["the loss is not finite (NaN or inf) at step 3 of epoch 1"] * 2
    assert search.start() is None
    assert search.controller.ending() == "failures"


def test_unfinished_trials_of_an_earlier_attempt_go_first(tmp_path):
    spec = search_spec("shards", trials=6)
    paths = new_run(tmp_path, spec)
    before = SimulatedSearch(paths, spec)
    started = [before.start() for _ in range(3)]
    before.whole(1, [0.5, 0.4])

    after = SimulatedSearch(paths, spec)

    assert started == [0, 1, 2]
    assert [after.start() for _ in range(4)] == [0, 2, 3, 4]


def test_no_trial_starts_that_cannot_end_before_the_deadline_and_at_the_deadline_all_must_pause(tmp_path):
    now = [NOON]
    search = simulated_search(tmp_path, clock=lambda: now[0], trials=20, until=NOON + timedelta(seconds=60))
    first = search.start()
    search.whole(first, [0.5, 0.4])  # two epochs of 1 s: a trial takes up to 2.5 s

    now[0] = NOON + timedelta(seconds=57)
    second = search.start()
    now[0] = NOON + timedelta(seconds=58)

    assert second == 1
    assert search.start() is None
    assert not search.controller.must_pause()
    now[0] = NOON + timedelta(seconds=60)
    assert search.controller.must_pause()
    search.pause(second)
    assert search.controller.ending() == "until"
    assert search.controller.journal.table.trials[1].state == "paused"


def test_a_paused_trial_resumes_in_the_next_time_window_and_not_in_the_same(tmp_path):
    spec = search_spec("shards", trials=2, window="20:00-07:00", timezone="UTC")
    evening, morning = NOON.replace(hour=21), NOON.replace(hour=7) + timedelta(days=1)
    now, paths = [evening], new_run(tmp_path, spec)
    search = SimulatedSearch(paths, spec, lambda: now[0])
    trial = search.start()
    now[0] = morning
    assert search.controller.must_pause()
    search.pause(trial)
    assert search.start() is None
    assert search.controller.ending() == "window"

    now[0] = evening + timedelta(days=1)
    again = SimulatedSearch(paths, spec, lambda: now[0])

    assert again.start() == trial
    assert not again.controller.must_pause()


def test_a_search_asked_to_stop_starts_no_trial_and_says_so(tmp_path):
    search = simulated_search(tmp_path)
    search.stop = "cancel"

    assert search.start() is None
    assert search.controller.ending() == "stop"


def test_an_attempt_that_lost_its_lease_writes_no_line(tmp_path):
    spec = search_spec("shards")
    paths = new_run(tmp_path, spec)
    old = SimulatedSearch(paths, spec)
    trial = old.start()
    lines = paths.trials.read_text()
    Lease.claim(paths, after=1)

    with pytest.raises(LeaseLost):
        old.epoch(trial, 1, 0.5)

    assert paths.trials.read_text() == lines


def test_an_extended_search_copies_all_trials_even_when_killed_meanwhile(tmp_path):
    spec = search_spec("shards", trials=3)
    first = new_run(tmp_path, spec, "search-20261123-000000-aaaaaa")
    old = SimulatedSearch(first, spec)
    for values in ([0.5, 0.4], [0.3, 0.6]):
        old.whole(old.start(), values)
    old.fail(old.start(), "x")
    more = search_spec("shards", trials=5, extend=first.run_id)
    paths = new_run(tmp_path, more, "second")
    copy_trials(SimulatedSearch(paths, more).controller.journal, first, NOON)
    whole = paths.trials.read_text().splitlines(keepends=True)

    paths.trials.write_text("".join(whole[:5]))
    again = SimulatedSearch(paths, more)
    copy_trials(again.controller.journal, first, NOON)

    table = table_of(paths, more)
    assert [(t.number, t.state, t.epochs) for t in table.ended] == [
        (0, "finished", 2),
        (1, "finished", 2),
        (2, "failed", 0),
    ]
    assert (table.best().trial, table.best().value) == (1, 0.3)
    assert table.best().extended_from == first.run_id
    assert [again.start() for _ in range(3)] == [3, 4, None]


def test_a_search_that_extends_a_cancelled_one_runs_the_requested_number_of_trials(tmp_path):
    spec = search_spec("shards", trials=4)
    first = new_run(tmp_path, spec, "search-20261123-000000-aaaaaa")
    old = SimulatedSearch(first, spec)
    cancelled, ended = old.start(), old.start()
    old.whole(ended, [0.5, 0.4])
    old.pause(cancelled)
    more = search_spec("shards", trials=3, extend=first.run_id, window="20:00-07:00", timezone="UTC")
    paths = new_run(tmp_path, more, "second")
    again = SimulatedSearch(paths, more, lambda: NOON.replace(hour=21))
    copy_trials(again.controller.journal, first, NOON)

    started = []
    while (trial := again.start()) is not None:
        started.append(trial)
        again.whole(trial, [0.6, 0.7])

    assert started == [0, 2]
    assert again.controller.ending() == "done"


def test_a_search_copies_the_best_of_one_that_reached_its_deadline_while_training(tmp_path):
    spec = search_spec("shards", trials=2)
    first = new_run(tmp_path, spec, "search-20261123-000000-aaaaaa")
    old = SimulatedSearch(first, spec)
    ended, paused = old.start(), old.start()
    old.whole(ended, [0.5, 0.4])
    old.epoch(paused, 1, 0.2)
    old.pause(paused)
    more = search_spec("shards", trials=3, extend=first.run_id)
    again = SimulatedSearch(new_run(tmp_path, more, "second"), more)

    copy_trials(again.controller.journal, first, NOON)

    best = again.controller.journal.table.best()
    assert (best.trial, best.value, best.extended_from) == (paused, 0.2, first.run_id)
    assert [again.start() for _ in range(2)] == [2, None]


def test_a_search_all_of_whose_trials_fail_before_an_epoch_ends_and_has_no_best(tmp_path):
    search = simulated_search(tmp_path, trials=3)

    while (trial := search.start()) is not None:
        search.fail(trial, "out of GPU memory")

    table = search.controller.journal.table
    assert (table.failed, table.best()) == (3, None)
    assert search.controller.ending() == "done"


def test_after_a_cancel_the_paused_trials_resume_and_their_epochs_count_once(tmp_path):
    spec = search_spec("shards", trials=3, epochs=4)
    paths = new_run(tmp_path, spec)
    before = SimulatedSearch(paths, spec)
    first, second = before.start(), before.start()
    before.epoch(first, 1, 0.5)
    before.stop = "cancel"
    for trial in (first, second):
        before.pause(trial)
    assert before.start() is None

    resumed = SimulatedSearch(paths, spec)
    order = []
    while (trial := resumed.start()) is not None:
        order.append(trial)
        for epoch in range(1, 5):  # a trial without a checkpoint reports its first epoch again
            resumed.epoch(trial, epoch, 0.4)

    assert order == [0, 1, 2]
    assert [report.epoch for report in table_of(paths, spec).reports() if report.trial == 0] == [1, 2, 3, 4]
    assert table_of(paths, spec).trials[0].reports[1].value == 0.5
    assert resumed.controller.ending() == "done"


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EIO, InfrastructureError), (errno.ENOSPC, StorageFull)], ids=["away", "full"]
)
def test_a_trial_that_its_storage_has_ended_goes_on_in_the_next_attempt(tmp_path, number, raised):
    spec = search_spec("shards", trials=2, epochs=3, max_failures=0)
    paths = new_run(tmp_path, spec)
    search = SimulatedSearch(paths, spec)
    trial = search.start()
    lost = TrialEnd.lost_by(OSError(number, os.strerror(number)))
    report = TrialReport(epoch=1, value=0.5, seconds=1.0)

    with pytest.raises(TrainerError) as caught:
        search.controller.record(trial, TrialStep.from_tune(TrialStep(reports=(report,), end=lost).to_tune()))

    again = SimulatedSearch(paths, spec)
    table = again.controller.journal.table
    assert type(caught.value) is raised
    assert (table.failed, [one.epochs for one in table.unfinished]) == (0, [1])
    assert again.start() == trial


def test_an_error_of_a_trials_own_ends_it(tmp_path):
    assert TrialEnd.lost_by(ValueError("a bug")) is None
    assert TrialEnd.lost_by(FileNotFoundError(errno.ENOENT, "no such file")) is None
    assert TrialEnd.lost_by(LeaseLost("a newer attempt owns the run")) is None
