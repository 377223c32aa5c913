"""Nightshift in Python: predict with a model, read runs into pandas tables, submit and follow runs.

    import nightshift

    model = nightshift.load("chest")                # a run, a search, a promoted name, or a folder
    table = model.predict(["film.png", "films/"])   # files and folders, or arrays of pixels
    nightshift.runs(tag="chest")
    run_id = nightshift.submit("train", shards="shards/chest", epochs=20, name="night")
    nightshift.wait(run_id)["result"]["metrics"]

The settings are those of the command line: `NIGHTSHIFT_STORAGE` and so on. Errors have the texts of the command line.
They are classes of `cluster.errors`, `data_shards.errors`, `trainer.errors` and `jobs.errors`.
"""

import io
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as PillowImage

from cluster.access import restricted_umask
from cluster.errors import StorageError
from cluster.files import is_unanswered
from cluster.run_paths import RunPaths
from cluster.settings import Settings, umask_setting
from cluster.storage_patience import StoragePatience, fault_text
from cluster.windows import seconds_of
from data_shards.errors import BadImage
from data_shards.pixels import decode_pixels
from jobs.cli.main import cli
from jobs.cli.option_values import as_text, option_values
from jobs.cli.submission import SpecCollector, missing_to_start
from jobs.cli.trials import table_of
from jobs.cli.usage_errors import CONFIG_NAME, usage_line
from jobs.errors import InvalidOption, Refused
from jobs.queue.checks import model_of
from jobs.queue.submit import submit as queue_run
from jobs.runs import state as run_state
from jobs.runs.record import read_record
from jobs.runs.run_filter import KINDS, Filter, Kind
from jobs.runs.run_index import RunIndex
from jobs.runs.trial_rows import rows_of
from trainer.errors import SpecError

if TYPE_CHECKING:  # torch takes seconds
    from trainer.data.images import ImageBatch
    from trainer.inference.predictor import Predictor
    from trainer.model.head import HeadConfig

__all__ = ["Model", "load", "metrics", "runs", "submit", "trials", "wait"]

Array: TypeAlias = npt.NDArray[np.uint8]
Image: TypeAlias = str | Path | Array | PillowImage.Image
SINGLE = (str, Path, np.ndarray, PillowImage.Image)
BATCH_SIZE = 64
POLL_SECONDS = 1.0
GRAY, COLOR = 2, 3  # dimensions of an array


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model; `load` makes it.

    Attributes:
        name: The text that it was loaded by.
        folder: Its files.
        classes: Class names, or labels of a multi-label model.
        threshold: Probability from which the positive class is decided on; None decides on the most probable class. Of
            a multi-label model, the threshold of each label, where None means 0.5.
        metrics: Metrics of the run that trained it; empty if that run is not in the storage.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    threshold: float | dict[str, float | None] | None
    metrics: dict[str, Any]
    _predictor: "Predictor" = field(repr=False)

    def predict(self, images: Image | Iterable[Image], *, batch_size: int = BATCH_SIZE) -> pd.DataFrame:
        """Classify images, on the CPU, and return a row for each, in order.

        The answer for the pixels of a JPEG file can differ a little from that for the file, where libjpeg decodes a
        large file at half of its size or less.

        Args:
            images: Files, folders and data sets of shards, arrays (H, W) or (H, W, 3) of uint8 pixels, or images of
                Pillow; one or several.
            batch_size: Images per step.

        Returns:
            The columns `file` (the number, of what is no file), `decision`, `probability_CLASS` for each class, and
            `error`: why a file has no answer, missing where it has one. The decision is a class, or a tuple of labels.

        Raises:
            SpecError: A path does not exist, an array or an image has no 8-bit pixels, it is none of these, or the
                batch size is below 1.
            ModelMismatch: The images of shards are smaller than the model's input.
            ShardError: Shards are damaged.
            StorageError: A folder or shards cannot be read.
        """
        if batch_size < 1:
            raise SpecError(f"batch_size {batch_size} is below 1; use 1 or more")
        several = [images] if isinstance(images, SINGLE) or not isinstance(images, Iterable) else images
        columns = ["file", "decision", *(f"probability_{name}" for name in self.classes), "error"]
        rows = [row for batch in self._batches(several, batch_size) for row in self._rows(batch)]
        return pd.DataFrame(rows, columns=columns)

    def _batches(self, images: Iterable[Image], batch_size: int) -> "Iterator[ImageBatch]":
        from trainer.data.images import image_sources  # noqa: PLC0415 -- torch takes seconds
        from trainer.inference.prediction_rows import check_sizes, reading  # noqa: PLC0415

        config = self._predictor.config
        for is_path, group in groupby(enumerate(images), key=_is_path):
            if not is_path:
                while batch := _pixel_batch(islice(group, batch_size), config):
                    yield batch
                continue
            paths = tuple(str(path) for _, path in group)
            with reading(paths):
                sources = image_sources(paths)
                check_sizes(sources, config.image_size)
                for source in sources:
                    yield from source.batches(config, batch_size=batch_size, loader_workers=0)

    def _rows(self, batch: "ImageBatch") -> Iterator[tuple[Any, ...]]:
        probabilities = self._predictor.probabilities(batch.pixels)
        found = iter(zip(probabilities.tolist(), self._predictor.decisions(probabilities).tolist(), strict=True))
        for file, error in zip(batch.files, batch.errors, strict=True):
            if error is not None:
                yield (file, None, *([None] * len(self.classes)), error)
                continue
            values, decided = next(found)
            yield (file, self._decision(decided), *values, None)

    def _decision(self, decided: int | list[int]) -> str | tuple[str, ...]:
        if isinstance(decided, list):
            return tuple(name for name, is_present in zip(self.classes, decided, strict=True) if is_present)
        return self.classes[decided]


