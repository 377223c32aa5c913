import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from PIL import Image

from data_shards.errors import OptionError, SourceError
from data_shards.index import read_index
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.verify import verify
from tests.datasets import encoded, image_folder, noise, packed

SPLITS = {"train/covid": 6, "train/normal": 9, "valid/covid": 3, "valid/normal": 4, "test/covid": 2, "test/normal": 3}
REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared" / "data" / "chest_xray"


def options(**chosen):
    return PackOptions(**{"processes": 1, "shard_bytes": 20_000, "plain_groups": True, **chosen})


def stored(folder):
    """Return the members of all samples by their suffix, a dictionary a sample, in the order of the shards."""
    samples = []
    for shard in read_index(str(folder)).shards:
        by_key = {}
        with tarfile.open(folder / shard.name) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                by_key.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        samples += by_key.values()
    return samples


def infos(folder):
    return [json.loads(sample["json"]) for sample in stored(folder)]


def test_a_folder_becomes_shards_that_agree_with_their_index(tmp_path):
    shards, index = packed(tmp_path, SPLITS)

    assert index.classes == ("covid", "normal")
    assert index.splits == ("train", "valid", "test")
    assert [index.per_class_in(split) for split in index.splits] == [(6, 9), (3, 4), (2, 3)]
    assert index.color == "L"
    assert verify(str(shards)) == ()
    assert {file.name for file in shards.iterdir()} == {
        "index.json",
        "pack-report.json",
        *(file.name for file in shards.glob("images-*.jsonl.gz")),
        *(shard.name for shard in index.shards),
    }


@pytest.mark.parametrize("wrapping", ["", "wrapped/"])
@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar.gz"])
def test_the_digest_is_the_same_from_a_folder_and_from_archives(tmp_path, form, wrapping):
    source = image_folder(tmp_path / "images", {wrapping + name: count for name, count in SPLITS.items()})
    plain = image_folder(tmp_path / "plain", SPLITS)
    if form != "folder":
        kind = {"tar.gz": "gztar"}.get(form, form)
        source = Path(shutil.make_archive(str(tmp_path / "archive"), kind, source))

    digest = pack(source, tmp_path / "shards", options()).index.digest

    assert digest == pack(plain, tmp_path / "again", options()).index.digest


def test_the_number_of_processes_changes_no_byte(tmp_path):
    source = image_folder(tmp_path / "images", {"train/covid": 40, "train/normal": 40, "test/covid": 20})

    alone = pack(source, tmp_path / "alone", options(processes=1)).index
    shared_out = pack(source, tmp_path / "shared", options(processes=3)).index

    assert alone == shared_out


def test_any_mix_of_formats_and_upper_case_endings_is_packed(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 2, "train/b": 2})
    (source / "train/a/LOUD.JPG").write_bytes(encoded(noise(101, mode="RGB").convert("CMYK"), "JPEG"))
    (source / "train/a/scan.TIFF").write_bytes(encoded(noise(102).convert("I;16"), "TIFF"))
    (source / "train/b/flat.BMP").write_bytes(encoded(noise(103, mode="RGB"), "BMP"))
    (source / "train/b/naïve/ünïcode.Png").parent.mkdir()
    (source / "train/b/naïve/ünïcode.Png").write_bytes(encoded(noise(104, mode="RGB").convert("P")))

    index = pack(source, tmp_path / "shards", options()).index

    assert index.samples_in("train") == 8
    assert index.color == "RGB"
    assert "train/b/naïve/ünïcode.Png" in {info["source"] for info in infos(tmp_path / "shards")}


def test_images_are_scaled_to_the_short_side_and_keep_their_proportions(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 2, "train/b": 2}, size=(120, 80))

    index = pack(source, tmp_path / "shards", options(encode=EncodeOptions(image_size=32))).index

    sizes = {Image.open(io.BytesIO(sample["jpg"])).size for sample in stored(tmp_path / "shards")}
    assert sizes == {(48, 32)}
    assert (index.widths, index.heights) == ((120, 120, 120), (80, 80, 80))


