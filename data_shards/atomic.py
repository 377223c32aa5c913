"""Files that appear whole or not at all. Knows nothing of shards."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` aside, sync it and rename it into place: a reader sees it whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
