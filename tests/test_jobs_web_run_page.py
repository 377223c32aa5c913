"""The page of one run."""

import re

from cluster.files import write_json
from tests import web_page as page
from tests.web_page import queued, with_state
from trainer.specs import EvaluateSpec, PredictSpec, SearchSpec, TrainSpec, build
from trainer.specs.search_space import Range, Space

serving, client = page.serving, page.client
MODEL = "train-20260102-030405-abcdef"


def rows_below(text: str, heading: str) -> list[tuple[str, str]]:
    """Return the names and values of the list below a heading."""
    part = text.partition(f">{heading}</h")[2].partition("</dl>")[0]
    return re.findall(r"<dt>([^<]+)</dt><dd>(.*?)</dd>", part)


def test_options_that_differ_from_their_defaults_stand_above_the_defaults(client, settings):
    paths = queued(settings, priority="high")
    write_json(paths.spec, build(TrainSpec, shards="/shards", epochs=7, freeze="none").to_json())

    text = client.get(f"/runs/{paths.run_id}").text

    assert rows_below(text, "Options") == [
        ("epochs", "7"), ("freeze", "none"), ("shards", "/shards"), ("priority", "high"),
    ]  # fmt: skip
    assert {("lr", "0.0005"), ("workers", "1"), ("augment", "no")} <= {*rows_below(text, "Defaults")}
    assert "epochs" not in dict(rows_below(text, "Defaults"))


def test_each_dimension_of_a_search_space_is_an_option_in_words(client, settings):
    paths = queued(settings)
    space = Space(dropout=Range(low=0.1, high=0.2))
    write_json(paths.spec, build(SearchSpec, shards="/shards", trials=7, space=space).to_json())

    text = client.get(f"/runs/{paths.run_id}").text

    assert rows_below(text, "Options") == [("dropout", "0.1 to 0.2"), ("shards", "/shards"), ("trials", "7")]
    assert {("head_width", "128, 256, 512, 1024"), ("lr", "1e-05 to 0.01 on a log scale")} <= {
        *rows_below(text, "Defaults")
    }


def test_the_model_of_an_evaluation_is_a_link_to_its_run(client, settings):
    paths = queued(settings)
    write_json(paths.spec, build(EvaluateSpec, model=MODEL, shards="/shards").to_json())
    with_state(paths, "running", kind="evaluate", attempt=1)

    options = dict(rows_below(client.get(f"/runs/{paths.run_id}").text, "Options"))

    assert options["model"] == f'<a href="/runs/{MODEL}">{MODEL}</a>'


def test_a_prediction_names_its_table_and_the_copy_of_it(client, settings, tmp_path):
    paths, copy = queued(settings), tmp_path / "predictions of may.csv"
    spec = build(PredictSpec, model=MODEL, images=("/images",), output=str(copy))
    write_json(paths.spec, spec.to_json())
    write_json(paths.result, {"kind": "predict", "checkpoint": None, "metrics": {}, "seconds": 1.0})
    paths.predicted("csv").write_text("file\n")
    copy.write_text("file\n")
    with_state(paths, "succeeded", kind="predict", attempt=1)

    shown = dict(rows_below(client.get(f"/runs/{paths.run_id}").text, "Run"))
    copy.unlink()
    without_copy = dict(rows_below(client.get(f"/runs/{paths.run_id}").text, "Run"))

    assert (shown["table"], shown["copy"]) == (str(paths.predicted("csv")), str(copy))
    assert without_copy["table"] == str(paths.predicted("csv"))
    assert "copy" not in without_copy


def test_a_copy_in_a_place_that_cannot_be_looked_at_is_not_shown(client, settings, tmp_path):
    paths, copy = queued(settings), tmp_path / ("x" * 300)  # an OSError, as of a folder that others may not enter
    write_json(paths.spec, build(PredictSpec, model=MODEL, images=("/images",), output=str(copy)).to_json())
    write_json(paths.result, {"kind": "predict", "checkpoint": None, "metrics": {}, "seconds": 1.0})
    paths.predicted("csv").write_text("file\n")
    with_state(paths, "succeeded", kind="predict", attempt=1)

    answer = client.get(f"/runs/{paths.run_id}")

    shown = dict(rows_below(answer.text, "Run"))
    assert (answer.status, shown["table"]) == (200, str(paths.predicted("csv")))
    assert "copy" not in shown
