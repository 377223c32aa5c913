"""What limits the figures of a run, in words."""

from jobs.runs.record import JobRecord
from trainer.evaluation.decision_text import decision_line, threshold_lines
from trainer.evaluation.metric_text import prevalence_lines
from trainer.evaluation.seen_images import evaluation_lines

DECIDING = ("evaluate", "predict", "export")  # kinds of runs whose result depends on a decision rule


def decision_rows(record: JobRecord) -> list[tuple[str, str]]:
    """Return the decision rule of an evaluation, prediction or export, and what is known about threshold and images."""
    if record.result is None or record.state.kind not in DECIDING:
        return []
    metrics = record.result["metrics"]
    values = metrics if record.state.kind == "evaluate" else record.result
    rows = [("decision", decision_line(values)), *(("", line) for line in threshold_lines(metrics))]
    seen = evaluation_lines(record.result, str(metrics.get("split"))) if record.state.kind == "evaluate" else []
    rows += [("", line) for line in prevalence_lines(metrics)]
    return [*rows, *((("images" if at == 0 else ""), line) for at, line in enumerate(seen))]
