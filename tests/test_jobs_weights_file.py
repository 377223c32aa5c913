"""Weights files are checked at submit, without torch; in these tests torch only writes the files."""

from pathlib import Path

import pytest
import torch

from jobs.queue.weights_file import refuse_other_network
from trainer.errors import WeightsError

B0 = {"_conv_stem.weight": torch.zeros(1)}
OTHER = {"conv1.weight": torch.zeros(1)}


@pytest.mark.parametrize("zipped", [True, False], ids=["of today", "of before torch 1.6"])
def test_a_network_is_recognized_by_its_tensor_names(tmp_path: Path, zipped: bool) -> None:
    ours, other = tmp_path / "ours.pth", tmp_path / "other.pth"
    torch.save(B0, ours, _use_new_zipfile_serialization=zipped)
    torch.save(OTHER, other, _use_new_zipfile_serialization=zipped)

    refuse_other_network(ours)
    with pytest.raises(WeightsError, match=r"belongs to another network: it has conv1.weight and no _conv_stem.weight"):
        refuse_other_network(other)


@pytest.mark.parametrize(
    "content", [b"", b"root:x:0:0\n", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "empty zip"]
)
def test_a_file_that_is_not_a_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="is damaged or not a weights file"):
        refuse_other_network(path)
