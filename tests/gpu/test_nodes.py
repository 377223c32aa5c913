"""A run as a job of a Ray cluster: its head has no GPU, and its nodes have one GPU each."""

from collections.abc import Iterator

import pytest

from cluster.files import read_lines
from cluster.gpus import count_gpus
from tests.gpu.marks import needs_gpus
from tests.ray_cluster import Cluster
from tests.trained import new_run, ray_job, train_spec

NODES = [pytest.param(count, marks=needs_gpus(count)) for count in (1, 2)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster(with_jobs=True)
    yield found
    found.remove()


@pytest.mark.parametrize("nodes", NODES)
def test_a_ray_job_trains_on_the_gpus_of_the_nodes(tmp_path, digits_shards, cluster, nodes):
    for uuid in count_gpus().uuids[:nodes]:
        cluster.add_machine(cpus=2, gpu=uuid)
    spec = train_spec(digits_shards, freeze="none", workers=nodes, gpus_per_worker=1)
    paths = new_run(tmp_path, spec)

    code = ray_job(cluster, paths)

    assert code == 0, paths.log.read_text()[-4000:]
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2]
    assert paths.best.is_dir()
