"""The fair peer of a frozen training: the tutorial's loop, repaired.

ImageFolder and a DataLoader, the same pixels, the same weights and head, eager float32 as the package comes, the
backbone in eval mode under no_grad, every epoch through the whole network. By itself it trains and prints what it took:

    python -m tests.bench.peers.training IMAGES WEIGHTS MODEL EPOCHS SEED
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def backbone(weights: Path | None) -> nn.Module:
    """Return the network with pretrained weights, or with random ones, in eval mode."""
    network = EfficientNet.from_name("efficientnet-b0", include_top=False, image_size=224)
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False)


def head(width: int, dropout: float, classes: int) -> nn.Sequential:
    """Return the same head as ours."""
    return nn.Sequential(
        nn.BatchNorm1d(1280), nn.Linear(1280, width), nn.ReLU(),
        nn.BatchNorm1d(width), nn.Linear(width, width // 4), nn.ReLU(),
        nn.BatchNorm1d(width // 4), nn.Dropout(dropout), nn.Linear(width // 4, classes),
    )  # fmt: skip


def images(folder: Path) -> datasets.ImageFolder:
    """Return normalised images `(3, 224, 224)` and labels."""
    transform = v2.Compose(
        [
            v2.Resize(224, antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return datasets.ImageFolder(str(folder), transform)


def features_of(network: nn.Module, batches: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pooled features `(B, 1280)` and labels."""
    for batch, labels in batches:
        with torch.no_grad():
            values = network(batch).flatten(1)
        yield values, labels  # outside: a generator's no_grad would hold for its caller too


def train(folder: Path, weights: Path, *, epochs: int, lr: float = 5e-4) -> nn.Module:
    """Train a head and return it as it was in the epoch with the lowest validation loss."""
    training, valid = images(folder / "train"), images(folder / "valid")
    train_loader = DataLoader(training, 32, shuffle=True, num_workers=1)
    valid_loader = DataLoader(valid, 32, num_workers=1)
    counts = Counter(training.targets)
    balance = torch.tensor([len(training) / (len(counts) * counts[label]) for label in sorted(counts)])
    network, top = backbone(weights), head(512, 0.4, len(counts))
    optimizer = torch.optim.Adam(top.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(train_loader))
    best, lowest = {}, float("inf")
    for _ in range(epochs):
        top.train()
        for values, labels in features_of(network, train_loader):
            optimizer.zero_grad()
            functional.cross_entropy(top(values), labels, balance).backward()
            optimizer.step()
            schedule.step()
        top.eval()
        with torch.no_grad():
            losses = [
                functional.cross_entropy(top(values), labels, reduction="sum").item()
                for values, labels in features_of(network, valid_loader)
            ]
        if sum(losses) < lowest:
            lowest, best = sum(losses), {name: value.clone() for name, value in top.state_dict().items()}
    top.load_state_dict(best)
    return top.eval()


@torch.no_grad()
def accuracy(folder: Path, weights: Path, top: nn.Module) -> float:
    """Return the accuracy on the test split."""
    batches = DataLoader(images(folder / "test"), 32, num_workers=1)
    right = [(top(values).argmax(1) == labels).float() for values, labels in features_of(backbone(weights), batches)]
    return torch.cat(right).mean().item()


if __name__ == "__main__":
    data, pretrained, model = map(Path, sys.argv[1:4])
    torch.manual_seed(int(sys.argv[5]))
    began = time.time()
    trained = train(data, pretrained, epochs=int(sys.argv[4]))
    torch.save(trained.state_dict(), model)
    saved = time.time()
    print(json.dumps({"work": saved - began, "saved": saved, "accuracy": accuracy(data, pretrained, trained)}))
