import gzip
from pathlib import Path

import pytest
from PIL import Image

from data_shards.errors import DamagedShard
from data_shards.pack.image_records import PATTERN, read_records
from data_shards.pack.known_images import known_images
from tests.datasets import packed, sample_members, untrusted
from tests.test_data_shards_pack import infos

COUNTS = {"train/a": 5, "train/b": 4, "test/a": 2}


@pytest.fixture
def data_set(tmp_path):
    return packed(tmp_path, COUNTS, group_by="(.*)[.]png")


def records_file(shards):
    (file,) = shards.glob(PATTERN)
    return file


def test_packing_records_every_image_in_the_order_of_the_shards(data_set):
    shards, index = data_set

    records, damaged = read_records(shards, index)

    found = [record for shard in index.shards for record in records[shard.sha256]]
    assert not damaged
    assert [(r.source, r.group, r.width, r.height) for r in found] == [
        (info["source"], info["group"], info["width"], info["height"]) for info in infos(shards)
    ]
    assert [record.label for record in found] == [int("/b/" in record.source) for record in found]
    assert all(len(record.sha256) == 64 and len(record.phash) == 128 for record in found)


def test_the_records_of_two_packs_of_the_same_images_are_equal(tmp_path):
    first, _ = packed(tmp_path / "first", COUNTS)
    second, _ = packed(tmp_path / "second", COUNTS)

    assert records_file(first).name == records_file(second).name
    assert records_file(first).read_bytes() == records_file(second).read_bytes()


def test_images_without_records_are_read_from_their_shards_once(data_set):
    shards, index = data_set
    before = list(known_images(shards, index))
    records_file(shards).unlink()

    made = known_images(shards, index, processes=1)
    again = known_images(shards, index)

    assert (made.hashed, again.hashed) == (11, 0)
    assert list(made) == list(again)
    assert [(s, r.source, r.group, r.label, r.width) for s, r in made] == [
        (s, r.source, r.group, r.label, r.width) for s, r in before
    ]
    assert all(not record.sha256 and len(record.stored_sha256) == 64 for _, record in made)
    assert all(
        (int(a.phash, 16) ^ int(b.phash, 16)).bit_count() < 40 for (_, a), (_, b) in zip(before, made, strict=True)
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-40],
        lambda raw: raw[:50] + b"\xff\xff" + raw[52:],
        lambda _: b"",
        lambda _: b"no gzip",
        lambda _: gzip.compress(b'{"other": 1}\n'),
        lambda raw: gzip.compress(gzip.decompress(raw).replace(b'"samples"', b'"images"')),
        lambda raw: gzip.compress(gzip.decompress(raw).replace(b'"train', b'12, "train')),
    ],
)
def test_damaged_records_are_made_again(data_set, damage):
    shards, index = data_set
    file = records_file(shards)
    file.write_bytes(damage(file.read_bytes()))

    assert known_images(shards, index, processes=1).hashed == 11
    assert known_images(shards, index).hashed == 0


def test_records_of_a_shard_with_another_number_of_images_are_not_used(data_set):
    shards, index = data_set
    file = records_file(shards)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"samples": 1', b'"samples": 2')
    lines.insert(2, lines[2])
    file.write_bytes(gzip.compress(b"".join(lines)))

    assert known_images(shards, index, processes=1).hashed == 1


def test_a_damaged_image_without_a_record_names_its_shard_and_the_cure(data_set):
    shards, index = data_set
    records_file(shards).unlink()
    path = shards / index.shards[0].name
    path.write_bytes(path.read_bytes().replace(b"cls", b"clt"))

    with pytest.raises(DamagedShard, match=index.shards[0].name):
        known_images(shards, index, processes=1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"label": "x"}, "train-00000.tar: sample 00000000 has the label 'x', outside the 2 classes; pack again"),
        ({"label": "2"}, "train-00000.tar: sample 00000000 has the label '2', outside the 2 classes; pack again"),
        ({"info": b"{"}, "train-00000.tar: sample 00000000: its json cannot be read .*; pack again"),
        ({"info": b"[]"}, "train-00000.tar: sample 00000000: its json is not an object; pack again"),
        ({"info": b'{"width": null}'}, "00000000: the width or height in its json is no number; pack again"),
        ({"info": b'{"height": "high"}'}, "00000000: the width or height in its json is no number; pack again"),
    ],
)
def test_a_sample_that_another_program_wrote_names_its_shard_and_its_fault(tmp_path, change, fault):
    (label, text), (info, data), image = sample_members(0)
    changed = [(label, change.get("label", "").encode() or text), (info, change.get("info", data)), image]
    location, index = untrusted(tmp_path / "shards", changed, samples=1)

    with pytest.raises(DamagedShard, match=fault):
        known_images(Path(location), index, processes=1)


def test_the_shards_without_records_are_read_by_several_processes_without_the_index(data_set):
    shards, index = data_set
    expected = known_images(shards, index)
    records_file(shards).unlink()
    (shards / "index.json").unlink()

    found = known_images(shards, index, processes=2)

    assert len(index.shards) > 1
    assert [(s.name, [(r.source, r.phash) for r in of_shard]) for s, of_shard in found.records] == [
        (s.name, [(r.source, r.phash) for r in of_shard]) for s, of_shard in expected.records
    ]


def test_flat_images_have_no_look_to_compare(tmp_path):
    for split in ("train/a", "train/b"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (32, 32), 7).save(tmp_path / "images" / split / "flat.png")
    shards, index = packed(tmp_path, {"train/a": 1, "train/b": 1})

    assert sorted(bool(record.phash) for _, record in known_images(shards, index)) == [False, False, True, True]
