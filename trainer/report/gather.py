"""Collect the content of a report: metrics, predictions, epochs, misclassified images, environment."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cluster.resources import this_machine
from cluster.version import VERSION
from data_shards.counted import counted
from data_shards.index import ShardIndex
from data_shards.pack.group_counts import group_counts
from data_shards.read.stream import read_samples
from trainer.attempt import Attempt
from trainer.audit.saved import has_outdated_audit, read_audit
from trainer.data.run_data import run_index
from trainer.evaluation.calibration import predicted_classes
from trainer.evaluation.metric_text import digits_text, is_binary, is_positive_stated
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.seen_images import seen_line
from trainer.evaluation.temperature import apply_temperature
from trainer.model.bundle import read_model
from trainer.report.beside_audit import JudgedModel, ReadModel, beside_audit
from trainer.report.examples import ExampleImage, Pixels, random_correct, with_pictures, worst_misclassified
from trainer.report.head_comparison import head_comparison
from trainer.report.limits import limits
from trainer.report.multi_label import MultiLabelReportData, worst_decisions
from trainer.report.page import ReportData, SearchSection
from trainer.report.source_version import source_version
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, TrainOptions
from trainer.specs.command_text import command_of
from trainer.tracking.history import read_epoch_lines

PACKAGES = ("torch", "torchvision", "ray", "efficientnet_pytorch", "webdataset", "scikit-learn")
OWN_SECTIONS = (
    "cost",
    "importance",
    "seen",
    "baselines",
    "cross_validation",
    "choice",
)  # details that the report shows in sections of their own, or as warnings


def gather_report(
    attempt: Attempt, spec: TrainOptions | EvaluateSpec, result: RunResult, search: SearchSection | None
) -> ReportData:
    """Return the content of a run's report."""
    index, metrics = run_index(attempt.lease, spec.shards), result.metrics
    predictions = Predictions.read(attempt.paths.predictions)
    model = cache(partial(read_model, Path(result.checkpoint or attempt.paths.best)))  # read once, if at all
    examples = _examples(spec.shards, index, metrics, predictions, model)
    audit = read_audit(attempt.paths.storage, index.digest)
    groups = group_counts(spec.shards, index, metrics["split"])
    return (MultiLabelReportData if index.multi_label else ReportData)(
        run_id=attempt.paths.run_id,
        kind=result.kind,
        ended=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        spec={name: value for name, value in spec.to_json().items() if name != "kind"},
        metrics=metrics,
        predictions=predictions,
        index=index,
        epochs=tuple(read_epoch_lines(attempt.paths.metrics)),
        search=search or SearchSection(),
        misclassified=tuple(one for one in examples if one.kind != "correct"),
        correct=tuple(one for one in examples if one.kind == "correct"),
        groups={split: groups[split].every for split in index.splits if split in groups},
        command=command_of(spec),
        facts=_facts(attempt, result),
        warnings=limits(index, metrics, result.details, groups.get(metrics["split"])),
        seen=seen_line(result.details),
        audit=audit,
        has_outdated_audit=has_outdated_audit(attempt.paths.storage, index.digest),
        beside=beside_audit(attempt.paths.storage, spec.shards, index, JudgedModel(model, metrics, predictions))
        if audit
        else None,
        heads=head_comparison(spec.to_json(), metrics, result.details),
    )


def _examples(
    location: str, index: ShardIndex, metrics: Mapping[str, Any], predictions: Predictions, model: ReadModel
) -> tuple[ExampleImage, ...]:
    """Return the images to show, with pixels and Grad-CAM overlays computed on the CPU."""
    found = worst_decisions(predictions, metrics) if index.multi_label else _chosen(predictions, metrics)
    if not found:
        return ()
    classifier, config, _ = model()
    ids = sorted({example.id for example in found})
    images: dict[int, tuple[str, Pixels]] = {}
    for batch in read_samples(location, index, metrics["split"], ids, image_size=config.image_size):
        pictures = zip(batch.sources, batch.images.numpy(), strict=True)
        images |= dict(zip(batch.ids.tolist(), pictures, strict=True))
    return with_pictures(found, images, classifier, config)


def _chosen(predictions: Predictions, metrics: Mapping[str, Any]) -> tuple[ExampleImage, ...]:
    """Return the worst errors and some correct images. Kinds of errors are about the positive class, or one of two."""
    seen = apply_temperature(predictions.probabilities, metrics["temperature"])
    classes = list(metrics["classes"])
    positive = classes.index(metrics["positive"])
    predicted = predicted_classes(seen, positive=positive, threshold=metrics["threshold"])
    has_kinds = is_positive_stated(metrics) or is_binary(classes)
    about = predictions.ids, predictions.labels, predicted, seen
    return (*worst_misclassified(*about, positive=positive if has_kinds else None), *random_correct(*about))


def _facts(attempt: Attempt, result: RunResult) -> dict[str, dict[str, str]]:
    epochs = read_epoch_lines(attempt.paths.metrics)
    machine = this_machine()
    speeds = [line["images_per_second"] for line in epochs if line.get("images_per_second")]
    timing = {"duration of this attempt": f"{attempt.seconds:.1f} s", "attempt": str(attempt.number)}
    if epochs:
        timing["epochs"] = f"{len(epochs)} in {sum(line.get('seconds', 0.0) for line in epochs):.1f} s"
    if speeds:
        timing["training speed"] = f"{np.median(speeds):,.0f} images/s (median epoch)"
    devices = counted(machine.cpus, "CPU") + (f", {counted(machine.gpus, 'GPU')}" if machine.gpus else "")
    shown = {name: value for name, value in result.details.items() if value is not None and name not in OWN_SECTIONS}
    cost = result.details.get("cost", {})
    return {
        "Cost of the search": {name.replace("_", " "): _text(value, name) for name, value in cost.items()},
        "Result details": {name.replace("_", " "): _text(value, name) for name, value in shown.items()},
        "Timing": timing,
        "Hardware": {"devices": devices, "system": f"{platform.system()} {platform.machine()}"},
        "Software": {
            "nightshift source": source_version(),
            "python": platform.python_version(),
            "nightshift": VERSION,
            **{name: version(name) for name in PACKAGES},
        },
    }


def _text(value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name.replace('_', ' ')} {_text(part, name)}" for name, part in value.items() if part is not None
        )
    if isinstance(value, float):
        return digits_text(value, of=name)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
