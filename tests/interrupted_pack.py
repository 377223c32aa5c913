"""`python -m tests.interrupted_pack ARGUMENTS`: `shards pack`, which waits to be killed once two chunks are encoded."""

import sys
import threading

from data_shards.pack import packing
from data_shards.pack.chunks import Chunk, encode_chunk
from data_shards.pack.options import EncodeOptions
from jobs.cli.shards import shards


def encode_chunk_or_wait(chunk: Chunk, options: EncodeOptions) -> int:
    """Encode a chunk if fewer than two are done, else wait without end."""
    if len(list(chunk.folder.glob("*.json"))) >= 2:
        threading.Event().wait()
    return encode_chunk(chunk, options)


if __name__ == "__main__":
    packing.encode_chunk = encode_chunk_or_wait
    shards(sys.argv[1:])
