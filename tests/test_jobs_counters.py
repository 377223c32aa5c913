"""Metrics of ended runs, as Prometheus' own client writes and reads them, and the alerts that use the names."""

import json
import re
import signal
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.prometheus import Metrics
from jobs.runs.state import RunState
from tests.conftest import Say
from tests.k8s_manifests import K8S
from tests.stack import eventually, free_port
from tests.test_jobs_watch import scrape

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
EVERY_KIND = ("train", "evaluate", "search", "predict", "export")
EVERY_END = ("succeeded", "failed", "lost", "cancelled")


def write_run(
    settings: Settings,
    number: int,
    state: str = "succeeded",
    ended: bool = True,
    end: str = "2026-11-23T01:02:00+00:00",
) -> None:
    run_id = f"train-20261123-00000{number}-aaaaaa"
    paths = RunPaths.of(settings.storage, run_id)
    paths.folder.mkdir(parents=True, exist_ok=True)
    times = {"created": "2026-11-23T00:00:00+00:00", "started": "2026-11-23T00:02:00+00:00"}
    value = RunState(id=run_id, kind="train", state=state, **times, ended=end if ended else None)  # type: ignore[arg-type]
    write_json(paths.state, value.to_json())
    marker = settings.storage / "pending" / run_id
    marker.parent.mkdir(exist_ok=True)
    marker.unlink(missing_ok=True) if ended else marker.touch()


def samples(registry: CollectorRegistry) -> Samples:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def ended_runs(found: Samples) -> dict[tuple[str, str], float]:
    """The count of each kind and state."""
    counts = {labels: value for (name, labels), value in found.items() if name == "nightshift_runs_ended_total"}
    return {(dict(labels)["kind"], dict(labels)["state"]): value for labels, value in counts.items()}


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

    assert ended_runs(found) == {
        **dict.fromkeys(product(EVERY_KIND, EVERY_END), 0.0),
        ("train", "succeeded"): 1.0,
        ("train", "failed"): 1.0,
    }


def test_every_series_begins_at_0_so_that_prometheus_sees_the_first_run(registry: CollectorRegistry) -> None:
    found = samples(registry)

    assert ended_runs(found) == dict.fromkeys(product(EVERY_KIND, EVERY_END), 0.0)
    counts = [value for (name, _), value in found.items() if re.fullmatch(r"nightshift_run_\w+_seconds_count", name)]
    assert counts == [0.0] * (len(EVERY_KIND) + len(EVERY_KIND) * len(EVERY_END))
    assert [name for name, _ in found if name.endswith("_created")] == []


def test_a_run_that_is_retried_is_counted_at_each_end(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1, "failed")
    samples(registry)
    write_run(settings, 1, "running", ended=False)
    samples(registry)
    write_run(settings, 1)

    found = samples(registry)

    assert found["nightshift_runs_ended_total", frozenset({("kind", "train"), ("state", "failed")})] == 1.0
    assert found["nightshift_runs_ended_total", frozenset({("kind", "train"), ("state", "succeeded")})] == 1.0


@pytest.mark.parametrize("number", [0, 1], ids=["ended before", "ended since"])
def test_the_histograms_have_only_the_first_end_of_a_run_that_is_retried(
    settings: Settings, registry: CollectorRegistry, number: int
) -> None:
    write_run(settings, 1, "failed")
    samples(registry)
    write_run(settings, number, "running", ended=False)
    samples(registry)
    write_run(settings, number, end="2026-12-23T00:00:00+00:00")

    found = samples(registry)

    def ran(state: str) -> float:
        return found["nightshift_run_running_seconds_sum", frozenset({("kind", "train"), ("state", state)})]

    assert found["nightshift_run_waiting_seconds_count", frozenset({("kind", "train")})] == 1.0
    assert (ran("failed"), ran("succeeded")) == (3600.0, 0.0)


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


