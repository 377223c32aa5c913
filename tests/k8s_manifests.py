"""The manifests as `kubectl kustomize` renders them, and the pods that they create."""

import copy
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
OVERLAYS = ("kind", "gpu-small", "gpu-large")
EXAMPLE = "example"  # an overlay as a site writes it over ours
COMPONENTS = ("keda", "dashboard", "tls", "s3", "airgap", "kueue")  # in the order in which an overlay must list them
ALONE = ("openshift", "pull-secret", "prometheus", "dcgm", "quota")  # orthogonal to the others
GPU_COMPONENTS = ("mig", "time-slicing")  # alternatives, for clusters with GPUs; kueue copies the size that they set
CLIENTS = ("job-worker", "cli", "reconcile")  # the pods that connect to the queue

Manifest = dict[str, Any]
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed; it renders k8s/")


@dataclass(frozen=True)
class Pod:
    """A pod template with the labels that its pods have."""

    name: str
    kind: str
    labels: dict[str, str]
    spec: Manifest
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def containers(self) -> list[Manifest]:
        """All containers, init containers included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def is_ray(self) -> bool:
        """Whether KubeRay creates the pod."""
        return "ray.io/is-ray-node" in self.labels


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Return the tested combinations: each overlay alone, with each component, with all; pairs only on `gpu-small`."""
    chosen: list[tuple[str, tuple[str, ...]]] = [(EXAMPLE, ()), *(("gpu-small", (name,)) for name in ALONE)]
    for overlay in OVERLAYS:
        single = COMPONENTS if overlay == "kind" else (*COMPONENTS, *GPU_COMPONENTS)
        chosen += [(overlay, ()), *((overlay, (name,)) for name in single), (overlay, (*COMPONENTS, "openshift"))]
    chosen += [("gpu-small", (a, b)) for i, a in enumerate(COMPONENTS) for b in COMPONENTS[i + 1 :]]
    for name in GPU_COMPONENTS:
        chosen += [("gpu-small", (name, "kueue")), ("gpu-large", (*COMPONENTS[:-1], name, "kueue"))]
    return [*chosen, ("gpu-large", ("rdma",)), ("gpu-small", ("dashboard", "ingress"))]


def ray_clusters(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the permanent Ray cluster and those that RayJobs create."""
    jobs = of_kind(manifests, "RayJob")
    return [
        *of_kind(manifests, "RayCluster"),
        *({"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]} for job in jobs),
    ]


def rendered(overlay: str, components: Sequence[str] = ()) -> list[Manifest]:
    """Return a new copy of an overlay's manifests, rendered with `components` in its list."""
    return copy.deepcopy(_rendered(overlay, tuple(components)))


@functools.cache
def _rendered(overlay: str, components: tuple[str, ...]) -> list[Manifest]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "k8s"
        shutil.copytree(K8S, tree, ignore=shutil.ignore_patterns("*.pth"))
        file = tree / "overlays" / overlay / "kustomization.yaml"
        listed = "".join(f"  - ../../components/{name}\n" for name in components)
        file.write_text(file.read_text().replace("  - ../../images\n", f"{listed}  - ../../images\n"))
        command = ["kubectl", "kustomize", str(file.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def one(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return the manifest of that kind and name (a ConfigMap's without its hash)."""
    found = [m for m in manifests if m["kind"] == kind and _plain_name(m) == name]
    assert len(found) == 1, f"{len(found)} manifests are a {kind} {name}"
    return found[0]


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """Return every pod template, those inside KubeRay's and KEDA's kinds included."""
    return [pod for manifest in manifests for pod in _pods_of(manifest)]


def _plain_name(manifest: Manifest) -> str:
    name = str(manifest["metadata"]["name"])
    return name.rsplit("-", 1)[0] if manifest["kind"] == "ConfigMap" and name[-11:-10] == "-" else name


def _pods_of(manifest: Manifest) -> Iterator[Pod]:
    spec, kind, name = manifest.get("spec", {}), manifest["kind"], manifest["metadata"]["name"]
    match kind:
        case "Deployment" | "StatefulSet":
            yield _pod(name, kind, spec["template"])
        case "CronJob":
            yield _pod(name, kind, spec["jobTemplate"]["spec"]["template"])
        case "ScaledJob":
            yield _pod(name, kind, spec["jobTargetRef"]["template"])
        case "RayCluster":
            yield from _ray_pods(name, kind, spec)
        case "RayJob":
            yield from _ray_pods(name, kind, spec["rayClusterSpec"])
            yield _pod(f"{name}-submitter", kind, spec["submitterPodTemplate"])


def _ray_pods(name: str, kind: str, spec: Manifest) -> Iterator[Pod]:
    yield _pod(f"{name}-head", kind, spec["headGroupSpec"]["template"], **_ray_labels(name, "head"))
    for group in spec["workerGroupSpecs"]:
        labels = _ray_labels(name, "worker") | {"ray.io/group": group["groupName"]}
        yield _pod(f"{name}-{group['groupName']}", kind, group["template"], **labels)


def _ray_labels(cluster: str, node_type: str) -> dict[str, str]:
    """The labels that KubeRay adds and that users cannot change (ray-operator, common/pod.go, labelPod)."""
    return {"ray.io/is-ray-node": "yes", "ray.io/cluster": cluster, "ray.io/node-type": node_type}


def _pod(name: str, kind: str, template: Manifest, **labels: str) -> Pod:
    metadata = template["metadata"]
    return Pod(name, kind, metadata["labels"] | labels, template["spec"], metadata.get("annotations", {}))


def deployment(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the pod of the job workers."""
    found: Manifest = one(manifests, "Deployment", "job-worker")["spec"]["template"]["spec"]
    return found


def ray(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the permanent Ray cluster."""
    found: Manifest = one(manifests, "RayCluster", "ray")["spec"]
    return found
