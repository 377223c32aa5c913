"""Ray's autoscaler starts the pods that each kind of run needs, on every overlay, and says what it can never start."""

import math
from contextlib import contextmanager

import pytest
import ray
import ray.train

from cluster.errors import InsufficientResources
from cluster.settings import Settings
from jobs.queue.checks import checked
from tests.k8s_autoscaler import HEAD_NODE, Decision, decision
from tests.k8s_manifests import needs_kubectl, of_kind, one, ray_clusters, rendered
from tests.test_k8s_ray_job import manifests_of
from trainer.distributed import cluster_wait
from trainer.distributed.cluster_wait import wait_for_room
from trainer.distributed.ray_train import _cluster_gpus
from trainer.search.tune_driver import head_slots, run_slots
from trainer.specs import EvaluateSpec, PredictSpec, SearchSpec, TrainSpec, build

pytestmark = needs_kubectl

# Worker group, GPUs of a pod (CPUs of one without GPUs), most pods, and pods that always run.
SIZES = {
    ("kind", ()): ("cpu", 2, 2, 0),
    ("gpu-small", ()): ("gpu", 4, 1, 0),
    ("gpu-small", ("mig",)): ("gpu", 1, 7, 0),
    ("gpu-small", ("time-slicing",)): ("gpu", 1, 4, 0),
    ("gpu-large", ()): ("gpu", 8, 4, 0),
    ("gpu-large", ("mig",)): ("gpu", 1, 7, 0),
    ("example", ()): ("gpu", 4, 1, 1),
}
every_size = pytest.mark.parametrize(("overlay", "components"), SIZES)


class Site:
    """A rendered overlay, and the runs that its job workers start."""

    def __init__(self, overlay, components, folder):
        manifests = rendered(overlay, components)
        self.cluster = one(manifests, "RayCluster", "ray")
        self.group, self.each, self.most, self.least = SIZES[overlay, components]
        gpus = int(one(manifests, "ConfigMap", "nightshift")["data"]["NIGHTSHIFT_CLUSTER_GPUS"])
        self.settings = Settings(storage=folder, cluster_gpus=gpus, ray_address="a", ray_jobs_url="http://b:8265")

    def decides(self, demands):
        return decision(self.cluster, demands)

    def starts(self, units):
        """Return the decision to start the pods for so many workers."""
        pods = max(self.least, math.ceil(units / self.each))
        return Decision({self.group: pods} if pods else {}, [])


@pytest.fixture
def site(overlay, components, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {HEAD_NODE: 1.0})  # all workers are scaled to zero
    return Site(overlay, components, tmp_path)


def reserved(monkeypatch, spec, gpus):
    """Return the placement group that a run asks for before it starts."""
    asked = []

    @contextmanager
    def reservation(bundles):
        asked.append(bundles)
        yield type("Reserved", (), {"wait": lambda *_: True})()

    monkeypatch.setattr(cluster_wait, "_reservation", reservation)
    wait_for_room(spec.required_workers, gpus, pytest.fail, limit_seconds=1)
    return asked[0]


def of_ray_train(spec, gpus):
    """Return the bundles of the worker group that Ray Train then starts."""
    scaling = ray.train.ScalingConfig(num_workers=spec.workers, use_gpu=bool(gpus))
    return [dict(scaling._resources_per_worker_not_none)] * spec.workers


def train_spec(workers):
    return build(TrainSpec, shards="/storage/shards", freeze="none", workers=workers, batch_size=32 * workers)


@every_size
def test_the_pods_of_every_number_of_workers_are_started(site, monkeypatch):
    for workers in range(1, site.each * site.most + 1):
        spec = train_spec(workers)
        gpus = _cluster_gpus(site.settings, spec)

        waiting, training = reserved(monkeypatch, spec, gpus), of_ray_train(spec, gpus)

        assert waiting == training
        assert site.decides([training]) == site.starts(workers)


@every_size
def test_a_worker_more_than_all_pods_hold_is_infeasible_and_refused_at_submit_where_gpus_are_known(site):
    spec = train_spec(site.each * site.most + 1)
    bundles = [{"CPU" if site.group == "cpu" else "GPU": 1.0}] * spec.workers

    found = site.decides([bundles])

    assert found == Decision(site.starts(0).pods, [bundles])
    if site.group == "gpu":
        with pytest.raises(InsufficientResources, match="the cluster can have"):
            checked(site.settings, spec)


@every_size
@pytest.mark.parametrize("of_a_model", [EvaluateSpec, PredictSpec])
def test_evaluate_and_predict_start_a_pod(site, monkeypatch, of_a_model):
    data = {"shards": "/storage/shards"} if of_a_model is EvaluateSpec else {"images": ("/storage/images",)}
    spec = build(of_a_model, model="/storage/models/a", **data)

    bundles = reserved(monkeypatch, spec, _cluster_gpus(site.settings, spec))

    assert site.decides([bundles]) == site.starts(1)


@every_size
@pytest.mark.parametrize("concurrency", [None, 1, 3, 64])
def test_a_search_of_heads_starts_the_pods_for_the_trials_that_run_at_once(site, concurrency):
    spec = build(SearchSpec, shards="/storage/shards", trials=64, concurrency=concurrency)
    slots = head_slots(spec, site.settings, _cluster_gpus(site.settings, spec))

    found = site.decides([[dict(slots.resources)]] * slots.count)

    units = min(slots.count, site.each * site.most if site.group == "gpu" else 1)  # unknown CPUs: they share one
    assert found == site.starts(units)


@every_size
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("concurrency", [None, 1, 2])
def test_a_search_of_trainings_starts_the_pods_for_the_workers_of_all_its_trials(site, workers, concurrency):
    options = {"freeze": "none", "trials": 64, "concurrency": concurrency, "workers": workers}
    spec = build(SearchSpec, shards="/storage/shards", batch_size=64, **options)
    gpus = _cluster_gpus(site.settings, spec)
    if workers > site.each * site.most:
        pytest.skip("the cluster is too small for a trial")
    slots = run_slots(spec, site.settings, gpus, in_process=False)

    found = site.decides([[dict(slots.resources)]] * slots.count + [of_ray_train(spec, gpus)] * slots.count)

    assert slots.count == min(concurrency or 64, site.each * site.most // workers if gpus else concurrency or 1)
    assert found == site.starts(slots.count * workers)


def test_a_rayjob_of_its_own_has_the_pods_of_its_workers_from_the_start():
    for workers in (1, 2, 8, 16):
        manifests = manifests_of("--workers", str(workers))
        (cluster,) = ray_clusters(manifests)
        (group,) = cluster["spec"]["workerGroupSpecs"]

        found = decision(cluster, [of_ray_train(train_spec(workers), 1)])

        assert found == Decision({group["groupName"]: group["replicas"]}, [])
        assert not cluster["spec"].get("enableInTreeAutoscaling")


def test_without_gpus_that_the_autoscaler_counts_every_worker_is_infeasible():
    manifests = rendered("gpu-small", ("mig",))
    (cluster,) = of_kind(manifests, "RayCluster")
    del cluster["spec"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"]
    bundles = of_ray_train(train_spec(1), 1)

    assert decision(cluster, [bundles]) == Decision({}, [bundles])