def test_lossless_packing_gives_back_every_pixel(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 1, "train/b": 1})

    pack(source, tmp_path / "shards", options(encode=EncodeOptions(encoding="lossless")))

    for sample in stored(tmp_path / "shards"):
        original = source / json.loads(sample["json"])["source"]
        assert Image.open(original).tobytes() == Image.open(io.BytesIO(sample["png"])).tobytes()


def test_size_0_copies_jpeg_and_png_byte_for_byte(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 1, "train/b": 1})
    jpeg = encoded(noise(50), "JPEG", quality=31)
    (source / "train/a/x.jpeg").write_bytes(jpeg)
    (source / "train/a/y.bmp").write_bytes(encoded(noise(51), "BMP"))

    pack(source, tmp_path / "shards", options(encode=EncodeOptions(image_size=0)))

    samples = stored(tmp_path / "shards")
    assert jpeg in [sample.get("jpg") for sample in samples]
    assert (source / "train/a/image-000.png").read_bytes() in [sample.get("png") for sample in samples]


def test_single_bad_images_are_skipped_and_listed(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 20, "train/b": 20})
    (source / "train/a/empty.jpg").touch()
    (source / "train/b/cut.png").write_bytes(encoded(noise(1, (200, 200)))[:-900])
    (source / "train/b/notes.txt").write_text("no image")
    (source / "train/b/link.jpg").symlink_to(tmp_path / "nowhere.jpg")

    report = pack(source, tmp_path / "shards", options(max_bad=0.1))

    faults = dict(report.skipped)
    assert faults["train/a/empty.jpg"] == "the file is empty"
    assert faults["train/b/cut.png"].startswith("its pixels cannot be decoded")
    assert faults["train/b/link.jpg"] == "the file cannot be read (No such file or directory)"
    assert report.index.samples_in("train") == 40
    assert report.folder.other_files == {".txt": 1}
    assert json.loads((tmp_path / "shards/pack-report.json").read_text())["skipped"] == faults


def test_too_many_bad_images_are_refused_and_leave_no_data_set(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 5, "train/b": 5})
    (source / "train/a/empty.jpg").touch()

    with pytest.raises(SourceError, match=r"1 of 11 images cannot be used, more than --max-bad 0.01 allows: train/a"):
        pack(source, tmp_path / "shards", options())

    assert not (tmp_path / "shards/index.json").exists()


@pytest.mark.parametrize(
    ("counts", "chosen", "text"),
    [
        ({"a": 5, "b": 5}, {}, "no folders train, valid and test; add --split 70/15/15"),
        (SPLITS, {"split": "70/15/15"}, "laid out split/class/image already"),
        ({"train/a": 5}, {}, "one class, 'a'; a classifier needs two or more"),
        ({"train/a": 5, "train/b": 5, "test/c": 1}, {}, "class 'c' has no usable image in train"),
        ({"a": 5, "b": 1}, {"split": "70/15/15"}, "class 'b' has 1 image for 3 splits; add more, use --drop-class 'b'"),
        ({"a": 5, "b": 4}, {"split": "70/15/15", "group_by": "b/|.*"}, "class 'b' has 4 images of 1 group for 3 spl"),
        ({"a": 5, "b": 5}, {"split": "70/30"}, "--split 70/30 is not three shares"),
        ({"a": 5, "b": 5}, {"split": "70/15/15", "group_by": "patient-([0-9]+)"}, "gives 10 of 10 images no group"),
        ({}, {"split": "70/15/15"}, "holds no JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM image, but no file"),
    ],
)
def test_a_source_that_cannot_be_packed_is_refused_with_a_cure(tmp_path, counts, chosen, text):
    (tmp_path / "images").mkdir()
    source = image_folder(tmp_path / "images", counts)

    with pytest.raises(SourceError, match=text):
        pack(source, tmp_path / "shards", options(**chosen))


def test_a_class_with_one_image_is_packed_where_the_source_gives_the_splits(tmp_path):
    shards, index = packed(tmp_path, {"train/a": 5, "train/rare": 1, "test/a": 2})

    assert index.per_class_in("train") == (5, 1)
    assert verify(str(shards)) == ()


