import copy
import json
import re
import shlex

import click
import pytest

from jobs.cli.main import cli
from tests.k8s_manifests import K8S, ROOT, Manifest, combinations, needs_kubectl, of_kind, one, pods, rendered
from tests.k8s_namespaces import secrets_made
from tests.k8s_quantities import number

README = (K8S / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.+?)```", README, re.DOTALL) for line in block.splitlines()]
OURS = [line.split(" -- nightshift ")[1] for line in LINES if " -- nightshift " in line]


def test_a_first_search_takes_ten_commands():
    first = re.findall(r"```sh\n(.+?)```", README, re.DOTALL)[0].splitlines()

    assert len(first) == 10
    assert first[-1].split(" -- ")[1].startswith("nightshift search")


@pytest.mark.parametrize("line", OURS)
def test_every_nightshift_command_exists_and_takes_these_options(line):
    words = shlex.split(line)
    command: click.Command = cli
    with click.Context(cli) as context:
        while isinstance(command, click.Group):
            name = words.pop(0)
            found = command.get_command(context, name)
            assert found, f"{name} is no command"
            command = found
        known = {spelling for parameter in command.params for spelling in parameter.opts + parameter.secondary_opts}

    assert {word for word in words if word.startswith("-")} <= known


def test_every_folder_and_file_that_it_names_exists():
    named = re.findall(r"k8s/[\w./-]*\w", README) + [
        f"k8s/{name}" for name in re.findall(r"`((?:base|components)/[\w./-]+)`", README)
    ]

    assert [name for name in named if not (K8S.parent / name).exists()] == []
    assert {f"k8s/overlays/{overlay}" for overlay, _ in combinations()} <= {*named, "k8s/overlays/gpu-large"}


def test_every_component_is_named_in_the_order_in_which_the_tests_combine_them():
    table = re.findall(r"^\| `([\w-]+)`(?: or `([\w-]+)`)? \|", README, re.MULTILINE)
    named = [name for pair in table for name in pair if name]

    assert [name for name in named if (K8S / "components" / name).is_dir()] == [
        "keda", "dashboard", "ingress", "prometheus", "dcgm", "tls", "s3", "airgap", "pull-secret", "mig",
        "time-slicing", "kueue", "quota", "rayjobs", "rdma", "openshift",
    ]  # fmt: skip
    assert {folder.name for folder in (K8S / "components").iterdir()} <= set(named)


@needs_kubectl
def test_the_restore_stops_what_runs_with_and_without_keda():
    section = README.split("## Backup and restore")[1].split("\n## ")[0]
    without, with_keda = section.split("With `keda`")
    stopped = re.compile(r"\b(deployment|statefulset|scaledjob)[/ ]([\w-]+)")

    assert set(stopped.findall(without)) <= names_in(rendered("gpu-small"))
    assert set(stopped.findall(with_keda)) <= names_in(rendered("gpu-small", ["keda"]))
    assert ("deployment", "job-worker") in stopped.findall(without)
    assert ("scaledjob", "job-worker") in stopped.findall(with_keda)


def names_in(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["kind"].lower(), manifest["metadata"]["name"]) for manifest in manifests}


@needs_kubectl
def test_every_object_that_a_command_of_kubectl_names_is_rendered():
    rendering = [*rendered("gpu-small"), *rendered("gpu-small", ["keda", "dashboard", "quota"])]
    commands = "\n".join(re.findall(r"kubectl -n nightshift ([^`\n]+)", README))
    kinds = {"deploy": "deployment", "pvc": "persistentvolumeclaim"}
    named = re.findall(
        r"\b(deploy|deployment|statefulset|raycluster|scaledjob|resourcequota|pvc)[/ ]([a-z][\w-]*)", commands
    )
    redis = one(rendered("gpu-small"), "StatefulSet", "redis")
    claims = {f"{claim['metadata']['name']}-redis-0" for claim in redis["spec"]["volumeClaimTemplates"]}

    found = {(kinds.get(kind, kind), name) for kind, name in named}
    parts = {pod.labels["app.kubernetes.io/component"] for pod in pods(rendering)}

    assert found - names_in(rendering) == {("persistentvolumeclaim", name) for name in claims}
    assert len(found) > 8
    assert set(re.findall(r"-l app\.kubernetes\.io/component=([\w-]+)", commands)) == {"job-worker"} <= parts
    assert "secret dashboard" in commands
    assert "dashboard" in secrets_made()


