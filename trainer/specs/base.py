"""The base class of all specs, what holds for all of them, and one-line errors for invalid options."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import SpecError

GpusPerWorker = Literal["auto", 0, 1]

S = TypeVar("S", bound="Spec")

LONGEST_VALUE = 100  # characters of a value that an error shows

# What each of pydantic's error types means, in the words of this project.
FAULTS = {
    "greater_than_equal": "is below {ge}; use {ge} or more",
    "greater_than": "is not above {gt}; use more than {gt}",
    "less_than_equal": "is above {le}; use {le} or less",
    "less_than": "is not below {lt}; use less than {lt}",
    "multiple_of": "is not a multiple of {multiple_of}",
    "string_pattern_mismatch": "is not one of {pattern}",
    "literal_error": "is not one of {expected}",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "string_too_short": "is empty; give a value",
    "string_too_long": "has more than {max_length} characters; shorten it",
    "too_short": "has fewer than {min_length} values",
    "extra_forbidden": "is not an option; check the spelling",
    "missing": "is missing",
}


class Spec(BaseModel):
    """Fields of all specs. Unknown fields are refused; a validated spec is immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus_per_worker: GpusPerWorker = "auto"

    @property
    def required_workers(self) -> int:
        """Number of workers without which the run does not start."""
        return self.workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.required_workers < self.workers

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values, including `kind`."""
        return self.model_dump(mode="json")


def build(kind: type[S], **options: Any) -> S:
    """Return the validated spec.

    Raises:
        SpecError: An option is out of range, or options contradict each other; one line.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        raise SpecError(one_line(error)) from error


def refuse_elastic_workers_here(spec: Spec, *, on_cluster: bool) -> None:
    """Refuse `--min-workers` for a run on one machine.

    Raises:
        SpecError: The run may have fewer workers, and runs on no Ray cluster.
    """
    if spec.is_elastic and not on_cluster:
        raise SpecError(
            f"--min-workers {spec.required_workers} needs a Ray cluster, whose machines come and go; on one machine "
            "leave it out"
        )


def one_line(error: ValidationError) -> str:
    """Return the first fault that pydantic found as one line: the option, its value, the fault, then the cure."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    hidden = ("train", "evaluate", "search", "predict", "export", "Range")  # what pydantic names members of a union
    names = [str(part) for part in first["loc"] if part not in hidden]
    if first["type"] == "value_error" or not names:
        return message
    fault = FAULTS.get(first["type"], f"is refused: {message[0].lower()}{message[1:]}")
    if first["type"] == "missing":  # its input is the whole spec
        return f"{'.'.join(names)} {fault}"
    value = repr(first["input"])
    if len(value) > LONGEST_VALUE:
        value = f"{value[:LONGEST_VALUE]}..."
    return f"{'.'.join(names)} {value} {fault.format_map(_bounds(first.get('ctx', {})))}"


def _bounds(context: dict[str, Any]) -> dict[str, Any]:
    """Return the bounds that pydantic names, choices and patterns as people write them."""
    choices = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
    pattern = str(context.get("pattern", "")).strip("^()$").replace("|", ", ").replace("[1-7]", "1 to 7")
    numbers = {name: f"{value:g}" for name, value in context.items() if isinstance(value, float)}
    return {**context, **numbers, "expected": choices, "pattern": pattern}
