"""What all specs share: how they are checked, and how a wrong option is told in one line."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import SpecError

GpusPerWorker = Literal["auto", 0, 1]

S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """What all wishes share: unknown fields are refused, nothing changes after the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus_per_worker: GpusPerWorker = "auto"

    def to_json(self) -> dict[str, Any]:
        """Return the wish as plain JSON values, `kind` included."""
        return self.model_dump(mode="json")


def build(kind: type[S], **options: Any) -> S:
    """Return the checked wish.

    Raises:
        SpecError: An option is out of range, or options contradict each other; one line.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        raise SpecError(one_line(error)) from error


def one_line(error: ValidationError) -> str:
    """Return the first thing that pydantic found wrong as one line, with the option and its value."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    hidden = ("train", "evaluate", "search", "predict", "export", "Range")  # what pydantic names members of a union
    names = [str(part) for part in first["loc"] if part not in hidden]
    if first["type"] == "value_error" or not names:
        return message
    return f"{'.'.join(names)} {first['input']!r}: {message[0].lower()}{message[1:]}"
