"""The component `dcgm`: what it scrapes, its alert and its Grafana dashboard."""

import json
import re
from typing import Any

import yaml

from tests.k8s_manifests import K8S, needs_kubectl, one, rendered

COMPONENT = K8S / "components/dcgm"
# etc/dcp-metrics-included.csv and the labels of DCGM exporter 4.8; the GPU operator uses this file.
EXPORTED = {
    "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
}  # fmt: skip
LABELS = {
    "gpu",
    "UUID",
    "device",
    "modelName",
    "Hostname",
    "GPU_I_ID",
    "GPU_I_PROFILE",
    "container",
    "namespace",
    "pod",
}
ERRORS_OF_PROGRAMS = (0, 13, 31, 43, 45)
ERRORS_OF_HARDWARE = (46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text())
    return found


def alert() -> dict[str, Any]:
    (group,) = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]["groups"]
    (found,) = group["rules"]
    return dict(found)


def test_each_query_uses_names_and_labels_of_the_exporter():
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]

    names = {name for query in queries for name in re.findall(r"DCGM_\w+", query)}
    grouped = {label.strip() for q in queries for group in re.findall(r"by \((.*?)\)", q) for label in group.split(",")}

    assert names == EXPORTED
    assert set(re.findall(r"DCGM_\w+", alert()["expr"])) <= EXPORTED
    assert grouped <= LABELS
    assert set(re.findall(r"\$labels\.(\w+)", json.dumps(alert()))) <= LABELS


def test_the_alert_names_errors_of_the_hardware_and_none_of_a_program():
    numbers = {int(number) for number in re.findall(r"== (\d+)", alert()["expr"])}

    assert numbers == set(ERRORS_OF_HARDWARE)
    assert numbers.isdisjoint(ERRORS_OF_PROGRAMS)


@needs_kubectl
def test_the_exporter_of_the_gpu_operator_is_scraped_and_its_labels_are_kept():
    manifests = rendered("gpu-small", ["dcgm"])

    spec = one(manifests, "PodMonitor", "dcgm-exporter")["spec"]
    config = one(manifests, "ConfigMap", "grafana-dashboard-gpus")

    assert spec["selector"]["matchLabels"] == {"app": "nvidia-dcgm-exporter"}
    assert spec["podMetricsEndpoints"][0] == {"port": "metrics", "interval": "30s", "honorLabels": True}
    assert json.loads(config["data"]["nightshift-gpus.json"])["uid"] == dashboard()["uid"] == "nightshift-gpus"
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"


@needs_kubectl
def test_rdma_adds_a_resource_and_nccls_transport_and_leaves_the_pods_restricted():
    plain, rdma = ({m["metadata"]["name"]: m for m in rendered("gpu-large", names)} for names in ((), ("rdma",)))
    worker = rdma["ray"]["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]

    for amounts in worker["resources"].values():
        assert amounts.pop("rdma/rdma_shared_device_a") == 1
    assert worker["env"].pop() == {"name": "NCCL_NET", "value": "IB"}

    assert rdma == plain  # every other field, capabilities and the label of the namespace included
