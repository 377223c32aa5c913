"""`predictions.safetensors`: label and predicted probabilities of each image of a split.

The report is rendered from it, and `compare` reads it. It holds no pixels, no names of images and no names of
patients: an image is identified by its index in the split and by the shard it is stored in.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cluster.errors import StorageError
from cluster.lease import Lease
from data_shards.index import ShardIndex
from trainer.errors import CheckpointError

SAMPLE_ID_BYTES = 16
ABOUT = "about"  # key of the metadata in the file


@dataclass(frozen=True, kw_only=True)
class EvaluatedSplit:
    """Which model was evaluated on which images, and by which decision rule.

    Attributes:
        model: sha256 of the model's weights.
        data: Digest of the data set.
        split: Split of the data set.
        classes: Class names in the order of the model's outputs.
        positive: The class that sensitivity and specificity refer to.
        positive_stated: Whether somebody said that this is the positive class; else it is the first one.
        threshold: Decision threshold of `positive`; None means that the most probable class was predicted.
        multi_label: Whether an image has several labels: labels and decisions are then (N, C).
        thresholds: Decision threshold of each label of a multi-label model.
        temperature: Divides the logits before the metrics are computed; None for a multi-label model, whose AUROC of a
            label does not depend on it, and in files that do not say it.
    """

    model: str
    data: str
    split: str
    classes: tuple[str, ...]
    positive: str
    threshold: float | None
    multi_label: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    positive_stated: bool = True
    temperature: float | None = None

    def threshold_of(self, positive: str) -> float | None:
        """Return the threshold of a label, or of a class if there is one label per image; None: the most probable."""
        return self.thresholds.get(positive) if self.multi_label else self.threshold

    @classmethod
    def from_json(cls, text: str) -> "EvaluatedSplit":
        """Return what `to_json` returned; keys of other versions are ignored.

        Raises:
            ValueError, TypeError, KeyError: The text has another shape.
        """
        content = json.loads(text)
        texts = {name: content[name] for name in ("model", "data", "split", "positive")}
        classes, threshold, temperature = content["classes"], content["threshold"], content.get("temperature")
        if not all(isinstance(value, str) for value in (*texts.values(), *classes)) or texts["positive"] not in classes:
            raise ValueError("a text is expected")
        if temperature is not None and not 0 < float(temperature) < math.inf:
            raise ValueError("a temperature is expected")
        return cls(
            **texts,
            classes=tuple(classes),
            threshold=None if threshold is None else float(threshold),
            multi_label=bool(content.get("multi_label", False)),
            thresholds={str(name): float(value) for name, value in dict(content.get("thresholds", {})).items()},
            positive_stated=bool(content.get("positive_stated", True)),  # version 0.1.0 does not say
            temperature=None if temperature is None else float(temperature),
        )

    def to_json(self) -> str:
        """Return the content as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "thresholds" or value})


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Labels and predicted probabilities, one row per image.

    Files of version 0.1.0 have only the first three attributes.

    Attributes:
        ids: (N,) int64, index of the image in its split.
        labels: (N,) int64, indices into the model's classes; or (N, C) targets: 1 present, 0 absent, -1 unknown.
        probabilities: (N, C) float64, before temperature scaling.
        decisions: (N,) int64, the predicted classes by the decision rule of the evaluation; or (N, C) of 0 and 1.
        groups: (N,) int64, index of the image's group (patient or case) among the groups of the split.
        samples: (N, 16) uint8, identity of each image: see `sample_ids`.
        about: The evaluated model and split.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None
    samples: NDArray[np.uint8] | None = None
    about: EvaluatedSplit | None = None

    def write(self, path: Path, lease: Lease) -> None:
        """Write the file atomically.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        arrays = {name: np.ascontiguousarray(value) for name, value in self._arrays().items() if value is not None}
        metadata = None if self.about is None else {ABOUT: self.about.to_json()}
        lease.write_bytes(path, save(arrays, metadata=metadata))

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read the file.

        Raises:
            CheckpointError: The file is absent or damaged.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                known = {field.name for field in fields(cls)} & set(file.keys())
                arrays = {name: file.get_tensor(name) for name in known}
                text = (file.metadata() or {}).get(ABOUT)
            found = cls(**arrays, about=None if text is None else EvaluatedSplit.from_json(text))
            found._check_shapes()
        except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is absent or damaged; evaluate the model again") from error
        return found

    def _check_shapes(self) -> None:
        """Raise ValueError unless all arrays are about the same images and classes."""
        count, classes = self.probabilities.shape
        if self.about is not None and classes != len(self.about.classes):
            raise ValueError("the probabilities are not of the classes")
        for name, value in self._arrays().items():
            if value is not None and len(value) != count:
                raise ValueError(f"{name} has another length than the probabilities")
        if self.samples is not None and self.samples.shape != (count, SAMPLE_ID_BYTES):
            raise ValueError("the identities have another size")
        if not np.isfinite(self.probabilities).all():
            raise ValueError("a probability is not finite")
        for one in (self.labels, self.decisions):
            if one is not None and one.size and not -1 <= one.min() <= one.max() < max(classes, 2):
                raise ValueError("a label is not one of the classes")

    def of_label(self, label: str) -> "Predictions":
        """Return the predictions of one label of a multi-label model as those of two classes, where it is known."""
        assert self.about is not None  # noqa: S101 -- every file of a multi-label model has it
        assert self.decisions is not None  # noqa: S101
        at = self.about.classes.index(label)
        known = np.flatnonzero(self.labels[:, at] >= 0)
        scores = self.probabilities[known, at]
        return Predictions(
            ids=self.ids[known],
            labels=self.labels[known, at],
            probabilities=np.column_stack([1 - scores, scores]),
            decisions=self.decisions[known, at],
            groups=None if self.groups is None else self.groups[known],
            samples=None if self.samples is None else self.samples[known],
            about=replace(
                self.about,
                classes=(f"no {label}", label),
                positive=label,
                threshold=self.about.thresholds.get(label),
                multi_label=False,
                positive_stated=True,
            ),
        )

    def _arrays(self) -> dict[str, NDArray[Any] | None]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != ABOUT}


def read_about(path: Path) -> EvaluatedSplit | None:
    """Return which model and split a file of predictions is about; None for a file of version 0.1.0.

    Raises:
        StorageError: The file is absent or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(ABOUT)
        return None if text is None else EvaluatedSplit.from_json(text)
    except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
        raise StorageError(f"{path} cannot be read as predictions; evaluate the model again") from error


def sample_ids(index: ShardIndex, split: str) -> NDArray[np.uint8]:
    """Return the identity of each image of a split, (N, 16) uint8, in the order of the split.

    It is a digest of the sha256 of the shard and the position in the shard: images that are added to the data set later
    do not change it, and different images never share it.
    """
    digests = [
        hashlib.sha256(f"{shard.sha256}/{position}".encode()).digest()[:SAMPLE_ID_BYTES]
        for shard in index.of_split(split)
        for position in range(shard.samples)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, SAMPLE_ID_BYTES).copy()
