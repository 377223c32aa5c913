"""The page in a real browser: errors, width, accessibility, focus and what changes by itself."""

from pathlib import Path

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from tests import web_page
from tests.browser import RENDERED
from tests.stack import eventually
from tests.web_page import AXE, MULTI_LABEL, TOKEN, queued, search_of, with_state
from trainer.specs import EvaluateSpec, build

serving, client, browser = web_page.serving, web_page.client, web_page.browser


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_every_page_without_error_or_overflow(browser, client, settings, width):
    search = search_of(settings, [[2.0, 1.0], [1.5, 1.2], [3.0]])
    queued(settings, name="a" * 63, tags=("chest", "night"), owner="mira", note="b" * 200)
    browser.size(width, 900)
    browser.errors.clear()

    for path in ("/", "/models", "/queue", f"/runs/{search.run_id}"):
        browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
        assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('main')"))
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
        assert browser.errors == [], path


@pytest.mark.parametrize("width", [1100, 1280])
def test_a_list_of_runs_without_names_shows_each_id_in_one_line_and_does_not_overflow(browser, client, settings, width):
    for state, metric in (("running", None), ("succeeded", ("auroc", 0.995)), ("succeeded", ("auroc", 0.9444))):
        spec, request = build(EvaluateSpec, model="m", shards="/shards"), JobRequest(tags=("shapes",), owner="mira")
        run = RunPaths.of(settings.storage, submit(settings, spec, request))
        split = None if metric is None else "valid"
        with_state(run, state, attempt=1, kind="evaluate", metric=metric, metric_split=split)
        if state == "running":
            progress = {"attempt": 1, "phase": "evaluate", "images_per_second": 1234.0, "eta_seconds": 2888.0}
            write_json(run.progress, progress)
    browser.size(width, 760)

    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    assert eventually(lambda: browser.evaluate(RENDERED) and browser.evaluate("!!document.querySelector('table.runs')"))

    assert browser.evaluate("document.querySelectorAll('.runs .whole').length") == 3
    assert (
        browser.evaluate("[...document.querySelectorAll('.runs .whole')].map(id => id.getClientRects().length)")
        == [1] * 3
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name axe.min.js of the npm package axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_of_accessibility_on_any_page(browser, serving, settings, scheme):
    client = serving(fork=lambda *_: "")
    search = search_of(settings, [[1.0 + number % 3] for number in range(9)], finished=9)
    done, other = queued(settings, tags=("chest",), note="first"), queued(settings)
    for paths in (done, other):
        with_state(paths, "succeeded", kind="train")
    write_json(done.result, {"kind": "train", "seconds": 1.0, "metrics": MULTI_LABEL})
    waiting, failed = queued(settings), queued(settings)
    with_state(failed, "failed", "the disk is full; free some space")
    acts = [f"/runs/{done.run_id}/{act}" for act in ("fork", "edit", "promote")]
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    for width in (400, 1400):
        browser.size(width, 900)
        runs = [f"/runs/{run.run_id}" for run in (search, done, waiting, failed)]
        for path in ("/", "/compare", "/models", "/queue", *runs, *acts, "/runs/no-run"):
            browser.open(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}")
            assert eventually(
                lambda p=path: browser.evaluate(
                    f"location.pathname === {p!r} && {RENDERED} && !!document.querySelector('main')"
                )
            )
            browser.evaluate(Path(AXE).read_text())
            assert browser.evaluate("axe.run().then(found => found.violations.map(one => one.help))") == [], path


def test_a_link_on_another_site_opens_the_page(browser, client):
    other = f"http://localhost:{client.port}/static/page.js"  # another site: the page's is 127.0.0.1
    browser.open(other)
    link = f"http://127.0.0.1:{client.port}/?token={TOKEN}"

    browser.evaluate(f"location.href = '{link}'")

    assert eventually(lambda: browser.evaluate("document.querySelector('h1')?.textContent") == "Runs")


def test_a_page_that_nobody_sees_gives_its_connection_back(browser, client, settings):
    paths = queued(settings)
    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    live = "document.getElementById('connection')?.textContent"
    assert eventually(lambda: browser.evaluate(live) == "Live")

    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}); "
    changed = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.evaluate(hide % "true" + changed)
    assert browser.evaluate("source === null")
    with_state(paths, "failed", "disk full")
    browser.evaluate(hide % "false" + changed)

    assert eventually(lambda: browser.evaluate("document.querySelector('.runs .state')?.textContent") == "failed")


def test_the_focus_stays_on_the_button_while_the_run_goes_on(browser, client, settings):
    paths = queued(settings, name="night")
    with_state(paths, "running", attempt=1)
    browser.open(f"http://127.0.0.1:{client.port}/runs/{paths.run_id}?token={TOKEN}")
    assert eventually(lambda: browser.evaluate("document.getElementById('connection')?.textContent") == "Live")
    browser.evaluate("[...document.querySelectorAll('.acts button')].at(-1).focus()")

    write_json(paths.progress, {"phase": "train", "epoch": 2, "epochs": 5, "done": 1, "total": 4, "attempt": 1})

    assert eventually(lambda: "epoch 2/5" in browser.evaluate("document.querySelector('.summary').textContent"))
    assert browser.evaluate("document.activeElement.textContent") == "Kill"


def test_an_open_page_follows_its_run_and_keeps_the_focus_and_the_chosen_runs(browser, client, settings):
    for run in (queued(settings), queued(settings)):
        with_state(run, "succeeded", kind="train")
    paths = queued(settings, name="night")
    browser.open(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    row = "document.querySelector('.runs .state')?.textContent"
    assert eventually(lambda: browser.evaluate(row) == "queued")
    assert eventually(lambda: browser.evaluate("document.getElementById('connection').textContent") == "Live")
    browser.evaluate("document.querySelector('.runs input').checked = true")
    browser.evaluate("document.querySelector('.runs a').focus()")

    with_state(paths, "failed", "disk full")

    assert eventually(lambda: browser.evaluate(row) == "failed")
    assert browser.evaluate("document.querySelector('.doing').textContent").strip() == "disk full"
    assert browser.evaluate("document.activeElement.textContent") == "night"
    assert browser.evaluate("[...document.querySelectorAll('.runs input')].map(one => one.checked)") == [True, False]


def test_the_button_of_the_page_cancels_the_run(browser, client, settings):
    paths = queued(settings)
    browser.open(f"http://127.0.0.1:{client.port}/runs/{paths.run_id}?token={TOKEN}")
    assert eventually(lambda: browser.evaluate("document.querySelector('.acts button')?.textContent") == "Cancel")

    browser.evaluate("document.querySelector('.acts button').click()")

    assert eventually(lambda: run_state.read_state(paths).state == "cancelled")
    assert eventually(
        lambda: (
            browser.evaluate("document.querySelector('.acts button')?.textContent") == "Retry from the last checkpoint"
        )
    )
