"""The fair peer of a frozen training: what a careful person writes without Nightshift.

ImageFolder and a DataLoader, the same pixels, the same weights and head, eager float32 as the package comes, the
backbone in eval mode under no_grad, every epoch through the whole network.
"""

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


def backbone(weights: Path) -> nn.Module:
    """Return the network with pretrained weights, in eval mode."""
    network = EfficientNet.from_name("efficientnet-b0", include_top=False, image_size=224)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False)


def loader(folder: Path, *, batch_size: int, shuffle: bool, workers: int) -> DataLoader:
    """Return batches of normalised images `(B, 3, 224, 224)` and labels."""
    transform = v2.Compose(
        [
            v2.Resize(224, antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        datasets.ImageFolder(str(folder), transform), batch_size=batch_size, shuffle=shuffle, num_workers=workers
    )


def train(images: Path, weights: Path, head: nn.Module, *, epochs: int, lr: float, class_weights: Tensor) -> nn.Module:
    """Train the head and return it as it was in the epoch with the lowest validation loss."""
    network = backbone(weights)
    rates = torch.optim.Adam(head.parameters(), lr=lr)
    train_loader = loader(images / "train", batch_size=32, shuffle=True, workers=1)
    valid_loader = loader(images / "valid", batch_size=32, shuffle=False, workers=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(rates, lr, total_steps=epochs * len(train_loader))
    best, lowest = {}, float("inf")
    for _ in range(epochs):
        head.train()
        for features, labels in features_of(network, train_loader):
            loss = functional.cross_entropy(head(features), labels, class_weights)
            rates.zero_grad()
            loss.backward()
            rates.step()
            schedule.step()
        losses = [
            functional.cross_entropy(head.eval()(features), labels, reduction="sum").item()
            for features, labels in features_of(network, valid_loader)
        ]
        if sum(losses) < lowest:
            lowest, best = sum(losses), {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval()


def features_of(network: nn.Module, batches: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pooled features `(B, 1280)` and labels."""
    for images, labels in batches:
        with torch.no_grad():
            yield network(images).flatten(1), labels


def accuracy(images: Path, weights: Path, head: nn.Module) -> float:
    """Return the accuracy on the test split."""
    right = total = 0
    with torch.no_grad():
        for features, labels in features_of(
            backbone(weights), loader(images / "test", batch_size=32, shuffle=False, workers=1)
        ):
            right += int((head(features).argmax(1) == labels).sum())
            total += len(labels)
    return right / total
