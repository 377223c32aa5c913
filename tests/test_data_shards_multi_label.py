import json
from collections import Counter
from dataclasses import replace

import pytest

from data_shards.errors import DamagedShard, SourceError
from data_shards.index import overview, read_index
from data_shards.pack.label_checks import require_known_targets
from data_shards.pack.split import LabeledImage, stratified_group_split
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches
from data_shards.targets import label_text, parse_targets
from data_shards.verify import verify
from tests.datasets import packed, sample_members, untrusted
from tests.multi_label import LABELS, multi_label_folder, pack_multi_label

COUNTS = {"train": 24, "valid": 12, "test": 12}


def test_the_shards_give_back_every_target_of_every_image(tmp_path):
    shards, index = pack_multi_label(tmp_path, COUNTS)
    expected = {image.name: image.targets for image in multi_label_folder(tmp_path / "again", COUNTS).images}

    found = {}
    for split in index.splits:
        plan = EpochPlan(index=index, split=split, batch_size=8, shuffle=False)
        for batch in open_batches(str(shards), index, plan, image_size=32):
            found |= dict(zip(batch.sources, map(tuple, batch.labels.tolist()), strict=True))

    assert found == expected
    assert {-1, 0, 1} == {value for targets in found.values() for value in targets}


def test_the_index_counts_present_absent_and_unknown_targets(tmp_path):
    shards, index = pack_multi_label(tmp_path, COUNTS)
    images = multi_label_folder(tmp_path / "again", COUNTS).images

    for split in index.splits:
        columns = zip(*(image.targets for image in images if image.split == split), strict=True)
        counts = [Counter(column) for column in columns]
        assert [tuple(n) for n in index.targets_in(split)] == [(c[1], c[0], c[-1]) for c in counts]
    assert read_index(str(shards)) == index
    assert overview(index)["splits"]["train"]["unknown"].keys() == set(LABELS)
    assert verify(str(shards)) == ()


def test_an_index_of_one_class_an_image_has_no_field_of_multi_label_data(tmp_path):
    shards, index = packed(tmp_path, {"train/a": 2, "train/b": 2, "valid/a": 1, "valid/b": 1})

    text = (shards / "index.json").read_text()

    assert "multi_label" not in text
    assert "unknown" not in text
    assert read_index(str(shards)).digest == index.digest


def test_verify_reports_targets_that_the_index_counts_differently(tmp_path):
    shards, index = pack_multi_label(tmp_path, COUNTS)
    first = next(shard for shard in index.shards if any(shard.unknown))
    moved = (0, 0, 0)
    changed = tuple(s.model_copy(update={"unknown": moved}) if s == first else s for s in index.shards)
    (shards / "index.json").write_text(json.dumps(index.model_copy(update={"shards": changed}).sealed().to_json()))

    faults = verify(str(shards))

    assert [fault.text for fault in faults] == [
        f"{first.name} has {list(first.unknown)} unknown targets, the index says {list(moved)}"
    ]


@pytest.mark.parametrize("text", ["1", "1 0 1", "1 2", "1  0", "+1 0", "", "1 0 ", "1,0"])
def test_targets_that_pack_does_not_write_are_damage(tmp_path, text):
    location, index = untrusted(tmp_path, sample_members(0, label=text), samples=1)
    shard = index.shards[0].model_copy(update={"per_class": (1, 0), "unknown": (0, 0)})
    multi = index.model_copy(update={"shards": (shard,), "multi_label": True})
    plan = EpochPlan(index=multi, split="train", batch_size=1, shuffle=False)

    with pytest.raises(DamagedShard, match="not 2 of 1, 0 and -1; pack again"):
        list(open_batches(location, multi, plan, image_size=32))


def test_the_text_of_targets_is_read_back():
    assert parse_targets(label_text((1, 0, -1)), 3) == (1, 0, -1)


def test_a_label_that_no_training_image_has_is_refused_before_anything_is_written(tmp_path):
    def without_nodule(found):
        images = [replace(i, targets=(*i.targets[:2], 0)) if i.split == "train" else i for i in found.images]
        return replace(found, images=tuple(images))

    with pytest.raises(SourceError, match=r"no usable image in train has the label 'Nodule'.*--drop-class 'Nodule'"):
        pack_multi_label(tmp_path, COUNTS, change=without_nodule)

    assert not (tmp_path / "shards").exists()


def test_a_label_that_every_known_image_has_is_refused(tmp_path):
    images = [replace(i, targets=(abs(i.targets[0]), *i.targets[1:])) for i in _images(tmp_path, 30)]
    always = [replace(i, targets=(-1 if i.targets[0] == 0 else 1, *i.targets[1:])) for i in images]

    with pytest.raises(SourceError, match="is known to lack the label 'Cardiomegaly'"):
        require_known_targets(always, LABELS)


def _images(folder, count):
    return multi_label_folder(folder, {None: count}).images


def test_a_split_by_shares_has_each_label_and_its_absence_in_proportion():
    random = [(n * 7919) % 1000 for n in range(600)]
    targets = [tuple((name, int(value % m == 0)) for name, m in (("a", 2), ("b", 9), ("c", 40))) for value in random]
    images = [LabeledImage(name=str(n), label="", group=str(n), targets=t) for n, t in enumerate(targets)]

    splits = stratified_group_split(images, (0.7, 0.15, 0.15), seed=0)

    totals, found = Counter(), Counter()
    for image in images:
        for stratum in image.targets:
            totals[stratum] += 1
            found[stratum, splits[image.name]] += 1
    assert Counter(splits.values()) == {"train": 420, "valid": 90, "test": 90}
    for stratum, total in totals.items():
        for split, share in (("train", 0.7), ("valid", 0.15), ("test", 0.15)):
            assert abs(found[stratum, split] - share * total) <= 2


def test_images_of_one_patient_stay_in_one_split_with_several_labels_an_image(tmp_path):
    shards, index = pack_multi_label(
        tmp_path, {None: 90}, split="60/20/20", group_by=r"film-\d\d(\d\d)", allow_leakage=False
    )

    split_of = {}
    for split in index.splits:
        plan = EpochPlan(index=index, split=split, batch_size=16, shuffle=False)
        for batch in open_batches(str(shards), index, plan, image_size=32):
            for group in batch.groups:
                split_of.setdefault(group, set()).add(split)
    assert len(index.splits) == 3
    assert all(len(splits) == 1 for splits in split_of.values())


def test_a_label_with_too_few_images_for_the_splits_is_refused_by_its_name():
    images = [
        LabeledImage(name=str(n), label="", group=str(n), targets=(("a", n % 2), ("rare", int(n < 2))))
        for n in range(30)
    ]

    with pytest.raises(SourceError, match=r"class 'rare' has 2 images for 3 splits; .*--drop-class 'rare'"):
        stratified_group_split(images, (0.7, 0.15, 0.15), seed=0)


def test_an_image_of_which_nothing_is_known_goes_to_some_split():
    images = [
        LabeledImage(name=str(n), label="", group=str(n), targets=(("a", n % 2),) if n % 3 else ()) for n in range(60)
    ]

    splits = stratified_group_split(images, (0.5, 0.25, 0.25), seed=0)

    unknown = Counter(splits[str(n)] for n in range(0, 60, 3))
    assert unknown.total() == 20
    assert min(unknown["train"], unknown["valid"], unknown["test"]) >= 2
