"""A cluster without running GPU workers shows no GPUs, so a setting states how many it can add."""

from pathlib import Path

import pytest
import ray

from cluster.errors import InsufficientResources, SettingsError
from cluster.settings import Settings
from jobs.queue.checks import checked
from trainer.distributed.ray_train import _cluster_gpus
from trainer.specs import TrainSpec


@pytest.mark.parametrize(("gpus", "workers", "each"), [(4, 1, 1), (4, 4, 1), (0, 1, 0), (0, 8, 0)])
def test_auto_counts_the_gpus_that_the_autoscaler_can_add(tmp_path, gpus, workers, each):
    settings = Settings(storage=tmp_path, cluster_gpus=gpus)

    assert _cluster_gpus(settings, TrainSpec(shards="s", workers=workers)) == each


@pytest.mark.parametrize("known", [4, None])
def test_more_workers_than_the_cluster_has_gpus_are_refused_instead_of_running_on_cpus(tmp_path, monkeypatch, known):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0})

    with pytest.raises(
        InsufficientResources,
        match=r"8 workers need 8 GPUs and the cluster has 4; use --workers 4 or --gpus-per-worker 0, or set NIGHT",
    ):
        _cluster_gpus(Settings(storage=tmp_path, cluster_gpus=known), TrainSpec(shards="s", workers=8))


@pytest.mark.parametrize("gpus_per_worker", [1, "auto"])
def test_more_gpus_than_the_cluster_can_have_are_refused_at_submit(tmp_path, gpus_per_worker):
    settings = Settings(storage=tmp_path, cluster_gpus=4, ray_jobs_url="http://ray-head-svc:8265")

    with pytest.raises(
        InsufficientResources, match="8 workers need 8 GPUs and the cluster can have 4; use --workers 4"
    ):
        checked(settings, TrainSpec(shards="s", workers=8, gpus_per_worker=gpus_per_worker))


def test_an_invalid_number_of_gpus_is_refused():
    with pytest.raises(SettingsError, match="NIGHTSHIFT_CLUSTER_GPUS 'many' is not a whole number"):
        Settings.read({"NIGHTSHIFT_CLUSTER_GPUS": "many"})

    assert Settings.read({"NIGHTSHIFT_CLUSTER_GPUS": "0"}).cluster_gpus == 0
    assert Settings.read({"NIGHTSHIFT_STORAGE": str(Path("/s"))}).cluster_gpus is None
