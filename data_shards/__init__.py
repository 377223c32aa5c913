"""What a shard is: packing, checking, planning and streaming. Imports no other package of the project."""

import os

# webdataset reads this once, when it is imported: no pickles from shards, no programs started from URLs.
os.environ["WDS_SECURE"] = "1"
