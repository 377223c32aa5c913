"""The version of Nightshift; `pyproject.toml` reads it here.

A source tree that is not installed has no package metadata, and those of an editable installation can be out of date.
"""

VERSION = "0.1.0"
