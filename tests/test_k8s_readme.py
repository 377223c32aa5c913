import re
import shlex

import click
import pytest

from jobs.cli.main import cli
from tests.k8s_manifests import K8S, ROOT, Manifest, combinations, needs_kubectl, of_kind, one, pods, rendered
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
        ("no sign of life for ", "jobs/queue/reconciler.py"),
        ("waiting for ", "cluster/gpu_lease.py"),
        (" runs running", "jobs/runs/owner_limit.py"),
        ("; RDMA fails", "cluster/gpu_health.py"),
    ],
)
def test_the_table_of_faults_quotes_what_the_commands_print(message, source):
    table = README.split("## Troubleshooting")[1].split("\n## ")[0]

    assert message in table
    assert message in (ROOT / source).read_text()
