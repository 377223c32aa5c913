"""Trains the heads of several trials together, an epoch at a time; each has what it would have alone.

A step of one head costs a GPU as much time as one of many: nearly all of it is the start of the kernels. So on a GPU
heads train together whatever their width. On a CPU a step of several costs less only where they are narrow.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.plan import EpochPlan
from trainer.errors import Stopped
from trainer.model.head import FEATURES
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.training.batched_heads import dropout_factors, heads_at_once
from trainer.training.head_stack import HeadStack, StackStep
from trainer.training.loop import epoch_plan
from trainer.training.optimizer import lr_factor
from trainer.training.step_gatherer import MAX_STEPS

Key: TypeAlias = tuple[int, int]  # batch size, and width of the slots
Outcome: TypeAlias = Exception | None
Outcomes: TypeAlias = dict[HeadTraining, Outcome]


@dataclass
class HeadGroup:
    """The heads that train together in one process, in one stack or several.

    Attributes:
        widest: The largest width of a head in the search.
        stop_reason: Returns why all heads should pause, or None; called at each step.
    """

    widest: int
    stop_reason: Callable[[], str | None]
    _stacks: dict[Key, "list[_Stack]"] = field(default_factory=dict)

    def train_epoch(self, heads: Sequence[HeadTraining]) -> Outcomes:
        """Train an epoch of each head; return what ended it early, of each head: None where nothing did.

        A head that is in the middle of an epoch, after a pause, and one that has no other to train with, trains alone.
        """
        outcomes, by_key = Outcomes(), dict[Key, list[HeadTraining]]()
        for head in heads:
            by_key.setdefault(self._key(head), []).append(head)
        for key in dict.fromkeys([*self._stacks, *by_key]):
            together = [head for head in by_key.get(key, []) if not head.state.batch]
            for stack in self._arranged(key, together):
                outcomes |= stack.train_epoch(self.stop_reason)
        for head in heads:
            if head not in outcomes:
                outcomes[head] = _outcome_of(head.epoch)
        return outcomes

    def forget(self, heads: Sequence[HeadTraining]) -> None:
        """Let heads that have ended go, and the stacks in which no other trains."""
        for key, stacks in self._stacks.items():
            for stack in stacks:
                stack.forget(heads)
            self._stacks[key] = [stack for stack in stacks if any(stack.heads)]

    def _key(self, head: HeadTraining) -> Key:
        on_gpu = head.data.device.type == "cuda"
        width = head.spec.head_width
        return head.spec.batch_size, max(width, self.widest) if on_gpu else width

    def _arranged(self, key: Key, heads: list[HeadTraining]) -> "list[_Stack]":
        """Return stacks that hold these heads and no other; none for heads that train alone."""
        stacks = [stack for stack in self._stacks.pop(key, []) if not stack.is_broken]
        for stack in stacks:
            stack.release([head for head in stack.heads if head is not None and head not in heads])
        new = [head for head in heads if not any(head in stack.heads for stack in stacks)]
        free = sum(stack.heads.count(None) for stack in stacks)
        if len(new) > free or len(heads) <= 1 or (free > len(new) and heads[0].data.device.type == "cpu"):
            for stack in stacks:
                stack.release(heads)
            stacks, new = [], []
            if len(heads) > 1 and (most := _most(heads[0], key)) > 1:
                count = -(-len(heads) // most)
                stacks = [_Stack.of(heads[part::count], key) for part in range(count)]
        for stack in stacks:
            while None in stack.heads and new:
                stack.put(new.pop())
        self._stacks[key] = [stack for stack in stacks if any(stack.heads)]
        return self._stacks[key]


@dataclass(eq=False)
class _Stack:
    """Heads in the slots of a `HeadStack`, with the same number of steps of the same sizes in an epoch.

    Attributes:
        heads: Of each slot; None where it is free.
        is_broken: Whether a step failed, so that its tensors are of no use.
    """

    data: HeadTrainingData
    model: HeadStack
    heads: list[HeadTraining | None]
    is_broken: bool = False

    @classmethod
    def of(cls, heads: Sequence[HeadTraining], key: Key) -> "_Stack":
        """Return a stack that is full of these heads."""
        first = heads[0]
        config = first.data.config.model_copy(update={"width": key[1]})
        model = HeadStack(
            config,
            len(heads),
            has_ema=bool(first.spec.ema),
            class_weights=first.data.weights,
            device=first.data.device,
        )
        stack = cls(first.data, model, [None] * len(heads))
        for head in heads:
            stack.put(head)
        return stack

    def put(self, head: HeadTraining) -> None:
        """Move a head into a free slot."""
        slot = self.heads.index(None)
        self.heads[slot] = head
        self.model.put(slot, head.checkpoint)
        head.fetch = partial(self.model.take, slot, head.checkpoint)

    def release(self, heads: Sequence[HeadTraining]) -> None:
        """Let heads go, with what they have become."""
        for slot, head in enumerate(self.heads):
            if head is not None and head in heads:
                head.fetch()
                head.fetch = lambda: None
                self.heads[slot] = None

    def forget(self, heads: Sequence[HeadTraining]) -> None:
        """Free the slots of heads that have ended; nobody needs what they have become."""
        self.heads = [None if head in heads else head for head in self.heads]

    def train_epoch(self, stop_reason: Callable[[], str | None]) -> Outcomes:
        """Train an epoch of each head."""
        heads = [head for head in self.heads if head is not None]
        try:
            outcomes, plans, seconds = self._train_steps(heads, stop_reason)
            going = [head for head in heads if outcomes[head] is None]
            logits = self.model.logits(self.data.loader.values["valid"]).numpy() if going else None
        except Exception:  # of all of them
            self.is_broken = True
            for head in heads:
                head.fetch = lambda: None
            raise
        for slot, of_slot in enumerate(self.heads):
            if of_slot is not None and logits is not None and outcomes[of_slot] is None:
                of_head = np.ascontiguousarray(logits[:, slot])
                outcomes[of_slot] = _outcome_of(partial(of_slot.finish_epoch, of_head, plans[of_slot], seconds))
        return outcomes

    def _train_steps(
        self, heads: Sequence[HeadTraining], stop_reason: Callable[[], str | None]
    ) -> tuple[Outcomes, dict[HeadTraining, EpochPlan], float]:
        """Return how the steps ended for each head, its plan of the epoch, and the seconds of the steps."""
        outcomes, began = Outcomes(dict.fromkeys(heads)), time.monotonic()
        plans = {
            head: epoch_plan(head.spec, self.data.index, self.data.context.process_group, head.state.epoch)
            for head in heads
        }
        steps = plans[heads[0]].batches
        for first in range(0, steps, MAX_STEPS):
            several = _Steps.of(self, plans, range(first, min(first + MAX_STEPS, steps)))
            losses, reason = list[Tensor](), None
            for number in range(len(several.counts)):
                losses.append(self.model.step(several.step(number)))
                reason = stop_reason()
                if reason:
                    break
            found = torch.stack(losses).tolist()  # here the CPU waits for the GPU
            for slot, head in enumerate(self.heads):
                if head is not None and outcomes[head] is None:
                    of_head = [of_step[slot] for of_step in found]
                    outcomes[head] = _outcome_of(partial(several.count, head, slot, of_head, reason))
            if reason:
                break
        return outcomes, plans, time.monotonic() - began


@dataclass(frozen=True)
class _Steps:
    """Several steps of the heads in a stack.

    Attributes:
        counts: Images of each head, of each step.
        rows: `(B * K,) int64` of each step, where the features are.
        lrs: `(S, K)`, learning rates; `lr` has them on the device, and `decay` those of the EMA.
        factors: `(B, K, width / 4)`, for dropout; None where no head has any.
    """

    stack: _Stack
    counts: list[int]
    rows: Sequence[Tensor]
    lrs: NDArray[np.float64]
    lr: Tensor
    decay: Tensor
    factors: Tensor | None

    @classmethod
    def of(cls, stack: _Stack, plans: dict[HeadTraining, EpochPlan], numbers: range) -> "_Steps":
        """Draw the images of each step, and compute its learning rates."""
        data, count = stack.data, len(stack.heads)
        used = [(slot, head) for slot, head in enumerate(stack.heads) if head is not None]
        plan = plans[used[0][1]]
        counts = [plan.images_in_step(number) for number in numbers]
        rows = [np.zeros((images, count), dtype=np.int64) for images in counts]
        lrs, decays = np.zeros((len(numbers), count)), np.zeros((len(numbers), count))
        for slot, of_slot in used:
            for place, number in enumerate(numbers):
                rows[place][:, slot] = plans[of_slot].ids(number)
                step = of_slot.state.step + place
                lrs[place, slot] = of_slot.spec.lr * lr_factor(step, of_slot.spec.epochs * plan.batches)
                decays[place, slot] = of_slot.ema.decay_after(of_slot.ema.updates + place)
        drops = any(of_slot.spec.dropout for _, of_slot in used)
        flat = torch.from_numpy(np.concatenate([of_step.ravel() for of_step in rows]))
        rows_there = _sent(flat, data.loader.values["train"].device)
        width = stack.model.width // 4
        return cls(
            stack=stack,
            counts=counts,
            rows=torch.split(rows_there, [images * count for images in counts]),
            lrs=lrs,
            lr=_sent(torch.from_numpy(lrs).float(), data.device),
            decay=_sent(torch.from_numpy(decays).float(), data.device),
            factors=torch.ones(max(counts), count, width, device=data.device) if drops else None,
        )

    def step(self, place: int) -> StackStep:
        """Return what a step takes."""
        data, rows = self.stack.data, self.rows[place]
        data.loader.on_batch()
        shape = (self.counts[place], len(self.stack.heads), FEATURES)
        return StackStep(
            features=data.loader.values["train"][rows].to(data.device).view(shape),
            labels=data.loader.labels["train"][rows].to(data.device),
            dropout=self._dropout(place),
            lr=self.lr[place],
            decay=self.decay[place],
        )

    def count(self, head: HeadTraining, slot: int, losses: Sequence[float], reason: str | None) -> None:
        """Count the steps that were taken.

        Raises:
            TrainingDiverged: The loss of the head is not finite.
            Stopped: For `reason`; a checkpoint is saved.
        """
        taken = len(losses)
        head.ema.updates += taken if head.spec.ema else 0
        head.take_steps(self.counts[:taken], losses, float(self.lrs[taken - 1, slot]))
        if reason:
            head.save(head.state)
            raise Stopped(f"stopped ({reason}) after step {head.state.step}, checkpoint saved")

    def _dropout(self, place: int) -> Tensor | None:
        """Return the factors that a step of each head alone draws."""
        if self.factors is None:
            return None
        images, device = self.counts[place], self.stack.data.device
        for slot, head in enumerate(self.stack.heads):
            if head is not None and head.spec.dropout:
                width = head.spec.head_width // 4
                ones = torch.ones(images, width, device=device)
                self.factors[:images, slot, :width] = dropout_factors(head.spec, head.state.step + place, ones)
        return self.factors[:images]


def _most(head: HeadTraining, key: Key) -> int:
    """Return how many heads of a stack train at once; one where they would not be faster."""
    config = head.data.config.model_copy(update={"width": key[1]})
    return heads_at_once(config, head.spec, head.data.device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _outcome_of(act: Callable[[], object]) -> Outcome:
    try:
        act()
    except Exception as error:
        return error
    return None
