"""Which function does which kind of wish."""

from trainer.attempt import Attempt
from trainer.evaluate import evaluate
from trainer.export import export
from trainer.predict import predict
from trainer.result import RunResult
from trainer.search.run import search
from trainer.specs import AnySpec, EvaluateSpec, PredictSpec, SearchSpec, TrainSpec
from trainer.train import train


def run_kind(attempt: Attempt, spec: AnySpec) -> RunResult:
    """Do what `spec` wishes and return the outcome."""
    if isinstance(spec, TrainSpec):
        return train(attempt, spec)
    if isinstance(spec, EvaluateSpec):
        return evaluate(attempt, spec)
    if isinstance(spec, SearchSpec):
        return search(attempt, spec)
    if isinstance(spec, PredictSpec):
        return predict(attempt, spec)
    return export(attempt, spec)
