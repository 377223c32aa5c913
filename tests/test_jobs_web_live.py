"""Open pages in a real browser: what they show while runs, queues and the storage change."""

import http.client
import shutil

import pytest

from cluster.settings import Settings
from jobs.web.access import DENIED
from tests import web_page as page
from tests.browser import Browser
from tests.conftest import Say
from tests.stack import eventually
from tests.web_page import TOKEN, Client, queued, search_of, with_state

serving, client, browser = page.serving, page.client, page.browser
LIVE = "document.getElementById('connection')?.textContent"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr("jobs.web.changes.LOOK_SECONDS", 0.05)


def opened(browser: Browser, client: Client, path: str) -> None:
    browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
    assert eventually(lambda: browser.evaluate(f"location.pathname === {path!r} && {LIVE} === 'Live'"))


def test_a_page_loads_again_where_no_file_changes(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=600)
    connection.request("GET", "/changes", headers=client.cookie)
    stream = connection.getresponse()

    lines = [stream.readline() for _ in range(5)]

    assert lines == [b"retry: 3000\n", b"\n", b"data: changed\n", b"\n", b"data: changed\n"]
    connection.close()


def test_a_proxy_is_told_to_pass_each_event_on_at_once(client):
    answer = client.get("/changes")

    assert answer.headers["x-accel-buffering"] == "no"


def test_the_open_page_of_the_queue_says_that_the_queues_were_paused(browser, client, say: Say):
    opened(browser, client, "/queue")
    text = "document.querySelector('.summary').textContent"
    before = browser.evaluate(text)

    say("queue", "pause")

    assert before == "The queues are open."
    assert eventually(lambda: browser.evaluate(text) == "The queues are paused: job workers start no run.")


def test_an_open_page_says_that_its_run_was_deleted(browser, client, settings: Settings):
    paths = queued(settings, name="night")
    opened(browser, client, f"/runs/{paths.run_id}")

    with_state(paths, "cancelled")
    shutil.rmtree(paths.folder)

    said = f"run {paths.run_id} does not exist; `nightshift list` shows those that do"
    assert eventually(lambda: browser.evaluate(LIVE) == said)
    assert browser.evaluate("document.getElementById('connection').className") == "fault"
    assert browser.evaluate("document.querySelector('h1').textContent") == "night"


def test_an_open_page_says_that_the_storage_is_away_and_goes_on_once_it_is_back(browser, client, settings, tmp_path):
    queued(settings, name="night")
    opened(browser, client, "/")

    away = settings.runs.rename(tmp_path / "away")
    is_said = eventually(lambda: (browser.evaluate(LIVE) or "").startswith("the storage "))
    row = browser.evaluate("document.querySelector('.runs a').textContent")
    away.rename(settings.runs)

    assert (is_said, row) == (True, "night")
    assert eventually(lambda: browser.evaluate(f"{LIVE} === 'Live' && !document.querySelector('#connection.fault')"))


def hide(browser: Browser, *, is_hidden: bool) -> None:
    """Let the page see another tab chosen, or its own."""
    value = "true" if is_hidden else "false"
    browser.evaluate(f"Object.defineProperty(document, 'hidden', {{value: {value}, configurable: true}})")
    browser.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_that_is_shown_again_says_why_the_server_refuses_and_goes_on_once_it_does_not(
    browser, client, settings, tmp_path
):
    paths = queued(settings, name="night")
    opened(browser, client, f"/runs/{paths.run_id}")

    hide(browser, is_hidden=True)
    away = settings.runs.rename(tmp_path / "away")
    hide(browser, is_hidden=False)
    is_said = eventually(lambda: (browser.evaluate(LIVE) or "").startswith("the storage "))
    away.rename(settings.runs)

    assert is_said
    assert eventually(lambda: browser.evaluate(f"{LIVE} === 'Live'"))


def test_an_open_page_whose_token_is_no_longer_valid_says_which_address_to_open(browser, client):
    opened(browser, client, "/")

    browser.call("Network.clearBrowserCookies")

    assert eventually(lambda: browser.evaluate(LIVE) == DENIED.strip())


def test_a_printed_leaderboard_is_whole_and_a_printed_list_is_a_table_without_boxes(browser, client, settings):
    search = search_of(settings, [[1.0 + number % 3] for number in range(9)], finished=9)
    for run in (queued(settings), queued(settings)):
        with_state(run, "succeeded", kind="train")
    browser.size(688, 1000)  # A4 with the margins of the style sheet
    browser.call("Emulation.setEmulatedMedia", media="print")

    opened(browser, client, f"/runs/{search.run_id}")
    table = "document.querySelector('#leaderboard table').getBoundingClientRect().right"
    right = browser.evaluate(table)
    opened(browser, client, "/")
    displays = [
        browser.evaluate(f"getComputedStyle(document.querySelector('{one}')).display")
        for one in (".runs tbody tr", ".choose", ".filter")
    ]
    shown = browser.evaluate("document.querySelector('.runs input').checkVisibility()")
    browser.call("Emulation.setEmulatedMedia", media="")

    assert right <= 688
    assert (displays, shown) == (["table-row", "none", "none"], False)
