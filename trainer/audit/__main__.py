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

import numpy as np

from cluster.access import unreadable
from data_shards.errors import ShardError
from data_shards.index import read_index
from data_shards.read.shard_cache import limit_default_cache
from trainer.audit.audit import Audit, audit
from trainer.audit.page import JudgedBesideAudit, write_page
from trainer.audit.saved import save_audit
from trainer.errors import CheckpointError, TrainerError
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.temperature import apply_temperature


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the audit that stdin asks for."""
    wanted = json.loads(sys.stdin.readline())
    limit_default_cache(wanted.pop("cache_bytes"))
    location, html, storage = wanted.pop("shards"), wanted.pop("html"), wanted.pop("storage")
    predictions = wanted.pop("predictions")
    try:
        index = read_index(location)
        judged = None if predictions is None else _judged(Path(predictions))
        found = audit(location, index, on_progress=lambda done, total: _say({"done": done, "total": total}), **wanted)
    except (ShardError, TrainerError) as error:
        _end(str(error))
    except OSError as error:
        _end(unreadable(error, location))
    with _writing(storage):
        save_audit(Path(storage), index.digest, found.to_json(), found.scores)
    beside = None if judged is None else _beside(found, judged)
    if html:
        with _writing(html):
            write_page(Path(html), location, found, index.classes, beside)
    _say({"audit": found.to_json() | ({} if beside is None else {"model": beside.to_json()})})


def _judged(path: Path) -> Predictions:
    """Return the predictions of a model.

    Raises:
        CheckpointError: They are damaged, or do not name their images.
    """
    judged = Predictions.read(path)
    if judged.about is None or judged.samples is None:
        raise CheckpointError(f"{path} does not name its images; evaluate the model again")
    return judged


def _beside(found: Audit, judged: Predictions) -> JudgedBesideAudit:
    """Return the AUROC of a model minus that of each check, on the images that both have scored."""
    from trainer.audit.beside_model import compare_with_checks  # noqa: PLC0415 -- it imports torch, which takes seconds

    assert found.scores is not None  # noqa: S101 -- the audit has just been made
    about, samples, count = judged.about, judged.samples, len(judged.ids)
    assert about is not None and samples is not None  # noqa: S101, PT018 -- checked by `_judged`
    differences = compare_with_checks(
        found.scores,
        samples,
        apply_temperature(judged.probabilities, about.temperature or 1.0),
        np.arange(count, dtype=np.int64) if judged.groups is None else judged.groups,
        positive=about.classes.index(about.positive),
    )
    return JudgedBesideAudit(split=about.split, classes=about.classes, differences=differences)


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