def test_a_data_set_or_foreign_files_are_not_overwritten(tmp_path):
    shards, index = packed(tmp_path, SPLITS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")

    with pytest.raises(SourceError, match="holds a data set already"):
        pack(tmp_path / "images", shards, options())
    with pytest.raises(SourceError, match="is not empty; give a new folder"):
        pack(tmp_path / "images", tmp_path / "mine", options())
    for address in ("http:shards", "s3://bucket/shards", "a:b/shards"):
        with pytest.raises(OptionError, match="reads like an address; give a folder of this machine"):
            pack(tmp_path / "images", Path(address), options())

    assert read_index(str(shards)) == index


def test_a_target_inside_the_source_is_refused(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)

    with pytest.raises(SourceError, match="lies inside"):
        pack(source, source / "shards", options())

    assert not (source / "shards").exists()


def test_an_interrupted_pack_goes_on_where_it_was(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 150, "train/b": 150}, size=(300, 300))
    expected = pack(source, tmp_path / "expected", options()).index
    command = [sys.executable, "-m", "tests.interrupted_pack"]
    arguments = ["pack", str(source), str(tmp_path / "shards"), "--shard-size", "20000B", "--processes", "2"]

    process = subprocess.Popen([*command, *arguments], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    chunks = tmp_path / "shards/.packing/spool"
    while process.poll() is None and len(list(chunks.glob("*.json"))) < 2:
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(helpers, timeout=600)
    done = {file.name: file.stat().st_mtime_ns for file in chunks.glob("*.json")}

    seen = []
    index = pack(source, tmp_path / "shards", options(), lambda count, _: seen.append(count)).index

    assert helpers
    assert not alive
    assert len(done) in (2, 3)  # one of two processes may be at its second chunk
    assert seen[0] == 32 * len(done)
    assert index == expected
    assert not (tmp_path / "shards/.packing").exists()


def test_shards_that_an_interrupted_pack_has_written_are_kept(tmp_path, monkeypatch):
    source = image_folder(tmp_path / "images", SPLITS)
    expected = pack(source, tmp_path / "expected", options()).index
    monkeypatch.setattr("data_shards.pack.packing.write_index", lambda *_: sys.exit("killed before the index"))
    with pytest.raises(SystemExit):
        pack(source, tmp_path / "shards", options())
    monkeypatch.undo()
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*.tar")}
    (tmp_path / "shards/.train-00000.tar.4711").write_bytes(b"cut short")
    (tmp_path / "shards/train-00077.tar").write_bytes(b"of an earlier try with smaller shards")

    index = pack(source, tmp_path / "shards", options()).index

    assert index == expected
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*.tar")} == written
    assert not (tmp_path / "shards/.train-00000.tar.4711").exists()


@pytest.mark.parametrize("others", [{"seed": 1}, {"shard_bytes": 10_000}])
def test_a_pack_interrupted_with_other_options_in_between_agrees_with_its_index(tmp_path, monkeypatch, others):
    source = image_folder(tmp_path / "images", {"a": 30, "b": 30})
    monkeypatch.setattr("data_shards.pack.packing.write_index", lambda *_: sys.exit("killed before the index"))
    for chosen in ({}, others):
        with pytest.raises(SystemExit):
            pack(source, tmp_path / "shards", options(split="70/15/15", **chosen))
    monkeypatch.undo()

    pack(source, tmp_path / "shards", options(split="70/15/15"))

    assert verify(str(tmp_path / "shards")) == ()


def test_a_class_that_went_after_an_interrupted_pack_is_in_no_record(tmp_path, monkeypatch):
    source = image_folder(tmp_path / "images", {"a": 30, "b": 30, "c": 3})
    monkeypatch.setattr("data_shards.pack.packing.write_index", lambda *_: sys.exit("killed before the index"))
    with pytest.raises(SystemExit):
        pack(source, tmp_path / "shards", options(split="70/15/15", shard_bytes=3000))
    monkeypatch.undo()
    shutil.rmtree(source / "c")

    index = pack(source, tmp_path / "shards", options(split="70/15/15", shard_bytes=3000)).index

    assert index.classes == ("a", "b")
    assert verify(str(tmp_path / "shards")) == ()


def test_folders_that_are_links_are_packed_and_a_circle_is_refused(tmp_path):
    image_folder(tmp_path / "elsewhere", {"c": 7})
    source = image_folder(tmp_path / "images", {"a": 7, "b": 7})
    (source / "c").symlink_to(tmp_path / "elsewhere/c")

    index = pack(source, tmp_path / "shards", options(split="70/15/15")).index
    (source / "a/back").symlink_to(source)

    assert (index.classes, len(infos(tmp_path / "shards"))) == (("a", "b", "c"), 21)
    with pytest.raises(SourceError, match="a/back is a link back to a folder that contains it"):
        pack(source, tmp_path / "again", options(split="70/15/15"))


def test_a_class_without_a_usable_training_image_is_refused(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 9, "train/b": 9, "train/c": 1, "test/c": 3})
    (source / "train/c/image-000.png").write_bytes(b"")

    with pytest.raises(SourceError, match="class 'c' has no usable image in train"):
        pack(source, tmp_path / "shards", options(max_bad=0.1))


