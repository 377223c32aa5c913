"""Environment variables of Ray on one machine."""

import json
import os
import subprocess
import sys

from cluster.process_env import LOCAL_RAY

CONNECTS = {"raylet_client_connect_timeout_milliseconds": 10, "raylet_client_num_connect_attempts": 3000}
PROGRAM = """
import json, sys
from ray._raylet import Config
print(json.dumps({name: getattr(Config, name)() for name in sys.argv[1:]}))
"""


def test_ray_reads_how_often_its_raylet_connects():
    found = subprocess.check_output(
        [sys.executable, "-c", PROGRAM, *CONNECTS], env={**os.environ, **LOCAL_RAY}, text=True
    )

    assert json.loads(found) == CONNECTS
