"""Changes tags and note of a run: what people write about it, whatever its state."""

from collections.abc import Sequence

from cluster.files import write_json
from cluster.run_paths import RunPaths
from jobs.errors import Refused
from jobs.runs.request import build_request
from jobs.runs.state import RunState, changing, now


def change_labels(
    paths: RunPaths, *, add: Sequence[str] = (), remove: Sequence[str] = (), note: str | None = None
) -> RunState:
    """Add and remove tags of a run, replace its note, and return its state.

    Args:
        paths: The run.
        add: Tags; those that it has already are left as they are.
        remove: Tags that it has.
        note: The new note; "" removes the note, None leaves it.

    Raises:
        InvalidOption: A tag or the note cannot be used.
        Refused: The run does not have a tag that should be removed.
        StorageError: Its `state.json` is damaged.
        UnknownRun: It does not exist.
    """
    asked = build_request(tags=tuple(add), note=note)
    with changing(paths) as found:
        absent = [tag for tag in remove if tag not in found.tags]
        if absent:
            has = f"it has {', '.join(found.tags)}" if found.tags else "it has none"
            raise Refused(f"{paths.run_id} has no tag {absent[0]!r}; {has}")
        tags = dict.fromkeys((*(tag for tag in found.tags if tag not in remove), *asked.tags))
        state = found.with_changes(
            tags=tuple(tags), note=found.note if note is None else asked.note or None, changed=now()
        )
        # Not `write_state`: that one sends the webhook of a run that has ended once more.
        write_json(paths.state, state.to_json())
    return state
