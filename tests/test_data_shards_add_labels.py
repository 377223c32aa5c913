"""Adding images whose labels come from tables."""

from dataclasses import replace

import pytest

from data_shards.errors import DamagedShard, OptionError, SourceError
from data_shards.index import read_index, write_index
from data_shards.pack.image_records import PATTERN
from data_shards.pack.known_images import known_images
from data_shards.pack.options import LabelOptions
from data_shards.pack.packing import pack
from data_shards.verify import verify
from tests.adding import NEW, added, new_images, options, split_of
from tests.test_data_shards_pack import infos, stored

ROWS = {"same": "1,0", "other": "0,1"}


def table(folder, header, rows):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return LabelOptions(tables=(str(folder / "labels.csv"),))


def labelled(folder, rows, *, header="image,label,patient", seed=0):
    """Write an image for each row and the table of all rows."""
    new_images(folder, [f"films/{row.partition(',')[0]}" for row in rows], seed=seed)
    return table(folder, header, rows)


@pytest.fixture
def single(tmp_path):
    """A data set of 20 patients with one label per image."""
    rows = [f"{p:02d}-{n}.png,{'ab'[p % 2]},p{p}" for p in range(20) for n in range(2)]
    labels = labelled(tmp_path / "images", rows)
    pack(tmp_path / "images", tmp_path / "shards", options(split="70/15/15", labels=labels))
    return tmp_path / "shards"


@pytest.fixture
def several(tmp_path):
    """A data set with several labels per image, listed in a cell."""
    cells = ("a", "b", "a|c", "b|c", "c")
    rows = [f"{n:02d}.png,{cells[n % 5]}" for n in range(30)]
    labels = labelled(tmp_path / "images", rows, header="image,labels")
    pack(
        tmp_path / "images",
        tmp_path / "shards",
        options(split="60/20/20", labels=labels, multi_label=True),
    )
    return tmp_path / "shards"


def targets(shards):
    """Return the targets of each image by the name of its file."""
    return {info["source"]: sample["cls"].decode() for info, sample in zip(infos(shards), stored(shards), strict=True)}


def test_groups_of_a_table_keep_their_split(tmp_path, single):
    before = {name[:2]: split for name, split in split_of(single).items()}
    rows = [f"{p:02d}-9.png,{'ab'[p % 2]},p{p}" for p in range(20)]

    report = added(single, tmp_path / "new", labels=labelled(tmp_path / "new", rows, seed=NEW))

    after = split_of(single)
    assert sum(report.added.values()) == 20
    assert all(after[f"{p}-9.png"] == split for p, split in before.items())
    assert verify(str(single)) == ()


def test_a_class_that_the_table_spells_in_another_way_is_refused_with_the_cure(tmp_path, single):
    labels = labelled(tmp_path / "new", ["x.png,A,p50"], seed=NEW)

    with pytest.raises(SourceError, match=r"^the class 'A' is called 'a' in the data set; write it so in the table$"):
        added(single, tmp_path / "new", labels=labels)


def test_a_table_without_groups_is_refused_where_the_data_set_has_groups(tmp_path, single):
    labels = labelled(tmp_path / "new", ["x.png,a"], header="image,label", seed=NEW)

    with pytest.raises(
        OptionError,
        match=r"from a column 'patient'.* it has image, label; give that of .* with --group-column, or them with",
    ):
        added(single, tmp_path / "new", labels=labels)


def two_group_columns(folder, patients, *, order=("case_id", "mrn"), number=0, seed=0):
    """Write an image of each patient and their table; the cases are c0 and so on, the mrns m0 and so on."""
    ids = {"case_id": "c{}", "mrn": "m{}"}
    rows = [f"{p:02d}-{number}.png,{'ab'[p % 2]},{','.join(ids[name].format(p) for name in order)}" for p in patients]
    return labelled(folder, rows, header=",".join(["image", "label", *order]), seed=seed)


@pytest.mark.parametrize("order", [("case_id", "mrn"), ("mrn", "case_id"), ("case_id",)])
def test_the_column_that_gave_the_groups_gives_those_of_new_images(tmp_path, order):
    """A table with a column of a surer name must not change what a group is: patients would be in two splits."""
    shards = tmp_path / "shards"
    labels = two_group_columns(tmp_path / "images", range(20), order=("case_id",))
    pack(tmp_path / "images", shards, options(split="60/20/20", labels=labels))
    before = {name[:2]: split for name, split in split_of(shards).items()}

    new = two_group_columns(tmp_path / "new", range(20), order=order, number=1, seed=NEW)
    added(shards, tmp_path / "new", labels=new)

    assert read_index(str(shards)).group_column == "case_id"
    assert {name[:2]: split for name, split in split_of(shards).items() if "-1" in name} == before


