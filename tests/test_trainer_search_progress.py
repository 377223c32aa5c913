"""What a search says of its progress, which decides whether it counts as hung; and which models it keeps."""

from dataclasses import dataclass

import pytest
import torch

from cluster.files import read_json, write_json
from cluster.lease import Lease
from cluster.resources import Machine
from cluster.settings import Settings
from data_shards.index import read_index
from tests.searched import SimulatedSearch, search_spec
from tests.trained import new_run
from trainer.attempt import Attempt
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerTask
from trainer.search import publisher
from trainer.search.head_training import standalone_context
from trainer.search.publisher import BestModelPublisher
from trainer.search.run import SearchProgress
from trainer.search.trial_files import trial_folder, write_candidate
from trainer.search.trial_messages import TrialEnd, TrialReport, TrialStep
from trainer.training.model_setup import TrainingSetup


@dataclass
class RealSearch:
    """A search whose trials are those of the test, in a real run folder with real data."""

    simulated: SimulatedSearch
    attempt: Attempt
    publisher: BestModelPublisher

    @classmethod
    def on(cls, shards, storage):
        spec = search_spec(shards, epochs=1)
        paths = new_run(storage, spec, "search")
        simulated = SimulatedSearch(paths, spec)
        journal = simulated.controller.journal
        attempt = Attempt(paths=paths, lease=journal.lease, settings=Settings(storage=storage))
        task = WorkerTask(attempt=attempt, spec=spec, source=None)
        return cls(simulated, attempt, BestModelPublisher(task, journal))

    def trial(self, value):
        """Run a trial of one epoch, which saves its model."""
        controller, paths, trial = self.simulated.controller, self.attempt.paths, self.simulated.start()
        config = controller.journal.table.trials[trial].config
        spec = self.simulated.spec.trial_spec(config)
        setup = TrainingSetup.fresh(standalone_context(self.publisher.task, spec, torch.device("cpu")))
        head = setup.model.head.state_dict()
        paths.checkpoints.mkdir(exist_ok=True)
        name = write_candidate(paths.checkpoints, head, trial=trial, epoch=1, lease=self.attempt.lease)
        report = TrialReport(epoch=1, value=value, candidate=name)
        controller.record(trial, TrialStep(reports=(report,), end=TrialEnd.finished("epochs")))
        return name

    @property
    def phase(self):
        return read_json(self.attempt.paths.progress)["phase"]


@pytest.fixture
def search(tmp_path, digits_shards):
    return RealSearch.on(digits_shards, tmp_path)


def said_by(search):
    SearchProgress(search.attempt, search.simulated.controller, 100, gpus_per_trial=0.25).write_if_due()
    progress = read_json(search.attempt.paths.progress)
    return progress["phase"], progress["gpus"]


def test_a_search_is_starting_until_a_worker_of_a_trial_runs(search):
    trial = search.simulated.start()
    folder = trial_folder(search.attempt.paths.checkpoints, trial)
    folder.mkdir(parents=True)

    waiting = said_by(search)
    write_json(folder / "progress.json", {"attempt": 0, "phase": "train"})  # of the attempt before
    still_waiting = said_by(search)
    write_json(folder / "progress.json", {"attempt": 1, "phase": "starting"})

    assert (waiting, still_waiting, said_by(search)) == (("starting", 0), ("starting", 0), ("train", 0.25))


def test_a_search_has_started_when_a_trial_has_reported(search):
    progress = SearchProgress(search.attempt, search.simulated.controller, 100)
    trial = search.simulated.start()
    search.simulated.epoch(trial, 1, 0.5)

    progress.write_if_due()

    assert search.phase == "train"


def test_the_scoring_at_the_end_of_a_search_is_progress(search, digits_shards):
    search.trial(0.5)

    search.publisher.update(at_once=True)

    progress, images = read_json(search.attempt.paths.progress), read_index(str(digits_shards)).samples_in("valid")
    assert (progress["phase"], progress["total"], progress["attempt"]) == ("evaluate", images, 1)


def test_a_publication_while_trials_run_leaves_the_progress_to_the_search(search):
    search.trial(0.5)
    search.publisher.next_at = float("-inf")

    search.publisher.update()

    assert search.attempt.paths.best.exists()
    assert not search.attempt.paths.progress.exists()


def test_a_search_on_gpus_that_is_stopped_publishes_its_best_trial_on_its_workers(search, digits_shards, monkeypatch):
    tasks = []

    def run(work, task):
        tasks.append(task)
        return run_on_workers(work, task)

    monkeypatch.setattr(publisher, "run_on_workers", run)
    monkeypatch.setattr(BestModelPublisher, "_is_for_gpu_workers", lambda *_: True)  # the worker is this process
    search.trial(0.5)
    write_json(search.attempt.paths.stop, {"reason": "cancel", "attempt": 1})

    search.publisher.update(at_once=True)

    assert read_json(search.attempt.paths.best / "manifest.json")["scored_by_workers"]
    assert [task.longest_shard for task in tasks] == [read_index(str(digits_shards)).longest_shard]


def test_nothing_is_published_before_the_workers_of_a_search_decide_on_the_precision(search):
    search.trial(0.5)
    search.attempt.paths.precision.unlink()  # as if it were a trial of the search that this one extends
    search.publisher.next_at = float("-inf")

    search.publisher.update()
    before = search.attempt.paths.best.exists(), search.attempt.paths.precision.exists()
    write_json(search.attempt.paths.precision, {"frozen": "fp32"})
    search.publisher.update()

    assert before == (False, False)
    assert read_json(search.attempt.paths.best / "head.json")["precision"] == "fp32"


@pytest.mark.parametrize(("decided", "gpus", "on_workers"), [(False, 1, 1), (True, 1, 0), (False, 0, 0)])
def test_a_search_without_trials_of_its_own_lets_its_gpus_decide_on_the_precision(
    search, monkeypatch, decided, gpus, on_workers
):
    ran = []
    monkeypatch.setattr(publisher, "run_on_workers", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr(publisher, "this_machine", lambda: Machine(cpus=2, gpus=gpus))
    search.trial(0.5)
    if not decided:
        search.attempt.paths.precision.unlink()

    search.publisher.update(at_once=True)

    assert len(ran) == on_workers


def test_the_models_of_worse_trials_are_deleted_once(search, monkeypatch):
    worse, best, worst = search.trial(0.5), search.trial(0.4), search.trial(0.6)
    removed = list[str]()
    remove = Lease.remove

    def counted(lease, path):
        removed.append(path.name)
        remove(lease, path)

    monkeypatch.setattr(Lease, "remove", counted)
    search.publisher.update(at_once=True)
    search.publisher.update(at_once=True)

    assert sorted(removed) == sorted([worse, worst])
    assert [folder.name for folder in search.attempt.paths.checkpoints.iterdir()] == [best]
