"""The git commit of the running source."""

import subprocess
from pathlib import Path

SECONDS = 10.0  # git answers in milliseconds; a hanging file system must not hold up a report
ROOT = Path(__file__).resolve().parents[2]


def source_version(root: Path = ROOT) -> str:
    """Return the commit of the source in `root` and whether it was changed; without a git checkout say so."""
    top, commit = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    if not commit or top is None or Path(top).resolve() != root.resolve():
        return "installed package, no git checkout"
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit[:12] + ("" if changed == "" else ", with uncommitted changes" if changed else ", changes unknown")


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints, None if it fails or is not installed."""
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],  # another git may be at work in the checkout
            capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
