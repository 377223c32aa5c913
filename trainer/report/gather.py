"""Collect the content of a report: metrics, predictions, epochs, misclassified images, environment."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cluster.resources import this_machine
from data_shards.index import ShardIndex
from data_shards.locations import local_folder
from data_shards.pack.image_records import read_records
from data_shards.read.stream import read_samples
from trainer.attempt import Attempt
from trainer.audit.saved import read_audit
from trainer.data.run_data import run_index
from trainer.evaluation.calibration import predicted_classes
from trainer.evaluation.decision_text import choice_of, is_out_of_fold
from trainer.evaluation.metric_text import is_binary, is_positive_stated, quoted
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.seen_images import evaluation_lines
from trainer.evaluation.temperature import apply_temperature
from trainer.model.bundle import read_model
from trainer.report.examples import ExampleImage, Pixels, random_correct, with_pictures, worst_misclassified
from trainer.report.head_comparison import head_comparison
from trainer.report.multi_label import MultiLabelReportData, worst_decisions
from trainer.report.page import ReportData, SearchSection
from trainer.report.source_version import source_version
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, TrainOptions
from trainer.specs.command_text import command_of
from trainer.tracking.history import read_epoch_lines

PACKAGES = ("nightshift", "torch", "torchvision", "ray", "efficientnet_pytorch", "webdataset", "scikit-learn")
OWN_SECTIONS = (
    "cost",
    "importance",
    "seen",
    "baselines",
    "cross_validation",
)  # details that the report shows in sections of their own, or as warnings
FEW = 30  # images of a class; with fewer, one error changes recall by more than 3 percentage points


def gather_report(
    attempt: Attempt, spec: TrainOptions | EvaluateSpec, result: RunResult, search: SearchSection | None
) -> ReportData:
    """Return the content of a run's report."""
    index, metrics = run_index(attempt.paths, spec.shards), result.metrics
    predictions = Predictions.read(attempt.paths.predictions)
    examples = _examples(spec.shards, index, metrics, predictions, Path(result.checkpoint or attempt.paths.best))
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
        groups=groups_by_split(spec.shards, index),
        command=command_of(spec),
        facts=_facts(attempt, result),
        warnings=_warnings(index, metrics, result.details),
        audit=read_audit(attempt.paths.storage, index.digest),
        heads=head_comparison(spec.to_json(), metrics, result.details),
    )


def _examples(
    location: str, index: ShardIndex, metrics: Mapping[str, Any], predictions: Predictions, folder: Path
) -> tuple[ExampleImage, ...]:
    """Return the images to show, with pixels and Grad-CAM overlays computed on the CPU."""
    found = worst_decisions(predictions, metrics) if index.multi_label else _chosen(predictions, metrics)
    if not found:
        return ()
    model, config, _ = read_model(folder)
    ids = sorted({example.id for example in found})
    images: dict[int, tuple[str, Pixels]] = {}
    for batch in read_samples(location, index, metrics["split"], ids, image_size=config.image_size):
        pictures = zip(batch.sources, batch.images.numpy(), strict=True)
        images |= dict(zip(batch.ids.tolist(), pictures, strict=True))
    return with_pictures(found, images, model, config)


def _chosen(predictions: Predictions, metrics: Mapping[str, Any]) -> tuple[ExampleImage, ...]:
    """Return the worst errors and some correct images. Kinds of errors are about the positive class, or one of two."""
    seen = apply_temperature(predictions.probabilities, metrics["temperature"])
    classes = list(metrics["classes"])
    positive = classes.index(metrics["positive"])
    predicted = predicted_classes(seen, positive=positive, threshold=metrics["threshold"])
    has_kinds = is_positive_stated(metrics) or is_binary(classes)
    about = predictions.ids, predictions.labels, predicted, seen
    return (*worst_misclassified(*about, positive=positive if has_kinds else None), *random_correct(*about))


