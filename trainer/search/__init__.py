"""The overnight search: Ray Tune on top, an append-only ledger below, the best model published as it appears."""
