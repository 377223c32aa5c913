"""A short campaign of kills with a fresh seed, and what its report counts."""

import json
import random
import secrets
from pathlib import Path

import pytest

from cluster.files import write_json
from tests import kills_report
from tests.kills import run_campaign

KILLS, SECONDS = 60, 120.0


@pytest.mark.kills
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost_torn_left_or_published_twice_under_kills(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"python -m tests.kills --kills {KILLS} --seed {seed}")  # pytest shows it when the test fails

    figures = run_campaign(tmp_path, KILLS, seed, SECONDS)

    assert kills_report.is_clean(figures), json.dumps(figures, indent=2)


def test_the_report_finds_torn_files_and_manifests_that_do_not_fit(tmp_path: Path) -> None:
    whole, torn = tmp_path / "state.json", tmp_path / "metrics.jsonl"
    write_json(whole, {"state": "queued"})
    torn.write_text('{"epoch": 1}\n{"epo')
    draft = tmp_path / f".state.json.17.{secrets.token_hex(4)}"
    draft.write_text("{")
    manifest = tmp_path / "best" / "manifest.json"
    manifest.parent.mkdir()
    write_json(manifest, {"files": {"model.safetensors": "0" * 64}})

    found = [file for file in (whole, torn, draft, manifest) if kills_report.is_torn(file)]

    assert found == [torn, manifest]
