"""The `nightshift` command.

Python imports what is in the folders of `PYTHONPATH` before its own library and the installed packages. A `jobs.py`, a
`trainer.py` or a `random.py` of the user would so be imported in place of ours. This module has a name that nobody else
uses, and moves these folders behind all others, here and in every process that is started from here.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = str(Path(__file__).parent)  # of our packages; an editable installation has it behind `PYTHONPATH`


def main() -> None:
    """Run the command line."""
    if not sys.flags.ignore_environment and (named := os.environ.get("PYTHONPATH")):
        sys.path[:] = own_packages_first(sys.path, named)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        from jobs.__main__ import main as run  # noqa: PLC0415 -- now that it is ours

        run()
    except KeyboardInterrupt:  # while modules are imported
        sys.stderr.write("Error: stopped by Ctrl-C\n")
        sys.exit(128 + 2)


def own_packages_first(search: Sequence[str], named: str) -> list[str]:
    """Return the import path with the folders of `PYTHONPATH` behind all others.

    Args:
        search: The import path, `sys.path`.
        named: The value of `PYTHONPATH`; an empty folder in it means the working directory.
    """
    theirs = [os.path.abspath(folder) for folder in named.split(os.pathsep)]  # noqa: PTH100 -- as Python does
    scripts = str(Path(sys.argv[0]).parent)  # the folder of the command itself, which Python puts first
    library = str(Path(os.__file__).parent)
    if library in theirs:  # the command was started by another one; somebody may have added folders since
        theirs = theirs[: theirs.index(library)]
    ours = [folder for folder in search if folder and folder not in (*theirs, scripts)]
    return list(dict.fromkeys((*ours, ROOT, *theirs)))


if __name__ == "__main__":
    main()
