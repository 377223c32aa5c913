"""A process that ends without freeing its objects loses nothing that Python would have written at its end."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = (sys.executable, "-E", "-c")  # -E: its streams are buffered whatever the environment says
PROGRAM = """
import atexit, sys, threading, time
from cluster.process_exit import end_process

class Library:
    def __del__(self):
        print("a destructor")

library = Library()

def work():
    time.sleep(0.1)
    print("the thread")

atexit.register(print, "an exit handler")
threading.Thread(target=work).start()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
sys.stderr.write("to stderr")
sys.exit(end_process(7))
"""


def test_threads_exit_handlers_and_streams_end_as_ever_and_objects_are_left_to_the_kernel() -> None:
    found = subprocess.run([*PYTHON, PROGRAM], check=False, cwd=ROOT, capture_output=True, text=True)

    assert (found.returncode, found.stdout, found.stderr) == (7, "the thread\nan exit handler\n", "to stderr")


def test_a_stream_that_cannot_be_flushed_ends_the_process_as_python_does() -> None:
    with subprocess.Popen([*PYTHON, PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.close()  # type: ignore[union-attr]

        code = process.wait()

    assert code == 120  # Python's own
