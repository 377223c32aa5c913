"""What steps ask of a GPU, counted without one, on fake CUDA tensors: they have shape, type and device, but no data."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.training import step_graphs

GPU = torch.device("cuda", 0)
NO_KERNEL = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "as_strided_",
    "lift_fresh", "device", "_record_function_enter_new", "_record_function_exit",
)  # fmt: skip
COPIES = ("_to_copy", "copy_")
A_VALUE = 0.5  # of every fake number that is read


class DeviceCounts(TorchDispatchMode):
    """Counts what operations ask of the devices of one kind.

    Attributes:
        kernels: By name of the operation.
        bytes: Of the tensors that kernels read and write, by name of the operation.
        copies: From the CPU to the device, by whether the CPU "waits" for them or "goes on".
        waits: How often the CPU waits for a value of the device.
        collectives: Name and shape of each, in their order.
    """

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.kind = kind
        self.kernels, self.bytes, self.copies = Counter[str](), Counter[str](), Counter[str]()
        self.waits = 0
        self.collectives: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and do it; a number that is read from a fake tensor is made up."""
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):  # of `.item()`, `float()` and `if`
            self.waits += self._has(args[0])
            return A_VALUE if args[0].is_floating_point() else int(A_VALUE)
        # This one changes its arguments and returns nothing; torch has no fake of it where the rate is a tensor.
        result = None if str(func) == "aten._fused_adamw_.tensor_lr" and self.kind != "cpu" else func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        if space == "c10d":
            self.collectives.append((name, *[tuple(tensor.shape) for tensor in given[:1]]))
        elif name in COPIES:
            self._count_copy(name, args[0] if name == "_to_copy" else args[1], made[0], kwargs)
        elif self._has(*given, *made) and not func.is_view and name not in NO_KERNEL:
            self._count_kernel(name, given, made)
        return result

    def _has(self, *tensors: Tensor) -> bool:
        return any(tensor.device.type == self.kind for tensor in tensors)

    def _count_copy(self, name: str, source: Tensor, made: Tensor, options: dict[str, Any]) -> None:
        if self._has(source) and self._has(made):
            self._count_kernel(name, [source], [made])
        elif self._has(made):
            self.copies["goes on" if options.get("non_blocking") else "waits"] += 1
        elif self._has(source):
            self.waits += 1

    def _count_kernel(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        self.kernels[name] += 1
        self.bytes[name] += sum(tensor.nbytes for tensor in [*given, *made])


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree; one that is in it several times comes once."""
    found = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return list(found.values())


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make tensors on a GPU that this machine need not have; what is created inside has no data.

    Autograd's own engine asks the driver for the GPU. So here the graph is walked in Python; the backward pass of each
    operation is torch's.
    """
    monkeypatch.setattr(torch.autograd, "backward", walk_backward)
    types = [*torch.utils._foreach_utils._foreach_supported_types, FakeTensor]
    monkeypatch.setattr(torch.utils._foreach_utils, "_foreach_supported_types", types)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda _: None)
    monkeypatch.setattr(step_graphs, "failed", [None])  # so that steps are eager: no fake tensor can be captured
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_gpu(module: nn.Module) -> nn.Module:
    """Put the parameters and buffers of a module on the GPU, in their memory layout; call it inside `fake_cuda`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_like(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _like(buffer)
    return module


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


@torch.no_grad()
def walk_backward(loss: Tensor) -> None:
    """Add the gradients of a loss to the leaves of its graph, as `torch.autograd.backward` does.

    A node runs when all nodes that give it a gradient have run.
    """
    root = loss.grad_fn
    assert root is not None
    missing = _parents(root)
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready: list[Any] = [root]
    while ready:
        node = ready.pop()
        own = gradients.pop(node, {})
        for (following, slot), gradient in zip(node.next_functions, _outputs(node, own), strict=False):
            if following is None:
                continue
            if gradient is not None:
                _add(gradients.setdefault(following, {}), slot, _fitting(gradient, following._input_metadata[slot]))
            missing[following] -= 1
            if not missing[following]:
                ready.append(following)


def _parents(root: Any) -> Counter[Any]:
    """Return how many edges lead to each node of a graph."""
    counts, waiting = Counter[Any](), [root]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                if not counts[node]:
                    waiting.append(node)
                counts[node] += 1
    return counts


def _outputs(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients that a node gives to the next ones; a leaf keeps what it is given."""
    if hasattr(node, "variable"):
        leaf = node.variable
        leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
        return ()
    if not gradients:
        return (None,) * len(node.next_functions)
    count = len(node._input_metadata)
    found = node(*(gradients.get(slot) for slot in range(count)))
    return found if isinstance(found, tuple) else (found,)


def _fitting(gradient: Tensor, metadata: Any) -> Tensor:
    """Return a gradient in the shape and type of what it belongs to, which was broadcast or cast."""
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient if gradient.dtype == metadata.dtype else gradient.to(metadata.dtype)


def _add(gradients: dict[int, Tensor], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradients[slot] + gradient if slot in gradients else gradient


def bytes_of(work: Callable[[], object], device: torch.device) -> int:
    """Return the bytes of all tensors that each operation of some work on a device reads and writes."""
    with DeviceCounts(device.type) as counts:
        work()
    return sum(counts.bytes.values())
