"""The feature cache: one file per shard, shared by all runs, written atomically and verified when read.

The file name is the shard's sha256, and the folder name is the digest of everything else that features depend on: so
a stale file is never read, and concurrent writers of a file write the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cluster.files import write_bytes, write_json
from trainer.data.cache_folder import evict
from trainer.errors import CheckpointError
from trainer.model.head import HeadConfig

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of the samples of one shard, in the order of the shard.

    Attributes:
        values: `(n, 1280) float32`.
        labels: `(n,) int64`.
        sources: Names of the files that the samples were packed from, for reports; never logged.
        groups: Patient or case of each sample; "" where unknown.
        columns: Value of each sample in each kept column, by its name; "" where there is none.
    """

    values: Tensor
    labels: Tensor
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that features depend on besides the shard."""

    backbone_sha256: str
    layout: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str
    format: int = FORMAT

    @classmethod
    def of(cls, config: HeadConfig) -> "FeatureKey":
        """Return the key of a model's backbone."""
        return cls(
            backbone_sha256=config.backbone_sha256,
            layout=config.layout,
            image_size=config.image_size,
            mean=config.mean,
            std=config.std,
            precision=config.precision,
        )

    @property
    def digest(self) -> str:
        """A short digest of the key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


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

        Raises:
            CheckpointError: The file was damaged and is removed.
        """
        path = self.path(shard_sha256)
        try:
            features = _read(path)
            os.utime(path)  # marks it as recently used
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            path.unlink(missing_ok=True)
            raise CheckpointError(f"{path} was damaged and is removed: {error}") from error
        return features

    def write(self, shard_sha256: str, features: Features) -> None:
        """Write a shard's features; a reader sees the whole file or none.

        Raises:
            OSError: The storage is full or not writable; no draft is left.
        """
        content = save(_tensors(features), metadata={"sha256": _digest(_tensors(features))})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "key.json", asdict(self.key))
        evict(self.root, self.limit_bytes, needed=len(content))
        write_bytes(self.path(shard_sha256), content)


def _read(path: Path) -> Features:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        expected = (file.metadata() or {}).get("sha256")
    if _digest(found) != expected:
        raise ValueError("its content does not match its sha256")
    names = json.loads(found["names"].numpy().tobytes())
    return Features(
        values=found["values"],
        labels=found["labels"],
        sources=tuple(names["sources"]),
        groups=tuple(names["groups"]),
        columns={name: tuple(values) for name, values in names.get("columns", {}).items()},
    )


def _tensors(features: Features) -> dict[str, Tensor]:
    columns = {"columns": dict(features.columns)} if features.columns else {}
    names = json.dumps({"sources": features.sources, "groups": features.groups, **columns}).encode()
    return {
        "values": features.values.contiguous(),
        "labels": features.labels,
        "names": torch.from_numpy(np.frombuffer(names, dtype=np.uint8).copy()),
    }


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
