"""Sphinx builds the user guide from this folder: `make docs`. The pages are Markdown and need no internet."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import reference

from cluster.version import VERSION

project = "Nightshift"
version = release = VERSION
extensions = ["myst_parser"]
myst_heading_anchors = 3
highlight_language = "sh"
exclude_patterns = ["examples"]
html_theme = "furo"
html_title = f"Nightshift {version}"
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_show_sphinx = False
GENERATED = {"commands": reference.commands, "settings": reference.settings}


def prepare_page(_app: Sphinx, page: str, content: list[str]) -> None:
    """Append the reference that is generated from the code, and make links to files outside the guide downloads."""
    text = content[0] + (GENERATED[page]() if page in GENERATED else "")
    content[0] = re.sub(r"\]\((\.\./[^)]+)\)", r"](path:\1)", text)


def setup(app: Sphinx) -> None:
    """Connect what changes a page before it is parsed."""
    app.connect("source-read", prepare_page)
