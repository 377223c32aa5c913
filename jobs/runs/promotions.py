"""Names for models in use: `STORAGE/models/NAME.json` holds every promotion of a name, the newest last."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import StorageError
from cluster.files import read_json, read_json_object, write_json
from cluster.run_paths import RUN_ID
from jobs.errors import InvalidOption, NameTaken
from jobs.runs import names
from trainer.errors import CheckpointError
from trainer.model.names import MANIFEST_FILE, MODEL_FILE

FOLDER = "models"
SHOWN_DIGITS = 12  # of a sha256


class Promotion(BaseModel):
    """One promotion of a model.

    Attributes:
        model: Id of the run that trained the model, or its folder if that is not in the storage.
        folder: Where the model is.
        weights: sha256 of its weights.
        who: Who promoted it.
        when: RFC 3339 in UTC.
        why: The reason that was given.
        compared: How it compares with the model that had the name before; None for the first.
        forced: Whether it was promoted although it is worse.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    model: str
    folder: str
    weights: str
    who: str
    when: str
    why: str | None = None
    compared: str | None = None
    forced: bool = False


class _History(BaseModel):
    model_config = ConfigDict(frozen=True)

    history: list[Promotion] = Field(min_length=1)


def promoted_names(storage: Path) -> list[str]:
    """Return the names of the models in use, sorted."""
    return sorted(file.stem for file in (storage / FOLDER).glob("*.json") if names.NAME.fullmatch(file.stem))


def history_of(storage: Path, name: str) -> list[Promotion]:
    """Return the promotions of a name, the newest last; an empty list if there are none.

    Raises:
        StorageError: The name's file is damaged.
    """
    file = storage / FOLDER / f"{name}.json"
    if not names.NAME.fullmatch(name) or not file.is_file():
        return []
    try:
        return _History.model_validate(read_json(file)).history
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StorageError(f"{file} is damaged at {place or 'its start'}; restore it from a backup") from error


def add(storage: Path, name: str, promotion: Promotion, *, after: Promotion | None) -> None:
    """Write a promotion.

    Args:
        storage: The storage.
        name: The name of the model.
        promotion: The promotion.
        after: The promotion with which it was compared.

    Raises:
        InvalidOption: The name cannot be used.
        NameTaken: A run has the name, or somebody else has promoted a model meanwhile.
    """
    if not names.NAME.fullmatch(name) or RUN_ID.fullmatch(name):
        raise InvalidOption(f"--as {name!r} is not valid; use up to 63 letters, digits, dots, dashes and underscores")
    with names.locked_names(storage):
        if run_id := names.run_of(storage, name):
            raise NameTaken(f"{name} is the name of {run_id}; choose another name for the model")
        known = history_of(storage, name)
        if (known[-1] if known else None) != after:
            raise NameTaken(f"another model was promoted as {name} meanwhile; repeat the command to compare with it")
        (storage / FOLDER).mkdir(exist_ok=True)
        write_json(storage / FOLDER / f"{name}.json", _History(history=[*known, promotion]).model_dump(mode="json"))


def promoted_model(storage: Path, name: str) -> Promotion | None:
    """Return the model in use under a name, None if there is no such name.

    Raises:
        StorageError: The name's file is damaged.
        CheckpointError: The model is not there, or has other weights than when it was promoted.
    """
    history = history_of(storage, name)
    if not history:
        return None
    found = history[-1]
    try:
        weights = str(read_json_object(Path(found.folder) / MANIFEST_FILE)["files"][MODEL_FILE])
    except (StorageError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the model {name} cannot be read at {found.folder}; restore it from a backup, or promote another as {name}"
        ) from error
    if weights != found.weights:
        raise CheckpointError(
            f"the model {name} has other weights than when it was promoted: sha256 {weights[:SHOWN_DIGITS]}... instead "
            f"of {found.weights[:SHOWN_DIGITS]}...; restore {found.folder} from a backup, or promote it again"
        )
    return found


def names_of_model(storage: Path, model: str) -> list[str]:
    """Return the names under which the model of a run is in use."""
    found = []
    for name in promoted_names(storage):
        try:
            if history_of(storage, name)[-1].model == model:
                found.append(name)
        except StorageError:  # one damaged name does not hide the others
            continue
    return found
