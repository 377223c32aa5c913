"""From shards to samples and batches."""
