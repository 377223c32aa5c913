"""Every overlay satisfies every policy, and each policy detects what violates it."""

from collections.abc import Callable

import pytest

from tests.k8s_manifests import Manifest, combinations, deployment, needs_kubectl, of_kind, one, ray, rendered
from tests.k8s_policies import POLICIES, Policy
from tests.k8s_scheduling import SAFE_TO_EVICT, SCHEDULING
from tests.k8s_wiring import WIRING

pytestmark = needs_kubectl
Change = Callable[[list[Manifest]], object]
EVERY = {policy.__name__: policy for policy in (*POLICIES, *WIRING, *SCHEDULING)}


@pytest.mark.parametrize(
    ("overlay", "components"), combinations(), ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_every_overlay_and_combination_satisfies_every_policy(overlay, components):
    manifests = rendered(overlay, components)

    assert [f"{name}: {text}" for name, policy in EVERY.items() for text in policy(manifests)] == []


def container(manifests: list[Manifest]) -> Manifest:
    found: Manifest = deployment(manifests)["containers"][0]
    return found


def ray_worker(manifests: list[Manifest]) -> Manifest:
    found: Manifest = ray(manifests)["workerGroupSpecs"][0]["template"]["spec"]
    return found


def settings(manifests: list[Manifest]) -> dict[str, str]:
    found: dict[str, str] = one(manifests, "ConfigMap", "nightshift")["data"]
    return found


def network(manifests: list[Manifest], name: str) -> Manifest:
    found: Manifest = one(manifests, "NetworkPolicy", name)["spec"]
    return found


def preference(manifests: list[Manifest]) -> Manifest:
    rules = deployment(manifests)["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    found: Manifest = rules[0]["preference"]
    return found


def without_volume(spec: Manifest, name: str) -> None:
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != name]


def without_mount(place: Manifest, path: str) -> None:
    place["volumeMounts"] = [mount for mount in place["volumeMounts"] if mount["mountPath"] != path]


def limits(manifests: list[Manifest]) -> Manifest:
    found: Manifest = ray_worker(manifests)["containers"][0]["resources"]["limits"]
    return found


def remove(manifests: list[Manifest], kind: str, name: str) -> None:
    manifests.remove(one(manifests, kind, name))


# For each policy, the changes that it must detect.
BREACHES: list[tuple[str, str, Change]] = [
    ("pods_run_as_nobody", "root", lambda m: deployment(m)["securityContext"].update(runAsUser=0)),
    ("pods_run_as_nobody", "some user", lambda m: deployment(m)["securityContext"].pop("runAsUser")),
    ("pods_run_as_nobody", "perhaps root", lambda m: deployment(m)["securityContext"].pop("runAsNonRoot")),
    ("pods_run_as_nobody", "no seccomp", lambda m: ray_worker(m)["securityContext"].pop("seccompProfile")),
    ("pods_run_as_nobody", "host network", lambda m: ray_worker(m).update(hostNetwork=True)),
    ("pods_run_as_nobody", "host path", lambda m: ray_worker(m)["volumes"][0].update(hostPath={"path": "/"})),
    (
        "pods_run_as_nobody",
        "capability",
        lambda m: container(m)["securityContext"].update(capabilities={"add": ["ALL"]}),
    ),
    ("pods_run_as_nobody", "privileged", lambda m: container(m)["securityContext"].update(privileged=True)),
    ("pods_run_as_nobody", "escalation", lambda m: container(m)["securityContext"].pop("allowPrivilegeEscalation")),
    ("pods_run_as_nobody", "writable", lambda m: container(m)["securityContext"].pop("readOnlyRootFilesystem")),
    ("pods_run_as_nobody", "autoscaler", lambda m: ray(m)["autoscalerOptions"].pop("securityContext")),
    (
        "namespace_enforces_restricted",
        "baseline",
        lambda m: one(m, "Namespace", "nightshift")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
    ),
    (
        "a_read_only_root_has_the_places_that_ray_and_torch_write",
        "no /tmp",
        lambda m: without_mount(container(m), "/tmp"),
    ),
    (
        "a_read_only_root_has_the_places_that_ray_and_torch_write",
        "no /dev/shm",
        lambda m: without_mount(ray_worker(m)["containers"][0], "/dev/shm"),
    ),
    (
        "a_read_only_root_has_the_places_that_ray_and_torch_write",
        "/dev/shm on disk",
        lambda m: ray_worker(m)["volumes"][1].update(emptyDir={}),
    ),
    (
        "a_read_only_root_has_the_places_that_ray_and_torch_write",
        "/dev/shm too large",
        lambda m: ray_worker(m)["volumes"][1]["emptyDir"].update(sizeLimit="33Gi"),
    ),
    (
        "a_read_only_root_has_the_places_that_ray_and_torch_write",
        "autoscaler without /tmp",
        lambda m: ray(m)["autoscalerOptions"].update(volumeMounts=[]),
    ),
    ("resources_are_limited", "no limits", lambda m: container(m)["resources"].pop("limits")),
    ("resources_are_limited", "no memory request", lambda m: container(m)["resources"]["requests"].pop("memory")),
    ("resources_are_limited", "request above limit", lambda m: limits(m).update(memory="1Gi")),
    ("resources_are_limited", "half a GPU", lambda m: limits(m).update({"nvidia.com/gpu": 2})),
    ("no_secret_stands_in_plain_text", "a Secret", lambda m: m.append({"kind": "Secret", "metadata": {"name": "x"}})),
    (
        "no_secret_stands_in_plain_text",
        "password in a URL",
        lambda m: settings(m).update(ADDRESS="redis://user:hunter2@redis:6379"),
    ),
    (
        "no_secret_stands_in_plain_text",
        "a token's value",
        lambda m: container(m)["env"].append({"name": "RAY_AUTH_TOKEN", "value": "0123"}),
    ),
    (
        "no_secret_stands_in_plain_text",
        "the URL in the ConfigMap",
        lambda m: settings(m).update(NIGHTSHIFT_REDIS_URL="redis://redis"),
    ),
    (
        "secrets_and_keys_are_those_that_exist",
        "another Secret",
        lambda m: container(m)["env"][0]["valueFrom"]["secretKeyRef"].update(name="rediss"),
    ),
    (
        "secrets_and_keys_are_those_that_exist",
        "another key",
        lambda m: container(m)["env"][0]["valueFrom"]["secretKeyRef"].update(key="uri"),
    ),
    ("volumes_and_mounts_match", "a mount without volume", lambda m: without_volume(deployment(m), "tmp")),
    ("volumes_and_mounts_match", "a volume without mount", lambda m: without_mount(container(m), "/storage")),
    ("volumes_and_mounts_match", "no claim", lambda m: remove(m, "PersistentVolumeClaim", "storage")),
    ("volumes_and_mounts_match", "no ConfigMap", lambda m: remove(m, "ConfigMap", "redis")),
    (
        "volumes_and_mounts_match",
        "another ConfigMap",
        lambda m: container(m)["envFrom"][0]["configMapRef"].update(name="nightshift"),
    ),
    ("environment_is_what_settings_reads", "a name nobody reads", lambda m: settings(m).update(NIGHTSHIFT_STORE="/s")),
    (
        "environment_is_what_settings_reads",
        "a misspelt name",
        lambda m: container(m)["env"][0].update(name="NIGHTSHIFT_REDIS_URI"),
    ),
    ("environment_is_what_settings_reads", "too few GPUs", lambda m: settings(m).update(NIGHTSHIFT_CLUSTER_GPUS="1")),
    ("environment_is_what_settings_reads", "no Ray", lambda m: settings(m).pop("NIGHTSHIFT_RAY_JOBS_URL")),
    (
        "environment_is_what_settings_reads",
        "Redis' password on Ray",
        lambda m: ray_worker(m)["containers"][0]["env"].append(container(m)["env"][0]),
    ),
    (
        "runs_of_both_kinds_read_the_same_settings",
        "another value",
        lambda m: one(m, "ConfigMap", "nightshift-settings")["data"].update(NIGHTSHIFT_HANG_SECONDS="60"),
    ),
    (
        "runs_of_both_kinds_read_the_same_settings",
        "a name with a hash",
        lambda m: one(m, "ConfigMap", "nightshift-settings")["metadata"].update(name="nightshift-settings-6gbfkg9dm8"),
    ),
    (
        "drains_end_before_pods_are_killed",
        "Ray's grace",
        lambda m: ray_worker(m).update(terminationGracePeriodSeconds=60),
    ),
    ("drains_end_before_pods_are_killed", "no drain", lambda m: ray_worker(m)["containers"][0].update(env=[])),
    (
        "drains_end_before_pods_are_killed",
        "the job worker's grace",
        lambda m: deployment(m).pop("terminationGracePeriodSeconds"),
    ),
    ("images_are_pinned_and_ours_is_one", "latest", lambda m: container(m).update(image="nightshift:latest")),
    ("images_are_pinned_and_ours_is_one", "no tag", lambda m: container(m).update(image="nightshift")),
    ("images_are_pinned_and_ours_is_one", "two tags", lambda m: container(m).update(image="nightshift:0.0.9")),
    (
        "only_the_autoscaler_holds_a_service_account_token",
        "a token for the worker",
        lambda m: deployment(m).pop("automountServiceAccountToken"),
    ),
    (
        "only_the_autoscaler_holds_a_service_account_token",
        "none for the head",
        lambda m: ray(m)["headGroupSpec"]["template"]["spec"].update(automountServiceAccountToken=False),
    ),
    ("the_head_only_coordinates", "CPUs", lambda m: ray(m)["headGroupSpec"]["rayStartParams"].clear()),
    ("the_head_only_coordinates", "another Ray", lambda m: ray(m).update(rayVersion="2.52.0")),
    ("the_head_only_coordinates", "no token", lambda m: ray(m)["authOptions"].update(mode="disabled")),
    ("storage_is_one_folder_for_all", "another place", lambda m: settings(m).update(NIGHTSHIFT_STORAGE="/data")),
    (
        "storage_is_one_folder_for_all",
        "read-only",
        lambda m: [mount.update(readOnly=True) for mount in container(m)["volumeMounts"]],
    ),
    (
        "the_object_store_fits_into_shared_memory",
        "Ray's own idea of it",
        lambda m: ray(m)["headGroupSpec"]["rayStartParams"].pop("object-store-memory"),
    ),
    (
        "selectors_take_somebody",
        "a Service that leads nowhere",
        lambda m: one(m, "Service", "redis")["spec"]["selector"].update(app="redis"),
    ),
    (
        "selectors_take_somebody",
        "a Deployment that does not know its pods",
        lambda m: one(m, "Deployment", "cli")["spec"]["selector"]["matchLabels"].update(app="cli"),
    ),
    (
        "selectors_take_somebody",
        "a budget for nobody",
        lambda m: one(m, "PodDisruptionBudget", "job-worker")["spec"].update(selector={"matchLabels": {"app": "x"}}),
    ),
    (
        "selectors_take_somebody",
        "a policy for nobody",
        lambda m: network(m, "redis").update(podSelector={"matchLabels": {"app": "redis"}}),
    ),
    (
        "ports_are_open",
        "the Service's",
        lambda m: one(m, "Service", "redis")["spec"]["ports"][0].update(targetPort="db"),
    ),
    ("ports_are_open", "the probe's", lambda m: container(m)["livenessProbe"]["tcpSocket"].update(port=8000)),
    ("ports_are_open", "the scraped", lambda m: container(m).update(ports=[])),
    ("ports_are_open", "the policy's", lambda m: network(m, "redis")["ingress"][0]["ports"][0].update(port=6380)),
    ("everything_is_closed_but_names", "no default", lambda m: remove(m, "NetworkPolicy", "default-deny")),
    (
        "everything_is_closed_but_names",
        "half a default",
        lambda m: network(m, "default-deny").update(policyTypes=["Ingress"]),
    ),
    ("everything_is_closed_but_names", "no DNS", lambda m: remove(m, "NetworkPolicy", "dns")),
    ("everything_is_closed_but_names", "no cache on the node", lambda m: network(m, "dns")["egress"][0]["to"].pop()),
    ("everything_is_closed_but_names", "no DNS on OpenShift", lambda m: network(m, "dns")["egress"][0]["ports"].pop()),
    ("everything_is_closed_but_names", "to everywhere", lambda m: network(m, "clients").update(egress=[{}])),
    (
        "connections_are_those_that_the_parts_need",
        "clients shut out of Redis",
        lambda m: network(m, "redis").update(ingress=[]),
    ),
    (
        "connections_are_those_that_the_parts_need",
        "clients shut in",
        lambda m: network(m, "clients")["egress"].pop(),
    ),
    (
        "connections_are_those_that_the_parts_need",
        "Ray's nodes apart",
        lambda m: network(m, "ray").update(egress=[]),
    ),
    (
        "connections_are_those_that_the_parts_need",
        "Ray reaches Redis",
        lambda m: (
            network(m, "redis")["ingress"].append({"from": [{"podSelector": {}}]}),
            network(m, "ray")["egress"].append({"to": [{"podSelector": {}}]}),
        ),
    ),
    (
        "addresses_lead_to_the_services",
        "another cluster",
        lambda m: one(m, "RayCluster", "ray")["metadata"].update(name="train"),
    ),
    (
        "addresses_lead_to_the_services",
        "another port",
        lambda m: settings(m).update(NIGHTSHIFT_RAY_JOBS_URL="http://ray-head-svc:8000"),
    ),
    (
        "addresses_lead_to_the_services",
        "another namespace",
        lambda m: one(m, "Service", "redis")["metadata"].update(namespace="default"),
    ),
    (
        "no_pod_waits_for_a_node_while_one_has_room",
        "spread by force",
        lambda m: ray_worker(m).update(topologySpreadConstraints=[{"whenUnsatisfiable": "DoNotSchedule"}]),
    ),
    (
        "reconciling_ends_before_it_is_killed",
        "a long lease",
        lambda m: settings(m).update(NIGHTSHIFT_LEASE_SECONDS="200"),
    ),
    (
        "what_a_run_hangs_on_is_not_moved_to_save_a_node",
        "a GPU worker",
        lambda m: ray(m)["workerGroupSpecs"][0]["template"]["metadata"].pop("annotations"),
    ),
    (
        "what_a_run_hangs_on_is_not_moved_to_save_a_node",
        "Redis",
        lambda m: one(m, "StatefulSet", "redis")["spec"]["template"]["metadata"].pop("annotations"),
    ),
    (
        "what_a_run_hangs_on_is_not_moved_to_save_a_node",
        "the head, by the cluster autoscaler",
        lambda m: ray(m)["headGroupSpec"]["template"]["metadata"]["annotations"].pop(SAFE_TO_EVICT),
    ),
    (
        "what_a_run_hangs_on_is_not_moved_to_save_a_node",
        "a pod that holds its node",
        lambda m: one(m, "Deployment", "cli")["spec"]["template"]["metadata"].pop("annotations"),
    ),
    ("pods_without_gpus_keep_away_from_gpu_nodes", "anywhere", lambda m: deployment(m).pop("affinity")),
    (
        "pods_without_gpus_keep_away_from_gpu_nodes",
        "one provider",
        lambda m: preference(m)["matchExpressions"].pop(),
    ),
    ("a_changed_image_reaches_the_ray_cluster", "nothing said", lambda m: ray(m).pop("upgradeStrategy")),
    ("a_changed_image_reaches_the_ray_cluster", "none", lambda m: ray(m)["upgradeStrategy"].update(type="None")),
    (
        "probes_ask_only_what_a_restart_repairs",
        "doctor",
        lambda m: container(m)["startupProbe"].update(exec={"command": ["nightshift", "doctor"]}),
    ),
    (
        "probes_ask_only_what_a_restart_repairs",
        "doctor for readiness",
        lambda m: container(m)["readinessProbe"]["exec"].update(command=["nightshift", "doctor"]),
    ),
    (
        "probes_ask_only_what_a_restart_repairs",
        "Redis",
        lambda m: container(m)["livenessProbe"].update(exec={"command": ["nightshift", "queue", "show"]}),
    ),
    (
        "workers_that_are_not_ready_hold_nothing_up",
        "a drain",
        lambda m: one(m, "PodDisruptionBudget", "job-worker")["spec"].pop("unhealthyPodEvictionPolicy"),
    ),
    (
        "workers_that_are_not_ready_hold_nothing_up",
        "a rollout",
        lambda m: one(m, "Deployment", "job-worker")["spec"].pop("progressDeadlineSeconds"),
    ),
]


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, _, c in BREACHES], ids=[f"{n}-{t}" for n, t, _ in BREACHES])
def test_each_policy_detects_its_violation(name, change):
    policy: Policy = EVERY[name]
    manifests = rendered("gpu-small")

    change(manifests)

    assert list(policy(manifests)) != []


def test_every_policy_has_a_violation_that_it_detects():
    assert {name for name, _, _ in BREACHES} == EVERY.keys()


def test_an_airgapped_cluster_reaches_no_address_of_the_internet():
    manifests = rendered("gpu-small", ["airgap"])
    policies = [p for p in of_kind(manifests, "NetworkPolicy") if p["metadata"]["name"] != "dns"]
    rules = [rule for policy in policies for rule in policy["spec"].get("egress", [])]
    blocks = {peer["ipBlock"]["cidr"] for rule in rules for peer in rule["to"] if "ipBlock" in peer}

    assert blocks == {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
