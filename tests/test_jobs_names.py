"""Names of runs: no name stands for another run's id."""

from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests.conftest import Say
from tests.stack import FakeSpec, finish


def test_a_name_in_the_form_of_a_run_id_is_refused_before_anything_is_queued(
    say: Say, shards: str, settings: Settings
) -> None:
    run_id = submit(settings, FakeSpec())

    said = [say("train", shards, "--weights", "none", "--name", run_id, *more) for more in ((), ("--dry-run",))]

    assert said == [(2, "", f"Error: name {run_id!r} has the form of a run id; choose another name\n")] * 2
    assert run_state.all_ids(settings.storage) == [run_id]


def test_an_id_means_its_own_run_even_if_another_run_was_once_given_it_as_a_name(settings: Settings) -> None:
    run_id = submit(settings, FakeSpec())
    other = submit(settings, FakeSpec(), JobRequest(name=run_id))

    found = run_state.find(settings.storage, run_id)

    assert found.run_id == run_id
    assert run_state.find(settings.storage, other).run_id == other


def test_a_run_is_deleted_also_where_the_file_of_its_name_does_not_answer(settings: Settings, say: Say) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="night"))
    finish(settings, run_id, "succeeded")
    file = settings.storage / "names" / "night.json"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # reading it gives EIO, as a file server that is away does

    code, _, err = say("delete", "--yes", run_id)

    assert (code, err) == (0, f"{run_id} is deleted\n")
    assert list((settings.storage / "runs").iterdir()) == []
