"""`shards audit` as people type it."""

import contextlib
import json
import os
import signal
import time

import psutil
import pytest

from data_shards.index import read_index
from jobs.cli import shards_audit
from tests.audited import CHECK, digits, packed
from tests.processes import command_line
from tests.stack import command_in_group
from trainer.audit.saved import read_audit


def test_the_command_prints_what_it_found_and_keeps_it_for_reports(tmp_path, settings, say):
    location = packed(tmp_path, *digits(3, 7, seed=5))

    code, out, err = say(
        "shards", "audit", location, "--json", "--image-size", "32", "--html", str(tmp_path / "a.html")
    )
    _, table, said = say("shards", "audit", location, "--image-size", "32", "--max-images", "50")

    found = json.loads(out)
    assert (code, found["alarm"], found["images"], found["total"]) == (0, False, 80, 80)
    assert {"name", "auroc", "low", "high"} <= found["checks"][0].keys()
    assert table.splitlines()[0].split()[:2] == ["CHECK", "AUROC"]
    assert table.splitlines()[-1] == found["sentence"]
    assert "a random sample of 50 of 80 images was read" in said
    assert f"wrote {tmp_path / 'a.html'}" in err
    assert read_audit(settings.storage, read_index(location).digest)["sentence"] == found["sentence"]
    assert found["sentence"] in (tmp_path / "a.html").read_text()


def test_a_missing_data_set_is_one_line(tmp_path, say):
    code, out, err = say("shards", "audit", str(tmp_path / "none"))

    assert (code, out) == (1, "")
    assert str(tmp_path / "none" / "index.json") in err
    assert len(err.strip().splitlines()) == 1


def test_the_terminal_shows_a_model_beside_the_checks(say, monkeypatch):
    check = {**CHECK, "name": "image size"}
    one = {"check": 0.5, "model": 0.9, "difference": 0.4, "interval": [0.3, 0.5], "images": 24}
    beside = {"split": "test", "classes": ["a", "b"], "differences": {"rim": one}}
    found = {"checks": [CHECK, check], "contradictions": [], "images": 24, "total": 24, "sentence": "s"}
    found |= {"model": beside}
    monkeypatch.setattr(shards_audit, "_run", lambda _: found)
    monkeypatch.setattr(shards_audit, "_predictions", lambda *_: "p.safetensors")

    code, out, _ = say("shards", "audit", "shards", "--model", "night")

    rows = [line.split("  ") for line in out.splitlines()]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert code == 0
    assert cells[1][4:6] == ["0.900", "+0.400 (+0.300 to +0.500)"]
    assert cells[2][4:6] == ["-", "-"]
    assert "night: its AUROC on 24 images of the test split" in out


def test_a_model_that_was_not_evaluated_on_the_data_set_gets_the_command_that_does_it(say, shards, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "head.json").write_text("{}")
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": "0" * 64}}))

    code, out, err = say("shards", "audit", shards, "--model", str(tmp_path / "model"))

    assert (code, out) == (1, "")
    assert err == (
        f"Error: {tmp_path / 'model'} has no evaluation of {shards}; run: nightshift evaluate {tmp_path / 'model'} "
        f"{shards} --wait\n"
    )


def test_a_page_that_cannot_be_written_is_refused_before_an_image_is_read(tmp_path, say):
    page = tmp_path / "none" / "a.html"

    code, out, err = say("shards", "audit", packed(tmp_path, *digits(3, 7, seed=5)), "--html", str(page))

    assert (code, out) == (2, "")
    assert err == f"Error: --html {page} cannot be written; name a file in a folder that exists\n"


@pytest.fixture
def running_audit(tmp_path):
    """The command with its process that audits, which has just started; in a process group, as on a terminal."""
    location = packed(tmp_path, *digits(3, 7, seed=5))
    command = command_in_group("shards", "audit", location, storage=tmp_path / "storage")
    children = []
    while not children and command.poll() is None:
        children = [child for child in command.children() if "trainer.audit" in command_line(child)]
        time.sleep(0.01)
    yield command, children[0]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    command.communicate()


def test_ctrl_c_ends_the_audit_with_a_line_and_leaves_no_process(running_audit):
    command, child = running_audit

    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=600)

    assert (command.returncode, out, err.strip()) == (130, "", "Error: stopped by Ctrl-C")
    assert psutil.wait_procs([child], timeout=600)[1] == []


def test_a_killed_audit_leaves_no_process_and_no_traceback(running_audit):
    command, child = running_audit

    command.kill()
    _, err = command.communicate(timeout=600)

    assert psutil.wait_procs([child], timeout=600)[1] == []
    assert err == ""
