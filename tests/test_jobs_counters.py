"""Metrics of ended runs, as Prometheus' own client writes and reads them, and the alerts that use the names."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.prometheus import Metrics
from jobs.runs.counters import Histogram
from jobs.runs.state import RunState
from tests.k8s_manifests import K8S
from tests.stack import eventually
from tests.test_jobs_watch import free_port, scrape

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def write_run(
    settings: Settings, number: int, state: str = "succeeded", kind: str = "train", ended: bool = True
) -> None:
    run_id = f"{kind}-20261123-00000{number}-aaaaaa"
    paths = RunPaths.of(settings.storage, run_id)
    paths.folder.mkdir(parents=True, exist_ok=True)
    times = {"created": "2026-11-23T00:00:00+00:00", "started": "2026-11-23T00:02:00+00:00"}
    value = RunState(id=run_id, kind=kind, state=state, **times, ended="2026-11-23T01:02:00+00:00" if ended else None)  # type: ignore[arg-type]
    write_json(paths.state, value.to_json())
    marker = settings.storage / "pending" / run_id
    marker.parent.mkdir(exist_ok=True)
    marker.unlink(missing_ok=True) if ended else marker.touch()


def samples(registry: CollectorRegistry) -> Samples:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def registry(settings: Settings) -> CollectorRegistry:
    """A registry with our metrics that knows one ended run from before."""
    write_run(settings, 0)
    found = CollectorRegistry()
    found.register(Metrics(settings))
    generate_latest(found)
    return found


def test_runs_that_end_are_counted_by_kind_and_state_and_once(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    write_run(settings, 2, "failed")
    write_run(settings, 3, "running", ended=False)

    samples(registry)
    found = samples(registry)

    counts = {labels: value for (name, labels), value in found.items() if name == "nightshift_runs_ended_total"}
    assert {tuple(sorted(dict(labels).values())): value for labels, value in counts.items()} == {
        ("succeeded", "train"): 1.0,
        ("failed", "train"): 1.0,
    }


def test_a_run_that_is_retried_is_counted_at_each_end(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1, "failed")
    samples(registry)
    write_run(settings, 1, "running", ended=False)
    samples(registry)
    write_run(settings, 1)

    found = samples(registry)

    assert found["nightshift_runs_ended_total", frozenset({("kind", "train"), ("state", "failed")})] == 1.0
    assert found["nightshift_runs_ended_total", frozenset({("kind", "train"), ("state", "succeeded")})] == 1.0


def test_waiting_and_running_times_are_cumulative_histograms(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    found = samples(registry)
    kind, state = ("kind", "train"), ("state", "succeeded")

    def waiting(bound: str) -> float:
        return found["nightshift_run_waiting_seconds_bucket", frozenset({kind, ("le", bound)})]

    assert [waiting(bound) for bound in ("60.0", "300.0", "+Inf")] == [0.0, 1.0, 1.0]
    assert found["nightshift_run_waiting_seconds_sum", frozenset({kind})] == 120.0
    assert found["nightshift_run_running_seconds_sum", frozenset({kind, state})] == 3600.0
    assert found["nightshift_run_running_seconds_bucket", frozenset({kind, state, ("le", "3600.0")})] == 1.0


def test_a_value_above_all_bounds_is_counted_in_the_last_bucket() -> None:
    histogram = Histogram()

    histogram.add(10.0)
    histogram.add(1e9)

    assert [histogram.buckets[place] for place in (0, -2, -1)] == [("10.0", 1.0), ("86400.0", 1.0), ("+Inf", 2.0)]


def test_every_name_in_an_alert_is_exported(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    exported = {name for name, _ in samples(registry)} | {"nightshift_job_workers"}  # absent while none is alive
    rules = yaml.safe_load((K8S / "components/prometheus/alerts.yaml").read_text())["spec"]["groups"][0]["rules"]

    used = {name for rule in rules for name in re.findall(r"\bnightshift_\w+", rule["expr"])}

    assert len(rules) == 6
    assert used <= exported


def test_the_command_of_the_pod_serves_until_sigterm(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environment = {"NIGHTSHIFT_STORAGE": str(settings.storage), "NIGHTSHIFT_REDIS_URL": str(settings.redis_url)}
    command = [sys.executable, "-P", "-m", "jobs", "k8s", "metrics", "--port", str(port)]
    process = subprocess.Popen(command, env={**environment, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    try:
        assert eventually(lambda: answers(port), seconds=60)
        text = scrape(port)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
    finally:
        process.kill()

    assert "nightshift_redis_up 1.0" in text
    assert 'nightshift_queue_oldest_waiting_seconds{priority="high"} 0.0' in text
    assert code == 0


def answers(port: int) -> bool:
    try:
        return bool(scrape(port))
    except OSError:
        return False
