import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.errors import LeakageError, SourceError
from data_shards.pack.add_splits import check_groups
from data_shards.pack.groups import groups_in_table, groups_of
from data_shards.pack.image_records import ImageRecord
from data_shards.pack.known_images import KnownImages
from data_shards.pack.near_duplicates import ImageHash, across_splits, find_near_duplicates
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.split import LabeledImage, merge_groups, parse_shares, stratified_group_split
from tests.datasets import encoded, image_folder, index_of, noise

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
SHARES = (0.7, 0.15, 0.15)
SPLITS = {"train/covid": 4, "train/normal": 4, "test/covid": 2, "test/normal": 2}


def ungrouped(counts):
    return [
        LabeledImage(name=f"{label}{n}", label=label, group=f"{label}{n}")
        for label, count in counts.items()
        for n in range(count)
    ]


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ab")), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_group_never_crosses_splits_however_the_sizes_fall(groups, seed):
    images = [
        LabeledImage(name=f"{number}-{n}", label=label, group=f"patient {number}")
        for number, (size, label) in enumerate(groups)
        for n in range(size)
    ]
    assume(min(Counter(label for _, label in groups).values()) >= 3)

    splits = stratified_group_split(images, SHARES, seed=seed)

    found = {}
    for image in images:
        found.setdefault(image.group, set()).add(splits[image.name])
    assert len(splits) == len(images)
    assert all(len(of_group) == 1 for of_group in found.values())
    for label in {image.label for image in images}:
        assert {splits[image.name] for image in images if image.label == label} == {"train", "valid", "test"}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(3, 200), min_size=2), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_without_groups_each_class_is_divided_in_proportion(counts, seed):
    splits = stratified_group_split(ungrouped(counts), SHARES, seed=seed)

    for label, count in counts.items():
        found = Counter(split for name, split in splits.items() if name.startswith(label))
        for split, share in zip(("train", "valid", "test"), SHARES, strict=True):
            assert abs(found[split] - share * count) <= 2
            assert found[split] >= 1


def test_the_division_depends_on_the_seed_alone():
    images = ungrouped({"a": 30, "b": 30})

    assert stratified_group_split(images, SHARES, seed=1) == stratified_group_split(images[::-1], SHARES, seed=1)
    assert stratified_group_split(images, SHARES, seed=1) != stratified_group_split(images, SHARES, seed=2)


def test_a_share_of_zero_leaves_the_split_out():
    splits = stratified_group_split(ungrouped({"a": 10, "b": 10}), parse_shares("80/0/20"), seed=0)

    assert Counter(splits.values()) == {"train": 16, "test": 4}


@pytest.mark.parametrize("text", ["70/30", "a/b/c", "-1/1/1", "0/50/50", "70/15/15/0", "nan/1/1", "inf/1/1", ""])
def test_shares_that_make_no_sense_are_refused(text):
    with pytest.raises(SourceError, match="--split"):
        parse_shares(text)


def test_images_that_look_the_same_join_their_groups():
    group_of = {"a": "1", "b": "2", "c": "3", "d": "4"}

    joined = merge_groups(group_of, [("a", "b"), ("b", "c")])

    assert joined["a"] == joined["b"] == joined["c"] != joined["d"]