def test_what_a_jpeg_says_of_its_patient_stays_out_of_the_shards(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 7, "b": 7})
    named = encoded(noise(99, (300, 300)), "JPEG", comment=b"DOE^JOHN")
    (source / "a/named.jpg").write_bytes(named)

    pack(source, tmp_path / "shards", options(split="70/15/15"))

    assert b"DOE^JOHN" in named
    assert not any(b"DOE^JOHN" in sample.get("jpg", b"") for sample in stored(tmp_path / "shards"))


def test_a_pack_begun_with_other_images_starts_anew(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 40, "train/b": 40})
    (source / "train/a/empty.jpg").touch()
    with pytest.raises(SourceError, match="--max-bad"):
        pack(source, tmp_path / "shards", options())
    (source / "train/a/empty.jpg").unlink()

    seen = []
    pack(source, tmp_path / "shards", options(), lambda count, _: seen.append(count))

    assert seen[0] == 0
    assert verify(str(tmp_path / "shards")) == ()


def test_two_packs_into_one_folder_do_not_mix(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)

    def second(*_):
        with pytest.raises(SourceError, match="another pack works on"):
            pack(source, tmp_path / "shards", options())

    assert pack(source, tmp_path / "shards", options(), second).index.samples_in("train") == 15


def test_a_zip_of_a_mac_brings_no_shadow_files_along(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", source))
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/train/covid/._image-000.png", b"resource fork")
        opened.writestr("train/covid/.DS_Store", b"folder view")

    report = pack(archive, tmp_path / "shards", options())

    assert report.index.samples_in("train") == 15
    assert report.skipped == ()


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason=f"the X-rays of {SHARED} are absent")
def test_the_chest_xrays_have_one_digest_from_folder_and_zip_with_one_and_two_processes(tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "xrays"), "zip", SHARED.parent, SHARED.name))

    digests = {
        pack(source, tmp_path / f"{source.suffix}{processes}", PackOptions(processes=processes)).index.digest
        for source in (SHARED, archive)
        for processes in (1, 2)
    }

    assert len(digests) == 1


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason=f"the X-rays of {SHARED} are absent")
def test_no_patient_of_the_flattened_chest_xrays_crosses_splits(tmp_path):
    for file in SHARED.glob("*/*/*.jpg"):
        target = tmp_path / "flat" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)

    chosen = PackOptions(split="70/15/15", group_by=str(SHARED / "groups.csv"), plain_groups=True, processes=1)
    index = pack(tmp_path / "flat", tmp_path / "shards", chosen).index

    splits_of = {}
    for shard in index.shards:
        with tarfile.open(tmp_path / "shards" / shard.name) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    splits_of.setdefault(json.load(tar.extractfile(member))["group"], set()).add(shard.split)
    assert len(splits_of) > 100
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert [index.samples_in(split) for split in index.splits] == [349, 75, 75]
    assert [index.per_class_in(split)[0] for split in index.splits] == [69, 15, 15]
