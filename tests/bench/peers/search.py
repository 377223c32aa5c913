"""Searches as a competent user writes them with the stock libraries' documentation.

`plain`: a Tuner whose trials each call TorchTrainer.fit(): ImageFolder, DataLoader, the backbone in every epoch.
`strong`: features cached by hand beforehand, class Trainables of one CPU with reuse_actors, Optuna and ASHA.
"""

import logging
from pathlib import Path
from typing import Any

import ray
import torch
from efficientnet_pytorch import EfficientNet
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

SPACE = {
    "lr": tune.loguniform(1e-5, 1e-2),
    "dropout": tune.uniform(0.0, 0.6),
    "width": tune.choice([128, 256, 512, 1024]),
}
BATCH = 32


def head(width: int, dropout: float, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(1280), nn.Linear(1280, width), nn.ReLU(),
        nn.BatchNorm1d(width), nn.Linear(width, width // 4), nn.ReLU(),
        nn.BatchNorm1d(width // 4), nn.Dropout(dropout), nn.Linear(width // 4, classes),
    )  # fmt: skip


def images(folder: Path, split: str) -> ImageFolder:
    steps = [transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(),
             transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # fmt: skip
    return ImageFolder(str(folder / split), transforms.Compose(steps))


def backbone(weights: Path) -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-b0", include_top=False)
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return network.eval().requires_grad_(False)


def ready() -> None:
    """Start Ray on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def plain(folder: Path, weights: Path, storage: Path, *, trials: int, epochs: int) -> float:
    """Run the search and return the best validation loss."""

    def loop(config: dict[str, Any]) -> None:
        training, valid = images(folder, "train"), images(folder, "valid")
        network, top = backbone(weights), head(config["width"], config["dropout"], len(training.classes))
        optimizer = torch.optim.Adam(top.parameters(), lr=config["lr"])
        for _ in range(epochs):
            top.train()
            for batch, labels in DataLoader(training, BATCH, shuffle=True, drop_last=True):
                with torch.no_grad():
                    features = network(batch).flatten(1)
                optimizer.zero_grad()
                nn.functional.cross_entropy(top(features), labels).backward()
                optimizer.step()
            top.eval()
            with torch.no_grad():
                found = [
                    nn.functional.cross_entropy(top(network(batch).flatten(1)), labels, reduction="sum").item()
                    for batch, labels in DataLoader(valid, 64)
                ]
            train.report({"loss": sum(found) / len(valid)})

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(storage_path=str(storage), callbacks=[TuneReportCallback()]),
        ).fit()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(storage), name="plain", verbose=0),
    )
    return float(tuner.fit().get_best_result().metrics["loss"])


@torch.no_grad()
def features(folder: Path, weights: Path, split: str) -> tuple[Tensor, Tensor]:
    network, data = backbone(weights), images(folder, split)
    parts = [(network(batch).flatten(1), labels) for batch, labels in DataLoader(data, 64)]
    return torch.cat([values for values, _ in parts]), torch.cat([labels for _, labels in parts])


class Trial(tune.Trainable):
    """One head on features in memory."""

    def setup(self, config: dict[str, Any], data: dict[str, tuple[Tensor, Tensor]], epochs: int) -> None:
        torch.set_num_threads(1)
        self.data, self.epochs = data, epochs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.head = head(new_config["width"], new_config["dropout"], 2)
        self.optimizer, self.epoch = torch.optim.Adam(self.head.parameters(), lr=new_config["lr"]), 0
        return True

    def step(self) -> dict[str, Any]:
        values, labels = self.data["train"]
        self.head.train()
        for rows in torch.randperm(len(values)).split(BATCH)[:-1]:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.head(values[rows]), labels[rows]).backward()
            self.optimizer.step()
        self.head.eval()
        values, labels = self.data["valid"]
        with torch.no_grad():
            loss = nn.functional.cross_entropy(self.head(values), labels).item()
        self.epoch += 1
        return {"loss": loss, "done": self.epoch >= self.epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        torch.save(self.head.state_dict(), Path(checkpoint_dir) / "head.pt")

    def load_checkpoint(self, checkpoint: str) -> None:
        self.head.load_state_dict(torch.load(Path(checkpoint) / "head.pt", weights_only=True))


def strong(folder: Path, weights: Path, storage: Path, *, trials: int, epochs: int) -> float:
    """Run the search and return the best validation loss; the features are computed here, once."""
    data = {split: features(folder, weights, split) for split in ("train", "valid")}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, data=data, epochs=epochs), {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=trials, search_alg=OptunaSearch(seed=0), reuse_actors=True,
            max_concurrent_trials=2, scheduler=tune.schedulers.ASHAScheduler(max_t=epochs, grace_period=6),
        ),
        run_config=tune.RunConfig(storage_path=str(storage), name="strong", verbose=0),
    )  # fmt: skip
    return float(tuner.fit().get_best_result().metrics["loss"])
