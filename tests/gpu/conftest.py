"""What every test of GPUs needs."""

from collections.abc import Iterator

import pytest

from tests.gpu.leases import release_gpus


@pytest.fixture(autouse=True)
def free_gpus() -> Iterator[None]:
    """Let no GPU be leased when a test begins, whatever its fixtures have trained, and when it ends."""
    release_gpus()
    yield
    release_gpus()
