"""KEDA starts the pod of the job workers' deployment for each run that waits."""

from jobs.queue.queues import PREFIX
from jobs.runs.request import PRIORITIES
from tests.k8s_manifests import Manifest, deployment, needs_kubectl, one, rendered

pytestmark = needs_kubectl


def test_keda_runs_the_pod_of_the_deployment():
    pod = deployment(rendered("gpu-small"))
    scaled = one(rendered("gpu-small", ["keda"]), "ScaledJob", "job-worker")["spec"]["jobTargetRef"]["template"]["spec"]

    assert scaled.pop("restartPolicy") == "Never"
    assert pod["containers"][0].pop("ports") == [{"name": "metrics", "containerPort": 9100}]
    assert "--metrics-port" not in scaled["containers"][0]["args"]  # the pod `metrics` has all metrics
    assert without_how_it_runs(scaled) == without_how_it_runs(pod)


def without_how_it_runs(spec: Manifest) -> Manifest:
    first = {k: v for k, v in spec["containers"][0].items() if not k.endswith("Probe") and k not in ("args", "envFrom")}
    return {**spec, "containers": [first]}


def test_keda_counts_the_queues_that_job_workers_serve():
    triggers = one(rendered("gpu-small", ["keda"]), "ScaledJob", "job-worker")["spec"]["triggers"]

    assert [t["metadata"]["listName"] for t in triggers] == [f"rq:queue:{PREFIX}{name}" for name in PRIORITIES]
