"""What is stated about a data set: `shards pack --about` and `shards describe`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_shards.about import About, about_of, about_rows
from data_shards.errors import OptionError
from data_shards.index import read_index
from jobs.cli.config_file import read_config
from jobs.cli.shards import shards as shards_command
from tests.datasets import image_folder, packed

COUNTS = {"train/covid": 2, "train/normal": 2}
STATED = "source: chest films of two hospitals\nsites: [North, South]\nlicence: CC BY 4.0\nintended_use:\n"


def run(*arguments):
    return CliRunner().invoke(shards_command, [str(one) for one in arguments], catch_exceptions=False)


def test_a_data_set_keeps_what_is_stated_and_its_digest_does_not_depend_on_it(tmp_path):
    (tmp_path / "dataset.yaml").write_text(STATED)
    _, plain = packed(tmp_path / "plain", COUNTS)
    data = tmp_path / "shards"

    result = run("pack", image_folder(tmp_path / "films", COUNTS), data, "--about", tmp_path / "dataset.yaml",
                 "--processes", "1", "--shard-size", "20KB")  # fmt: skip
    shown, as_json = run("show", data), json.loads(run("show", data, "--json").stdout)

    index = read_index(str(data))
    assert result.exit_code == 0
    assert index.about == About(source="chest films of two hospitals", sites="North; South", license="CC BY 4.0")
    assert index.digest == plain.digest
    assert "Sites: North; South\n" in shown.stdout
    assert "Intended use: not stated\n" in shown.stdout
    assert as_json["about"]["license"] == "CC BY 4.0"
    assert as_json["about"]["intended_use"] is None


def test_a_data_set_that_is_there_is_described_later_and_stays_the_same_data_set(tmp_path):
    data, before = packed(tmp_path, COUNTS)
    (tmp_path / "dataset.yaml").write_text("source: films\x1b[2J\n".replace("\x1b", "\\e") + "x: 1\n")
    (tmp_path / "good.json").write_text(json.dumps({"source": "films \x1b[2J", "labelled-by": "two radiologists"}))

    refused = run("describe", data, tmp_path / "dataset.yaml")
    described = run("describe", data, tmp_path / "good.json")

    assert refused.exit_code == 2
    assert described.exit_code == 0
    assert read_index(str(data)).digest == before.digest
    assert read_index(str(data)).about.labelled_by == "two radiologists"
    for text in (described.stderr, run("show", data).stdout):
        assert "\\x1b[2J" in text
        assert "\x1b" not in text
    assert {path.name for path in data.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"sorce": "x"}, "a.yaml: 'sorce' is not known of a data set; did you mean source?"),
        ({"qqq": "x"}, "the keys are source, dates, sites"),
        ({"license": "x", "licence": "y"}, "'licence' and another key state the same"),
        ({"source": {"a": "b"}}, "the value of 'source' is neither a text nor a list of texts"),
        ({"source": ["a", ["b"]]}, "the value of 'source' is neither a text nor a list of texts"),
        ({"source": "x" * 2001}, "the value of 'source' has more than 2000 characters"),
        ({"source": " ", "dates": None}, "a.yaml states nothing"),
        ({}, "a.yaml states nothing"),
    ],
)
def test_statements_that_mean_nothing_are_refused(content, text):
    with pytest.raises(OptionError) as caught:
        about_of(content, "a.yaml")

    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("source: [", "is not valid YAML"),
        ("just words", "write lines such as source: university hospital"),
        ("sorce: x", "did you mean source?"),
        (None, "description"),
    ],
)
def test_a_file_that_cannot_be_read_is_wrong_usage_and_nothing_is_written(tmp_path, content, text):
    file = tmp_path / "dataset.yaml"
    if content is not None:
        file.write_text(content)

    result = run("pack", image_folder(tmp_path / "films", COUNTS), tmp_path / "shards", "--about", file)

    assert result.exit_code == 2
    assert text in result.stderr
    assert not (tmp_path / "shards").exists()


def test_nothing_is_made_up_for_what_nobody_stated():
    assert {text for _, text in about_rows(None)} == {"not stated"}
    assert about_rows(About(dates="2020"))[1] == ("Dates of the images", "2020")


def test_the_example_states_everything_that_can_be_stated():
    example = Path(__file__).parents[1] / "docs" / "examples" / "dataset.yaml"

    stated = about_of(read_config(example), "dataset.yaml")

    assert None not in stated.model_dump().values()
