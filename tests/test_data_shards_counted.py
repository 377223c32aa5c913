"""Counts with their nouns."""

import pytest

from data_shards.counted import counted, counted_by


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_200_000, "1,200,000 images")]
)
def test_only_one_is_singular(count: int, text: str) -> None:
    assert counted(count, "image") == text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"test": 1}, "1 test image"),
        ({"train": 1_200, "test": 1}, "1,200 train, 1 test images"),
    ],
)
def test_counts_by_kind_have_one_noun(counts: dict[str, int], text: str) -> None:
    assert counted_by(counts, "image") == text