def test_groups_come_from_a_csv_by_path_or_by_the_last_part_of_it(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("\ufefffile,label,group\ntrain/covid/x.jpg,covid,p1\nvalid/covid/y.jpg,covid,p2\n")

    assert groups_of(["train/covid/x.jpg", "covid/y.jpg"], str(table)).of_image == {
        "train/covid/x.jpg": "p1",
        "covid/y.jpg": "p2",
    }


@pytest.mark.parametrize(
    "text",
    [
        "file;group\nMüller/é1.jpg;1\nnormal/2.jpg;2\n",
        "file\tgroup\n./Müller/é1.jpg\t1\n/data/s/normal/2.jpg\t2\n",
        "patientId,Target,file\n1,0,Müller\\é1.jpg\n2,1,2.jpg\n",
        ",file,group\n0,Müller/é1.jpg,1.0\n1,normal/2.jpg,2.0\n",
        unicodedata.normalize("NFD", "file,group\nMüller/é1.jpg,1\nnormal/2.jpg,2\n"),
    ],
)
def test_groups_come_from_a_table_as_programs_write_it(tmp_path, text):
    table = tmp_path / "patients.csv"
    table.write_text(text)

    found = groups_of(["Müller/é1.jpg", "normal/2.jpg"], str(table)).of_image

    assert found == {"Müller/é1.jpg": "1", "normal/2.jpg": "2"}


def test_a_patient_in_composed_and_decomposed_unicode_is_one_group(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text(f"file,group\na.png,{COMPOSED}\nb.png,{DECOMPOSED}\na.png,{DECOMPOSED}\n")

    found = groups_of(["a.png", "b.png"], str(table))

    assert found.of_image == {"a.png": COMPOSED, "b.png": COMPOSED}
    assert found.values == {COMPOSED}
    assert groups_in_table(str(table), None) == [COMPOSED]


def test_a_new_image_of_a_group_that_is_stored_in_decomposed_unicode_may_not_go_to_another_split():
    shard = index_of([1]).shards[0]
    record = ImageRecord(
        source="old.png", group=DECOMPOSED, label=0, width=9, height=9, sha256="", stored_sha256="", phash=""
    )
    known = KnownImages(records=((shard, [record]),), hashed=0)

    with pytest.raises(LeakageError, match=rf"{COMPOSED} is in test \(new.png\) and train \(old.png\)"):
        check_groups({"new.png": COMPOSED}, {"new.png": "test"}, known, allow_leakage=False)


def test_an_image_that_the_csv_leaves_out_is_not_given_the_group_of_its_namesake(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("file,group\ncovid/0001.jpg,p1\n")

    with pytest.raises(SourceError, match=r"gives 1 of 2 images no group, such as normal/0001\.jpg"):
        groups_of(["covid/0001.jpg", "normal/0001.jpg"], str(table))


@pytest.mark.parametrize(
    "rows", [["a/1.jpg,p1", "b/1.jpg,p2", "c/1.jpg,p3"], ["b/1.jpg,p2", "a/1.jpg,"], ["old/1.jpg,p2"]]
)
def test_an_image_is_given_the_group_of_the_row_with_its_folder_else_that_of_a_single_row(tmp_path, rows):
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(["file,group", *rows]))

    assert groups_of(["set/b/1.jpg"], str(table)).of_image == {"set/b/1.jpg": "p2"}


def test_rows_with_other_folders_give_no_group_if_they_differ(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("file,group\na/1.jpg,p1\nc/1.jpg,p1\n")

    with pytest.raises(SourceError, match=r"gives 1 of 1 images no group, such as b/1\.jpg"):
        groups_of(["b/1.jpg"], str(table))


def test_groups_come_from_a_bracket_in_a_regular_expression():
    found = groups_of(["a/007_1.png", "b/007_2.png"], "([0-9]+)_").of_image

    assert found == {"a/007_1.png": "007", "b/007_2.png": "007"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("who,what\nx,1\n", "has the columns who, what; it needs the columns file and group"),
        ("file,group\nx.png,1\nx.png,2\n", "gives x.png two groups .*; remove one row, or write paths if two images"),
        ("file,group\ny.png,1\n", "gives 1 of 1 images no group, such as x.png"),
        ("file,group\nx.png,\n", "gives 1 of 1 images no group, such as x.png"),
        ("file,group\n\0\n", "line 2 has a NUL character, so it is no text"),
        ("", "is empty; give a table"),
    ],
)
def test_a_csv_that_does_not_group_every_image_is_refused(tmp_path, text, fault):
    table = tmp_path / "groups.csv"
    table.write_text(text)

    with pytest.raises(SourceError, match=fault):
        groups_of(["x.png"], str(table))


def leaking(folder, copy):
    """Return a source whose test split holds another form of a training image."""
    source = image_folder(folder / "images", SPLITS, size=(200, 180))
    copy(source / "train/covid/image-000.png", source / "test/covid/again.jpg")
    return source


def same_bytes(original, target):
    target.write_bytes(original.read_bytes())


def compressed_anew(original, target):
    target.write_bytes(encoded(Image.open(original).resize((150, 135)), "JPEG", quality=60))


@pytest.mark.parametrize(
    ("copy", "words"), [(same_bytes, "are the same file"), (compressed_anew, "are near-duplicates")]
)
def test_a_copy_in_another_split_is_listed_and_refused(tmp_path, copy, words):
    source = leaking(tmp_path, copy)

    with pytest.raises(LeakageError, match="1 image or group is in two splits") as refused:
        pack(source, tmp_path / "shards", PackOptions(processes=1))

    (finding,) = refused.value.findings
    assert words in finding
    assert "train/covid/image-000.png" in finding
    assert "test/covid/again.jpg" in finding
    assert not (tmp_path / "shards/index.json").exists()


def test_leakage_can_be_allowed_and_is_reported(tmp_path):
    source = leaking(tmp_path, compressed_anew)

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, allow_leakage=True))

    assert len(report.leakage) == 1
    assert report.index.options["allow_leakage"] is True


def test_a_group_in_two_given_splits_is_refused(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)

    with pytest.raises(LeakageError, match=r"image-000 is in test \(test/.*/image-000.png\) and train \("):
        pack(source, tmp_path / "shards", PackOptions(processes=1, group_by="image-[0-9]+", plain_groups=True))


def test_where_we_divide_copies_stay_in_one_split(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 12, "b": 12}, size=(200, 180))
    for number in range(12):
        compressed_anew(source / f"a/image-{number:03d}.png", source / f"a/copy-{number:03d}.jpg")

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15"))

    assert len(report.duplicates) == 12
    assert report.leakage == ()


