"""A training of two workers as a job of a Ray cluster of two machines; tests/gpu has the same with GPUs."""

import pytest

from cluster.files import read_lines
from tests.ray_cluster import Cluster
from tests.trained import new_run, ray_job, train_spec


@pytest.fixture
def cluster():
    """A head that has no CPU, and two machines."""
    found = Cluster(with_jobs=True)
    found.add_machine(cpus=1)
    found.add_machine(cpus=1)
    yield found
    found.remove()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_ray_job_trains_on_two_machines(tmp_path, digits_shards, cluster):
    paths = new_run(tmp_path, train_spec(digits_shards, freeze="none", workers=2, gpus_per_worker=0))

    code = ray_job(cluster, paths)

    log = paths.log.read_text()
    assert code == 0, log[-4000:]
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2]
    assert paths.best.is_dir()
