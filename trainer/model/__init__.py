"""The network, its weights, and the folders that hold them."""
