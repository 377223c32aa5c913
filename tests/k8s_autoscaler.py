"""Ray's own autoscaler over a RayCluster: which pods it would start for what runs ask for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, NodeState, NodeStatus
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from tests.k8s_manifests import Manifest

HEAD_NODE = "node:__internal_head__"  # Ray gives one of it to the head

Bundles = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Decision:
    """What the autoscaler decides.

    Attributes:
        pods: How many it starts, by worker group.
        infeasible: What it says can never be placed.
    """

    pods: dict[str, int]
    infeasible: list[Bundles]


def decision(cluster: Manifest, demands: Sequence[Bundles]) -> Decision:
    """Return what the autoscaler decides in a cluster that has only its head.

    Args:
        cluster: A RayCluster with its namespace.
        demands: Placement groups that wait; the bundles of each are placed all or not at all.
    """
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    gangs = [
        GangResourceRequest(
            requests=[ResourceRequestUtil.make(dict(bundle)) for bundle in bundles], details=str(number)
        )
        for number, bundles in enumerate(demands)
    ]
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            gang_resource_requests=gangs,
            current_instances=[_head(types[config.get_head_node_type()])],
            idle_timeout_s=config.get_idle_timeout_s(),
            disable_launch_config_check=config.disable_launch_config_check(),
        )
    )
    pods = Counter[str]()
    for launch in reply.to_launch:
        pods[launch.instance_type] += launch.count
    assert not reply.to_terminate
    return Decision(dict(pods), [demands[int(gang.details)] for gang in reply.infeasible_gang_resource_requests])


def _head(kind: object) -> AutoscalerInstance:
    """Return the head as the autoscaler knows it when it runs."""
    resources = {**kind.resources, HEAD_NODE: 1.0}
    node = NodeState(
        node_id=b"0", instance_id="head", status=NodeStatus.IDLE, ray_node_type_name=kind.name,
        total_resources=resources, available_resources=resources,
    )  # fmt: skip
    instance = Instance(
        instance_id="head", cloud_instance_id="head", instance_type=kind.name, status=Instance.RAY_RUNNING,
        node_kind=NodeKind.HEAD, node_id="0", launch_config_hash=kind.launch_config_hash,
    )  # fmt: skip
    return AutoscalerInstance(cloud_instance_id="head", ray_node=node, im_instance=instance)