def test_a_table_without_the_column_that_gave_the_groups_is_refused(tmp_path, single):
    rows = ["00-9.png,a,p0"]
    labels = labelled(tmp_path / "new", rows, header="image,label,mrn", seed=NEW)

    with pytest.raises(
        OptionError, match=r"from a column 'patient', which .*labels.csv does not have; it has image, label, mrn; give"
    ):
        added(single, tmp_path / "new", labels=labels)

    added(single, tmp_path / "new", labels=replace(labels, group_column="mrn"))
    assert split_of(single)["00-9.png"] == split_of(single)["00-0.png"]


def test_a_data_set_of_an_earlier_version_is_not_given_a_guessed_column(tmp_path):
    shards = tmp_path / "shards"
    labels = two_group_columns(tmp_path / "images", range(20), order=("case_id",))
    pack(tmp_path / "images", shards, options(split="60/20/20", labels=labels))
    index = read_index(str(shards)).model_copy(update={"group_column": ""})
    write_index(shards, index)
    assert "group_column" not in index.to_json()

    new = two_group_columns(tmp_path / "new", range(20), number=1, seed=NEW)
    with pytest.raises(OptionError, match=r"several columns that may be groups \(case_id, mrn\).*with --group-column"):
        added(shards, tmp_path / "new", labels=new)
    assert added(shards, tmp_path / "new", labels=replace(new, group_column="case_id")).added


def test_the_digest_does_not_depend_on_the_name_of_the_column_of_groups(single):
    index = read_index(str(single))

    assert index.group_column == "patient"
    assert index.model_copy(update={"group_column": ""}).is_intact()


def test_class_folders_without_groups_are_refused_where_the_data_set_has_groups(tmp_path, single):
    with pytest.raises(OptionError, match=r"have groups, from labels.csv; give those of the new images with --gr"):
        added(single, new_images(tmp_path / "new", ["a/1.png"]))


def test_one_label_is_enough_and_a_new_one_is_refused(tmp_path, single):
    labels = labelled(tmp_path / "new", ["x.png,a,p77"], seed=NEW)
    other = labelled(tmp_path / "other", ["y.png,a,p78", "z.png,c,p79"], seed=NEW + 5)

    report = added(single, tmp_path / "new", labels=labels)
    with pytest.raises(SourceError, match="the data set has no class 'c', only a, b; leave it out with --drop-class c"):
        added(single, tmp_path / "other", labels=other)
    dropped = added(single, tmp_path / "other", labels=other, drop_classes=("c",))

    assert (sum(report.added.values()), sum(dropped.added.values())) == (1, 1)
    assert dropped.folder.left_out == {"c": 1}


def test_a_column_of_splits_gives_the_splits_and_the_shares_those_of_the_rest(tmp_path, single):
    rows = ["u.png,a,p70,test", "v.png,b,p71,train", "w.png,a,p72,"]
    labels = labelled(tmp_path / "new", rows, header="image,label,patient,split", seed=NEW)

    added(single, tmp_path / "new", labels=labels)

    splits = split_of(single)
    assert (splits["u.png"], splits["v.png"]) == ("test", "train")
    assert "w.png" in splits


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_single_split_folder_gives_its_split_and_the_shares_those_of_the_rest(tmp_path, single, split):
    rows = [f"{n}.png,{'ab'[n % 2]},q{n}" for n in range(14)]
    names = [f"{split}/{n}.png" if n < 12 else f"{n}.png" for n in range(14)]
    new_images(tmp_path / "new", names, seed=NEW)

    added(single, tmp_path / "new", labels=table(tmp_path / "new", "image,label,patient", rows))

    splits = split_of(single)
    assert {splits[name] for name in names[:12]} == {split}
    assert splits.keys() >= set(names)


def test_a_class_that_is_named_like_a_gap_is_a_class_of_the_data_set(tmp_path):
    rows = [f"{n:02d}.png,{('NA', 'b')[n % 2]}" for n in range(20)]
    labels = labelled(tmp_path / "images", rows, header="image,label")
    pack(tmp_path / "images", tmp_path / "shards", options(split="70/15/15", labels=labels, classes=("NA", "b")))
    new = labelled(tmp_path / "new", ["x.png,NA", "y.png,b", "z.png,null"], header="image,label", seed=NEW)

    report = added(tmp_path / "shards", tmp_path / "new", labels=new)

    assert read_index(str(tmp_path / "shards")).per_class_in("train+valid+test") == (11, 11)
    assert report.folder.labels.images_without_label == ("films/z.png",)


