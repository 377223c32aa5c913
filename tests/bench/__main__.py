"""`make bench`: run every benchmark, or those named, and write RESULTS.md and results.json.

A benchmark is a module of this folder with `run() -> list[Row]`; `python -m tests.bench loader` runs one alone.
"""

import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.bench.measure import Row

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "measure"}
PACKAGES = ("torch", "torchvision", "ray", "rq", "redis", "webdataset", "efficientnet_pytorch")


def main(names: list[str]) -> None:
    """Run the benchmarks, keep the rows that were not measured this time, and write both files."""
    known = sorted(file.stem for file in HERE.glob("*.py") if file.stem not in NOT_BENCHMARKS)
    if unknown := set(names) - set(known):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    results = _earlier()
    for name in names or known:
        print(f"== {name}", flush=True)
        rows: list[Row] = importlib.import_module(f"tests.bench.{name}").run()
        results[name] = {
            "machine": machine(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [row.to_json() for row in rows],
        }
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (HERE / "RESULTS.md").write_text(page(results))
    print(page(results))


def machine() -> str:
    """Return processor, cores and library versions in one line."""
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


def page(results: dict) -> str:
    """Return RESULTS.md."""
    lines = [
        "# Figures",
        "",
        "Ours and the peer's in turn, in one run; the ratio is the median over the pairs, with the lowest and",
        "highest pair behind it. Above 1 is better. Written by `make bench`; the peers are in `peers/`.",
        "",
    ]
    for name, part in results.items():
        lines += [
            f"## {name}",
            "",
            f"{part['machine']}; {part['when']}",
            "",
            "| what | beside | ours | peer | ratio (spread, pairs) | goal | parity |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in part["rows"]]
        lines += ["", *(f"- {row['what']}: {row['note']}" for row in part["rows"] if row["note"])]
        lines += ["", *sorted({f"`{row['command']}`" for row in part["rows"]}), ""]
    return "\n".join(lines) + "\n"


def _line(row: dict) -> str:
    low, high = row["spread"]
    goal = f">= {row['goal']:g}x" if row["goal"] else ""
    return (
        f"| {row['what']} | {row['beside']} | {row['ours']:.4g} {row['unit']} | {row['peer']:.4g} {row['unit']} "
        f"| {row['ratio']:.2f}x ({low:.2f}-{high:.2f}, {row['pairs']}) | {goal} | {row['parity']} |"
    )


def _earlier() -> dict:
    file = HERE / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
