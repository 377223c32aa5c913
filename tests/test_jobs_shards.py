import json
import re
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from data_shards.errors import LeakageError, SourceError
from data_shards.index import read_index
from jobs.cli.shards import shards
from jobs.errors import Refused
from jobs.queue.checks import require_split
from tests.datasets import image_folder
from tests.disks import small_disk
from trainer.errors import SpecError

SPLITS = {"train/covid": 6, "train/normal": 9, "test/covid": 2, "test/normal": 3}


def run(*arguments):
    return CliRunner().invoke(shards, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def source(tmp_path):
    return image_folder(tmp_path / "images", SPLITS)


@pytest.fixture
def packed(tmp_path, source):
    assert run("pack", source, tmp_path / "shards").exit_code == 0
    return tmp_path / "shards"


def test_pack_prints_the_folder_alone_on_stdout_and_what_it_did_on_stderr(tmp_path, source):
    result = run("pack", source, tmp_path / "shards")

    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'shards'}\n"
    assert "packed 15 train, 5 test images of 2 classes" in result.stderr
    assert f"next: nightshift shards show {tmp_path / 'shards'}" in result.stderr


def test_the_next_command_is_quoted_for_a_shell(tmp_path, source):
    result = run("pack", source, tmp_path / "my shards {0..2}")

    assert f"next: nightshift shards show '{tmp_path}/my shards {{0..2}}'" in result.stderr


def test_pack_says_of_one_thing_that_it_is_one(tmp_path, source):
    image_folder(source, {"train/other": 1, "spare/covid": 1, ".trash": 1})

    result = run("pack", source, tmp_path / "shards", "--classes", "covid,normal")

    assert "passed over: spare/ (1 file)\n" in result.stderr
    assert "passed over: 1 image in hidden files or folders (.NAME), or those of the system\n" in result.stderr
    assert "left out: class other (1 image)\n" in result.stderr


def test_pack_says_what_it_left_out(tmp_path, source):
    image_folder(source, {"train/other": 2, "spare/covid": 3, ".trash": 2})
    for name in ("notes.txt", "more.zip", "scan.nii.gz", "labels.csv.gz"):
        (source / "train/covid" / name).write_text("no image")

    result = run("pack", source, tmp_path / "shards", "--classes", "covid,normal", "--json")

    assert "passed over: spare/ (3 files)" in result.stderr
    assert "passed over: 2 images in hidden files or folders (.NAME), or those of the system\n" in result.stderr
    assert "left out: class other (2 images)" in result.stderr
    assert "ignored, not images (2):\n  train/covid/labels.csv.gz\n  train/covid/notes.txt\n" in result.stderr
    assert "archives inside SOURCE: unpack them if they hold images (1):\n  train/covid/more.zip" in result.stderr
    assert "of a format that is not read: convert them to PNG or DICOM (1):\n  train/covid/scan.nii.gz" in result.stderr
    report = json.loads(result.stdout)
    assert (report["passed_over"], report["left_out"], report["masks"]) == ({"spare/": 3}, {"other": 2}, 0)


def test_pack_says_that_there_is_no_split_valid_and_the_option_divides_train(tmp_path):
    counts = {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3}
    source = image_folder(tmp_path / "images", counts)

    without = run("pack", source, tmp_path / "without")
    divided = run("pack", source, tmp_path / "shards", "--split", "80/20/0")

    assert (
        "note: there is no split valid, on which training chooses the best epoch; pack again with --split 85/15/0"
        in (" ".join(without.stderr.split()))
    )
    assert "packed 16 train, 4 valid, 6 test images of 2 classes" in divided.stderr
    assert "no split valid" not in divided.stderr
    with pytest.raises(SpecError, match="it has train, test; pack again with --split 85/15/0"):
        require_split(read_index(str(tmp_path / "without")), "valid", "without")


def test_the_cure_for_a_data_set_without_valid_images_is_one_that_helps(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 10, "b": 10})
    image_folder(tmp_path / "external", {"test/a": 3, "test/b": 3})

    shared = run("pack", source, tmp_path / "shared", "--split", "80/0/20")
    external = run("pack", tmp_path / "external", tmp_path / "shards")

    assert "pack again with a share for valid in --split, such as 70/15/15, or" in " ".join(shared.stderr.split())
    assert "no split valid" not in external.stderr
    with pytest.raises(SpecError, match="it has train, test; pack again with a share for valid in --split"):
        require_split(read_index(str(tmp_path / "shared")), "valid", "shared")
    with pytest.raises(SpecError, match=r"it has test$"):
        require_split(read_index(str(tmp_path / "shards")), "valid", "shards")


