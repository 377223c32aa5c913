"""Weights files are checked at submit, without torch; in these tests torch only writes the files."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from cluster.settings import Settings
from jobs.cli import demo
from jobs.errors import Refused
from jobs.queue.stack import Stack
from jobs.queue.weights_file import refuse_other_network
from jobs.runs.request import JobRequest
from tests.conftest import Say
from trainer.errors import WeightsError
from trainer.specs import Spec

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


def test_the_demo_finds_weights_by_a_relative_path_and_refuses_absent_ones_before_it_starts_anything(
    say: Say, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(B0, tmp_path / "ours.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "start_stack", lambda settings: nullcontext(Stack(settings, None, (), [])))
    monkeypatch.setattr(demo, "_pack", lambda *_: Path(shards))
    submitted: list[Spec] = []

    def stop_here(_: Settings, spec: Spec, __: JobRequest) -> str:
        submitted.append(spec)
        raise Refused("the test ends here")

    monkeypatch.setattr(demo, "submit", stop_here)

    absent = say("demo", "--weights", "theirs.pth", "--workers", "1")
    found = say("demo", "--weights", "ours.pth", "--workers", "1")

    assert absent == (2, "", f"Error: weights file {tmp_path}/theirs.pth does not exist; give an existing file, or "
                             "imagenet or none\n")  # fmt: skip
    assert found[2].endswith("Error: the test ends here\n")
    assert [spec.to_json()["weights"] for spec in submitted] == [f"{tmp_path}/ours.pth"]
