import json

import pytest
from click.testing import CliRunner

from data_shards.index import read_index
from jobs.__main__ import main
from jobs.cli.shards import shards
from tests.datasets import image_folder

NAMES = [f"film-{number:02d}" for number in range(12)]


@pytest.fixture
def source(tmp_path):
    folder = image_folder(tmp_path / "films", {"part_1": 6, "part_2": 6})
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.rename(file.with_name(f"{NAMES[number]}.png"))
    rows = [f"{name};{'covid' if number % 2 else 'normal'};{number // 4};PA" for number, name in enumerate(NAMES)]
    (folder / "labels.csv").write_text("image_id;finding;patient_id;view\n" + "\n".join(rows) + "\n")
    return folder


def run(*arguments):
    return CliRunner().invoke(shards, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_table_gives_labels_and_groups_and_the_report_says_how(tmp_path, source):
    rows = (source / "labels.csv").read_text()
    (source / "labels.csv").write_text(f"{rows}film-lO;covid;9;PA\n")

    result = run("pack", source, tmp_path / "shards", "--labels", "labels.csv", "--split", "34/33/33", "--json")

    index = read_index(str(tmp_path / "shards"))
    assert result.exit_code == 0
    assert (index.classes, index.grouped, index.options["labels"]) == (("covid", "normal"), True, "labels.csv")
    assert {split: index.per_class_in(split) for split in index.splits} == dict.fromkeys(
        ("train", "valid", "test"), (2, 2)
    )
    assert "note: labels: column 'finding'\n" in result.stderr
    assert "note: groups: column 'patient_id'; --group-column none leaves it out\n" in result.stderr
    assert "left out, rows that name no image (1):\n  labels.csv line 14: film-lO (nearest: " in result.stderr
    assert len(json.loads(result.stdout)["labels"]["rows_without_image"]) == 1


def test_several_labels_an_image_are_packed_with_a_list_of_the_test_images(tmp_path, source):
    cells = ["Mass|Edema", "Mass", "Edema", "No Finding"]
    rows = [f"{name}.png,{cells[number % 4]}" for number, name in enumerate(NAMES)]
    (tmp_path / "findings.csv").write_text("Image Index,Finding Labels\n" + "\n".join(rows) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(f"{name}.png" for name in NAMES[:4]) + "\n")
    options = [
        "--labels",
        tmp_path / "findings.csv",
        "--multi-label",
        "--drop-class",
        "No Finding",
        "--split",
        "50/50/0",
    ]

    result = run("pack", source, tmp_path / "shards", *options, "--split-file", f"test={tmp_path / 'test.txt'}")

    index = read_index(str(tmp_path / "shards"))
    assert result.exit_code == 0
    assert (index.multi_label, index.classes, index.samples_in("test")) == (True, ("Edema", "Mass"), 4)
    assert index.per_class_in("test") == (2, 2)
    assert index.options["split_files"] == "test=test.txt"
    assert "left out: class No Finding (3 images)" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--label-column", "x"], "--label-column needs a table; give it with --labels TABLE"),
        (["--multi-label"], "--multi-label needs a table; give it with --labels TABLE"),
        (["--where", "view=PA"], "--where needs a table; give it with --labels TABLE"),
        (["--labels", "t.csv", "--label-column", "a", "--label-columns", "b,c"], "exclude each other"),
        (["--labels", "t.csv", "--group-column", "a", "--group-by", "b"], "exclude each other"),
        (["--labels", "t.csv", "--split-column", "a", "--split-file", "test=b"], "exclude each other"),
        (["--labels", "t.csv", "--label-columns", "a,,b"], "'a,,b' has an empty name; write A,B,C"),
        (["--labels", "t.csv", "--label-column", " "], "--label-column is empty; give a column"),
        (["--labels", ""], "--labels is empty; give a path"),
        (["--labels", "t.csv", "--where", "PA"], "'PA' is not a column and a value; write COLUMN=VALUE"),
        (["--labels", "t.csv", "--split-file", "list.txt"], "'list.txt' is not a split and a file; write test=LIST"),
        (["--labels", "t.csv", "--split-file", "fold=l.txt"], "'fold=l.txt' is not a split and a file; write test="),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(tmp_path, source, options, text):
    result = run("pack", source, tmp_path / "shards", *options)

    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--labels", "none.csv"], 2, "there is no file none.csv, neither here nor in the source"),
        (["--label-column", "dx"], 2, "--label-column dx: labels.csv has no such column; it has image_id, finding"),
        (["--where", "view=AP"], 2, "--where view=AP: no row of labels.csv has 'AP' there; the column has PA (12)"),
        (["--classes", "mass"], 2, "the tables have no label 'mass'; they have covid, normal"),
        (["--label-column", "view"], 1, "all images have one label, 'PA'; a classifier needs two or more"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing_behind(tmp_path, source, capsys, options, code, text):  # noqa: PLR0917
    target = tmp_path / "shards"
    arguments = ["--split", "34/33/33", *options, *(() if "--labels" in options else ("--labels", "labels.csv"))]

    with pytest.raises(SystemExit) as caught:
        main(["shards", "pack", str(source), str(target), *arguments])

    assert caught.value.code == code
    assert f"Error: {text}" in capsys.readouterr().err
    assert not target.exists()
