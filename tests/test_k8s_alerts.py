"""The alerts, evaluated by Prometheus' own promtool."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s_manifests import K8S

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; it is in Debian's package prometheus"
)
ERRORS_OF_PROGRAMS = (0, 13, 31, 43, 45)
ERRORS_OF_HARDWARE = (46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143)
# Component, alert, its series over 30 hours in steps of 5 minutes, and the labels of the alerts that fire at the end.
CASES: list[tuple[str, str, dict[str, str], list[dict[str, str]]]] = [
    ("prometheus", "NightshiftMetricsAbsent", {}, [{}]),
    ("prometheus", "NightshiftMetricsAbsent", {"nightshift_redis_up": "1x360"}, []),
    ("prometheus", "NightshiftRedisDown", {"nightshift_redis_up": "1x180 0x180"}, [{}]),
    ("prometheus", "NightshiftRedisDown", {"nightshift_redis_up": "1x360"}, []),
    ("prometheus", "NightshiftStorageDown", {"nightshift_storage_up": "1x180 0x180"}, [{}]),
    ("prometheus", "NightshiftStorageDown", {"nightshift_storage_up": "1x360"}, []),
    # While no job worker is alive, nightshift_job_workers has no series.
    ("prometheus", "NightshiftNoJobWorker", {'nightshift_queue_waiting{priority="high"}': "2x360"}, [{}]),
    (
        "prometheus",
        "NightshiftNoJobWorker",
        {'nightshift_queue_waiting{priority="high"}': "2x360", 'nightshift_job_workers{state="busy"}': "1x360"},
        [],
    ),
    ("prometheus", "NightshiftNoJobWorker", {'nightshift_queue_waiting{priority="high"}': "0x360"}, []),
    (
        "prometheus",
        "NightshiftRunsWaitLong",
        {
            'nightshift_queue_oldest_waiting_seconds{priority="low"}': "0+300x360",
            'nightshift_queue_oldest_waiting_seconds{priority="high"}': "600x360",
            "nightshift_queues_paused": "0x360",
        },
        [{"priority": "low"}],
    ),
    (
        "prometheus",
        "NightshiftRunsWaitLong",
        {
            'nightshift_queue_oldest_waiting_seconds{priority="low"}': "0+300x360",
            "nightshift_queues_paused": "1x360",
        },
        [],
    ),
    ("prometheus", "NightshiftQueuesPaused", {"nightshift_queues_paused": "1x360"}, [{}]),
    ("prometheus", "NightshiftQueuesPaused", {"nightshift_queues_paused": "0x120 1x240"}, []),
    ("prometheus", "NightshiftRunsLost", {'nightshift_runs_ended_total{state="lost"}': "0x354 1x5"}, [{}]),
    ("prometheus", "NightshiftRunsLost", {'nightshift_runs_ended_total{state="failed"}': "0x354 1x5"}, []),
    ("prometheus", "NightshiftAttemptsLost", {'nightshift_attempts_lost_total{kind="train"}': "0x354 3x5"}, [{}]),
    ("prometheus", "NightshiftAttemptsLost", {'nightshift_attempts_lost_total{kind="train"}': "0x354 2x5"}, []),
    (
        "dcgm",
        "NightshiftGpuBroken",
        {f'DCGM_FI_DEV_XID_ERRORS{{gpu="{n}"}}': f"{n}x360" for n in (*ERRORS_OF_PROGRAMS, *ERRORS_OF_HARDWARE)},
        [{"gpu": str(number)} for number in ERRORS_OF_HARDWARE],
    ),
    # A program's error replaces that of the hardware in the exporter.
    ("dcgm", "NightshiftGpuBroken", {'DCGM_FI_DEV_XID_ERRORS{gpu="48"}': "0x250 48x2 45x357"}, [{"gpu": "48"}]),
    ("dcgm", "NightshiftGpuBroken", {'DCGM_FI_DEV_XID_ERRORS{gpu="48"}': "48x2 45x357"}, []),
]


def groups(component: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((K8S / "components" / component / "alerts.yaml").read_text())["spec"][
        "groups"
    ]
    return found


def test_each_alert_fires_for_its_fault_alone(tmp_path: Path):
    tests = []
    for component, alert, series, firing in CASES:
        rule = next(r for group in groups(component) for r in group["rules"] if r["alert"] == alert)
        severity = {"severity": rule["labels"]["severity"]}
        expected = [
            {"exp_labels": severity | labels, "exp_annotations": annotations(rule, labels)} for labels in firing
        ]
        check = {"eval_time": "30h", "alertname": alert, "exp_alerts": expected}
        data = [{"series": name, "values": values} for name, values in series.items()]
        tests.append({"interval": "5m", "input_series": data, "alert_rule_test": [check]})
    rules = [group for component in ("prometheus", "dcgm") for group in groups(component)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": rules}))
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": tests})
    )

    command = ["promtool", "test", "rules", "tests.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert {rule["alert"] for group in rules for rule in group["rules"]} == {alert for _, alert, *_ in CASES}


def annotations(rule: dict[str, Any], labels: dict[str, str]) -> dict[str, str]:
    """Return a rule's annotations for an alert with these labels; the value of a GPU's series is its number here."""
    replaced = {"priority": labels.get("priority", ""), "gpu": labels.get("gpu", ""), "Hostname": ""}
    found = {}
    for name, template in rule["annotations"].items():
        found[name] = template.replace("{{ $value }}", labels.get("gpu", ""))
        for label, value in replaced.items():
            found[name] = found[name].replace(f"{{{{ $labels.{label} }}}}", value)
    return found
