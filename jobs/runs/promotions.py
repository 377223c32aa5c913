"""Names for models in use: `STORAGE/models/NAME.json` holds every promotion of a name, the newest last."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import StorageError
from cluster.files import is_damage, read_json, read_json_object, write_json
from cluster.run_paths import RUN_ID, RunPaths
from jobs.errors import InvalidOption, NameTaken, Refused
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

    def is_of(self, paths: RunPaths) -> bool:
        """Whether the model is that of a run, promoted by its id or by its folder."""
        return self.model == paths.run_id or Path(self.folder).resolve().is_relative_to(paths.folder.resolve())


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
    except StorageError as error:
        if not is_damage(error):
            raise
        raise StorageError(f"{file} is damaged: it is not JSON; restore it from a backup") from error


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
    if RUN_ID.fullmatch(name):
        raise InvalidOption(f"--as {name!r} has the form of a run id; choose another name")
    if not names.NAME.fullmatch(name):
        raise InvalidOption(f"--as {name!r} is not valid; {names.NAME_RULE}")
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


def models_in_use(storage: Path) -> tuple[dict[str, Promotion], list[str]]:
    """Return the newest promotion of each name, and for each name whose file is damaged a line that says so."""
    found, damaged = dict[str, Promotion](), list[str]()
    for name in promoted_names(storage):
        try:
            if history := history_of(storage, name):
                found[name] = history[-1]
        except StorageError as error:
            damaged.append(str(error))
    return found, damaged


def refuse_in_use(paths: RunPaths) -> None:
    """Refuse to delete a run whose model is in use under a name, or may be.

    Raises:
        Refused: It is, or the file of a name is damaged.
    """
    models, damaged = models_in_use(paths.storage)
    if used := [name for name, each in models.items() if each.is_of(paths)]:
        raise Refused(
            f"the model of {paths.run_id} is in use as {', '.join(used)}; promote another model, or give --force"
        )
    if damaged and paths.best.is_dir():
        raise Refused(f"the model of {paths.run_id} may be in use: {damaged[0]}; --force deletes it all the same")
