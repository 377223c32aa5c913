"""The network, its pretrained weights, checkpoints and published models."""
