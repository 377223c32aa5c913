"""What the page shows of runs, searches and damaged files, served by a real server over loopback."""

import html
import http.client
import json
import re
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from cluster.files import write_json
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.web.changes import stamps
from tests import web_page
from tests.conftest import Say
from tests.silent_server import silent_server
from tests.stack import FakeSpec
from tests.web_page import MARKUP, MULTI_LABEL, queued, search_of, with_state

serving, client = web_page.serving, web_page.client


def test_json_has_what_the_commands_print(client, settings, say: Say):
    search = search_of(settings, [[2.0, 1.5], [1.0]])
    queued(settings, tags=("chest",), note="first", owner="mira")

    page = client.json(f"/runs/{search.run_id}")

    assert client.json("/")["runs"] == json.loads(say("list", "--json")[1])
    assert page.pop("trials") == json.loads(say("trials", search.run_id, "--json")[1])
    assert (page.pop("log"), page.pop("warnings")) == ("", [])
    assert page == json.loads(say("show", search.run_id, "--json")[1])
    assert client.json("/queue")["queues"] == json.loads(say("queue", "show", "--json")[1])


def test_texts_of_people_and_of_damaged_files_are_escaped(client, settings):
    paths = queued(settings, note=MARKUP)
    with_state(paths, "failed", MARKUP, job_worker=MARKUP, owner=MARKUP)
    paths.log.write_text(MARKUP)
    write_json(paths.spec, {"kind": "train", MARKUP: MARKUP})

    pages = [client.get(path).text for path in ("/", f"/runs/{paths.run_id}", f"/?{urlencode({'name': MARKUP})}")]

    assert all("<img" not in page for page in pages)
    assert pages[1].count("&lt;img") == 7


