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
from jobs.runs.gpu_seconds import LONGEST_SECONDS, GpuSeconds
from jobs.runs.state import RunState, pending_ids, read_state
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
    **changes: Any,
) -> None:
    run_id = f"train-20261123-00000{number}-aaaaaa"
    paths = RunPaths.of(settings.storage, run_id)
    paths.folder.mkdir(parents=True, exist_ok=True)
    times = {"created": "2026-11-23T00:00:00+00:00", "started": "2026-11-23T00:02:00+00:00"}
    value = RunState(id=run_id, kind="train", state=state, **times, ended=end if ended else None, **changes)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("state", ["running", "lost"])
def test_each_lost_attempt_is_counted_once_by_kind_and_from_0_after_a_retry(
    settings: Settings, registry: CollectorRegistry, state: str
) -> None:
    lost = ("nightshift_attempts_lost_total", frozenset({("kind", "train")}))
    write_run(settings, 1, "running", ended=False, losses=1)
    first = samples(registry)[lost]
    write_run(settings, 1, state, ended=state == "lost", losses=3)
    samples(registry)
    third = samples(registry)[lost]
    write_run(settings, 1, "running", ended=False, losses=0)
    samples(registry)
    write_run(settings, 1, losses=1)

    assert (first, third, samples(registry)[lost]) == (1.0, 3.0, 4.0)


def test_attempts_that_were_lost_before_the_first_scrape_are_not_counted(settings: Settings) -> None:
    write_run(settings, 1, "running", ended=False, losses=2)
    registry = CollectorRegistry()
    registry.register(Metrics(settings))

    before = samples(registry)
    write_run(settings, 1, "lost", losses=3)

    lost = ("nightshift_attempts_lost_total", frozenset({("kind", "train")}))
    assert (before[lost], samples(registry)[lost]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"features": {"cached": 30, "computed": 12}}, (30.0, 12.0)),
        ({}, (0.0, 0.0)),  # of version 0.1.0
        ({"features": {"cached": -1, "computed": "12"}}, (0.0, 0.0)),
    ],
)
def test_images_are_counted_by_whether_their_features_were_in_the_cache(
    settings: Settings,
    registry: CollectorRegistry,
    features: dict[str, Any],
    expected: tuple[float, float],
) -> None:
    write_run(settings, 1)
    write_json(RunPaths.of(settings.storage, "train-20261123-000001-aaaaaa").result, {"metrics": {}} | features)

    found = samples(registry)

    counts = [found["nightshift_feature_images_total", frozenset({("source", s)})] for s in ("cached", "computed")]
    assert tuple(counts) == expected


def test_gpu_seconds_are_those_of_the_workers_by_owner_between_scrapes(settings: Settings) -> None:
    write_run(settings, 1, "running", ended=False, owner="ada", attempt=2)
    write_run(settings, 2, "running", ended=False, owner="ada", attempt=1)
    write_run(settings, 3, "queued", ended=False, owner="bo")
    write_run(settings, 4, "running", ended=False, attempt=1)
    gpus = {1: {"gpus": 4, "attempt": 2}, 2: {"gpus": 0.5, "attempt": 1}, 4: {"gpus": 8, "attempt": 0}}
    for number, progress in gpus.items():
        write_json(RunPaths.of(settings.storage, f"train-20261123-00000{number}-aaaaaa").progress, progress)
    states = [read_state(RunPaths.of(settings.storage, run_id)) for run_id in pending_ids(settings.storage)]
    moments = iter([100.0, 130.0, 190.0, 9999.0])
    seconds = GpuSeconds(settings.storage, lambda: next(moments))

    found = [{s.labels["owner"]: s.value for s in seconds.metrics(states)[0].samples} for _ in range(4)]

    # Attempt 1 of the run without an owner has not written its progress yet. The last gap is longer than any interval.
    assert [each["ada"] for each in found] == [0.0, 4.5 * 30, 4.5 * 90, 4.5 * (90 + LONGEST_SECONDS)]
    assert found[-1] == {"ada": 4.5 * (90 + LONGEST_SECONDS), "bo": 0.0, "": 0.0}


@pytest.mark.parametrize("gpus", ["4", -1, 1e12, float("nan"), None])
def test_damaged_numbers_of_gpus_are_no_gpus(settings: Settings, gpus: object) -> None:
    write_run(settings, 1, "running", ended=False, attempt=1)
    paths = RunPaths.of(settings.storage, "train-20261123-000001-aaaaaa")
    paths.progress.write_text(json.dumps({"gpus": gpus, "attempt": 1}))
    moments = iter([0.0, 30.0])
    seconds = GpuSeconds(settings.storage, lambda: next(moments))

    seconds.metrics([read_state(paths)])

    assert [sample.value for sample in seconds.metrics([read_state(paths)])[0].samples] == [0.0]


def test_a_storage_that_is_away_is_named_and_counts_nothing_again_when_it_is_back(
    settings: Settings, registry: CollectorRegistry
) -> None:
    write_run(settings, 1, losses=1)
    write_run(settings, 2, "running", ended=False, losses=1)
    before = samples(registry)
    away = settings.storage.rename(settings.storage.with_name("away"))
    settings.storage.mkdir()
    without = samples(registry)
    settings.storage.rmdir()
    away.rename(settings.storage)

    after = samples(registry)

    up = ("nightshift_storage_up", frozenset[tuple[str, str]]())
    assert (before[up], without[up], after[up]) == (1.0, 0.0, 1.0)
    counted = {key: value for key, value in before.items() if re.search(r"_(total|count|sum)$", key[0])}
    assert {key: without[key] for key in counted} == {key: after[key] for key in counted} == counted
    assert not any(name == "nightshift_runs" for name, _ in without)


def test_every_name_in_an_alert_is_exported(settings: Settings, registry: CollectorRegistry) -> None:
    write_run(settings, 1)
    exported = {name for name, _ in samples(registry)}
    rules = yaml.safe_load((K8S / "components/prometheus/alerts.yaml").read_text())["spec"]["groups"][0]["rules"]

    used = {name for rule in rules for name in re.findall(r"\bnightshift_\w+", rule["expr"])}

    assert len(rules) == 8
    assert used <= exported


def dashboard_panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((K8S / "components/prometheus/dashboard.json").read_text())["panels"]
    return found


def test_each_query_of_the_dashboard_uses_exported_names_with_their_labels(
    settings: Settings, registry: CollectorRegistry
) -> None:
    write_run(settings, 1)
    write_run(settings, 2, state="running", ended=False)
    labels = dict[str, set[str]]()
    for name, own in samples(registry):
        labels.setdefault(name, set()).update(dict(own))
    queries = [target["expr"] for panel in dashboard_panels() for target in panel["targets"]]

    assert len(queries) == 19
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
        assert eventually(lambda: answers(port))
        text = scrape(port)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
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
