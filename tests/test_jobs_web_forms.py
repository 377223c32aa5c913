"""Forms of the page with a page of their own: fork, promote, tags and note."""

import re
from collections.abc import Callable

import pytest

from cluster.files import read_json, write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.fork import submit_fork
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.promotions import history_of, promoted_names
from jobs.runs.request import JobRequest
from jobs.web.access import Access
from tests import compared as comparing
from tests import web_page as page
from tests.compared import A, B
from tests.conftest import Say
from tests.stack import FakeSpec
from tests.web_page import TOKEN, Answer, Client, queued, with_state
from trainer.model.head import HeadConfig

serving = page.serving
say_there = comparing.say_there
FORM_TOKEN = Access(token=TOKEN).form_token
ERROR_LINE = r'role="alert">([^<]*)<'


@pytest.fixture
def client(serving: Callable[..., Client]) -> Client:
    return serving(fork=submit_fork)


@pytest.fixture
def training(say: Say, settings: Settings, shards: str) -> RunPaths:
    """A training that waits in the queue."""
    run_id = say("train", shards, "--weights", "none", "--tag", "chest", "--priority", "high")[1].strip()
    return RunPaths.of(settings.storage, run_id)


def sent(client: Client, paths: RunPaths, act: str, **fields: str) -> Answer:
    return client.post(f"/runs/{paths.run_id}/{act}", form_token=FORM_TOKEN, **fields)


def error_of(answer: Answer) -> str:
    return re.search(ERROR_LINE, answer.text)[1].replace("&#39;", "'")


# Fork


def test_a_fork_of_the_page_is_the_same_run_with_the_changes(client, settings, training):
    answer = sent(client, training, "fork", set="epochs=7\r\n--set lr=1e-3\r\n\r\n", name="longer", note="a note")

    forked = RunPaths.of(settings.storage, answer.headers["location"].removeprefix("/runs/"))
    state = run_state.read_state(forked)
    before, after = read_json(training.spec), read_json(forked.spec)
    assert answer.status == 303
    assert {name: after[name] for name in after if after[name] != before[name]} == {"epochs": 7, "lr": 1e-3}
    assert (state.name, state.note, state.tags, state.priority) == ("longer", "a note", ("chest",), "high")


WRONG_CHANGES = [
    ({"set": "epochs"}, 400, "'epochs' is not an option and a value; write epochs=20"),
    ({"set": "epocs=3"}, 400, "--set: 'epocs' is not an option of nightshift train; did you mean epochs?"),
    ({"set": "epochs=3\nepochs=4"}, 400, "--set gives epochs twice; give it once"),
    ({"set": "epochs=many"}, 400, "epochs in --set: 'many' is not a whole number"),
    ({"set": "head_width=3"}, 400, "head_width"),
    ({"set": "shards=/nowhere"}, 409, "/nowhere"),
    ({"set": "weights=/nowhere"}, 400, "weights file /nowhere does not exist"),
    ({"name": "a b"}, 400, "name 'a b' is not valid"),
    ({"tags": "good $bad"}, 400, "tag '$bad' is not valid"),
    ({"note": "n" * 1001}, 400, "note"),
    ({"set": "workers=4"}, 409, "4 workers"),
]


def test_a_wrong_change_is_one_line_in_the_form_and_submits_nothing(client, settings, training):
    for fields, status, text in WRONG_CHANGES:
        answer = sent(client, training, "fork", **fields)

        assert (answer.status, text in error_of(answer)) == (status, True), answer.text
        assert run_state.all_ids(settings.storage) == [training.run_id]
        assert all(value in answer.text.replace("&#39;", "'") for value in fields.values())


def test_nobody_writes_a_file_of_the_user_who_serves_the_page(client, say: Say, settings, tmp_path):
    model, film = tmp_path / "model", tmp_path / "film.png"
    model.mkdir()
    head = HeadConfig(classes=("a", "b"), width=8, dropout=0.1, image_size=32)
    write_json(model / "head.json", head.model_dump())
    film.touch()
    run_id = say("predict", str(model), str(film), "--output", str(tmp_path / "predictions.csv"))[1].strip()
    predicted = RunPaths.of(settings.storage, run_id)

    refused = sent(client, predicted, "fork", set=f"output={tmp_path / '.profile'}")
    again = sent(client, predicted, "fork")

    forked = RunPaths.of(settings.storage, again.headers["location"].removeprefix("/runs/"))
    assert refused.status == 400
    assert "the page writes no file outside of the storage; leave output out, or use `nightshift fork`" in error_of(
        refused
    )
    assert set(run_state.all_ids(settings.storage)) == {predicted.run_id, forked.run_id}
    assert read_json(predicted.spec)["output"] == str(tmp_path / "predictions.csv")
    assert read_json(forked.spec)["output"] is None


# Tags and note


def test_tags_and_note_of_a_run_that_has_ended_change_and_its_webhook_is_not_sent_again(client, settings):
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(), JobRequest(tags=("old", "chest"), note="first")))
    with_state(paths, "succeeded", notify="http://127.0.0.1:1/")
    outbox = settings.storage / "outbox"
    for one in outbox.iterdir():
        one.unlink()

    form = client.get(f"/runs/{paths.run_id}/edit").text
    answer = sent(client, paths, "edit", tags="chest, night", note="", tags_before="old chest", note_before="first")

    state = run_state.read_state(paths)
    assert 'name="tags" value="old chest"' in form
    assert answer.headers["location"] == f"/runs/{paths.run_id}"
    assert (state.tags, state.note, state.state) == (("chest", "night"), None, "succeeded")
    assert list(outbox.iterdir()) == []


