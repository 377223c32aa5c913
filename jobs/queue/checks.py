"""Checks of a spec before it is queued: refuse what can never work. Imports neither torch nor ray.

`checked` returns the spec with absolute paths, because the job worker runs in another folder.
"""

import contextlib
import difflib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import SeveralRuns, UnknownRun
from cluster.files import read_json_object
from cluster.resources import refuse_fewer_gpus, refuse_impossible, this_machine
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from data_shards.errors import BadIndex, PlanError
from data_shards.index import INDEX_NAME, ShardIndex, cure_without_valid, read_index
from data_shards.locations import local_folder
from jobs.errors import Refused
from jobs.queue.connection import LOOPBACK
from jobs.queue.weights_file import refuse_other_network, refuse_unavailable_imagenet
from jobs.runs import state as run_state
from jobs.runs.names import close_name
from jobs.runs.promotions import promoted_model, promoted_names
from jobs.runs.record import model_mismatch
from jobs.runs.request import JobRequest
from trainer.errors import CheckpointError, SpecError
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, published_model
from trainer.model.thresholds import read_threshold
from trainer.specs import EvaluateSpec, ExportSpec, PredictSpec, SearchSpec, Spec, TrainOptions
from trainer.specs.base import refuse_elastic_workers_here
from trainer.specs.head import check_head
from trainer.specs.image_size import check_model_input, check_training_size
from trainer.specs.positive import refuse_unknown_positive, refuse_without_positive

NO_FILE = ("imagenet", "none")


def checked(settings: Settings, spec: Spec) -> Spec:
    """Return the spec, checked and with absolute paths.

    Raises:
        PlanError, BadIndex, SourceError: The shards are missing, damaged, or too few.
        InsufficientResources: This machine or cluster can never provide the workers.
        WeightsError: The weights file cannot be downloaded, or belongs to another network.
        CheckpointError, ModelMismatch: The model does not exist, or its classes or input size do not fit the data.
        SpecError: The data set has no such split, its images are smaller than the input, or there is no weights file.
    """
    if runs_here(settings):
        refuse_elastic_workers_here(spec, on_cluster=False)
        refuse_impossible(workers=spec.workers, gpus_per_worker=spec.gpus_per_worker, machine=this_machine())
    elif settings.cluster_gpus is not None and (
        spec.gpus_per_worker == 1 or (spec.gpus_per_worker == "auto" and settings.cluster_gpus)
    ):
        refuse_fewer_gpus(spec.workers, settings.cluster_gpus, "the cluster can have")
    if isinstance(spec, TrainOptions):
        return _checked_train(settings, spec)
    if not isinstance(spec, EvaluateSpec | PredictSpec | ExportSpec):
        return spec
    model = model_of(settings, spec.model)
    _refuse_unknown_threshold(model, spec.threshold)
    if isinstance(spec, EvaluateSpec):
        return _checked_evaluate(model, spec)
    if isinstance(spec, PredictSpec):
        _check_predicted_shards(model, spec)
    return spec


def runs_here(settings: Settings) -> bool:
    """Whether the job workers that will take a run are on this machine."""
    if settings.ray_jobs_url:
        return False
    parts = urlsplit(settings.redis_url or "unix:")
    return parts.scheme == "unix" or (parts.hostname or "localhost") in LOOPBACK


def index_of(shards: str) -> tuple[str, ShardIndex]:
    """Return the absolute location of shards and their index.

    Raises:
        BadIndex, SourceError: The shards are missing or damaged.
    """
    folder = local_folder(shards)
    location = str(folder.expanduser().absolute()) if folder else shards
    if folder and (meant := _similar_data_set(Path(location))):
        raise BadIndex(f"{shards} does not exist; did you mean {folder.with_name(meant)}?")
    return location, read_index(location)


def _similar_data_set(folder: Path) -> str | None:
    """Return the name of a data set beside an absent folder that is called almost like it, None without one."""
    if folder.exists() or not folder.parent.is_dir():
        return None
    with contextlib.suppress(OSError):
        beside = [place.parent.name for place in folder.parent.glob(f"*/{INDEX_NAME}")]
        return next(iter(difflib.get_close_matches(folder.name, beside, n=1)), None)
    return None


def require_split(index: ShardIndex, split: str, shards: str) -> None:
    """Refuse a split without images.

    Raises:
        SpecError: The data set has no such split.
    """
    if not index.samples_in(split):
        cure = f"; {cure_without_valid(index)}" if split == "valid" and "train" in index.splits else ""
        raise SpecError(f"{shards} has no split {split!r}; it has {', '.join(index.splits)}{cure}")


def refuse_too_few_shards(index: ShardIndex, workers: int) -> None:
    """Refuse more workers than there are shards to feed them.

    Raises:
        PlanError: A worker would have no shard of its own.
    """
    shards = len(index.of_split("train"))
    if shards < workers:
        noun = "1 shard" if shards == 1 else f"{shards} shards"
        raise PlanError(
            f"{noun} cannot feed {workers} workers; pack with a smaller --shard-size or use --workers {shards}"
        )


