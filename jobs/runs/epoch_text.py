"""The epochs of a training in words: how many ran, which was the best, whether it stopped early, and the last one."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.counted import counted
from jobs.runs.record import JobRecord
from trainer.evaluation.metric_text import figure_text, metric_name

VALID = ("loss", "accuracy", "balanced_accuracy", "auroc")


def epoch_rows(record: JobRecord) -> list[tuple[str, str]]:
    """Return what to show of the epochs of a run, as label and text of each line; none before its first epoch."""
    if not record.metrics:
        return []
    last = record.metrics[-1]
    parts = [f"{last['epoch']} of {last.get('epochs') or '?'}"]
    by = str(record.spec.get("best_by") or "loss")
    best = [line for line in record.metrics if line.get("best")]
    if best:
        value = _number(best[-1], f"valid_{by}")
        scaling = ", before temperature scaling" if by == "loss" and _is_scaled(record) else ""
        figure = "" if value is None else f" ({figure_text(value, of=by)}{scaling})"
        parts.append(f"the best by valid {metric_name(by)} is epoch {best[-1]['epoch']}{figure}")
    if record.result is not None and _stopped_early(record.spec, last, best):
        waited = counted(record.spec["patience"], "epoch")
        parts.append(f"stopped early, because {waited} brought no better one (--patience)")
    return [("epochs", "; ".join(parts)), ("last", _sentence(last))]


def _is_scaled(record: JobRecord) -> bool:
    """Whether the loss of the result differs from that of its epoch, as a temperature was fitted in between."""
    metrics = (record.result or {}).get("metrics") or {}
    rows = [metrics, *(metrics.get("labels") or {}).values()]
    return any(row.get("temperature", 1.0) != 1.0 for row in rows)


def _stopped_early(spec: Mapping[str, Any], last: Mapping[str, Any], best: Sequence[Mapping[str, Any]]) -> bool:
    patience, epochs = spec.get("patience"), last.get("epochs")
    if not patience or not epochs or last["epoch"] >= epochs:
        return False
    return bool(last["epoch"] - (best[-1]["epoch"] if best else 0) >= patience)


def _sentence(line: Mapping[str, Any]) -> str:
    """Return an epoch like its line in the log, with its speed."""
    known = {name: _number(line, f"valid_{name}") for name in VALID}
    valid = [f"{metric_name(name)} {figure_text(value, of=name)}" for name, value in known.items() if value is not None]
    parts = [f"epoch {line['epoch']}"]
    if (loss := _number(line, "train_loss")) is not None:
        parts[0] += f": training loss {figure_text(loss, of='loss')}"
    parts += [f"valid {', '.join(valid)}"] if valid else []
    if (speed := _number(line, "images_per_second")) is not None:
        parts.append(f"{speed:.0f} images/s")
    return "; ".join(parts)


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
