"""The options of a run: which of them somebody chose, and which have their defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from jobs.runs.request import JobRequest
from trainer.specs import SPEC_OF_KIND
from trainer.specs.option_text import flat_options

NOT_OPTIONS = ("kind", "name", "note", "tags", "owner")  # are shown elsewhere


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """The options of a run by name: fields of its spec and of its request, and the dimensions of a search space.

    Attributes:
        chosen: Those that differ from their defaults; None is off.
        defaults: The others, without those that are off.
    """

    chosen: Mapping[str, Any]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, spec: Mapping[str, Any], request: Mapping[str, Any]) -> "GivenOptions":
        """Return the options of a run; one that this version does not know counts as chosen.

        Args:
            spec: The spec as JSON.
            request: How it was submitted, as JSON.
        """
        asked = {name: value for name, value in request.items() if value is not None or name not in spec}
        given = {name: value for name, value in flat_options({**spec, **asked}).items() if name not in NOT_OPTIONS}
        usual = flat_options(_defaults_of(spec.get("kind")))
        same = {name for name, value in given.items() if name in usual and value == usual[name]}
        return cls(
            chosen={name: value for name, value in given.items() if name not in same},
            defaults={name: given[name] for name in given if name in same and given[name] not in (None, [])},
        )


def _defaults_of(kind: Any) -> dict[str, Any]:
    """Return the values that the options of a kind of runs have where nobody gives one, as JSON."""
    models: list[type[BaseModel]] = [JobRequest, *(spec for name, spec in SPEC_OF_KIND.items() if name == kind)]
    fields = (field for model in models for field in model.model_fields.items())
    return {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields
        if not field.is_required()
    }