def groups_by_split(location: str, index: ShardIndex) -> dict[str, int]:
    """Return the number of groups (patients or cases) of each split, as far as the records of the images say."""
    folder = local_folder(location)
    if folder is None or not index.grouped:
        return {}
    records, _ = read_records(folder.expanduser(), index)
    known = {split: [records.get(shard.sha256) for shard in index.of_split(split)] for split in index.splits}
    return {
        split: len({image.group or image.sha256 for of_shard in found if of_shard for image in of_shard})
        for split, found in known.items()
        if None not in found
    }


def _facts(attempt: Attempt, result: RunResult) -> dict[str, dict[str, str]]:
    epochs = read_epoch_lines(attempt.paths.metrics)
    machine = this_machine()
    speeds = [line["images_per_second"] for line in epochs if line.get("images_per_second")]
    timing = {"duration of this attempt": f"{attempt.seconds:.1f} s", "attempt": str(attempt.number)}
    if epochs:
        timing["epochs"] = f"{len(epochs)} in {sum(line.get('seconds', 0.0) for line in epochs):.1f} s"
    if speeds:
        timing["training speed"] = f"{np.median(speeds):,.0f} images/s (median epoch)"
    devices = f"{machine.cpus} CPUs" + (f", {machine.gpus} GPUs" if machine.gpus else "")
    shown = {name: value for name, value in result.details.items() if value is not None and name not in OWN_SECTIONS}
    cost = result.details.get("cost", {})
    return {
        "Cost of the search": {name.replace("_", " "): _text(value) for name, value in cost.items()},
        "Result details": {name.replace("_", " "): _text(value) for name, value in shown.items()},
        "Timing": timing,
        "Hardware": {"devices": devices, "system": f"{platform.system()} {platform.machine()}"},
        "Software": {
            "nightshift source": source_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def _warnings(index: ShardIndex, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    split, counts = metrics["split"], dict(zip(index.classes, index.per_class_in(metrics["split"]), strict=True))
    few = [f"{count} {quoted(name)}" for name, count in counts.items() if count < FEW]
    return [
        *(
            [f"The {split} split has only {' and '.join(few)} images: the metrics are imprecise, see their intervals."]
            if few
            else []
        ),
        *_positive_warning(index, metrics),
        *(
            ["The threshold was chosen on this split: the metrics at the threshold are optimistic."]
            if split == "valid" and _has_threshold_of_valid(metrics)
            else []
        ),
        *(f"{line[0].upper()}{line[1:]}." for line in evaluation_lines(details, split) if _is_warning(line)),
        *(
            ["The best epoch was selected on this split: its metrics are optimistic. Evaluate on a test split."]
            if _selected_epoch(metrics, details)
            else []
        ),
        *(
            ["The data set was packed with --allow-leakage: an image or group may be in more than one split."]
            if index.options.get("allow_leakage")
            else []
        ),
    ]


def _positive_warning(index: ShardIndex, metrics: Mapping[str, Any]) -> list[str]:
    """Return a note if nobody said which of two classes is the one to find."""
    if index.multi_label or is_positive_stated(metrics) or not is_binary(index.classes):
        return []
    return [
        "No positive class was stated, so both classes are treated alike. With --positive CLASS, train and evaluate "
        "report sensitivity, specificity, operating points and a decision curve for the class that is to be found."
    ]


def _has_threshold_of_valid(metrics: Mapping[str, Any]) -> bool:
    """Whether a threshold was chosen on the model's own predictions of the valid split, not on those out of fold."""
    if "labels" in metrics:
        chosen = [name for name, row in metrics["labels"].items() if row.get("min_sensitivity")]
    else:
        chosen = [] if metrics["threshold"] is None else [metrics["positive"]]
    return any(not is_out_of_fold(choice_of(metrics, name)) for name in chosen)


def _is_warning(line: str) -> bool:
    return line.startswith(("warning", "the test split"))


def _selected_epoch(metrics: Mapping[str, Any], details: Mapping[str, Any]) -> bool:
    return metrics["split"] == "valid" and "best_epoch" in details


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_text(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