@needs_kubectl
def test_a_new_token_replaces_the_pods_of_the_ray_cluster_without_deleting_it():
    """KubeRay replaces them where the annotation of a pod changes; the patch must be accepted and change no more."""
    (line,) = (line for line in LINES if " patch raycluster ray " in line)
    words = shlex.split(line)
    manifests = rendered("gpu-small")
    cluster = one(manifests, "RayCluster", "ray")
    before = copy.deepcopy(cluster)

    merge(cluster, json.loads(words[words.index("-p") + 1]))

    template = cluster["spec"]["headGroupSpec"]["template"]
    assert words[words.index("--type") + 1] == "merge"
    assert template["metadata"]["annotations"].pop("nightshift/token") == "2"
    assert cluster == before
    assert cluster["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    assert cluster["spec"]["authOptions"]["secretName"] in secrets_made("--only", "ray-token")


def merge(target: Manifest, patch: Manifest) -> None:
    """Apply a JSON merge patch without nulls (RFC 7396)."""
    for name, value in patch.items():
        if isinstance(value, dict):
            merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


@needs_kubectl
def test_it_states_what_an_idle_cluster_requests():
    manifests = rendered("gpu-small")
    cores, memory = idle(manifests, "cpu"), idle(manifests, "memory") / 2**30

    assert f"{cores:.2f} cores and {memory:.2f} GiB" in README
    assert (
        number(one(manifests, "PersistentVolumeClaim", "storage")["spec"]["resources"]["requests"]["storage"])
        == 200 * 2**30
    )
    assert one(manifests, "RayCluster", "ray")["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 5 * 60


def idle(manifests: list[Manifest], resource: str) -> float:
    """Sum the requests of all pods that remain when idle, the autoscaler's container included."""
    total = 0.0
    for manifest in manifests:
        copies = manifest.get("spec", {}).get("replicas", 1)
        for pod in pods([manifest]):
            if pod.kind == "CronJob" or pod.labels.get("ray.io/node-type") == "worker":
                continue
            total += copies * sum(number(c["resources"]["requests"][resource]) for c in pod.spec["containers"])
    autoscaler = of_kind(manifests, "RayCluster")[0]["spec"]["autoscalerOptions"]["resources"]
    return total + number(autoscaler["requests"][resource])


def test_it_names_the_driver_and_the_cards_that_the_locked_torch_needs():
    cuda = re.search(r"^nvidia-cuda-runtime==(\d+)\.", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    assert cuda
    assert cuda[1] == "13"  # needs r580, and has no kernels for compute capability 7.0 (V100) and older
    assert "r580" in README
    assert "(CUDA 13)" in README
    assert "compute capability 7.5" in README
    assert "exec POD -- nightshift doctor" in README


@pytest.mark.parametrize(
    ("message", "source"),
    [
        ("refuses the user or the password", "jobs/queue/connection.py"),
        ("does not answer", "jobs/queue/connection.py"),
        ("refuses to serve (", "jobs/queue/connection.py"),
        ("is not the storage of this queue", "jobs/queue/storage_check.py"),
        ("refuses access (HTTP ", "jobs/cli/doctor.py"),
        ("a newer version wrote the spec", "jobs/runs/outcomes.py"),
        ("belongs to user ", "cluster/access.py"),
        ("may not write there", "cluster/access.py"),
        ("is not writable: ", "cluster/settings.py"),
        ("free space", "cluster/health.py"),
        ("the storage is full", "jobs/runs/outcomes.py"),
        ("was lost (", "jobs/runs/outcomes.py"),
        ("no heartbeat for ", "jobs/runs/outcomes.py"),
        ("has no runs at all", "jobs/runs/state.py"),
        ("the storage /storage cannot be read", "cluster/storage_marker.py"),
        ("waiting for ", "cluster/gpu_lease.py"),
        (" runs running", "jobs/runs/owner_limit.py"),
        ("; RDMA fails", "cluster/gpu_health.py"),
    ],
)
def test_the_table_of_faults_quotes_what_the_commands_print(message, source):
    table = README.split("## Troubleshooting")[1].split("\n## ")[0]

    assert message in table
    assert message.replace("/storage", "{runs.parent}") in (ROOT / source).read_text()
