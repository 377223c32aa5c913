"""Parts of libraries that are not public: each is used in one file, and each exists in the installed version."""

import ast
import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("cluster", "data_shards", "jobs", "trainer")
USES = {
    "atexit._run_exitfuncs": "cluster/process_exit.py",
    "threading._shutdown": "cluster/process_exit.py",
    "torch.nn.modules.batchnorm._BatchNorm": "trainer/training/micro_batching.py",
    "torch._foreach_copy_": "trainer/training/ema.py",
    "torch.cpu._is_amx_tile_supported": "trainer/model/precision.py",
    "torch.cpu._is_avx512_bf16_supported": "trainer/model/precision.py",
    "ray._private.node.Node": "trainer/distributed/local_ray.py",
    "ray._private.node.Node.start_api_server": "trainer/distributed/local_ray.py",
    "ray._private.node.Node.start_monitor": "trainer/distributed/local_ray.py",
    "ray._private.node.Node.start_ray_processes": "trainer/distributed/local_ray.py",
    "ray._private.utils": "trainer/distributed/ray_fork_server.py",
    "ray._private.worker": "trainer/distributed/ray_fork_server.py",
    "ray._private.workers.setup_worker": "trainer/distributed/ray_fork_server.py",
    "ray.train.v2._internal.callbacks.DatasetsCallback": "trainer/distributed/local_ray.py",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback": (
        "trainer/distributed/local_ray.py"
    ),
    "ray.train.v2._internal.exceptions.RayTrainError": "trainer/distributed/infrastructure.py",
    "ray.train.v2._internal.exceptions.UserExceptionWithTraceback": "trainer/distributed/infrastructure.py",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy": "trainer/distributed/local_ray.py",
}
PRIVATE_MODULE = re.compile(r"[a-z]\w*(\.\w+)*\._[a-z]\w*(\.\w+)*")


def private_names(source: str) -> set[str]:
    """Return the private names of other packages in a module: imported, reached as attributes, or named in a string."""
    tree = ast.parse(source)
    imported = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(name.asname or name.name).partition(".")[0]: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Attribute):
            path = re.sub(r"'[^']*'", "", ast.unparse(node)).split(".")  # without the arguments of a call
            if path[0] in imported:
                found.add(".".join([imported[path[0]], *path[1:]]))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE_MODULE.fullmatch(node.value):
            found.add(node.value)
    private = {name for name in found if re.search(r"\._(?!_)", name)}
    return {name for name in private if name.partition(".")[0] not in (*PACKAGES, "os", "sys")}


def test_every_private_name_is_used_in_one_file():
    found = [
        (name, str(path.relative_to(REPOSITORY)))
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for name in private_names(path.read_text())
    ]

    assert sorted(found) == sorted(USES.items())


@pytest.mark.parametrize("name", sorted(USES))
def test_a_private_name_exists_in_the_installed_version(name):
    assert exists(name)


def exists(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._foreach_add_([], [])", {"torch._foreach_add_"}),
        ("import torch.cpu as c\nc._is_amx()", {"torch.cpu._is_amx"}),
        ("from ray._private import services", {"ray._private.services"}),
        ("logging.getLogger('ray.train._internal.x')", {"ray.train._internal.x"}),
        ("import os\nos._exit(1)\nself._own()", set()),
        ("from cluster import guard\nguard._start([])", set()),
    ],
)
def test_the_search_finds_private_names(source, names):
    assert private_names(source) == names
