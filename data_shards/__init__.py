"""Shards of images: packing, checking, planning and streaming. Imports no other package of the project."""

import os

# webdataset reads this when it is imported: it then loads no pickles from shards and runs no programs from URLs.
os.environ["WDS_SECURE"] = "1"
