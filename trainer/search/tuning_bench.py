"""What the heads of a search train on: features, labels and a fresh start, made ready once in each process."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.run_paths import RunPaths
from cluster.stop_request import StopSign
from data_shards.index import ShardIndex, read_index
from trainer.data.batches import StoredFeatures
from trainer.distributed.process_group import Ranks
from trainer.distributed.worker import Order, Post
from trainer.model.efficientnet import Backbone, Head, build_head
from trainer.model.head import HeadConfig
from trainer.progress import Progress
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.model_setup import class_weights, extraction_for, fresh_model


@dataclass(frozen=True)
class HeadBench:
    """Everything that trials over one frozen backbone share.

    Attributes:
        config: Of the model, with the width and dropout of the search's own options.
        source: Features of the train and valid splits, on the device.
        start: State of the random numbers, by seed, as `train` has it when it builds the head.
    """

    post: Post
    index: ShardIndex
    config: HeadConfig
    source: StoredFeatures
    weights: Tensor | None
    start: dict[int, Tensor]

    @classmethod
    def of(cls, order: Order[SearchSpec], device: torch.device) -> "HeadBench":
        """Read the features, which the search has computed before its first trial, into memory.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
        """
        spec = order.spec.trial_spec({})
        post = lone_post(order, spec, device)
        index = read_index(spec.shards)
        model, config = fresh_model(post, index)
        extraction = extraction_for(post, spec.shards, index, model, config, cached=True)
        found = {split: extraction.of_split(split) for split in ("train", "valid")}
        source = StoredFeatures(
            values={split: features.values.to(device) for split, features in found.items()},
            labels={split: features.labels.to(device) for split, features in found.items()},
        )
        return cls(post, index, config, source, class_weights(spec, index, device), {})

    @property
    def device(self) -> torch.device:
        """Where heads train."""
        return self.post.ranks.device

    def config_of(self, spec: TrainSpec) -> HeadConfig:
        """Return the description of a trial's model."""
        return self.config.model_copy(update={"width": spec.head_width, "dropout": spec.dropout})

    def fresh_head(self, spec: TrainSpec) -> Head:
        """Return the head that `train` with this spec would start from, to the last bit."""
        if spec.seed not in self.start:
            torch.manual_seed(spec.seed)
            Backbone(self.config.image_size, self.config.layout)  # draws what `train` has drawn before its head
            self.start[spec.seed] = torch.get_rng_state()
        torch.set_rng_state(self.start[spec.seed])
        return build_head(self.config_of(spec)).to(self.device)


def lone_post(order: Order[SearchSpec], spec: TrainSpec, device: torch.device) -> Post:
    """Return the post of a worker that works alone on one trial and leaves telling and stopping to the search."""
    attempt = order.attempt
    nowhere = RunPaths(attempt.paths.scratch / "nowhere")  # a search that is stopped still publishes its best
    return Post(
        order=Order(attempt=attempt, spec=spec, source=order.source),
        ranks=Ranks(0, 1, device),
        progress=Progress(attempt.paths, attempt.number, writes=False),
        stop=StopSign(nowhere, attempt.number),
    )
