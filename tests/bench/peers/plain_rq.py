"""Jobs for a plain `rq worker`, written in the usual way: each job imports its modules when it runs."""
# ruff: noqa: PLC0415 -- a job imports when it runs

from pathlib import Path


def noop() -> bool:
    """Do nothing."""
    return True


def first_step(images: str, weights: str) -> dict[str, float]:
    """Run the first training step of a head on a frozen backbone; return its time and its loss."""
    import time

    import ray  # noqa: F401, what the job goes on with
    import torch
    from torch.utils.data import DataLoader

    from tests.bench.peers import training

    began = time.time()
    data = training.images(Path(images) / "train")
    network, top = training.backbone(Path(weights)), training.head(512, 0.4, len(data.classes))
    optimizer = torch.optim.Adam(top.parameters(), lr=5e-4)
    values, labels = next(training.features_of(network, DataLoader(data, 32, shuffle=True)))
    loss = torch.nn.functional.cross_entropy(top(values), labels)
    loss.backward()
    optimizer.step()
    return {"imported": began, "stepped": time.time(), "loss": loss.item()}


def first_step_with_ray(images: str, weights: str) -> dict[str, float]:
    """Run the same step in a Ray Train worker, as in Ray's documentation."""
    import logging

    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        trainer = TorchTrainer(
            lambda config: first_step(**config),
            train_loop_config={"images": images, "weights": weights},
            scaling_config=train.ScalingConfig(num_workers=1),
        )
        return trainer.fit().return_value
    finally:
        ray.shutdown()
