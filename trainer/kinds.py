"""Which function does which kind of wish."""

from trainer.attempt import Attempt
from trainer.errors import SpecError
from trainer.evaluate import evaluate
from trainer.result import RunResult
from trainer.specs import AnySpec, EvaluateSpec, TrainSpec
from trainer.train import train


def run_kind(attempt: Attempt, spec: AnySpec) -> RunResult:
    """Do what `spec` wishes and return the outcome."""
    if isinstance(spec, TrainSpec):
        return train(attempt, spec)
    if isinstance(spec, EvaluateSpec):
        return evaluate(attempt, spec)
    raise SpecError(f"this program cannot do a {spec.kind} yet")
