"""The commands for backup and restore in k8s/README.md, with tar, on folders of this machine."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from redis import Redis

from cluster.settings import Settings
from jobs.queue import embedded_redis, queues
from jobs.runs.request import PRIORITIES
from tests.conftest import Say
from tests.k8s_manifests import K8S

README = (K8S / "README.md").read_text()


def tar_of_readme(option: str, storage: Path) -> list[str]:
    """The tar command of the README with this option, for another storage folder."""
    lines = re.findall(rf"-- (tar -C /storage .*{option} -.*?) [<>] nightshift.tar$", README, re.MULTILINE)
    assert len(lines) == 1
    return [str(storage) if word == "/storage" else word for word in shlex.split(lines[0])]


def test_the_backup_is_readable_by_its_owner_alone(tmp_path: Path):
    (block,) = re.findall(r"```sh\n([^`]*> nightshift.tar\n)```", README)
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "group.key").write_text("secret")
    in_pod = 'kubectl() { while [ "$1" != -- ]; do shift; done; shift; "$@"; }\n'

    script = in_pod + block.replace("/storage", str(storage))
    subprocess.run(["sh", "-euc", f"umask 022\n{script}"], cwd=tmp_path, check=True)

    backup = tmp_path / "nightshift.tar"
    assert b"secret" in backup.read_bytes()
    assert oct(backup.stat().st_mode & 0o777) == "0o600"


def test_a_restored_storage_with_an_empty_redis_has_all_runs_and_queues_what_had_not_ended(
    say: Say, shards: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--weights", "none", "--epochs", "1"]
    first = say("train", shards, "--name", "first", *options)[1].strip()
    second = say("train", shards, "--priority", "high", *options)[1].strip()
    ended = say("train", shards, *options)[1].strip()
    say("cancel", ended)
    before = {run["id"]: run["state"] for run in json.loads(say("list", "--json")[1])}
    (settings.storage / "features").mkdir(exist_ok=True)
    (settings.storage / "features" / "large").write_text("computed again when a run needs it")
    restored = tmp_path / "restored"
    restored.mkdir()

    backup = subprocess.run(tar_of_readme("-cf", settings.storage), capture_output=True, check=True).stdout
    subprocess.run(tar_of_readme("-xf", restored), input=backup, check=True)
    server = embedded_redis.ensure_running(restored)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(restored))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", server.url)
    try:
        reconciled = say("reconcile")
        after = {run["id"]: run["state"] for run in json.loads(say("list", "--json")[1])}
        with Redis.from_url(server.url) as connection:
            waiting = {priority: queues.waiting(connection, priority) for priority in PRIORITIES}
        named = json.loads(say("show", "first", "--json")[1])["id"]
    finally:
        embedded_redis.stop(restored)

    assert reconciled[0] == 0, reconciled[2]
    assert before == after == {first: "queued", second: "queued", ended: "cancelled"}
    assert (waiting["high"], waiting["normal"], waiting["low"]) == ([second], [first], [])
    assert named == first
    assert not (restored / "features").exists()
