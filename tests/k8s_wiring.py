"""Allowed connections: selectors, ports, addresses and NetworkPolicies, evaluated as in the cluster."""

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from tests.k8s_manifests import Manifest, Pod, of_kind, one, pods
from tests.k8s_policies import Policy

DNS_NAMESPACES = ("kube-system", "openshift-dns")
NODE_LOCAL_DNS = "169.254.20.10/32"
DNS_PORTS = (53, 5353)  # the second is the port of the DNS pods on OpenShift
MADE_ELSEWHERE = {"job-submitter", "head-state"}  # policies for pods of `nightshift k8s render`


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector matches a pod."""
    plain = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in plain.items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "only In is understood here"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def ports_of(pod: Pod) -> dict[str, int]:
    """Return the named ports of a pod's containers."""
    return {p["name"]: p["containerPort"] for c in pod.spec["containers"] for p in c.get("ports", [])}


def may_connect(manifests: Sequence[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Whether the NetworkPolicies allow one pod of the namespace to connect to another's TCP port."""
    out, into = allowed_ports(manifests, "Egress", source, target), allowed_ports(manifests, "Ingress", target, source)
    return all(ports is None or port in ports for ports in (out, into))


def allowed_ports(manifests: Sequence[Manifest], direction: str, pod: Pod, peer: Pod) -> set[int] | None:
    """Return the TCP ports that the policies allow between a pod and a peer in one direction; None means all."""
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    mine = [p for p in policies if direction in p["policyTypes"] and selects(p["podSelector"], pod.labels)]
    if not mine:
        return None
    side = "to" if direction == "Egress" else "from"
    found: set[int] = set()
    for rule in (rule for policy in mine for rule in policy.get(direction.lower(), [])):
        near = [p for p in rule.get(side, []) if "podSelector" in p and "namespaceSelector" not in p]
        if any(selects(p["podSelector"], peer.labels) for p in near):
            if not rule.get("ports"):
                return None
            found |= {p["port"] for p in rule["ports"] if p["protocol"] == "TCP"}
    return found


def selectors_take_somebody(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A selector that matches no pod is misspelt."""
    everybody = pods(manifests)
    for manifest in (m for m in manifests if m["metadata"]["name"] not in MADE_ELSEWHERE):
        kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            own = {"labels": spec["template"]["metadata"]["labels"]}
            if not selects(spec["selector"], own["labels"]):
                yield f"{kind} {name} does not select its own pods"
        elif kind == "Service" and not any(selects({"matchLabels": spec["selector"]}, p.labels) for p in everybody):
            yield f"Service {name} leads to no pod"
        elif kind == "PodDisruptionBudget" and not any(selects(spec["selector"], p.labels) for p in everybody):
            yield f"PodDisruptionBudget {name} guards no pod"
        elif kind == "NetworkPolicy" and not any(selects(spec["podSelector"], p.labels) for p in everybody):
            yield f"NetworkPolicy {name} selects no pod"


def ports_are_open(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Services, probes, scrape annotations and policies name ports that a container opens."""
    everybody = pods(manifests)
    for service in of_kind(manifests, "Service"):
        behind = [p for p in everybody if selects({"matchLabels": service["spec"]["selector"]}, p.labels)]
        for port in service["spec"]["ports"]:
            if not all(port["targetPort"] in ports_of(pod) for pod in behind):
                yield f"Service {service['metadata']['name']}: no container opens {port['targetPort']}"
    for pod in everybody:
        opened = ports_of(pod)
        scraped = pod.annotations.get("prometheus.io/port")
        if scraped and int(scraped) not in opened.values():
            yield f"{pod.name} is scraped at {scraped}, which is not open"
        for probe in (c[p] for c in pod.spec["containers"] for p in c if p.endswith("Probe")):
            port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
            if port is not None and port not in opened and port not in opened.values():
                yield f"{pod.name} is probed at {port}, which is not open"
    for policy in of_kind(manifests, "NetworkPolicy"):
        yield from _policy_ports(policy, [p for p in everybody if selects(policy["spec"]["podSelector"], p.labels)])


def _policy_ports(policy: Manifest, chosen: list[Pod]) -> Iterator[str]:
    opened = {port for pod in chosen for port in ports_of(pod).values()}
    for rule in policy["spec"].get("ingress", []):
        for port in rule.get("ports", []):
            if chosen and port["port"] not in opened:
                yield f"NetworkPolicy {policy['metadata']['name']} opens {port['port']}, where nobody listens"


def everything_is_closed_but_names(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Ingress and egress are denied by default; DNS is allowed to the DNS pods and to the cache on each node."""
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    denied = [p for p in policies if p["podSelector"] == {} and not p.get("ingress") and not p.get("egress")]
    if not any(set(policy["policyTypes"]) == {"Ingress", "Egress"} for policy in denied):
        yield "nothing denies by default"
    dns = [rule for p in policies if p["podSelector"] == {} for rule in p.get("egress", [])]
    asked = {(str(peer), p["protocol"], p["port"]) for rule in dns for peer in rule["to"] for p in rule["ports"]}
    for place in (*DNS_NAMESPACES, NODE_LOCAL_DNS):
        for port in DNS_PORTS:
            if not all(any(place in w and (p, n) == (how, port) for w, p, n in asked) for how in ("UDP", "TCP")):
                yield f"names cannot be looked up at port {port} of {place}"
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            wide = [p for p in rule.get("to", [{}]) if p in ({}, {"ipBlock": {"cidr": "0.0.0.0/0"}})]
            if wide:
                yield f"NetworkPolicy {policy['metadata']['name']} opens the way to everywhere"


def connections_are_those_that_the_parts_need(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Clients reach Redis and the Jobs API; Ray's pods reach each other; Ray and Redis reach no other pod."""
    everybody = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(manifests)}
    redis, head, worker = everybody["redis"], everybody["ray-head"], everybody["ray-worker"]
    clients = [pod for part, pod in everybody.items() if part in ("job-worker", "cli", "reconcile", "dashboard")]
    needed = [(c, t, p) for c in clients for t, p in ((redis, 6379), (head, 8265))] + [
        (everybody["metrics"], redis, 6379)
    ]
    needed += [(worker, head, 6379), (head, worker, 20000), (worker, worker, 20000)]
    unwanted = [(worker, redis, 6379), (head, redis, 6379), (redis, head, 8265), (redis, clients[0], 9100)]
    unwanted += [(everybody["metrics"], head, 8265)]
    unwanted += [(c, t, p) for c in clients for t, p in ((worker, 20000), (head, 6379), (head, 10001))]
    for source, target, port in needed:
        if not may_connect(manifests, source, target, port):
            yield f"{source.name} cannot reach {target.name}:{port}"
    for source, target, port in unwanted:
        if may_connect(manifests, source, target, port):
            yield f"{source.name} can reach {target.name}:{port}"


def addresses_lead_to_the_services(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The Jobs API's address is that of the Service that KubeRay creates for the head."""
    url = urlsplit(one(manifests, "ConfigMap", "nightshift")["data"].get("NIGHTSHIFT_RAY_JOBS_URL", ""))
    cluster = of_kind(manifests, "RayCluster")[0]
    head = next(pod for pod in pods([cluster]) if pod.labels["ray.io/node-type"] == "head")
    if url.hostname != f"{cluster['metadata']['name']}-head-svc":
        yield f"the Jobs API is not at {url.hostname}"
    if url.port != ports_of(head).get("dashboard"):
        yield f"the Jobs API is not at port {url.port}"
    if len({manifest["metadata"].get("namespace") for manifest in manifests if _is_ours(manifest)}) != 1:
        yield "the manifests are spread over namespaces"


def _is_ours(manifest: Manifest) -> bool:
    return manifest["kind"] in (
        "Deployment",
        "StatefulSet",
        "Service",
        "RayCluster",
        "CronJob",
        "NetworkPolicy",
        "ScaledJob",
    )


WIRING: tuple[Policy, ...] = (
    selectors_take_somebody,
    ports_are_open,
    everything_is_closed_but_names,
    connections_are_those_that_the_parts_need,
    addresses_lead_to_the_services,
)
