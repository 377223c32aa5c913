"""Errors of training.

TrainerError
├── SpecError          a wish that can never work
├── WeightsError       a file of weights is absent, damaged or of another network
├── CheckpointError    a checkpoint is absent, damaged or of another version
├── ModelMismatch      the data have other classes than the model
├── TrainingDiverged   the loss is no number any more
├── OutOfMemory        a batch does not fit into a GPU
├── WorkersLost        workers died or hung more often than they are started again
└── Stopped            the run was asked to stop and has saved a checkpoint
"""


class TrainerError(Exception):
    """Base of the errors of this package. The text is one line: what is wrong, then the cure."""


class SpecError(TrainerError):
    """A wish that can never work; refused before it is queued."""


class WeightsError(TrainerError):
    """A file of weights is absent, damaged or of another network."""


class CheckpointError(TrainerError):
    """A checkpoint is absent, damaged or of another version."""


class ModelMismatch(TrainerError):
    """The data have other classes than the model."""


class TrainingDiverged(TrainerError):
    """The loss is no number any more; the last good checkpoint is kept."""


class OutOfMemory(TrainerError):
    """A batch does not fit into a GPU."""


class WorkersLost(TrainerError):
    """Workers died or hung more often than they are started again: the infrastructure's fault, not the run's."""


class Stopped(TrainerError):
    """The run was asked to stop and has saved a checkpoint to go on from."""
