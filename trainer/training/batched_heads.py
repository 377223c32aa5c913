"""Trains several heads of one shape at once, as one model whose tensors have a dimension for the heads.

Each head trains as `HeadFit.fit` trains it alone: with its own initial weights, order, dropout, class weights, batch
norm and gradient clipping, all drawn from its own seed. Only the rounding of sums differs. All heads take the same
number of steps; in a step one may have fewer images than another, and its other places in the batch are masked.

A step costs the CPU or GPU about as many calls as that of one head. So it is faster wherever these cost more than the
arithmetic: for narrow heads on a CPU, and for all on a GPU.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import seed_draws, step_seed
from trainer.data.split_features import FeatureRows
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import Stopped, TrainingDiverged
from trainer.evaluation.objective import objective_of
from trainer.model.batched_heads import BatchedHeads
from trainer.model.efficientnet import Head, build_head
from trainer.model.head import FEATURES, HeadConfig
from trainer.specs import TrainSpec
from trainer.training.ema import ModelEma
from trainer.training.head_fit import HeadFit, check_steps, index_of_rows, one_thread
from trainer.training.loop import MAX_GRADIENT_NORM, epoch_plan
from trainer.training.model_setup import class_weights
from trainer.training.optimizer import build_optimizer, lr_factor, set_lr
from trainer.training.step_gatherer import Requests, StepGatherer
from trainer.training.step_graphs import DEVICES
from trainer.training.table_steps import EpochSteps, Row, TableSteps

# Memory of the heads that train at once, by kind of device. On a CPU each step reads and writes all of it: heads that
# do not fit into the cache slow each other down. Measured with a cache of 32 MB.
MOST_BYTES = {"cpu": 24_000_000, "cuda": 2_000_000_000}
COPIES = 4  # of each parameter: weight, gradient and two moments; with an EMA one more

EpochLosses: TypeAlias = list[list[float]]  # by epoch, of each head


@dataclass(frozen=True)
class HeadRows:
    """What one head is trained on.

    Attributes:
        rows: `(N,) int64`, its images among those of the features.
        seed: Random seed of initial weights, order and dropout.
    """

    rows: Tensor
    seed: int

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch."""
        return -(-len(self.rows) // batch_size)


@dataclass(frozen=True)
class StepShape:
    """What the kernels of a step depend on.

    Attributes:
        places: `B`, for the images of each head.
        is_full: Whether every head has `B` images.
    """

    places: int
    is_full: bool


@dataclass(frozen=True)
class StepRows:
    """The images of a step of all heads, in a batch with `B` places for each of the `K` heads.

    Attributes:
        rows: `(B, K) int64`, numbers of the images; 0 where a head has fewer than `B`.
        counts: Images of each head.
    """

    rows: Tensor
    counts: tuple[int, ...]

    @property
    def shape(self) -> StepShape:
        """What the kernels of the step depend on."""
        return StepShape(len(self.rows), min(self.counts) == len(self.rows))


@dataclass(frozen=True, kw_only=True)
class HeadBatch:
    """Several heads that train at once.

    Attributes:
        fit: How to train each of them.
        features: `(N, 1280) float32` of all images.
        labels: `(N,) int64` classes, or `(N, C) int64` targets.
        heads: What each is trained on; they take the same number of steps in an epoch.
    """

    fit: HeadFit
    features: FeatureRows
    labels: Tensor
    heads: Sequence[HeadRows]

    def train(self) -> list[nn.Module]:
        """Return the heads in eval mode, on the device.

        Raises:
            Stopped: The run was asked to stop.
            TrainingDiverged: The loss of a head is not finite (NaN or inf).
            SpecError: A step would have a single image.
        """
        return self.train_with_losses()[0]

    def train_with_losses(self) -> tuple[list[nn.Module], EpochLosses]:
        """Return the heads, and the mean loss of each in each epoch; raises what `train` raises."""
        spec, device = self.fit.spec, self.fit.device
        module = BatchedHeads([self._fresh_head(head.seed) for head in self.heads]).to(device)
        ema = ModelEma(module, spec.ema)
        steps = _Steps(
            batch=self,
            module=module,
            ema=ema,
            optimizer=build_optimizer(module, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=device),
            features=self.features.to(device),
            labels=self.labels.to(device),
            weights=self._class_weights(),
        )
        with one_thread(device.type == "cpu"):
            losses = [steps.train_epoch(epoch) for epoch in range(min(spec.epochs, spec.last_epoch))]
        ema.copy_to_source()
        return [self._single(state) for state in module.states()], losses

    @cached_property
    def specs(self) -> list[TrainSpec]:
        """The training of each head."""
        return [self.fit.spec.model_copy(update={"seed": head.seed}) for head in self.heads]

    @cached_property
    def indexes(self) -> list[ShardIndex]:
        """The data set of each head."""
        for head in self.heads:
            check_steps(len(head.rows), self.fit.spec.batch_size)
        return [index_of_rows(self.labels[head.rows], self.fit.config) for head in self.heads]

    def plans(self, epoch: int) -> list[EpochPlan]:
        """Return the order of each head's images in an epoch."""
        group = ProcessGroup(0, 1, self.fit.device)
        return [epoch_plan(spec, index, group, epoch) for spec, index in zip(self.specs, self.indexes, strict=True)]

    def rows_of_step(self, plans: Sequence[EpochPlan], step: int) -> StepRows:
        """Return the images of a step of an epoch."""
        ids = [plan.ids(step) for plan in plans]
        counts = tuple(len(one) for one in ids)
        rows = np.zeros((max(counts), len(ids)), dtype=np.int64)
        for number, (head, of_head) in enumerate(zip(self.heads, ids, strict=True)):
            rows[: len(of_head), number] = head.rows.numpy()[of_head]
        return StepRows(torch.from_numpy(rows), counts)

    def _fresh_head(self, seed: int) -> Head:
        torch.manual_seed(seed)
        return cast("Head", build_head(self.fit.config))

    def _single(self, state: dict[str, Tensor]) -> nn.Module:
        head = build_head(self.fit.config).to(self.fit.device)
        head.load_state_dict(state)
        return head.eval()

    def _class_weights(self) -> Tensor | None:
        """Return the weights of the loss: `(K, C)`, of several labels `(2, K, C)`; None for equal ones."""
        found = [
            class_weights(spec, index, self.fit.device) for spec, index in zip(self.specs, self.indexes, strict=True)
        ]
        given = [one for one in found if one is not None]
        if not given:
            return None
        return torch.stack([torch.ones_like(given[0]) if one is None else one for one in found], dim=-2)


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """The steps of a `HeadBatch`; one head takes those of `TrainLoop`."""

    batch: HeadBatch
    module: BatchedHeads
    ema: ModelEma
    optimizer: torch.optim.Optimizer
    features: FeatureRows
    labels: Tensor
    weights: Tensor | None

    @cached_property
    def _gatherer(self) -> StepGatherer:
        return StepGatherer(ProcessGroup(0, 1, self.batch.fit.device))

    def train_epoch(self, epoch: int) -> list[float]:
        """Train an epoch and return the mean loss of each head.

        Raises:
            Stopped: The run was asked to stop.
            TrainingDiverged: The loss of a head is not finite.
        """
        fit, plans = self.batch.fit, self.batch.plans(epoch)
        rows = [self.batch.rows_of_step(plans, step) for step in range(plans[0].batches)]
        loss_sums = torch.zeros(len(plans), dtype=torch.float64, device=fit.device)
        self._gatherer.start()
        for step, (of_step, losses) in enumerate(zip(rows, self._taken(rows, epoch), strict=True), 1):
            loss_sums += losses
            self._gatherer.add(losses.sum())
            fit.on_images(sum(of_step.counts))
            self._check(epoch * len(rows) + step, epoch, is_last=step == len(rows))
        images = torch.tensor([plan.samples for plan in plans], device=fit.device)
        return cast("list[float]", (loss_sums / images).tolist())

    def _taken(self, rows: Sequence[StepRows], epoch: int) -> Iterator[Tensor]:
        """Take the steps of an epoch, and yield of each the sum of the losses of each head, `(K,) float64`."""
        fit, first = self.batch.fit, epoch * len(rows)
        steps = fit.spec.epochs * len(rows)
        if self._table_steps is not None:
            lrs = [fit.spec.lr * lr_factor(first + step, steps) for step in range(len(rows))]
            yield from self._taken_from_tables(self._table_steps, rows, first, lrs)
            return
        for number, of_step in enumerate(rows, first):
            set_lr(self.optimizer, fit.spec.lr, number, steps)
            chosen = of_step.rows.flatten().to(self.features.device)
            features, labels = self.features[chosen].to(fit.device), self.labels[chosen.to(fit.device)]
            counts = torch.tensor(of_step.counts, device=fit.device)
            yield self._train_on(features, labels, of_step.shape, counts, self._dropout(of_step, number))
            self.ema.update()

    @cached_property
    def _table_steps(self) -> TableSteps | None:
        """Takes steps on features that are on a GPU, as CUDA graphs; None where they are elsewhere."""
        device = self.batch.fit.device
        if device.type not in DEVICES or not isinstance(self.features, Tensor) or self.features.device != device:
            return None
        data = [self.features, self.labels, self._factors, *([] if self.weights is None else [self.weights])]
        return TableSteps(module=self.module, optimizer=self.optimizer, ema=self.ema, data=data)

    @cached_property
    def _factors(self) -> Tensor:
        """The factors of dropout in the next step, `(B, K, width / 4)`: steps from tables find them here."""
        fit = self.batch.fit
        shape = fit.spec.batch_size, len(self.batch.heads), fit.config.width // 4
        return torch.ones(shape, device=fit.device)

    def _taken_from_tables(
        self, table_steps: TableSteps, rows: Sequence[StepRows], first: int, lrs: Sequence[float]
    ) -> Iterator[Tensor]:
        def prepare(step: int) -> None:
            factors = self._dropout(rows[step], first + step)
            if factors is not None:
                self._factors[: len(factors)].copy_(factors)

        def train_on_rows(shape: StepShape, row: Row) -> Tensor:
            chosen = row("rows")[: shape.places].flatten()
            features, labels = self.features[chosen], self.labels[chosen]
            factors = self._factors[: shape.places] if self.batch.fit.config.dropout else None
            return self._train_on(features, labels, shape, row("counts"), factors)

        columns = {
            "rows": nn.utils.rnn.pad_sequence([of_step.rows for of_step in rows], batch_first=True),
            "counts": torch.tensor([of_step.counts for of_step in rows]),
        }
        shapes = [of_step.shape for of_step in rows]
        epoch = EpochSteps(first=0, shapes=shapes, lrs=lrs, columns=columns, losses=(len(self.batch.heads),))
        return table_steps.take(epoch, prepare, train_on_rows)

    def _train_on(
        self, features: Tensor, labels: Tensor, shape: StepShape, counts: Tensor, dropout: Tensor | None
    ) -> Tensor:
        """Take a step but for the EMA, and return the sum of the losses of each head, `(K,) float64`.

        Args:
            features: `(B * K, 1280)`.
            labels: `(B * K, ...)`.
            shape: Of the step.
            counts: Images of each head, `(K,) int64` on the device.
            dropout: Factors, `(B, K, width / 4)`; None without dropout.
        """
        mask = None if shape.is_full else mask_of(shape.places, counts)
        logits = self.module(features.view(shape.places, -1, FEATURES), mask, dropout)
        losses = self._losses(logits, labels)  # (B, K)
        if mask is not None:
            losses = losses * mask
        torch.autograd.backward((losses.sum(dim=0) / counts).sum())
        clip_each(list(self.module.parameters()), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach().double().sum(dim=0)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each image, `(B, K)`, from logits `(B, K, C)` and labels `(B * K, ...)`."""
        objective, shape = objective_of(self.batch.fit.config.multi_label), logits.shape[:2]
        logits = logits.flatten(0, 1)
        if labels.ndim > 1:  # the weights depend on the image's head, and on whether it has the label
            weights = self.weights
            each = None if weights is None else weights[:, None].expand(2, *shape, -1).flatten(1, 2)
            return objective.losses(logits, labels, each).view(shape)
        losses = objective.losses(logits, labels, None).view(shape)
        if self.weights is None:
            return losses
        return losses * self.weights.expand(*shape, -1).gather(2, labels.view(*shape, 1)).squeeze(2)

    def _dropout(self, rows: StepRows, number: int) -> Tensor | None:
        """Return the factors that a step of each head alone draws, `(B, K, width / 4)`; None without dropout."""
        config, device = self.batch.fit.config, self.batch.fit.device
        if not config.dropout:
            return None
        width = config.width // 4
        factors = torch.ones(*rows.rows.shape, width, device=device)
        ones = torch.ones(len(factors), width, device=device)
        for head, (spec, count) in enumerate(zip(self.batch.specs, rows.counts, strict=True)):
            factors[:count, head] = dropout_factors(spec, number, ones[:count])
        return factors

    def _check(self, step: int, epoch: int, *, is_last: bool) -> None:
        """Check the losses of the last steps and the stop request; not at each step where the CPU waits for a GPU."""
        reason = self.batch.fit.stop_reason()
        if not (self._gatherer.is_due or is_last or reason):
            return
        losses, _ = self._gatherer.gather(Requests(reason))
        for number, loss in enumerate(losses, step - len(losses) + 1):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"loss is not finite (NaN or inf) at step {number} of epoch {epoch + 1}; "
                    "use a lower --lr and retry: what was finished before is kept"
                )
        if reason:
            raise Stopped(reason)


def dropout_factors(spec: TrainSpec, step: int, ones: Tensor) -> Tensor:
    """Return the factors that a step of a head alone draws, in the shape of `ones`: `(B, width / 4)`."""
    seed_draws(step_seed(spec.seed, step, 0), ones.device)
    return functional.dropout(ones, spec.dropout)


def mask_of(places: int, counts: Tensor) -> Tensor:
    """Return 1 for each image and 0 for each place without one, `(B, K) float32`, for heads with `(K,)` images."""
    return (torch.arange(places, device=counts.device)[:, None] < counts).float()


def clip_each(parameters: Sequence[nn.Parameter], largest: float) -> None:
    """Clip the gradients of each head to a norm, as `clip_grad_norm_` does for one; parameters are `(K, ...)`."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(one.flatten(1), dim=1) for one in gradients])
    factors = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)  # (K,)
    for one in gradients:
        one.mul_(factors.view(-1, *[1] * (one.ndim - 1)))


def heads_at_once(config: HeadConfig, spec: TrainSpec, device: torch.device) -> int:
    """Return how many heads of this shape train at once within `MOST_BYTES`; at least one."""
    with torch.device("meta"):  # shapes alone
        parameters = sum(one.numel() for one in build_head(config).parameters())
    activations = 4 * spec.batch_size * (FEATURES + 3 * config.width)
    copies = COPIES + bool(spec.ema)
    return max(1, MOST_BYTES[device.type] // (4 * (copies * parameters + activations)))


def head_batches(heads: Sequence[HeadRows], *, batch_size: int, most: int) -> list[list[int]]:
    """Divide heads into batches that train at once, of as equal sizes as possible.

    Args:
        heads: Numbered from 0. Those of a batch take the same number of steps, and where possible as many images.
        batch_size: Images of a step.
        most: Heads of a batch.

    Returns:
        The numbers of the heads of each batch, in ascending order.
    """
    order = sorted(range(len(heads)), key=lambda number: len(heads[number].rows))
    groups = [list(found) for _, found in itertools.groupby(order, key=lambda number: heads[number].steps(batch_size))]
    batches = list[list[int]]()
    for group in groups:
        count = math.ceil(len(group) / most)
        bounds = [len(group) * part // count for part in range(count + 1)]
        batches += [group[first:last] for first, last in itertools.pairwise(bounds)]
    return sorted(sorted(batch) for batch in batches)
