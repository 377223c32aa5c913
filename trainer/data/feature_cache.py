"""The feature cache: one file per shard, shared by all runs, written atomically and verified when read.

The file name is the shard's sha256, and the folder name is the digest of everything else that features depend on: so
a stale file is never read, and concurrent writers of a file write the same bytes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cluster.files import write_bytes, write_json
from cluster.mounts import is_on_network
from trainer.data.cache_folder import cache_entries, evict
from trainer.errors import CheckpointError
from trainer.model.head import HeadConfig
from trainer.model.precision import DTYPES

FORMAT, FORMAT_FP32 = 1, 2  # until 2, GPUs rounded the inputs of convolutions in fp32 to TF32


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of the samples of one shard, in the order of the shard, as their file has them.

    Attributes:
        values: `(n, 1280) float32`, or bfloat16 as a cache with that precision stores them.
        labels: `(n,) int64`, or `(n, C)` targets of a multi-label data set.
        names: `(bytes,) uint8`, the JSON of what the properties return: strings take memory only while they are read.
    """

    values: Tensor
    labels: Tensor
    names: Tensor

    @classmethod
    def of(
        cls,
        values: Tensor,
        labels: Tensor,
        *,
        sources: tuple[str, ...],
        groups: tuple[str, ...],
        columns: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "Features":
        """Return the features of samples; the arguments are the attributes and properties."""
        kept = {"columns": dict(columns)} if columns else {}
        names = json.dumps({"sources": sources, "groups": groups, **kept}).encode()
        return cls(
            values=values.contiguous(),
            labels=labels,
            names=torch.from_numpy(np.frombuffer(names, dtype=np.uint8).copy()),
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the files that the samples were packed from, for reports; never logged."""
        return tuple(self._decoded["sources"])

    @property
    def groups(self) -> tuple[str, ...]:
        """Patient or case of each sample; "" where unknown."""
        return tuple(self._decoded["groups"])

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Value of each sample in each kept column, by its name; "" where there is none."""
        return {name: tuple(values) for name, values in self._decoded.get("columns", {}).items()}

    @property
    def _decoded(self) -> dict[str, Any]:
        return dict(json.loads(self.names.numpy().tobytes()))


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that features depend on besides the shard.

    Attributes:
        stored: Precision of the values in the files.
    """

    backbone_sha256: str
    layout: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str
    format: int = FORMAT
    stored: str = "fp32"

    @classmethod
    def of(cls, config: HeadConfig, stored: str = "fp32") -> "FeatureKey":
        """Return the key of a model's backbone."""
        return cls(
            backbone_sha256=config.backbone_sha256,
            layout=config.layout,
            image_size=config.image_size,
            mean=config.mean,
            std=config.std,
            precision=config.precision,
            format=FORMAT_FP32 if config.precision == "fp32" else FORMAT,
            stored=stored,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The key as JSON, without `stored` where it is the default: older files have no other and are still found."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("stored", "fp32")}

    @property
    def digest(self) -> str:
        """A short digest of the key."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FeatureCache:
    """The cached features under one key.

    Attributes:
        root: Folder of all keys, `STORAGE/features`.
        key: What these features depend on.
        limit_bytes: Maximum size of all keys together; the least recently used files are evicted first.
    """

    root: Path
    key: FeatureKey
    limit_bytes: int

    @property
    def folder(self) -> Path:
        """The folder of this key."""
        return self.root / self.key.digest

    def path(self, shard_sha256: str) -> Path:
        """The file of one shard."""
        return self.folder / f"{shard_sha256}.safetensors"

    def has(self, shard_sha256: str) -> bool:
        """Return whether there is a file of the shard; it may be damaged."""
        return self.path(shard_sha256).exists()

    def read(self, shard_sha256: str) -> Features | None:
        """Return a shard's features, or None if they are not cached.

        They are views of the memory-mapped file, which stays on the disk while they are used, evicted or not.

        Raises:
            CheckpointError: The file was damaged and is removed.
        """
        path = self.path(shard_sha256)
        try:
            features = _read(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            path.unlink(missing_ok=True)
            raise CheckpointError(f"{path} was damaged and is removed: {error}") from error
        self.mark_used([shard_sha256])
        return features

    def as_stored(self, features: Features) -> Features:
        """Return features with the precision in which they are stored."""
        return replace(features, values=features.values.to(DTYPES[self.key.stored]))

    def mark_used(self, shards_sha256: Iterable[str]) -> None:
        """Mark files as recently used, so that others are evicted first; those that are not there are left out."""
        for shard_sha256 in shards_sha256:
            with contextlib.suppress(OSError):
                os.utime(self.path(shard_sha256))

    def write(self, shard_sha256: str, features: Features) -> None:
        """Write a shard's features, unless another process has; a reader sees the whole file or none.

        A file that others have mapped is not replaced: over a network they would die of a bus error.

        Raises:
            OSError: The storage is full or not writable, or the limit is full of features in use; no draft is left.
        """
        tensors = _tensors(self.as_stored(features))
        content = save(tensors, metadata={"sha256": _digest(tensors)})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "key.json", self.key.facts)
        self._make_room(len(content))
        if self.has(shard_sha256):
            return
        write_bytes(self.path(shard_sha256), content)

    def _make_room(self, needed: int) -> None:
        """Evict other features.

        Raises:
            OSError: The limit is full of features in use, which are not evicted over a network.
        """
        evict(self.root, self.limit_bytes, needed=needed)
        if not is_on_network(self.root):  # all of them could be evicted, and nothing has to be listed again
            return
        if sum(entry.bytes for entry in cache_entries(self.root)) + needed > self.limit_bytes:
            raise OSError(f"the limit of {self.limit_bytes / 1e9:g} GB is full of features in use")


def _read(path: Path) -> Features:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        expected = (file.metadata() or {}).get("sha256")
    if _digest(found) != expected:
        raise ValueError("its content does not match its sha256")
    if not {"sources", "groups"} <= json.loads(found["names"].numpy().tobytes()).keys():
        raise ValueError("it has no names")
    return Features(values=found["values"], labels=found["labels"], names=found["names"])


def _tensors(features: Features) -> dict[str, Tensor]:
    return {"values": features.values, "labels": features.labels, "names": features.names}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()
