"""Runs one of the peer searches in a process of its own and prints its best validation loss."""

import sys
from pathlib import Path

from tests.bench.peers import search

if __name__ == "__main__":
    name, trials, epochs, *folders = sys.argv[1:]
    search.ready()
    images, weights, storage = map(Path, folders)
    print(getattr(search, name)(images, weights, storage, trials=int(trials), epochs=int(epochs)))
