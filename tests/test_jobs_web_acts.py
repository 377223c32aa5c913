"""What can be done on the page: cancel, kill and retry a run."""

import re

import pytest

from cluster.stop_request import StopRequest
from jobs.runs import state as run_state
from jobs.web.access import Access
from tests import web_page
from tests.web_page import TOKEN, form_token, queued, with_state

serving, client = web_page.serving, web_page.client


def test_a_queued_run_is_cancelled_by_the_form_of_the_page(client, settings):
    paths = queued(settings)

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=form_token(client, paths))

    assert (answer.status, answer.headers["location"]) == (303, f"/runs/{paths.run_id}")
    assert run_state.read_state(paths).state == "cancelled"


@pytest.mark.parametrize(
    ("act", "text", "left"),
    [("cancel", "Cancel requested: the run stops after its next checkpoint.", ["kill"]),
     ("kill", "Kill requested.", ["kill"])],
)  # fmt: skip
def test_a_running_run_is_asked_to_stop_and_the_page_says_so(client, settings, act, text, left):
    paths = queued(settings)
    with_state(paths, "running", attempt=1)

    client.post(f"/runs/{paths.run_id}/{act}", form_token=form_token(client, paths))

    page = client.get(f"/runs/{paths.run_id}").text
    assert StopRequest.read(paths.stop, 1) == StopRequest("cancel", 1, now=act == "kill")
    assert text in page
    assert re.findall(r'action="/runs/[^/]+/(\w+)"', page) == left


@pytest.mark.parametrize(
    ("kind", "state", "buttons"),
    [
        ("train", "queued", ["Cancel"]),
        ("train", "running", ["Cancel after the next checkpoint", "Kill"]),
        ("evaluate", "running", ["Cancel", "Kill"]),
        ("search", "cancelled", ["Retry from the last checkpoint"]),
        ("predict", "lost", ["Retry"]),
        ("train", "succeeded", []),
        ("train", "paused", ["Cancel"]),
    ],
)
def test_the_buttons_are_those_that_the_state_allows(client, settings, kind, state, buttons):
    paths = queued(settings)
    with_state(paths, state, attempt=1, kind=kind)

    assert re.findall(r"<button>([^<]+)</button>", client.get(f"/runs/{paths.run_id}").text) == buttons


def test_a_failed_run_is_queued_again(client, settings):
    paths = queued(settings)
    with_state(paths, "failed", "CUDA out of memory")

    answer = client.post(f"/runs/{paths.run_id}/retry", form_token=form_token(client, paths))

    assert answer.status == 303
    assert run_state.read_state(paths).state == "queued"


@pytest.mark.parametrize("forged", ["", "0" * 64, Access(token="another").form_token, "é"])
@pytest.mark.parametrize("act", ["cancel", "kill", "retry"])
def test_an_act_without_the_form_token_of_the_page_is_refused(client, settings, act, forged):
    paths = queued(settings)
    before = paths.state.read_bytes()

    answer = client.post(f"/runs/{paths.run_id}/{act}", form_token=forged)

    assert answer.status == 403
    assert "does not have this page&#39;s form token; load the page again" in answer.text
    assert paths.state.read_bytes() == before


def test_an_act_that_is_not_possible_is_one_line(client, settings):
    paths = queued(settings)
    token = form_token(client, paths)
    with_state(paths, "succeeded")

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=token)

    assert answer.status == 409
    assert f"{paths.run_id} has already ended: it is succeeded" in answer.text


def test_a_long_form_is_refused(client, settings):
    answer = client.post(f"/runs/{queued(settings).run_id}/cancel", form_token="0" * 17_000)

    assert answer.status == 403
    assert "the form is longer than 16384 bytes" in answer.text


def test_a_read_only_page_has_no_buttons_and_takes_no_act(serving, settings):
    client, paths = serving(is_read_only=True), queued(settings)

    answer = client.post(f"/runs/{paths.run_id}/cancel", form_token=Access(token=TOKEN).form_token)

    assert 'method="post"' not in client.get(f"/runs/{paths.run_id}").text
    assert answer.status == 403
    assert run_state.read_state(paths).state == "queued"
