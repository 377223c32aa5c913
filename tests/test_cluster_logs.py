"""A log is followed while its storage answers, and whoever gives up says which file it is."""

from pathlib import Path

import pytest

from cluster.logs import follow
from cluster.storage_patience import StoragePatience


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    log, said = tmp_path / "run.log", list[str]()
    log.symlink_to("/proc/self/mem")  # reading it gives EIO, as a bad block does
    patience = StoragePatience(said.append, seconds=0.0, pause=lambda _: None)

    with pytest.raises(OSError, match="Input/output error") as caught:
        list(follow(log, 0, lambda: True, patience))

    assert caught.value.filename == str(log)
    assert said == [f"waiting for the storage, at most 0 s: {log} cannot be read: Input/output error"]
