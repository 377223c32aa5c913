"""The page that compares two models: the figures of `nightshift compare`, at an address and from the list of runs."""

import json
import re
from pathlib import Path

import pytest

from tests import compared as comparing
from tests import web_page as page
from tests.browser import RENDERED
from tests.compared import OF_A, A, B
from tests.stack import eventually
from tests.web_page import AXE, TOKEN, queued

serving, client, browser = page.serving, page.client, page.browser
say_there = comparing.say_there

REFUSED = [
    (f"a={A}&b=nothing", 409, "nothing is neither a model nor an evaluation; give a run id"),
    (f"a={A}&b=/etc", 400, "b='/etc' is neither a run id nor a name; the list of runs shows both"),
    (f"a={A}&b={B}&metric=f1", 400, "metric='f1' is not one of auroc, accuracy"),
    (f"a={A}&b={B}&margin=much", 400, "margin='much' is not a number from 0 to 1; write 0.02"),
    (f"a={A}&b={B}&margin=nan", 400, "margin='nan' is not a number from 0 to 1; write 0.02"),
    (f"a={A}&b={B}&split=train", 409, "has no evaluation of the train split; run: nightshift evaluate"),
    (f"a={A}&b={B}&positive=nobody", 400, "nobody"),
    (f"run={A}", 400, "1 run is chosen; go back to the list and choose two"),
    (f"run={A}&run={B}&run={OF_A}", 400, "3 runs are chosen; go back to the list and choose two"),
    ("run=..&run=/etc", 400, "2 runs are chosen"),
]


def test_the_page_has_the_figures_curves_and_options_of_the_command(client, settings, say_there):
    said = json.loads(say_there("compare", A, B, "--json")[1])

    shown = client.get(f"/compare?a={A}&b={B}").text

    assert client.json(f"/compare?a={A}&b={B}") == said
    figures = said["comparisons"][0]["figures"]
    assert all(f"{figure['difference']:+.4f}".replace("-", "−") in shown for figure in figures)
    assert 'aria-label="ROC curves of A, B"' in shown
    assert re.search(r'<th scope="row">lr</th><td><code>0.0005</code></td><td><code>0.001</code></td>', shown)
    assert client.get("/static/comparison.css").status == 200


def test_two_runs_that_are_chosen_in_the_list_are_compared_with_the_older_as_reference(client, settings, say_there):
    queued(settings)

    listed = client.get("/").text
    answer = client.get(f"/compare?run={OF_A}&run={A}")

    assert sorted(re.findall(r'type="checkbox" form="compare" name="run" value="([^"]+)"', listed)) == sorted(
        [A, B, comparing.OF_A, comparing.OF_B]
    )
    assert (answer.status, answer.headers["location"]) == (303, f"/compare?a={A}&b={OF_A}")


def test_what_cannot_be_compared_is_one_line(client, settings, say_there):
    for query, status, text in REFUSED:
        shown, program = client.get(f"/compare?{query}"), client.get(f"/compare?{query}", accept="application/json")

        assert (shown.status, text in shown.text.replace("&#39;", "'")) == (status, True), (query, shown.text)
        assert (program.status, list(program.json())) == (status, ["error"])


@pytest.mark.skipif(AXE is None, reason="AXE_CORE does not name axe.min.js of the npm package axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("query", [f"?a={A}&b={B}", f"?a={A}&b=nothing"])
def test_axe_finds_no_fault_of_accessibility_in_a_comparison(browser, client, say_there, scheme, query):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"http://127.0.0.1:{client.port}/compare{query}&token={TOKEN}")
    shown = f"location.search === {query!r} && {RENDERED} && !!document.querySelector('main')"
    assert eventually(lambda: browser.evaluate(shown))

    browser.evaluate(Path(AXE).read_text())
    for width in (400, 1400):
        browser.size(width, 900)

        assert browser.evaluate("axe.run().then(found => found.violations.map(one => one.help))") == []
