"""Pretrained weights of the backbone: download, verification and conversion between two naming schemes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cluster.files import remove_drafts, sha256_of
from data_shards.download.http_file import HttpFile
from data_shards.download.transfer import Draft, TransferOptions, receive
from data_shards.errors import DownloadFailed
from trainer.errors import WeightsError
from trainer.model.efficientnet import Backbone
from trainer.model.head import Layout
from trainer.model.names import BLOCKS_PER_STAGE, IMAGENET_URL

MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A backbone's tensors under the names of efficientnet_pytorch, and the layout they were trained with."""

    tensors: dict[str, Tensor]
    layout: Layout


def resolve_weights(requested: str, storage: Path, *, url: str = IMAGENET_URL) -> Path | None:
    """Return the file for "imagenet" or a path; None for "none".

    Downloads the ImageNet file once per storage; concurrent processes wait for that download.

    Raises:
        WeightsError: The file does not exist, cannot be downloaded, or has another sha256.
    """
    if requested == "none":
        return None
    if requested == "imagenet":
        return _imagenet_file(storage / "weights", url)
    path = Path(requested).expanduser()
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; give an existing file, or imagenet or none")
    return path


def read_weights(path: Path) -> Weights:
    """Read a weights file without running code from it.

    Raises:
        WeightsError: The file is damaged, or has weights of another network than EfficientNet-B0.
    """
    tensors = _read_tensors(path)
    layout: Layout = "torchvision" if any(key.startswith("features.") for key in tensors) else "efficientnet_pytorch"
    if layout == "torchvision":
        tensors = {_tensor_name(key): value for key, value in tensors.items() if not key.startswith("classifier.")}
    tensors = {key: value for key, value in tensors.items() if not key.startswith("_fc.")}
    _refuse_other_network(path, tensors)
    return Weights(tensors=tensors, layout=layout)


def load_backbone(backbone: Backbone, weights: Weights) -> None:
    """Copy the tensors into the backbone."""
    backbone.network.load_state_dict(weights.tensors)


def backbone_sha256(backbone: Backbone) -> str:
    """Return the sha256 over the names, shapes and bytes of all tensors of a backbone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _imagenet_file(folder: Path, url: str) -> Path:
    path = folder / url.rsplit("/", 1)[1]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{path.name}.lock"):
        if not path.exists():
            _download(url, path)
        _check_sha256(path, path)
    return path


def _download(url: str, path: Path) -> None:
    remove_drafts(path)
    draft = Draft(path.with_name(f".{path.name}.draft"))
    try:
        receive(HttpFile(url=url), draft, TransferOptions(max_bytes=MAX_BYTES))
        _check_sha256(draft.path, path)
        draft.path.replace(path)
        draft.discard()
    except (DownloadFailed, OSError) as error:
        reason = error.reason if isinstance(error, DownloadFailed) else error.strerror
        raise WeightsError(
            f"{path.name} cannot be downloaded ({reason}); download it from {url} to {path.parent} "
            "on a machine with internet access, or use --weights FILE or --weights none"
        ) from error
    except WeightsError:
        draft.discard()
        raise


def _check_sha256(file: Path, path: Path) -> None:
    """Compare the sha256 of `file` with the digits in the name of `path`; delete `file` if they differ."""
    digits = path.stem.rsplit("-", 1)[1]
    found = sha256_of(file)
    if not found.startswith(digits):
        file.unlink()
        raise WeightsError(
            f"{path.name}: sha256 begins with {found[:8]} instead of {digits}; "
            f"the damaged file was deleted; download it again to {path.parent}"
        )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or not a weights file: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and any other error that a malicious file causes in torch
        raise WeightsError(
            f"{path} contains other objects than tensors and was not loaded: {_first_line(error)}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} is not a state dict; save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def _refuse_other_network(path: Path, tensors: dict[str, Tensor]) -> None:
    expected = {name: value.shape for name, value in Backbone(32).network.state_dict().items()}
    other = f"{path} has weights of another network than EfficientNet-B0"
    if missing := expected.keys() - tensors.keys():
        raise WeightsError(f"{other}: {len(missing)} of {len(expected)} tensors are missing, such as {min(missing)}")
    if surplus := tensors.keys() - expected.keys():
        raise WeightsError(f"{other}: {len(surplus)} tensors are unknown, such as {min(surplus)}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{other}: {name} is {tuple(tensors[name].shape)} instead of {tuple(shape)}")


def _tensor_name(key: str) -> str:
    """Return the efficientnet_pytorch name of a tensor of torchvision's EfficientNet-B0."""
    match = re.fullmatch(r"features\.(\d+)\.(\d+)\.(.+)", key)
    if not match or int(match[1]) > len(BLOCKS_PER_STAGE) + 1:
        return key
    stage, index, rest = int(match[1]), int(match[2]), match[3]
    if stage == 0:
        return f"{('_conv_stem', '_bn0')[index]}.{rest}"
    if stage == len(BLOCKS_PER_STAGE) + 1:
        return f"{('_conv_head', '_bn1')[index]}.{rest}"
    block = sum(BLOCKS_PER_STAGE[: stage - 1]) + index
    return f"_blocks.{block}.{_block_tensor_name(rest, expands=stage > 1)}"


def _block_tensor_name(rest: str, *, expands: bool) -> str:
    parts = rest.split(".")  # block.<layer>.<0: convolution, 1: norm | fc1 | fc2>.<tensor>
    layer = int(parts[1]) + (not expands)  # 0 expand, 1 depthwise, 2 squeeze-and-excite, 3 project
    names = {
        "0.0": "_expand_conv", "0.1": "_bn0", "1.0": "_depthwise_conv", "1.1": "_bn1",
        "2.fc1": "_se_reduce", "2.fc2": "_se_expand", "3.0": "_project_conv", "3.1": "_bn2",
    }  # fmt: skip
    return f"{names.get(f'{layer}.{parts[2]}', rest)}.{parts[-1]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