def test_pack_takes_every_option_of_the_contract(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 12, "b": 12}, size=(90, 60))
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", source)
    groups = tmp_path / "groups.csv"
    names = [file.relative_to(source).as_posix() for file in source.rglob("*.png")]
    groups.write_text("file,group\n" + "".join(f"{name},{name[0]}{int(name[-6:-4]) // 2}\n" for name in names))

    options = ["--split", "60/20/20", "--group-by", groups, "--shard-size", "10kB", "--image-size", "32", "--json"]
    result = run("pack", archive, tmp_path / "shards", *options)

    index = read_index(str(tmp_path / "shards"))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["index"] == index.to_json()
    assert (index.image_size, index.grouped, index.options["shard_bytes"]) == (32, True, 10_000)
    assert index.splits == ("train", "valid", "test")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--shard-size", "much"], "'much' is not a size; write 64MB"),
        (["--shard-size", "0MB"], "'0MB' is not greater than 0"),
        (["--max-bad", "200%"], "'200%' is not from 0% to 100%"),
        (["--quality", "0"], "0 is not in the range 1<=x<=100"),
    ],
)
def test_a_bad_option_is_wrong_usage(tmp_path, source, options, text):
    result = run("pack", source, tmp_path / "shards", *options)

    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.parametrize(("text", "size"), [("64MB", 64_000_000), ("1GiB", 1 << 30), ("500", 500), ("1.5 kb", 1500)])
def test_sizes_read_as_people_write_them(tmp_path, source, text, size):
    run("pack", source, tmp_path / "shards", "--shard-size", text)

    assert read_index(str(tmp_path / "shards")).options["shard_bytes"] == size


def test_leaks_are_listed_before_they_are_refused(tmp_path, source):
    shutil.copyfile(source / "train/covid/image-000.png", source / "test/covid/again.png")

    result = CliRunner().invoke(shards, ["pack", str(source), str(tmp_path / "shards")])

    assert isinstance(result.exception, LeakageError)
    assert "leaks (1):" in result.stderr
    assert run("pack", source, tmp_path / "shards", "--allow-leakage").exit_code == 0


def test_a_refused_source_is_an_error_of_ours(tmp_path):
    (tmp_path / "empty").mkdir()

    result = CliRunner().invoke(shards, ["pack", str(tmp_path / "empty"), str(tmp_path / "shards"), "--split", "1/1/1"])

    assert isinstance(result.exception, SourceError)


def test_verify_says_nothing_and_exits_0_for_a_sound_data_set(packed):
    result = run("verify", packed)

    assert (result.exit_code, result.stdout) == (0, "")
    assert "no faults" in result.stderr


def test_verify_counts_one_fault_as_one(packed):
    (packed / read_index(str(packed)).shards[0].name).unlink()

    result = run("verify", packed)

    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 1)
    assert result.stderr.endswith("1 fault\n")


def test_verify_prints_a_line_per_fault_and_exits_1(packed):
    names = [shard.name for shard in read_index(str(packed)).shards]
    (packed / names[0]).unlink()
    (packed / names[1]).write_bytes((packed / names[1]).read_bytes()[:600])

    result = run("verify", packed)
    as_json = run("verify", packed, "--json")

    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert len(lines) == 3
    assert f"{names[0]} is missing" in lines[0]
    assert f"{names[1]} has 600 bytes" in lines[1]
    assert [fault["text"] for fault in json.loads(as_json.stdout)] == lines


def test_show_prints_a_row_per_split_with_the_balance_of_classes(packed):
    result = run("show", packed)

    rows = [line.split() for line in result.stdout.splitlines()]
    assert any("train" in row and "(40%)" in row and "15" in row for row in rows)
    assert "40 to 40 pixels (median 40) wide and 36 to 36" in " ".join(result.stdout.split())


def test_show_says_of_one_image_of_a_split_that_it_is_not_none_of_it(tmp_path):
    image_folder(tmp_path / "images", {"train/covid": 1, "train/normal": 249})
    run("pack", tmp_path / "images", tmp_path / "shards", "--processes", "1")

    table = run("show", tmp_path / "shards").stdout

    assert "1 (<1%)" in table
    assert "249 (>99%)" in table


def test_show_prints_a_row_per_class_where_columns_would_be_cut_off(tmp_path):
    names = [f"class-{n}-with-a-long-name" for n in range(7)]
    image_folder(tmp_path / "images", {f"{split}/{name}": 1 for split in ("train", "test") for name in names})
    run("pack", tmp_path / "images", tmp_path / "shards", "--processes", "1")

    rows = [line.split() for line in run("show", tmp_path / "shards").stdout.splitlines()]

    assert [[row[1], row[3], row[6]] for row in rows if "long-name" in " ".join(row)] == [[n, "1", "1"] for n in names]
    assert [[row[3], row[5]] for row in rows if "all" in row] == [["7", "7"]]