def test_a_time_above_all_bounds_is_counted_in_the_last_bucket(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    write_run(settings, 2, end="2026-12-23T00:00:00+00:00")

    found = samples(registry)

    def running(bound: str) -> float:
        labels = {("kind", "train"), ("state", "succeeded"), ("le", bound)}
        return found["nightshift_run_running_seconds_bucket", frozenset(labels)]

    assert [running(bound) for bound in ("10.0", "86400.0", "+Inf")] == [0.0, 1.0, 2.0]


def test_every_name_in_an_alert_is_exported(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    exported = {name for name, _ in samples(registry)} | {"nightshift_job_workers"}  # absent while none is alive
    rules = yaml.safe_load((K8S / "components/prometheus/alerts.yaml").read_text())["spec"]["groups"][0]["rules"]

    used = {name for rule in rules for name in re.findall(r"\bnightshift_\w+", rule["expr"])}

    assert len(rules) == 6
    assert used <= exported


def dashboard_panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((K8S / "components/prometheus/dashboard.json").read_text())["panels"]
    return found


def test_each_query_of_the_dashboard_uses_exported_names_with_their_labels(
    settings: Settings, registry: CollectorRegistry
) -> None:
    write_run(settings, 1)
    write_run(settings, 2, state="running", ended=False)
    labels = {"nightshift_job_workers": {"state"}}  # absent while none is alive
    for name, own in samples(registry):
        labels.setdefault(name, set()).update(dict(own))
    queries = [target["expr"] for panel in dashboard_panels() for target in panel["targets"]]

    assert len(queries) == 14
    for query in queries:
        [name] = re.findall(r"\bnightshift_\w+", query)
        selected = re.findall(r"(\w+)=", re.search(r"\{(.*?)\}", query)[1])  # type: ignore[index]
        grouped = [label.strip() for group in re.findall(r"by \((.*?)\)", query) for label in group.split(",")]
        assert name in labels, query
        assert {*selected, *grouped} - {"namespace"} <= labels[name], query  # of the pod, from Prometheus
        assert query.count("(") == query.count(")")


def test_every_metric_is_on_the_dashboard(registry: CollectorRegistry) -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE))
    queries = " ".join(target["expr"] for panel in dashboard_panels() for target in panel["targets"])

    used = {name.removesuffix("_bucket") for name in re.findall(r"\bnightshift_\w+", queries)}

    assert used == exported


def test_the_panels_of_the_dashboard_cover_nothing_of_each_other() -> None:
    places = [panel["gridPos"] for panel in dashboard_panels()]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24  # the columns of Grafana's grid
    assert sorted(panel["id"] for panel in dashboard_panels()) == list(range(1, len(places) + 1))


def test_the_readme_of_k8s_names_each_metric(registry: CollectorRegistry) -> None:
    exported = re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE)
    rows = [line for line in (K8S / "README.md").read_text().splitlines() if line.startswith("| `nightshift_")]

    named = [name for row in rows for name in re.findall(r"`(nightshift_\w+)", row)]

    assert sorted(named) == sorted(exported)


def test_the_command_of_the_pod_serves_until_sigterm(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environment = {"NIGHTSHIFT_STORAGE": str(settings.storage), "NIGHTSHIFT_REDIS_URL": str(settings.redis_url)}
    command = [sys.executable, "-P", "-m", "jobs", "k8s", "metrics", "--port", str(port)]
    process = subprocess.Popen(command, env={**environment, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    try:
        assert eventually(lambda: answers(port), seconds=60)
        text = scrape(port)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=100)
    finally:
        process.kill()

    assert "nightshift_redis_up 1.0" in text
    assert 'nightshift_queue_oldest_waiting_seconds{priority="high"} 0.0' in text
    assert code == 0


@pytest.mark.parametrize("command", [["k8s", "metrics", "--port"], ["worker", "--metrics-port"]], ids=" ".join)
def test_a_port_that_is_taken_is_refused(say: Say, command: list[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = say(*command, str(port))

    assert code == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()  # the process can be stopped as before
    assert f"port {port} cannot be opened (Address already in use); choose another\n" in error


def answers(port: int) -> bool:
    try:
        return bool(scrape(port))
    except OSError:
        return False
