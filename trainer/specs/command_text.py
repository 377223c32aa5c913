"""The command line that repeats a run, for its report. Imports neither torch nor ray.

`nightshift show --command` prints the same options, and those of the request, from the options of the commands.
"""

import shlex
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from trainer.specs.base import Spec
from trainer.specs.inference import EvaluateSpec
from trainer.specs.search import SearchSpec
from trainer.specs.search_space import SEARCHED, Range, Space
from trainer.specs.train import TrainOptions

ARGUMENTS = ("model", "shards")  # given by place
OF_ONE_RUN = frozenset({"until"})  # a deadline is past when the run is repeated
WHEN = ("window", "timezone", "max_duration_seconds")  # of `search`; of other runs, the request has them
NOT_REPEATED = ("kind", "space", *OF_ONE_RUN, *WHEN, *ARGUMENTS)
RENAMED = {"best_by": "metric", "repeats": "seeds", "fold_repeats": "repeats"}  # of `search`


def command_of(spec: TrainOptions | EvaluateSpec) -> str:
    """Return the `nightshift` command whose spec is this one, without when it runs."""
    content = spec.to_json()
    words = ["nightshift", str(content["kind"]), *(str(content[name]) for name in ARGUMENTS if name in content)]
    searched = dict(_space_words(spec)) if isinstance(spec, SearchSpec) else {}
    for name, field in type(spec).model_fields.items():
        value = content.get(name)
        if name in NOT_REPEATED or name in searched or value == _json(field.default):
            continue
        words += _option(spec, name, value)
    return shlex.join([*words, *(word for pair in searched.values() for word in pair)])


def _option(spec: Spec, name: str, value: Any) -> list[str]:
    flag = "--" + (RENAMED.get(name, name) if isinstance(spec, SearchSpec) else name).replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if value is None:
        return [flag, "0"] if name == "patience" else []
    return [flag, _text(value)]


def _space_words(spec: SearchSpec) -> Iterator[tuple[str, list[str]]]:
    """Yield the option of each dimension of a search space that is not the default one."""
    for name in SEARCHED:
        dimension, usual = getattr(spec.space, name), getattr(Space(), name)
        if name == "augment":
            continue
        text = _dimension(dimension) if dimension is not None else _text(getattr(spec, name))
        is_default = dimension == usual and (dimension is not None or getattr(spec, name) == _default(spec, name))
        yield name, [] if is_default else ["--" + name.replace("_", "-"), text]


def _dimension(dimension: Any) -> str:
    if isinstance(dimension, Range):
        usual = type(dimension).model_fields["points"].default
        points = "" if dimension.points == usual else f":{dimension.points}"
        return f"{_text(dimension.low)}:{_text(dimension.high)}{points}"
    return ",".join(_text(value) for value in dimension)


def _default(spec: Spec, name: str) -> Any:
    return type(spec).model_fields[name].default


def _json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
