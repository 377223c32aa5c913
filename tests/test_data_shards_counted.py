"""Counts with their nouns."""

import pytest

from data_shards.counted import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_200_000, "1,200,000 images")]
)
def test_only_one_is_singular(count: int, text: str) -> None:
    assert counted(count, "image") == text
