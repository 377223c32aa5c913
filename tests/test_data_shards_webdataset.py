"""WebDataset reads the shards, and runs nothing that is in them."""

import gc

import pytest
import webdataset

from tests.datasets import packed


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_the_shards_can_be_read_with_webdataset_itself(tmp_path):
    shards, index = packed(tmp_path, {"train/a": 6, "train/b": 9})
    urls = [str(shards / shard.name) for shard in index.of_split("train")]

    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    gc.collect()

    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(15)]
    assert sorted(sample["cls"] for sample in samples) == [0] * 6 + [1] * 9
    assert all(sample["png"].size == (40, 36) for sample in samples)


def test_webdataset_runs_no_pickles_and_no_programs_beside_us():
    assert webdataset.utils.enforce_security
    with pytest.raises(ValueError, match="cannot open pipe URLs"):
        webdataset.gopen("pipe:echo harm")
