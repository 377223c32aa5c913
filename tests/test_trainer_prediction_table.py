"""The table of predictions: complete or not there at all, whatever the names in it."""

import json

import pytest

from trainer.inference.prediction_table import PredictionRow, open_prediction_table


def test_a_failed_write_leaves_no_table(tmp_path):
    def half():
        with open_prediction_table(tmp_path / "x.csv", ("a", "b")) as write:
            write(PredictionRow(file="1", predicted="a", decision="a", probabilities=(1.0, 0.0)))
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        half()

    assert not list(tmp_path.iterdir())


def test_a_table_without_rows_is_valid_json(tmp_path):
    with open_prediction_table(tmp_path / "x.json", ("a", "b")):
        pass

    assert json.loads((tmp_path / "x.json").read_text()) == []


def test_a_file_name_that_is_not_utf_8_has_its_row(tmp_path):
    with open_prediction_table(tmp_path / "x.csv", ("a",)) as write:
        write(PredictionRow(file="film-\udcff.png", error="it cannot be read"))

    assert (tmp_path / "x.csv").read_text().splitlines()[1] == "film-\\udcff.png,,,,it cannot be read"
