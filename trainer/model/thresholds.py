"""Decision thresholds of a published model, each under a name: `thresholds/NAME.json` beside the model.

`evaluate --min-sensitivity` writes one; `--threshold NAME` of evaluate, predict and export uses it. Without a name the
default decision applies: the most probable class. A file holds a threshold for each class that it is about, so that a
model of several labels has one name for all of them. Imports neither torch nor ray.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.lease import Lease
from trainer.errors import CheckpointError, SpecError
from trainer.model.names import CALIBRATION_FILE
from trainer.specs.threshold_name import NAME, threshold_name

FOLDER = "thresholds"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ThresholdChoice(BaseModel):
    """The threshold of one class and what the images that it was chosen on say about it.

    These are the validation split, or for a model of `train --folds` the predictions out of fold. A value is None where
    an older file does not say it.

    Attributes:
        threshold: The class is predicted if its probability after temperature scaling is at least this.
        temperature: Temperature of the probabilities that it was chosen on.
        min_sensitivity: The sensitivity that was requested.
        sensitivity: The sensitivity reached on these images.
        positives: Images of the class among them.
        groups: Number of groups (patients or cases) of these.
        lower_bound: The sensitivity that these positives support with at least 95 % confidence, one-sided.
        negatives: The others of these images.
        false_positives: Negatives at or above the threshold.
        default_sensitivity: The sensitivity of the default decision on the same images.
        default_false_positives: The false positives of the default decision.
        data: Digest of the data set.
        chosen_on: The images that the threshold was chosen on.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    threshold: Share
    temperature: Annotated[float, Field(gt=0)] = 1.0
    min_sensitivity: Share | None = None
    sensitivity: Share | None = None
    positives: Count | None = None
    groups: Count | None = None
    lower_bound: Share | None = None
    negatives: Count | None = None
    false_positives: Count | None = None
    default_sensitivity: Share | None = None
    default_false_positives: Count | None = None
    data: str = ""
    chosen_on: Literal["valid", "out of fold"] = "valid"


class NamedThreshold(BaseModel):
    """The thresholds that have one name.

    Attributes:
        model: sha256 of the weights that they were chosen for.
        classes: The threshold of each class.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    model: str
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    classes: Annotated[dict[str, ThresholdChoice], Field(min_length=1)]

    def write(self, folder: Path, lease: Lease) -> None:
        """Write the file atomically beside the model in `folder`.

        Raises:
            LeaseLost: A newer attempt owns the run that writes it.
            CheckpointError: The folder cannot be written.
        """
        path = _path(folder, self.name)
        try:
            path.parent.mkdir(exist_ok=True)
            lease.write_json(path, self.model_dump(mode="json"))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written: {error.strerror}; free space there or make it writable"
            ) from error


def threshold_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a model's thresholds, sorted."""
    names = {file.stem for file in (folder / FOLDER).glob("*.json") if NAME.fullmatch(file.stem)}
    legacy = _legacy(folder)
    return tuple(sorted(names | ({legacy.name} if legacy else set())))


def read_threshold(folder: Path, name: str, *, weights: str | None = None) -> NamedThreshold:
    """Return a model's threshold by name; `weights` is the sha256 of the model's weights, None checks nothing.

    Raises:
        SpecError: The model has no threshold of that name.
        CheckpointError: The file is damaged or belongs to other weights.
    """
    path, legacy = _path(folder, name), _legacy(folder)
    if not path.exists():
        if legacy is None or legacy.name != name:
            known = ", ".join(threshold_names(folder)) or "none; evaluate --min-sensitivity chooses one"
            raise SpecError(f"the model has no threshold {name!r}; it has: {known}")
        found = legacy
    else:
        found = _read(path)
    if weights is not None and found.model != weights:
        raise CheckpointError(f"{path} belongs to other weights; choose the threshold again with evaluate")
    return found


def _read(path: Path) -> NamedThreshold:
    try:
        found = NamedThreshold.model_validate(read_json(path))
    except (StorageError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged; choose the threshold again with evaluate --min-sensitivity"
        ) from error
    if found.name != path.stem:
        raise CheckpointError(f"{path} holds the threshold {found.name!r}; rename the file")
    return found


def _legacy(folder: Path) -> NamedThreshold | None:
    """Return the threshold that version 0.1.0 kept in `calibration.json`, where it changed the default decision."""
    try:
        content = read_json(folder / CALIBRATION_FILE)
        choice = ThresholdChoice.model_validate(content)
        return NamedThreshold(
            model=content["model"],
            name=threshold_name(choice.min_sensitivity or 0.0),
            classes={content["positive"]: choice},
        )
    except (StorageError, ValidationError, KeyError, TypeError):
        return None  # absent, damaged, or without a threshold; whoever needs the temperature reports the damage


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"