def load(model: str | Path, *, threshold: str | None = None) -> Model:
    """Load a model for predictions in this process, on the CPU.

    Args:
        model: A training run, a search (its best model), a promoted name, or a folder with a published model.
        threshold: Name of the model's threshold to decide at, which `nightshift evaluate --min-sensitivity` chose; None
            decides on the most probable class.

    Raises:
        CheckpointError: It is not a model, is not published yet, or is damaged.
        SpecError: It has no threshold of that name.
        UnknownRun: Several runs match.
    """
    import torch  # noqa: PLC0415 -- takes seconds

    from trainer.inference.predictor import Predictor  # noqa: PLC0415

    settings = Settings.read()
    folder = model_of(settings, str(model)).published_folder()
    predictor = Predictor.load(folder, torch.device("cpu"), threshold)
    paths = RunPaths(folder.parent)
    result = read_record(paths).result if folder == paths.best and paths.state.exists() else None
    return Model(
        name=str(model),
        folder=folder,
        classes=predictor.config.classes,
        threshold=_threshold_of(predictor),
        metrics=dict(result["metrics"]) if result else {},
        _predictor=predictor,
    )


def runs(
    *,
    state: str | None = None,
    kind: Kind | None = None,
    name: str | None = None,
    tag: str | None = None,
    owner: str | None = None,
) -> pd.DataFrame:
    """Return a row for each run, newest first: id, name, kind, state, labels, owner, times, and its metric and split.

    Args:
        state: Only runs in this state.
        kind: Only runs of this kind.
        name: Only runs with this in their names; * and ? stand for any characters.
        tag: Only runs with this tag.
        owner: Only runs that this user submitted.

    Raises:
        InvalidOption: There is no such state or kind.
    """
    _refuse_other_than("state", state, (*run_state.STATES, run_state.DAMAGED))
    _refuse_other_than("kind", kind, KINDS)
    wanted = Filter(state=state, kind=kind, name=name, tags=() if tag is None else (tag,), owner=owner)
    index = RunIndex(Settings.read().storage)
    columns = ["id", "name", "kind", "state", "why", "tags", "note", "owner", "created", "started", "ended"]
    rows = []
    for run in index.states(wanted):
        metric, value = run.metric or (None, None)
        rows.append((*(getattr(run, column) for column in columns), metric, value, run.metric_split))
    index.save()
    table = pd.DataFrame(rows, columns=[*columns, "metric", "value", "split"])
    for column in ("created", "started", "ended"):
        table[column] = pd.to_datetime(table[column], utc=True, format="ISO8601")
    return table


def trials(search: str) -> pd.DataFrame:
    """Return a row for each trial of a search, the best first: its options, metric, epochs, seconds and state.

    Args:
        search: A run id, a unique prefix of one, or a run's name.

    Raises:
        UnknownRun: No run, or more than one, matches.
        Refused: The run is not a search.
    """
    paths = run_state.find(Settings.read().storage, search)
    return pd.DataFrame(rows_of(paths, table_of(paths)))


def metrics(run: str) -> pd.DataFrame:
    """Return a row for each epoch of a training: losses, validation metrics, learning rate and seconds.

    Damaged lines are left out; a warning names them. A training without an epoch yet has an empty table.

    Args:
        run: A run id, a unique prefix of one, or a run's name.

    Raises:
        UnknownRun: No run, or more than one, matches.
        Refused: The run is of a kind that has no epochs.
    """
    record = read_record(run_state.find(Settings.read().storage, run))
    if record.state.kind != "train" and not record.metrics:
        cure = "trials() has its trials" if record.state.kind == "search" else "its result has its metrics"
        raise Refused(f"{record.state.id} is of kind {record.state.kind}, which has no epochs; {cure}")
    if record.damage:
        warnings.warn(record.damage, stacklevel=2)
    return pd.DataFrame(record.metrics)


