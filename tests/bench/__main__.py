"""`make bench`: run every benchmark, or those named, and write RESULTS.md and results.json.

A benchmark is a module of this folder with `run() -> list[Row]`. `python -m tests.bench loader` runs one benchmark and
keeps the last rows of the others.
"""

import importlib
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from tests.bench.measure import Absent, Row

HERE = Path(__file__).parent
BENCHMARKS = (
    "training", "heads", "trials", "standing", "search", "forward", "finetuning", "checkpoints", "ddp", "loader",
    "start", "command", "queue_cost", "growth", "gpu", "coverage",
)  # fmt: skip
PACKAGES = ("torch", "torchvision", "ray", "rq", "redis", "webdataset", "efficientnet_pytorch")


def main(names: list[str]) -> None:
    """Run the benchmarks, keep the rows that were not measured this time, and write both files."""
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    results = _earlier()
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        results[name] = measured(name, results.get(name))
        results = {known: results[known] for known in BENCHMARKS if known in results}
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (HERE / "RESULTS.md").write_text(page(results))
    print(page({name: results[name] for name in names or BENCHMARKS}))


def measured(name: str, earlier: dict | None) -> dict:
    """Return the results of one benchmark; if it cannot run, return its earlier results or the reason."""
    began = time.monotonic()
    try:
        rows: list[Row] = importlib.import_module(f"tests.bench.{name}").run()
    except Absent as absent:
        print(f"   left out: {absent}", flush=True)
        return earlier or {"machine": machine(), "when": _now(), "rows": [], "absent": str(absent)}
    return {
        "machine": machine(),
        "when": _now(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rows": [row.to_json() for row in rows],
    }


def machine() -> str:
    """Return processor, cores, the first GPU and library versions in one line."""
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{processor}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()}, {libraries}"


def page(results: dict) -> str:
    """Return the text of RESULTS.md."""
    lines = [
        "# Benchmark results",
        "",
        "Each benchmark measures Nightshift and a peer alternately, in pairs. The ratio is the median over the pairs,",
        "with the lowest and highest pair in parentheses. Above 1, Nightshift is better. `make bench` writes this",
        "file; the peers are in `peers/`. [PLAN.md](PLAN.md) estimates from these figures how training scales to",
        "many GPUs and images.",
        "",
    ]
    for name, part in results.items():
        lines += [f"## {name}", "", *_section(part), ""]
    return "\n".join(lines)


def _section(part: dict) -> list[str]:
    if not part["rows"]:
        return [f"Not run: {part['absent']}."]
    took = f"; took {part['minutes']} minutes" if "minutes" in part else ""
    notes = dict.fromkeys(f"- {row['what']}: {row['note']}" for row in part["rows"] if row["note"])
    commands = sorted({f"`{row['command']}`" for row in part["rows"]})
    return [
        f"{part['machine']}; {part['when']}{took}; {', '.join(commands)}",
        "",
        "| measurement | compared with | ours | peer | ratio (spread, pairs) | goal | parity |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in part["rows"]),
        *(["", *notes] if notes else []),
    ]


def _line(row: dict) -> str:
    low, high = row["spread"]
    return (
        f"| {row['what']} | {row['beside']} | {row['ours']:.4g} {row['unit']} | {row['peer']:.4g} {row['unit']} "
        f"| {row['ratio']:.2f}x ({low:.2f}-{high:.2f}, {row['pairs']}) | {_goal(row)} | {row['parity']} |"
    )


def _goal(row: dict) -> str:
    if row["goal"] is None:
        return ""
    return f">= {row['goal']:g}x, {'met' if row['ratio'] >= row['goal'] else 'missed'}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _earlier() -> dict:
    file = HERE / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
