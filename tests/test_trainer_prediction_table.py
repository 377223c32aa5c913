"""The table of predictions: complete or not there at all, whatever the names in it."""

import csv
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


@pytest.mark.parametrize("multi_label", [False, True])
def test_no_formula_begins_behind_a_semicolon_at_which_a_spreadsheet_separates_cells(tmp_path, multi_label):
    with open_prediction_table(tmp_path / "x.csv", ("a;=2",), multi_label=multi_label) as write:
        decision = None if multi_label else "a;=2"
        write(PredictionRow(file="b;=1.png", decision=decision, labels=("a;=2",), probabilities=(0.5,)))

    lines = (tmp_path / "x.csv").read_text().splitlines()
    cells = [cell for line in csv.reader(lines, delimiter=";") for cell in line]
    assert len(cells) > len(lines)
    assert [cell for cell in cells if cell.startswith("=")] == []