def submit(kind: Kind, **options: Any) -> str:
    """Queue a run and return its id; the files of the run get the permissions that `NIGHTSHIFT_UMASK` says.

    A warning says if it cannot start yet, because there is no job worker or the queues are paused.

    Args:
        kind: What to do, as the command is called.
        options: Arguments and options of `nightshift KIND`, spelt with underscores, with values as on the command line:
            `submit("search", shards="shards", lr="1e-5:1e-2", until="07:00", tag=["chest"])`.

    Raises:
        InvalidOption, SpecError: An option does not exist, or its value is refused.
        QueueUnreachable: Redis does not answer.
        ClusterError, ShardError, TrainerError, JobError: What the command line refuses too.
    """
    with restricted_umask(umask_setting()):
        return _submit(kind, options)


def wait(run: str, *, timeout: float | str | None = None) -> dict[str, Any]:
    """Wait until a run ends and return what `nightshift show --json` prints of it; its `state` says how it ended.

    A storage that does not answer or is not mounted is waited for, 10 minutes at most, with a warning.

    Args:
        run: A run id, a unique prefix of one, or a run's name.
        timeout: Seconds, or a duration such as "30m"; None waits as long as it takes.

    Raises:
        SettingsError: The timeout is not a duration.
        UnknownRun: No run, or more than one, matches.
        TimeoutError: It has not ended in time and goes on, or the storage has not answered in time.
    """
    seconds = seconds_of(timeout) if isinstance(timeout, str) else timeout
    until = float("inf") if seconds is None else time.monotonic() + seconds
    storage, patience = Settings.read().storage, StoragePatience(lambda line: warnings.warn(line, stacklevel=4))
    try:
        paths = patience.call(lambda: run_state.find_to_follow(storage, run), until=until)
        while not patience.call(lambda: run_state.read_state(paths), until=until).has_ended:
            if time.monotonic() >= until:
                raise TimeoutError(f"{paths.run_id} has not ended after {seconds:g} s; it goes on")
            time.sleep(POLL_SECONDS)
        return patience.call(lambda: read_record(paths), until=until).to_json()
    except (OSError, StorageError) as error:
        if time.monotonic() < until or not is_unanswered(error):
            raise
        raise TimeoutError(f"the storage has not answered within {seconds:g} s: {fault_text(error)}") from error


def _refuse_other_than(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InvalidOption(f"{name} {value!r} is not one of {', '.join(known)}")


def _is_path(numbered: tuple[int, Any]) -> bool:
    number, image = numbered
    if not isinstance(image, SINGLE):
        what = type(image).__name__
        raise SpecError(f"image {number} is of type {what}; give files, folders, shards, arrays or images of Pillow")
    return isinstance(image, str | Path)


def _pixel_batch(images: Iterable[tuple[int, Any]], config: "HeadConfig") -> "ImageBatch | None":
    """Return numbered arrays and images of Pillow as one batch; None if there are none."""
    import torch  # noqa: PLC0415 -- takes seconds

    from trainer.data.images import ImageBatch, input_pixels  # noqa: PLC0415

    numbers, pixels = [], []
    for number, image in images:
        try:
            file = io.BytesIO()
            PillowImage.fromarray(_eight_bit_pixels(image, number)).save(file, format="PNG")
            pixels.append(input_pixels(file.getvalue(), config))
        except BadImage as error:
            raise SpecError(f"image {number}: {error}") from error
        numbers.append(str(number))
    if not pixels:
        return None
    return ImageBatch(files=tuple(numbers), errors=(None,) * len(pixels), pixels=torch.from_numpy(np.stack(pixels)))


def _eight_bit_pixels(image: Array | PillowImage.Image, number: int) -> Array:
    if isinstance(image, PillowImage.Image):
        return np.asarray(decode_pixels(image))
    is_image = image.ndim == GRAY or (image.ndim == COLOR and image.shape[2] == COLOR)
    if image.dtype != np.uint8 or not is_image or not image.size:
        raise SpecError(
            f"array {number} has the shape {image.shape} and the type {image.dtype}; give (H, W) or (H, W, 3) of "
            "uint8, several of them as a list"
        )
    return image


def _threshold_of(predictor: "Predictor") -> float | dict[str, float | None] | None:
    labels = predictor.calibration.labels
    if predictor.config.multi_label:
        return {name: label.threshold for name, label in labels.items()}
    return predictor.calibration.threshold


def _submit(kind: Kind, options: dict[str, Any]) -> str:
    settings = Settings.read()
    command = cli.get_command(click.Context(cli), kind)
    if command is None or kind not in KINDS:
        raise InvalidOption(f"{kind!r} is not one of {', '.join(KINDS)}")
    parent = click.Context(cli, info_name="nightshift")
    parent.meta[CONFIG_NAME] = "submit()"
    values = option_values(command, as_text(_with_paths(options)), "submit()")
    try:
        spec, request = SpecCollector.invoke(command, [], parent, values)
    except click.UsageError as error:
        raise InvalidOption(usage_line(error)) from error
    for line in missing_to_start(settings, request.priority):  # before it is queued: a warning may be an error
        warnings.warn(line, stacklevel=3)
    return queue_run(settings, spec, request)


def _with_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with paths as texts; a time as RFC 3339."""
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else str(value) if isinstance(value, Path) else value
        for name, value in options.items()
    }
