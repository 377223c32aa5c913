"""Specs: what a run is requested to do, validated and frozen, as JSON. Imports neither torch nor ray."""

from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from cluster.errors import StorageError
from cluster.files import read_json
from trainer.errors import SpecError, UnknownOption
from trainer.specs.base import Spec, build, one_line
from trainer.specs.inference import EvaluateSpec, ExportSpec, PredictSpec
from trainer.specs.search import SearchSpec
from trainer.specs.train import Precision, TrainOptions, TrainSpec

__all__ = [
    "SPEC_OF_KIND", "AnySpec", "EvaluateSpec", "ExportSpec", "Precision", "PredictSpec", "SearchSpec",
    "Spec", "TrainOptions", "TrainSpec", "build", "read_spec",
]  # fmt: skip

AnySpec = TrainSpec | EvaluateSpec | SearchSpec | PredictSpec | ExportSpec
SPEC_OF_KIND: dict[str, type[Spec]] = {spec.model_fields["kind"].default: spec for spec in get_args(AnySpec)}
_OF_NEWER_VERSIONS = {"extra_forbidden", "union_tag_invalid", "literal_error"}
_ANY: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="kind")])


def read_spec(path: Path) -> AnySpec:
    """Read the spec in a run's `spec.json`.

    Raises:
        UnknownOption: The spec has a kind, an option or a choice that this version does not know.
        SpecError: The file is missing, is not JSON, or is not a spec.
    """
    try:
        return _ANY.validate_python(read_json(path))
    except ValidationError as error:
        kind = UnknownOption if _OF_NEWER_VERSIONS & {fault["type"] for fault in error.errors()} else SpecError
        raise kind(f"{path}: {one_line(error)}") from error
    except StorageError as error:
        raise SpecError(f"{error}; restore it from a backup, or submit the run again") from error
