"""Searches as an experienced user would write them from the libraries' documentation.

`plain`: a Tuner whose trials each call TorchTrainer.fit(): ImageFolder, DataLoader, the backbone in every epoch.
`strong`: features cached by hand beforehand, class Trainables of one CPU with reuse_actors, Optuna and ASHA.
"""

import time
from pathlib import Path
from typing import Any

import torch
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from tests.bench.peers.training import backbone, features_of, head, images

SPACE = {
    "lr": tune.loguniform(1e-5, 1e-2),
    "dropout": tune.uniform(0.0, 0.6),
    "width": tune.choice([128, 256, 512, 1024]),
}
BATCH = 32


def loop(config: dict[str, Any]) -> None:
    """Train one trial, the backbone in every epoch; Ray Train's worker runs it."""
    torch.set_num_threads(2)  # Ray gives a worker as many as its CPUs; the machine has two
    training, valid = images(config["folder"] / "train"), images(config["folder"] / "valid")
    network, top = backbone(config["weights"]), head(config["width"], config["dropout"], len(training.classes))
    optimizer = torch.optim.Adam(top.parameters(), lr=config["lr"])
    for _ in range(config["epochs"]):
        began = time.time()
        top.train()
        for values, labels in features_of(network, DataLoader(training, BATCH, shuffle=True)):
            optimizer.zero_grad()
            cross_entropy(top(values), labels).backward()
            optimizer.step()
        top.eval()
        with torch.no_grad():
            scored = features_of(network, DataLoader(valid, BATCH))
            losses = [cross_entropy(top(values), labels, reduction="sum").item() for values, labels in scored]
        train.report({"loss": sum(losses) / len(valid), "epoch_seconds": time.time() - began})


def plain(folder: Path, weights: Path, storage: Path, *, trials: int, epochs: int) -> tune.ResultGrid:
    """Search with a TorchTrainer a trial, one at a time: its driver and its worker take a CPU each."""
    fixed = {"folder": folder, "weights": weights, "epochs": epochs}

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=config | fixed,
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(storage_path=str(storage), callbacks=[TuneReportCallback()]),
        ).fit()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(storage), name="plain", verbose=0),
    )
    return tuner.fit()


def features(folder: Path, weights: Path, split: str) -> tuple[Tensor, Tensor]:
    values, labels = zip(*features_of(backbone(weights), DataLoader(images(folder / split), BATCH)), strict=True)
    return torch.cat(values), torch.cat(labels)


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
        began = time.time()
        values, labels = self.data["train"]
        self.head.train()
        for rows in torch.randperm(len(values)).split(BATCH):
            self.optimizer.zero_grad()
            cross_entropy(self.head(values[rows]), labels[rows]).backward()
            self.optimizer.step()
        self.head.eval()
        values, labels = self.data["valid"]
        with torch.no_grad():
            loss = cross_entropy(self.head(values), labels).item()
        self.epoch += 1
        return {"loss": loss, "done": self.epoch >= self.epochs, "epoch_seconds": time.time() - began}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        torch.save(self.head.state_dict(), Path(checkpoint_dir) / "head.pt")

    def load_checkpoint(self, checkpoint: str) -> None:
        self.head.load_state_dict(torch.load(Path(checkpoint) / "head.pt", weights_only=True))


def strong(folder: Path, weights: Path, storage: Path, *, trials: int, epochs: int) -> tune.ResultGrid:
    """Search heads alone; the features are computed here, once."""
    data = {split: features(folder, weights, split) for split in ("train", "valid")}
    asha = tune.schedulers.ASHAScheduler(max_t=epochs, grace_period=min(6, epochs), reduction_factor=3)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, data=data, epochs=epochs), {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=trials, search_alg=OptunaSearch(seed=0), reuse_actors=True,
            max_concurrent_trials=2, scheduler=asha,
        ),
        run_config=tune.RunConfig(
            storage_path=str(storage), name="strong", verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )  # fmt: skip
    return tuner.fit()