def test_what_somebody_else_has_changed_meanwhile_stays(client, settings, say: Say):
    paths = queued(settings, tags=("old",), note="first")
    say("edit", paths.run_id, "--tag", "theirs", "--note", "theirs")

    sent(client, paths, "edit", tags="old ours", note="first", tags_before="old", note_before="first")

    state = run_state.read_state(paths)
    assert (state.tags, state.note) == (("old", "theirs", "ours"), "theirs")


def test_a_wrong_tag_or_note_is_one_line_and_changes_nothing(client, settings):
    paths = queued(settings, tags=("chest",))
    before = paths.state.read_bytes()

    tag = sent(client, paths, "edit", tags="chest $bad", tags_before="chest")
    note = sent(client, paths, "edit", tags="chest", tags_before="chest", note="n" * 1001)

    assert (tag.status, note.status) == (400, 400)
    assert error_of(tag).startswith("tag '$bad' is not valid; write up to 63 of a-z, A-Z, 0-9")
    assert error_of(note) == f"note '{'n' * 99}... has more than 1000 characters; shorten it"
    assert paths.state.read_bytes() == before


# Promote


def model_runs(settings: Settings) -> tuple[RunPaths, RunPaths]:
    """Two runs with a published model, the second the worse one."""
    found = tuple(RunPaths.of(settings.storage, run_id) for run_id in (A, B))
    head = {"classes": ["covid", "normal"], "width": 512, "dropout": 0.4, "image_size": 224}
    for paths in found:
        write_json(paths.best / "head.json", head)
    labels = comparing.predictions_of(1, "test", "1" * 64).labels
    comparing.change(settings.storage, comparing.OF_B, **comparing.scored(labels, right=0.4))
    return found


def test_a_model_is_promoted_and_a_worse_one_is_refused_unless_forced(client, settings, say_there):
    first, worse = model_runs(settings)

    promoted = sent(client, first, "promote", name="chest", why="the first")
    refused = sent(client, worse, "promote", name="chest", why="try")
    before = [one.model for one in history_of(settings.storage, "chest")]
    forced = sent(client, worse, "promote", name="chest", why="try", force="1")

    assert (promoted.status, promoted.headers["location"]) == (303, "/models")
    assert refused.status == 409
    assert error_of(refused).startswith(f"{B} is worse than chest ({A}): auroc ")
    assert 'value="try"' in refused.text
    assert (before, forced.status) == ([A], 303)
    assert [(one.model, one.why, one.forced) for one in history_of(settings.storage, "chest")] == [
        (A, "the first", False),
        (B, "try", True),
    ]
    when = history_of(settings.storage, "chest")[0].when
    assert f'<th scope="row">{when[:10]} {when[11:19]} UTC</th>' in client.get("/models").text


WRONG_PROMOTIONS = [
    ({}, 400, "the name of the model is missing"),
    ({"name": "a b"}, 400, "--as 'a b' is not valid"),
    ({"name": "../chest"}, 400, "--as '../chest' is not valid"),
    ({"name": "chest", "metric": "f1"}, 400, "metric='f1' is not one of auroc, accuracy"),
    ({"name": "chest", "positive": "nobody"}, 400, "--positive 'nobody' is not a class; use one of covid, normal"),
]


def test_a_promotion_that_is_not_possible_is_one_line_in_the_form(client, settings, say_there):
    paths, _ = model_runs(settings)

    for fields, status, text in WRONG_PROMOTIONS:
        answer = sent(client, paths, "promote", **fields)

        assert (answer.status, text in error_of(answer)) == (status, True), answer.text
    without = sent(client, queued(settings), "promote", name="chest")
    assert (without.status, "has no model yet" in error_of(without)) == (409, True)
    assert promoted_names(settings.storage) == []


# All of them


def test_a_form_is_refused_without_its_token_and_on_a_read_only_page(serving, client, settings):
    paths, read_only = queued(settings), serving(fork=submit_fork, is_read_only=True)
    before = paths.state.read_bytes()

    for act in ("fork", "edit", "promote"):
        forged = client.post(f"/runs/{paths.run_id}/{act}", form_token="0" * 64, tags="new", name="new")
        answers = [sent(read_only, paths, act, tags="new", name="new"), read_only.get(f"/runs/{paths.run_id}/{act}")]

        assert (forged.status, [answer.status for answer in answers]) == (403, [403, 403])
        assert all("this page is read-only" in answer.text for answer in answers)
        assert paths.state.read_bytes() == before
        assert run_state.all_ids(settings.storage) == [paths.run_id]


def test_a_program_gets_the_error_of_a_form_as_json(client, settings):
    paths = queued(settings)

    answer = client.ask(
        "POST",
        f"/runs/{paths.run_id}/edit",
        headers={"authorization": f"Bearer {TOKEN}", "accept": "application/json", "x-form-token": FORM_TOKEN},
        body="tags=%24bad",
    )

    assert answer.status == 400
    assert answer.json()["error"].startswith("tag '$bad' is not valid")


@pytest.mark.parametrize(
    ("site", "state"), [("cross-site", "queued"), ("same-site", "queued"), ("same-origin", "cancelled")]
)
def test_a_form_that_another_site_sends_is_refused_even_with_the_form_token(client, settings, site, state):
    paths = queued(settings)

    answer = client.ask(
        "POST",
        f"/runs/{paths.run_id}/cancel",
        headers=client.cookie | {"x-form-token": FORM_TOKEN, "sec-fetch-site": site},
    )

    assert run_state.read_state(paths).state == state
    assert ("the form was sent by another site; open the page and use its buttons" in answer.text) == (
        state == "queued"
    )
