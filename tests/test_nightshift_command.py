"""The entry point: a module of the user is never imported in place of one of ours, a library's or Python's."""

import os
import subprocess
import sys
from pathlib import Path

import nightshift_command
from nightshift_command import ROOT, own_packages_first

SHADOWS = ("jobs", "trainer", "cluster", "data_shards", "random", "click")
# Runs the command, and then imports in a process as a job worker is started.
STARTER = f"""
import runpy, subprocess, sys
sys.argv = ["nightshift", "--version"]
try:
    runpy.run_path({nightshift_command.__file__!r}, run_name="__main__")
except SystemExit:
    pass
imports = "import {", ".join(SHADOWS)}, theirs; print(theirs.NAME)"
subprocess.run([sys.executable, "-P", "-c", imports], check=True)
"""


def test_modules_in_a_folder_of_pythonpath_are_found_and_replace_none_of_ours(tmp_path: Path) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)")
    (tmp_path / "theirs.py").write_text("NAME = 'a module of the user'")
    said = []

    for named in (f"../{tmp_path.name}", os.pathsep):  # an empty folder is the working directory
        command = [sys.executable, "-P", "-c", STARTER]
        environment = {**os.environ, "PYTHONPATH": named}
        said.append(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False))

    for one in said:
        assert one.stderr == ""
        assert one.stdout.splitlines()[0].startswith("nightshift, version ")
        assert one.stdout.splitlines()[1:] == ["a module of the user"]
    assert not (tmp_path / "ran").exists()


def test_the_folders_of_pythonpath_come_last_and_a_second_time_changes_nothing() -> None:
    library = str(Path(os.__file__).parent)
    search = ["/home/ann/project", library, f"{library}/site-packages"]

    first = own_packages_first(search, "/home/ann/project:/home/ann/data")
    second = own_packages_first(first, os.pathsep.join(first))
    third = own_packages_first(["/home/ann/later", *first], os.pathsep.join(("/home/ann/later", *first)))

    assert first == [library, f"{library}/site-packages", ROOT, "/home/ann/project", "/home/ann/data"]
    assert second == first
    assert third == [*first, "/home/ann/later"]


# Presses Ctrl-C while the modules of the command line are imported.
INTERRUPTED = f"""
import os, runpy, signal, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path({nightshift_command.__file__!r}, run_name="__main__")
"""


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", INTERRUPTED]

    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout, said.stderr) == (130, "", "Error: stopped by Ctrl-C\n")
