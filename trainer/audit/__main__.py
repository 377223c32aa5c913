"""Runs an audit in a process of its own, so that the command line need not import scikit-learn.

`python -m trainer.audit` reads the arguments as JSON from stdin and writes lines of JSON to stdout: the progress, then
the result or an error.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from cluster.access import unreadable
from data_shards.errors import ShardError
from data_shards.index import read_index
from data_shards.read.shard_cache import limit_default_cache
from trainer.audit.audit import audit
from trainer.audit.page import write_page
from trainer.audit.saved import save_audit
from trainer.errors import TrainerError


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the audit that stdin asks for."""
    wanted = json.loads(sys.stdin.readline())
    limit_default_cache(wanted.pop("cache_bytes"))
    location, html, storage = wanted.pop("shards"), wanted.pop("html"), wanted.pop("storage")
    try:
        index = read_index(location)
        found = audit(location, index, on_progress=lambda done, total: _say({"done": done, "total": total}), **wanted)
    except (ShardError, TrainerError) as error:
        _end(str(error))
    except OSError as error:
        _end(unreadable(error, location))
    with _writing(storage):
        save_audit(Path(storage), index.digest, found.to_json(), found.scores)
    if html:
        with _writing(html):
            write_page(Path(html), location, found, index.classes)
    _say({"audit": found.to_json()})


@contextmanager
def _writing(place: str) -> Iterator[None]:
    """End with a line that names `place` if the block cannot write there."""
    try:
        yield
    except OSError as error:
        _end(f"{place} cannot be written ({error.strerror}); check the path and its free space")


def _end(fault: str) -> NoReturn:
    _say({"error": fault})
    sys.exit(1)


if __name__ == "__main__":
    main()