def test_a_long_list_has_a_link_to_older_runs_that_keeps_the_filter(client, settings, monkeypatch):
    monkeypatch.setattr("jobs.web.overview.RUNS_SHOWN", 3)
    ids = [queued(settings, tags=("chest",)).run_id for _ in range(5)]
    queued(settings)

    first = client.json("/?tag=chest")
    older = re.search(r'<a rel="next" href="([^"]+)"', client.get("/?tag=chest").text)[1].replace("&amp;", "&")
    second = client.json(f"/{older}")

    assert [run["id"] for run in first["runs"]] == sorted(ids, key=run_state.age_key)[:-4:-1]
    assert [run["id"] for run in second["runs"]] == sorted(ids, key=run_state.age_key)[1::-1]
    assert second["older"] is None


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/runs/train-20260102-030405-abcdef", 404, "run train-20260102-030405-abcdef does not exist"),
        ("/runs/train-20260102-030405-abcdef/report", 404, "has no report"),
        ("/runs/..%2f..%2fetc", 404, "Not Found"),
        ("/runs/etc", 404, "&#39;etc&#39; is not a run id"),
        ("/static/../app.py", 404, "Not Found"),
        ("/?state=bad", 400, "state=&#39;bad&#39; is not one of queued, scheduled, running"),
        ("/?kind=bad", 400, "kind=&#39;bad&#39; is not one of train, evaluate"),
        ("/?before=bad", 400, "before=&#39;bad&#39; is not a run id"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_clear_line(client, path, status, text):
    answer = client.get(path)

    assert (answer.status, text in answer.text) == (status, True), answer.text


def test_a_page_whose_storage_is_away_does_not_say_that_there_are_no_runs(client, settings, tmp_path):
    run_id = submit(settings, FakeSpec())
    away = settings.runs.rename(tmp_path / "away")

    answers = [client.get(path) for path in ("/", "/models", f"/runs/{run_id}")]
    away.rename(settings.runs)

    assert [answer.status for answer in answers] == [503] * 3
    reason = f"the storage {settings.storage} cannot be read: {settings.runs} does not exist; mount the share again"
    assert all(reason in answer.text for answer in answers)
    assert client.get("/").status == 200


def test_a_damaged_run_is_in_the_list_and_its_page_says_the_cure(client, settings):
    damaged, good = queued(settings), queued(settings)
    damaged.state.write_text("{")

    answer = client.get(f"/runs/{damaged.run_id}")

    assert [run["state"] for run in client.json("/")["runs"]] == ["queued", "damaged"]
    assert client.get(f"/runs/{good.run_id}").status == 200
    assert answer.status == 500
    assert f"`nightshift delete --force {damaged.run_id}` deletes the run" in answer.text


GOOD = {"accuracy": 0.9, "split": "test", "n": 10}


RESULTS = [
    {**GOOD, "accuracy": "high"}, {**GOOD, "accuracy": float("nan")}, {**GOOD, "accuracy": [1]},
    {**GOOD, "intervals": []}, {**GOOD, "intervals": {"accuracy": [0.1]}}, {**GOOD, "intervals": {"accuracy": "ab"}},
    {**GOOD, "out_of_fold": {}}, {**GOOD, "at_prevalence": {}}, {**GOOD, "threshold_choices": [1]},
    {**GOOD, "classes": [["a"]], "per_class": {}}, {**GOOD, "labels": [1]}, {**GOOD, "multi_label": True},
]  # fmt: skip


FILES = [
    *[("result.json", json.dumps({"kind": "train", "seconds": 1.0, "metrics": metrics})) for metrics in RESULTS],
    ("result.json", '{"kind": "train", "seconds": NaN, "metrics": {}}'),
    ("result.json", '{"kind": "train", "seconds": 1, "metrics": {"accuracy": 0.5}, "baselines": 5}'),
    ("result.json", '{"kind": "train", "seconds": 1, "metrics": {}, "cross_validation": [1], "timing": [2]}'),
    ("metrics.jsonl", '{"epoch": 1, "valid_accuracy": 95, "attempt": 1}\n'),
    ("metrics.jsonl", '{"epoch": 1, "valid_loss": 1.75e308, "train_loss": -1.7e308, "attempt": 1}\n'),
    ("metrics.jsonl", '{"epoch": 1, "valid_loss": ' + "9" * 400 + ', "attempt": 1}\n'),
    ("spec.json", '{"kind": "train", "best_by": "f1", "epochs": []}'),
    ("spec.json", '["kind"]'),
    ("progress.json", '{"epoch": 1, "epochs": 2, "phase": [], "total": 5, "done": NaN, "other": NaN}'),
    ("job.json", '{"priority": {"a": 1}}'),
    ("best/manifest.json", '{"files": 3}'),
    ("stop.json", "[]"),
    ("log.txt", "\udce9\r\x1b[31mred"),
]


@pytest.mark.parametrize("state", ["running", "succeeded"])
@pytest.mark.parametrize(("name", "content"), FILES, ids=range(len(FILES)))
def test_a_run_with_a_damaged_file_is_shown_and_hides_no_other_run(client, settings, name, content, state):
    paths = queued(settings)
    write_json(
        paths.metrics.with_name("metrics.jsonl"), {"epoch": 1, "valid_loss": 1.0, "train_loss": 1.0, "attempt": 1}
    )
    with_state(paths, state, attempt=1)
    file = paths.folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.encode(errors="surrogateescape"))

    answers = [client.get(path) for path in ("/", f"/runs/{paths.run_id}")]
    programs = [client.get(path, accept="application/json") for path in ("/", f"/runs/{paths.run_id}")]

    assert [answer.status for answer in (*answers, *programs)] == [200] * 4
    assert all(paths.run_id in answer.text for answer in answers)
    assert [answer.json() is not None for answer in programs] == [True, True]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "started", "trial": 7, "config": {}, "attempt": 1}',
        '{"event": "started", "trial": 7, "config": {"lr": 1e999}, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": 9, "value": 1.7e308, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": 9, "value": -1.7e308, "seconds": 1e300, "attempt": 1}',
        '{"event": "epoch", "trial": 0, "epoch": ' + "9" * 30 + ', "value": 1.0, "attempt": 1}',
    ],
    ids=range(5),
)
def test_a_search_with_odd_trials_is_shown(client, settings, line):
    search = search_of(settings, [[2.0, 1.0], [3.0]])
    with search.trials.open("a") as file:
        file.write(line + "\n")

    page, program = (
        client.get(f"/runs/{search.run_id}"),
        client.get(f"/runs/{search.run_id}", accept="application/json"),
    )

    assert (page.status, program.status) == (200, 200)
    assert program.json()["id"] == search.run_id


def test_a_search_by_an_unknown_metric_is_of_a_newer_version_and_not_damaged(client, settings, say):
    search = search_of(settings, [[2.0]])
    write_json(search.spec, {"kind": "search", "best_by": "f1"})

    page, (code, _, err) = client.get(f"/runs/{search.run_id}").text, say("trials", search.run_id)

    expected = f"{search.run_id} is ranked by 'f1', which this version does not know; update Nightshift"
    assert expected in html.unescape(page)
    assert "is damaged" not in page
    assert (code, err) == (1, f"Error: {expected}\n")


def test_a_reason_that_is_not_utf_8_is_shown(client, settings):
    paths = queued(settings)
    with_state(paths, "failed", "cannot read b\udce9.png")

    assert "cannot read b?.png" in client.get("/").text
    assert client.json("/")["runs"][0]["why"] == "cannot read b\udce9.png"


def test_the_labels_of_a_multi_label_run_are_a_table(client, settings):
    paths = queued(settings)
    write_json(paths.result, {"kind": "train", "seconds": 1.0, "metrics": MULTI_LABEL})
    with_state(paths, "succeeded", kind="train")

    page = client.get(f"/runs/{paths.run_id}").text

    assert "test split, 40 images, 70 known targets; macro: mean of the labels, micro: all known targets" in page
    cells = ["0.9000 (0.8000 to 0.9500)", "undefined", "0.8000", "7 of 35", "5"]
    row = '<tr><th scope="row">nodule</th>' + "".join(f'<td class="n">{text}</td>' for text in cells) + "</tr>"
    assert row in page


