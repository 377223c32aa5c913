"""Weights are told apart at submit, without torch; here torch only writes the files."""

from pathlib import Path

import pytest
import torch

from jobs.queue.weights_file import refuse_other_network
from trainer.errors import WeightsError

B0 = {"_conv_stem.weight": torch.zeros(1)}
OTHER = {"conv1.weight": torch.zeros(1)}


@pytest.mark.parametrize("zipped", [True, False], ids=["of today", "of before torch 1.6"])
def test_a_file_is_known_by_the_names_in_it(tmp_path: Path, zipped: bool) -> None:
    ours, other = tmp_path / "ours.pth", tmp_path / "other.pth"
    torch.save(B0, ours, _use_new_zipfile_serialization=zipped)
    torch.save(OTHER, other, _use_new_zipfile_serialization=zipped)

    refuse_other_network(ours)
    with pytest.raises(WeightsError, match=r"of another network: it has no _conv_stem.weight but conv1.weight"):
        refuse_other_network(other)


@pytest.mark.parametrize(
    "content", [b"", b"root:x:0:0\n", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "empty zip"]
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="is damaged or no file of weights"):
        refuse_other_network(path)
