"""Which function does which kind of wish."""

# ruff: noqa: PLC0415 -- each kind waits for the imports that it needs, and for no other's

from trainer.attempt import Attempt
from trainer.result import RunResult
from trainer.specs import AnySpec, EvaluateSpec, PredictSpec, SearchSpec, TrainSpec


def run_kind(attempt: Attempt, spec: AnySpec) -> RunResult:
    """Do what `spec` wishes and return the outcome."""
    if isinstance(spec, TrainSpec):
        from trainer.train import train

        return train(attempt, spec)
    if isinstance(spec, EvaluateSpec):
        from trainer.evaluate import evaluate

        return evaluate(attempt, spec)
    if isinstance(spec, SearchSpec):
        from trainer.search.run import search

        return search(attempt, spec)
    if isinstance(spec, PredictSpec):
        from trainer.predict import predict

        return predict(attempt, spec)
    from trainer.export import export

    return export(attempt, spec)