def test_a_run_that_failed_shows_no_figures(client, settings):
    paths = queued(settings)
    write_json(paths.result, {"kind": "train", "seconds": 1.0, "metrics": {"accuracy": 0.9, "split": "test"}})
    with_state(paths, "failed", "it was replaced")

    assert "Main metrics" not in client.get(f"/runs/{paths.run_id}").text


def test_only_the_end_of_a_long_log_is_sent_and_what_a_progress_bar_shows_last(client, settings):
    paths = queued(settings)
    paths.log.write_text("first\n" + "".join(f"\r{share} %" for share in range(20_000)) + "\nlast\n")

    assert client.json(f"/runs/{paths.run_id}")["log"] == "last\n"


def test_a_stray_file_among_the_pending_runs_does_no_harm(client, settings):
    (settings.storage / "pending").mkdir(exist_ok=True)
    (settings.storage / "pending" / ".nfs0001").touch()

    assert stamps(settings.storage, None) == stamps(settings.storage, None)
    assert client.get("/changes").status == 200


def test_events_of_a_run_that_does_not_exist_are_not_found(client):
    assert client.get("/runs/train-20260102-030405-abcdef/changes").status == 404


def test_without_redis_runs_are_shown_and_the_queue_says_why_not(serving, settings):
    closed = Settings(storage=settings.storage, redis_url="redis://127.0.0.1:1")
    paths, client = queued(settings), serving(settings=closed)

    page = client.json("/queue")

    assert client.get(f"/runs/{paths.run_id}").status == 200
    assert page["queues"] is None
    assert page["warning"].startswith("Redis at redis://127.0.0.1:1 does not answer (")


def test_values_far_from_the_best_are_left_out_of_the_curves_and_counted(client, settings):
    search = search_of(settings, [[2.0, 1.0, 1e6], [1.5, 1e9]])

    page = client.get(f"/runs/{search.run_id}").text

    assert "loss by epoch, 3 worse values are outside the axis" in page  # 2.0, 1e6 and 1e9: best values are 1.0 and 1.5
    assert page.count('class="dot"') == 2


def test_the_page_of_a_search_shows_what_its_options_do_once_enough_trials_have_ended(client, settings):
    few = search_of(settings, [[2.0], [1.0], [1.5], [3.0]], finished=1, name="few")
    many = search_of(settings, [[1.0 + number % 3] for number in range(9)], finished=9)

    equal = search_of(settings, [[1.0]] * 5, finished=5, name="equal")

    pages = [client.get(f"/runs/{paths.run_id}").text for paths in (few, many, equal)]

    assert 'aria-label="4 trials over lr, dropout, head_width, loss"' in pages[0]
    assert "The importance of the options is shown from 4 trials that ran all their epochs; there is 1." in pages[0]
    assert 'aria-label="9 trials over lr, dropout, head_width, loss"' in pages[1]
    assert "of loss between the 9 trials that ran all their epochs which each option alone explains" in pages[1]
    assert "the 5 trials that ran all their epochs do not differ in loss." in pages[2]
    assert re.search(r'aria-label="lr \d+ percent, dropout \d+ percent, head_width 0 percent"', pages[1])


def test_a_change_of_the_run_is_told_to_an_open_page(client, settings):
    paths = queued(settings)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("GET", f"/runs/{paths.run_id}/changes", headers=client.cookie)
    stream = connection.getresponse()
    assert stream.readline() == b"retry: 3000\n"

    with_state(paths, "cancelled")

    assert (stream.readline(), stream.readline()) == (b"\n", b"data: changed\n")
    connection.close()


def test_a_waiting_run_is_said_to_wait_for_the_queues_while_they_are_paused(client, settings, say):
    paths = queued(settings)
    paused = "the queues are paused; `nightshift queue resume` opens them"

    say("queue", "pause")
    texts = [client.get(path).text for path in ("/", f"/runs/{paths.run_id}")]
    say("queue", "resume")

    assert [paused in text for text in texts] == [True, True]
    assert paused not in client.get("/").text


def test_the_pages_ask_a_silent_redis_once_whether_the_queues_are_paused(serving, settings, monkeypatch):
    monkeypatch.setattr("jobs.queue.overview.SILENT_SECONDS", float("inf"))
    paths = queued(settings)

    with silent_server() as silent:
        client = serving(settings=replace(settings, redis_url=silent.url))
        statuses = [client.get(path).status for path in ("/", f"/runs/{paths.run_id}", "/")]
        connections = silent.new_connections()

    assert (statuses, connections) == ([200, 200, 200], 1)
