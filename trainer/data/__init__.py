"""From shards and files to the batches that a model sees."""