def test_images_with_several_labels_are_added_and_unlisted_labels_are_absent(tmp_path, several):
    labels = labelled(tmp_path / "new", ["x.png,a", "y.png,a|b"], header="image,labels", seed=NEW)

    added(several, tmp_path / "new", labels=labels)

    found = targets(several)
    assert (found["x.png"], found["y.png"]) == ("1 0 0", "1 1 0")
    assert read_index(str(several)).classes == ("a", "b", "c")
    assert verify(str(several)) == ()


def test_a_label_without_a_column_is_unknown(tmp_path, several):
    labels = labelled(tmp_path / "new", ["x.png,1,0"], header="image,a,b", seed=NEW)
    columns = LabelOptions(tables=labels.tables, label_columns=("a", "b"))

    added(several, tmp_path / "new", labels=columns)

    assert targets(several)["x.png"] == "1 0 -1"


def test_an_image_is_known_unless_its_labels_contradict_those_of_the_data_set(tmp_path, several):
    first, second = (labelled(tmp_path / name, [f"00.png,{row}"], header="image,a,b") for name, row in ROWS.items())

    report = added(several, tmp_path / "same", labels=LabelOptions(tables=first.tables, label_columns=("a", "b")))

    assert (len(report.known), report.added) == (1, {})
    with pytest.raises(SourceError, match=r"1 image is in the data set with another label, such as 00.png is 00"):
        added(several, tmp_path / "other", labels=LabelOptions(tables=second.tables, label_columns=("a", "b")))


def test_a_near_duplicate_with_another_target_is_listed_unless_one_of_the_two_is_unknown(tmp_path, several):
    rows = ["00.jpg,0,0", "01.jpg,,1"]  # of the data set: a alone, and b alone
    labels = labelled(tmp_path / "new", rows, header="image,a,b")

    report = added(several, tmp_path / "new", labels=LabelOptions(tables=labels.tables, label_columns=("a", "b")))

    (line,) = report.contradictions
    assert line.startswith("00.png (")
    assert line.endswith(": 1 of 3 labels differ")
    assert len(report.duplicates) == 1


def test_class_folders_are_refused_where_images_have_several_labels(tmp_path, several):
    with pytest.raises(OptionError, match="each image of the data set has several labels; give those of the new"):
        added(several, new_images(tmp_path / "new", ["a/1.png"]))


def test_the_records_of_images_with_several_labels_are_made_again(tmp_path, several):
    for file in several.glob(PATTERN):
        file.unlink()
    rows = [f"{n:02d}.png,{('a', 'b', 'a|c', 'b|c', 'c')[n % 5]}" for n in range(30)]
    again = labelled(tmp_path / "again", rows, header="image,labels")

    report = added(several, tmp_path / "again", labels=again)

    assert (report.hashed, len(report.known), report.added) == (30, 30, {})


def test_targets_that_are_not_those_of_the_index_are_refused_when_records_are_made(several):
    for file in several.glob(PATTERN):
        file.unlink()
    index = read_index(str(several))
    more = index.model_copy(update={"classes": (*index.classes, "d")})

    with pytest.raises(DamagedShard, match=r"\.tar: sample [0-9]+ has the targets '[01 ]{5}', not 4 of 1, 0 and -1"):
        known_images(several, more, processes=1)


def test_the_options_of_the_first_table_hold_for_the_next(tmp_path):
    rows = [f"{n:02d}.png,{'ab'[n % 2]},{'keep' if n % 3 else 'drop'}" for n in range(30)]
    labels = labelled(tmp_path / "images", rows, header="image,kind of film,state")
    labels = LabelOptions(tables=labels.tables, label_column="kind of film")
    chosen = options(split="70/15/15", labels=labels, where=(("state", "keep"),))
    pack(tmp_path / "images", tmp_path / "shards", chosen)
    new = ["x.png,a,keep", "y.png,b,drop"]

    report = added(
        tmp_path / "shards",
        tmp_path / "new",
        labels=labelled(tmp_path / "new", new, header="image,kind of film,state", seed=NEW),
    )

    assert sum(report.added.values()) == 1
    assert "x.png" in split_of(tmp_path / "shards")
