"""The use of each GPU over the last hour as a chart."""

from collections.abc import Callable, Sequence
from statistics import fmean

from cluster.gpu_use import GpuUse
from jobs.queue.gpu_history import KEPT_SECONDS, GpuHistory
from trainer.report.charts import ReportChart
from trainer.report.svg_chart import Axis, Line, chart

MINUTE = 60
GIBIBYTE = 2**30


def gpu_charts(histories: Sequence[GpuHistory]) -> tuple[ReportChart, ...]:
    """Return a chart for each GPU: utilization and memory in percent, as means of each minute."""
    return tuple(_chart(history) for history in histories)


def _chart(history: GpuHistory) -> ReportChart:
    newest = history.newest
    lines = [
        _line(history, "utilization", lambda gpu: gpu.utilization, 0),
        _line(history, "memory", lambda gpu: gpu.used_bytes / gpu.memory_bytes if gpu.memory_bytes else None, 1),
    ]
    title = f"{history.machine}: GPU {history.index}"
    busy = "utilization unknown" if newest.utilization is None else f"{newest.utilization:.0%} busy"
    used = f"{newest.used_bytes / GIBIBYTE:.1f} of {newest.memory_bytes / GIBIBYTE:.1f} GiB"
    drawn = chart(
        [line for line in lines if line.xs],
        x=Axis(name="minutes, 0 is now", low=-KEPT_SECONDS / MINUTE, high=0, whole=True),
        y=Axis(name="%", low=0, high=100, whole=True),
        description=f"utilization and memory of {title} in percent over the last hour",
    )
    return ReportChart(chart=drawn, title=title, caption=f"{newest.name}, {busy}, {used}")


def _line(history: GpuHistory, name: str, value_of: Callable[[GpuUse], float | None], colour: int) -> Line:
    minutes: dict[int, list[float]] = {}
    for age, gpu in history.points:
        value = value_of(gpu)
        if value is not None:
            minutes.setdefault(-int(age // MINUTE), []).append(100 * value)
    xs = sorted(minutes)
    return Line(name=name, xs=xs, ys=[fmean(minutes[x]) for x in xs], colour=colour)
