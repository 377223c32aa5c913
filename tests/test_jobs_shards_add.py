import json
import shutil
from functools import partial

import pytest
from PIL import Image

from data_shards.index import read_index
from data_shards.pack.packing import pack
from tests import adding
from tests.adding import added, new_images, options

made, source, shards = adding.made, adding.source, adding.shards


@pytest.fixture
def run(run_main):
    """Run `nightshift shards` in this process; return its exit code, stdout and stderr."""
    return partial(run_main, "shards")


def test_add_prints_the_data_set_alone_on_stdout_and_what_it_did_on_stderr(tmp_path, run, source, shards):
    new = new_images(tmp_path / "new", ["train/a/1.png", "test/b/2.png", "train/a/color.png"], mode="RGB")
    shutil.copyfile(source / "a/image-003.png", new / "train/a/copy.png")
    (new / "train/a/notes.txt").write_text("no image")

    code, out, err = run("add", shards, new)

    index = read_index(str(shards))
    assert (code, out) == (0, f"{shards}\n")
    assert "added 2 train, 1 test images in 2 shards" in err
    assert "in the data set already (1):\n  train/a/copy.png is a/image-003.png in " in err
    assert "color images, read as gray like all others of the data set (3):" in err
    assert "ignored, not images (1):\n  train/a/notes.txt" in err
    assert f"the data set has 43 images; digest {index.history[0].digest[:16]} -> {index.digest[:16]}" in err
    assert err.endswith(f"next: nightshift shards show {shards}\n")


def test_add_says_one_image_of_one_image(tmp_path, run, shards):
    _, _, err = run("add", shards, new_images(tmp_path / "new", ["test/a/1.png"]))

    assert "added 1 test image in 1 shard\n" in err


def test_add_lists_a_near_duplicate_with_another_label_apart_as_pack_does(tmp_path, run, source, shards):
    (tmp_path / "new/b").mkdir(parents=True)
    with Image.open(source / "a/image-003.png") as image:
        image.save(tmp_path / "new/b/again.jpg", quality=95)

    code, _, err = run("add", shards, tmp_path / "new")

    assert code == 0
    assert "the same or nearly the same image with different labels (1):\n  a/image-003.png (" in err
    assert "near-duplicates within a split" not in err


def test_add_as_json_has_the_index_and_what_was_added_and_skipped(tmp_path, run, shards):
    code, out, _ = run("add", shards, new_images(tmp_path / "new", ["test/a/1.png"]), "--json")

    report = json.loads(out)
    assert code == 0
    assert report["index"] == read_index(str(shards)).to_json()
    assert (report["added"], report["known"], report["digest_after"]) == ({"test": 1}, [], report["index"]["digest"])


@pytest.mark.parametrize(
    ("chosen", "refusal"),
    [
        (["--image-size", "512"], (2, "--image-size 512 differs from the 256 of the data set")),
        (["--quality", "50"], (2, "--quality 50 differs from the 95 of the data set")),
        (["--split", "60/20/20"], (2, "--split 60/20/20 differs from the --split 70/15/15 of the data set")),
        (["--group-by", "(.)"], (2, "the images of the data set have no groups")),
        ([], (1, "the data set has no class 'c', only a, b; leave it out with --drop-class c")),
    ],
)
def test_a_refusal_is_one_line_with_its_exit_code(tmp_path, run, shards, chosen, refusal):
    new = new_images(tmp_path / "new", ["a/1.png", "c/2.png"])

    code, text = refusal
    found, out, err = run("add", shards, new, *chosen)

    assert (found, out) == (code, "")
    assert err.startswith("Error: ")
    assert text in err
    assert err.count("\n") == 1
    assert not (shards / ".adding").exists()


def test_leaks_are_listed_before_they_are_refused(tmp_path, run):
    names = ["train/a/p1-1.png", "train/b/p2-1.png", "test/a/p3-1.png"]
    pack(new_images(tmp_path / "images", names), tmp_path / "shards", options(group_by="(p[0-9])"))

    code, _, err = run("add", tmp_path / "shards", new_images(tmp_path / "new", ["test/b/p1-2.png"], seed=77))

    assert code == 1
    assert "leaks (1):\n  group p1 is in test (test/b/p1-2.png) and train (train/a/p1-1.png)\n" in err
    assert "\nError: 1 new image or group would be in two splits" in err
    assert "adding" not in err  # refused before the first image was decoded


def test_show_lists_the_history(tmp_path, run, shards):
    added(shards, new_images(tmp_path / "new", ["train/a/1.png", "test/b/2.png"]))

    _, out, _ = run("show", shards)
    _, as_json, _ = run("show", shards, "--json")

    before = read_index(str(shards)).history[0].digest
    assert f"added 2026-11-26T02:00:00Z: 1 train, 1 test, to digest {before}" in out
    assert json.loads(as_json)["history"][0]["samples"] == {"train": 1, "test": 1}


def test_a_data_set_that_does_not_exist_is_refused(tmp_path, run, source):
    code, _, err = run("add", tmp_path / "nowhere", source)

    assert code == 1
    assert "nowhere/index.json does not exist; `shards pack` makes a data set" in err
    assert not (tmp_path / "nowhere").exists()