def test_a_thousand_like_frames_are_joined_by_as_many_pairs():
    frames = [ImageHash(name=f"{n:04d}", sha256=f"{n}", phash="0f" * 32) for n in range(1000)]
    splits = {frame.name: ("train", "valid", "test")[number % 3] for number, frame in enumerate(frames)}

    pairs, leaks = find_near_duplicates(frames), across_splits(find_near_duplicates(frames, splits), splits)

    assert len(pairs) == 999
    assert {name for pair in leaks for name in (pair.first, pair.second)} == set(splits)
    assert len(leaks) < 2500


def test_flat_images_are_no_copies_of_each_other(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    for split in ("train", "test"):
        (source / split / "normal/flat.png").write_bytes(encoded(Image.new("L", (40, 36), len(split))))

    report = pack(source, tmp_path / "shards", PackOptions(processes=1))

    assert report.leakage == ()


def alike(folder, names):
    """Write photos of one part from one camera, which only noise tells apart."""
    part = np.asarray(noise(0, (120, 120)), dtype=np.int16)
    for number, name in enumerate(names):
        grain = np.random.default_rng(number).integers(-4, 5, part.shape)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(Image.fromarray((part + grain).clip(0, 255).astype(np.uint8))))
    return folder


PHOTOS = [f"{label}/{number:02}.png" for label in ("defect", "ok") for number in range(20)]


def test_near_duplicates_that_cannot_be_divided_are_named_as_the_reason(tmp_path):
    source = alike(tmp_path / "images", PHOTOS)

    with pytest.raises(SourceError) as refused:
        pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15"))

    assert str(refused.value) == (
        "class 'defect' has 20 images of 1 group for 3 splits, as near-duplicates stay in one split; leave some of "
        "them out, or divide them too with --allow-leakage, which makes metrics too optimistic"
    )


def test_near_duplicates_are_divided_where_leakage_is_allowed_and_all_that_leak_are_listed(tmp_path):
    source = alike(tmp_path / "images", PHOTOS)

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15", allow_leakage=True))

    assert [report.index.per_class_in(split) for split in report.index.splits] == [(14, 14), (3, 3), (3, 3)]
    assert {name for name in PHOTOS if any(name in line for line in report.leakage)} == set(PHOTOS)
    assert report.index.options["allow_leakage"] is True


def test_near_duplicates_stay_together_where_they_can_although_leakage_is_allowed(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 12, "b": 12}, size=(200, 180))
    for number in range(12):
        compressed_anew(source / f"a/image-{number:03d}.png", source / f"a/copy-{number:03d}.jpg")

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15", allow_leakage=True))

    assert report.leakage == ()


def test_too_few_images_are_the_reason_although_some_are_near_duplicates(tmp_path):
    source = alike(image_folder(tmp_path / "images", {"a": 12}), ["b/1.png", "b/2.png"])

    with pytest.raises(SourceError, match="class 'b' has 2 images for 3 splits; add more"):
        pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15", allow_leakage=True))


@pytest.mark.parametrize(
    ("copy", "words"), [(same_bytes, "are the same file"), (compressed_anew, "are near-duplicates")]
)
def test_one_image_with_two_labels_is_listed_with_both(tmp_path, copy, words):
    source = image_folder(tmp_path / "images", {"a": 12, "b": 12}, size=(200, 180))
    copy(source / "a/image-001.png", source / "b/again.jpg")
    copy(source / "a/image-002.png", source / "a/again.jpg")

    report = pack(source, tmp_path / "shards", PackOptions(processes=1, split="70/15/15"))

    (line,) = report.contradictions
    assert line.startswith("a/image-001.png and b/again.jpg ")
    assert words in line
    assert line.endswith(": a and b")
    (same_label,) = report.duplicates
    assert same_label.startswith("a/again.jpg and a/image-002.png ")
    assert report.to_json()["contradictions"] == (line,)


def test_targets_that_both_images_know_contradict_each_other(tmp_path):
    source = image_folder(tmp_path / "images", {"x": 12}, size=(200, 180))
    for number, name in ((1, "same"), (2, "other"), (3, "unknown")):
        same_bytes(source / f"x/image-{number:03d}.png", source / f"x/{name}.png")
    rows = [f"image-{n:03d},{n % 2},{n // 2 % 2}" for n in range(12)] + ["same,1,0", "other,0,0", "unknown,1,"]
    (tmp_path / "t.csv").write_text("\n".join(["image,Edema,Mass", *rows]))
    labels = LabelOptions(tables=(str(tmp_path / "t.csv"),), label_columns=("Edema", "Mass"))

    report = pack(
        source, tmp_path / "shards", PackOptions(processes=1, split="50/0/50", labels=labels, multi_label=True)
    )

    (line,) = report.contradictions
    assert line == "image-002.png and other.png are the same file: 1 of 2 labels differ"