def weights_file(weights: str) -> str:
    """Return the absolute path of a weights file; "imagenet" and "none" are returned unchanged.

    Raises:
        SpecError: The file is missing.
        WeightsError: It belongs to another network.
    """
    if weights in NO_FILE:
        return weights
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        meant = difflib.get_close_matches(weights, NO_FILE, n=1)
        cure = f"did you mean {meant[0]}?" if meant else "give an existing file, or imagenet or none"
        raise SpecError(f"weights file {path} does not exist; {cure}")
    refuse_other_network(path)
    return str(path)


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """The model that MODEL means.

    Attributes:
        name: Its folder, or the id of its run, as a spec names it.
        folder: Where it is published, None while its run has not ended.
        head: Its head config, None while its run has not ended.
        positive: The class that it is meant to find, None if nobody said.
    """

    name: str
    folder: Path | None = None
    head: HeadConfig | None = None
    positive: str | None = None

    @classmethod
    def published_in(cls, folder: Path, name: str) -> "NamedModel":
        """Read the head config of a published model.

        Raises:
            CheckpointError: It is damaged.
        """
        head = HeadConfig.read(folder / HEAD_FILE)
        return cls(name=name, folder=folder, head=head, positive=head.positive)

    def published_folder(self) -> Path:
        """Return where it is published.

        Raises:
            CheckpointError: Its run has not ended.
            Refused: It is not the model that the result of its run names.
        """
        if self.folder is None:
            raise CheckpointError(f"{self.name} has no model yet; wait for it: nightshift wait {self.name}")
        if self.folder.name == "best" and (mismatch := model_mismatch(RunPaths(self.folder.parent))):
            raise Refused(mismatch)
        return self.folder


def model_of(settings: Settings, model: str) -> NamedModel:
    """Return the model that MODEL, a folder, a promoted name or a run, means.

    Raises:
        CheckpointError: It is neither a model nor a run that can produce one.
    """
    if folder := published_model(Path(model).expanduser()):
        return NamedModel.published_in(folder, name=str(folder))
    if promoted := promoted_model(settings.storage, model):
        return NamedModel.published_in(Path(promoted.folder), name=promoted.model)
    try:
        paths = run_state.find(settings.storage, model)
    except SeveralRuns:
        raise
    except UnknownRun as error:
        close = difflib.get_close_matches(model, promoted_names(settings.storage), n=1)
        meant = close[0] if close else close_name(settings.storage, model)
        cure = (
            f"did you mean {meant}?" if meant else "give a folder with head.json, the id of a run, or a promoted name"
        )
        raise CheckpointError(f"{model} is not a model; {cure}") from error
    state = run_state.read_state(paths)
    if (paths.best / HEAD_FILE).is_file():
        return NamedModel.published_in(paths.best, name=paths.run_id)
    if state.has_ended or state.kind not in ("train", "search"):
        raise CheckpointError(f"{paths.run_id} has no model: {state.no_model_cause}")
    return NamedModel(name=paths.run_id, positive=read_json_object(paths.spec).get("positive"))


def after_its_model(settings: Settings, request: JobRequest, spec: Spec) -> JobRequest:
    """Make a run that needs another run's model wait for that run if it has not ended."""
    model = getattr(spec, "model", "")
    if not RUN_ID.fullmatch(model) or run_state.read_state(RunPaths.of(settings.storage, model)).has_ended:
        return request
    return request.model_copy(update={"after": tuple(dict.fromkeys((*request.after, model)))})


def refuse_other_classes(index: ShardIndex, shards: str, head: HeadConfig | None) -> None:
    """Refuse data whose classes differ from the model's.

    Raises:
        ModelMismatch: They differ.
    """
    if head:
        head.check_data(index, shards)


def _refuse_unknown_threshold(model: NamedModel, threshold: str | None) -> None:
    """Refuse a threshold that the model does not have; a model that is still being trained is checked when it runs.

    Raises:
        SpecError: The model has no threshold of that name.
    """
    if threshold is not None and model.folder is not None:
        read_threshold(model.folder, threshold)


def _checked_train(settings: Settings, spec: TrainOptions) -> TrainOptions:
    location, index = index_of(spec.shards)
    for split in spec.required_splits:
        require_split(index, split, spec.shards)
    if isinstance(spec, SearchSpec) and spec.refit:
        require_split(index, "test", spec.shards)
    check_training_size(spec.image_size, index, spec.shards)
    check_head(spec, index, spec.shards)
    refuse_unknown_positive(spec.positive, index.classes)
    refuse_too_few_shards(index, spec.workers)
    if spec.weights == "imagenet" and runs_here(settings):
        refuse_unavailable_imagenet(settings.storage)
    return spec.model_copy(update={"shards": location, "weights": weights_file(spec.weights)})


def _checked_evaluate(model: NamedModel, spec: EvaluateSpec) -> EvaluateSpec:
    location, index = index_of(spec.shards)
    require_split(index, spec.split, spec.shards)
    refuse_other_classes(index, spec.shards, model.head)
    if model.head:
        check_model_input(model.head.image_size, index, spec.shards)
    refuse_unknown_positive(spec.positive, index.classes)
    refuse_without_positive(spec, model.positive, index)
    return spec.model_copy(update={"shards": location, "model": model.name})


def _check_predicted_shards(model: NamedModel, spec: PredictSpec) -> None:
    """Refuse shards on this machine whose images are smaller than the model's input; the trainer checks the others."""
    for given in spec.images:
        folder = local_folder(given)
        if model.head and folder and (folder / INDEX_NAME).is_file():
            check_model_input(model.head.image_size, read_index(given), given)