def test_show_as_json_has_classes_splits_counts_and_sizes(packed):
    facts = json.loads(run("show", packed, "--json").stdout)

    assert facts["classes"] == ["covid", "normal"]
    assert facts["splits"]["train"]["samples"] == 15
    assert facts["splits"]["test"]["per_class"] == {"covid": 2, "normal": 3}
    assert facts["widths"] == {"least": 40, "median": 40, "greatest": 40}


def test_show_counts_the_groups_of_each_split(tmp_path, source):
    assert run("pack", source, tmp_path / "shards", "--group-by", "(train/covid|.*)", "--plain-groups").exit_code == 0

    table = run("show", tmp_path / "shards", "--html", tmp_path / "sheet.html").stdout
    facts = json.loads(run("show", tmp_path / "shards", "--json").stdout)

    rows = {cells[1]: cells for cells in (re.split(r" *[│┃] *", line) for line in table.splitlines()) if len(cells) > 1}
    column = rows["split"].index("groups")
    assert (rows["train"][column], rows["test"][column]) == ("10", "5")
    assert {split: counts["groups"] for split, counts in facts["splits"].items()} == {"train": 10, "test": 5}
    page = (tmp_path / "sheet.html").read_text()
    assert "<th>groups</th>" in page
    assert "<td>15</td><td>10</td></tr>" in page


def test_show_has_no_groups_where_none_are_known(packed, tmp_path):
    shown = run("show", packed, "--html", tmp_path / "sheet.html").stdout

    assert " groups " not in shown
    assert "<th>groups</th>" not in (tmp_path / "sheet.html").read_text()
    assert "groups" not in json.loads(run("show", packed, "--json").stdout)["splits"]["train"]


def test_the_table_of_groups_is_neither_ignored_nor_taken_for_labels(tmp_path, source):
    images = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.png"))
    (source / "patients.csv").write_text("file,group\n" + "".join(f"{name},{n}\n" for n, name in enumerate(images)))
    (source / "notes.csv").write_text("nothing\n")

    result = run("pack", source, tmp_path / "shards", "--group-by", source / "patients.csv", "--plain-groups")

    assert result.exit_code == 0
    assert "ignored, not images (1):\n  notes.csv\n" in result.stderr
    assert f"note: groups: column 'group' of {source}/patients.csv\n" in result.stderr
    assert "--labels" not in result.stderr


def test_images_without_structure_are_packed_and_named(tmp_path, source):
    Image.new("L", (40, 40), 7).save(source / "train/covid/black.png")

    result = run("pack", source, tmp_path / "shards")

    assert "packed, although their pixels hardly differ (1):\n  train/covid/black.png\n" in result.stderr
    assert "packed 16 train" in result.stderr


def test_an_image_with_two_labels_is_listed_with_both(tmp_path, source):
    shutil.copyfile(source / "train/covid/image-000.png", source / "train/normal/again.png")

    result = run("pack", source, tmp_path / "shards")

    assert (
        "the same or nearly the same image with different labels (1):\n"
        "  train/covid/image-000.png and train/normal/again.png are the same file: covid and normal\n"
    ) in result.stderr
    assert "near-duplicates" not in result.stderr


def test_a_contact_sheet_says_how_many_images_it_shows(packed, tmp_path):
    run("show", packed, "--html", tmp_path / "sheet.html", "--per-class", "4")

    page = (tmp_path / "sheet.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>\n<p>(.*?)</p>", page) == [
        ("covid", "4 of 8 images"),
        ("normal", "4 of 12 images"),
    ]


def test_show_draws_a_contact_sheet_without_names_of_files(packed, tmp_path):
    result = run("show", packed, "--html", tmp_path / "sheet.html", "--per-class", "4")

    page = (tmp_path / "sheet.html").read_text()
    assert result.exit_code == 0
    assert page.count("<img src=") == 8
    assert "image-0" not in page
    assert "train 0000" in page


def test_a_full_disk_of_the_shards_is_named(tmp_path, source):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        disk.fill()

        with pytest.raises(Refused) as error:
            run("pack", str(source), str(disk.folder / "shards"))

    assert str(error.value) == (
        f"the disk of {disk.folder / 'shards'} is full; free some space there and repeat the command"
    )


def test_a_file_name_with_control_characters_is_listed_on_one_line(tmp_path, source):
    (source / "train/covid" / "two\nlines\x1b[31m.png").write_bytes(b"")

    result = run("pack", source, tmp_path / "shards", "--max-bad", "0.9")

    assert "  train/covid/two\\nlines\\x1b[31m.png: the file is empty" in result.stderr.splitlines()
