"""A folder of this user in one where everybody may create files, such as that for temporary files."""

import contextlib
import os
from pathlib import Path


def make_own_folder(path: Path) -> bool:
    """Create a folder that only this user may use, unless it is there; return whether it is a folder of this user.

    Another user may have put a folder, a file or a link in its place. A link of theirs to a folder of this user is no
    folder of this user's.
    """
    with contextlib.suppress(FileExistsError):  # a file, or a link that leads nowhere
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.is_dir() and {path.stat().st_uid, path.lstat().st_uid} == {os.getuid()}
