"""Which node a pod may have, for how long it keeps it, and what a queue of the cluster grants."""

from collections.abc import Iterator, Sequence

from tests.k8s_manifests import Manifest, pods
from tests.k8s_policies import Policy


def no_pod_waits_for_a_node_while_one_has_room(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Spreading is a wish: by force, the slices of one GPU, all on one node, would wait for nodes that never come."""
    for pod in pods(manifests):
        if any(c["whenUnsatisfiable"] != "ScheduleAnyway" for c in pod.spec.get("topologySpreadConstraints", [])):
            yield f"{pod.name} waits for another node while one has room"


SCHEDULING: tuple[Policy, ...] = (no_pod_waits_for_a_node_while_one_has_room,)
