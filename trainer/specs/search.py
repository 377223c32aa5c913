"""The spec of `search`. Imports neither torch nor ray."""

import zoneinfo
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AwareDatetime, Field, field_validator, model_validator

from cluster.errors import SettingsError
from cluster.windows import TimeWindow
from trainer.errors import SpecError
from trainer.specs.base import build
from trainer.specs.search_space import SEARCHED, Config, Space
from trainer.specs.train import EPOCH_CHOICE_OPTIONS, TrainOptions, TrainSpec

T = TypeVar("T")


class SearchSpec(TrainOptions):
    """A hyperparameter search: many trainings; options outside the search space are the same for all of them.

    Attributes:
        trials: Number of configurations, including those taken from `extend`.
        space: The search space: what varies, and its bounds.
        algorithm: Search algorithm. "tpe" learns from earlier trials, "random" does not, "grid" tries every point.
        concurrency: Maximum number of concurrent trials; None means as many as the machine or cluster has room for.
        early_stopping: Stop the worse trials at each rung (ASHA); None means only where trials are long enough.
        repeats: Trainings of each configuration with different seeds; their mean ranks it.
        folds: Each trial is a cross-validation of K folds over train and valid, as `TrainSpec.folds`, and is ranked by
            its predictions out of fold. The published model is that of a training with the chosen trial's options. None
            is off.
        fold_repeats: Number of times that the images are divided into folds anew; the mean ranks a trial.
        max_failures: The search fails when more trials than this fail.
        until: Deadline. No trial starts that cannot finish by then; running trials pause then, and the search ends.
        max_duration_seconds: A deadline relative to the first start of the search.
        window: Daily time window in which the search runs, as `20:00-07:00`; it resumes when the window opens again.
        timezone: IANA time zone of `window`; None means the machine's.
        extend: Id of an earlier search whose trials become the first trials of this one.
        refit: Train the chosen configuration again on the train and valid splits together, and publish that model.
        choose: Which trial is published: "default" keeps the trial with the defaults of `train` unless the best trial
            is better by more than one standard error of their difference, "best" takes the best trial.
    """

    kind: Literal["search"] = "search"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 32
    space: Space = Space()
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    early_stopping: bool | None = None
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    fold_repeats: Annotated[int, Field(ge=1, le=100)] = 1
    max_failures: Annotated[int, Field(ge=0)] = 10
    until: AwareDatetime | None = None
    max_duration_seconds: Annotated[float, Field(gt=0)] | None = None
    window: str | None = None
    timezone: str | None = None
    extend: str | None = None
    refit: bool = False
    choose: Literal["default", "best"] = "default"

    @property
    def reads_features(self) -> bool:
        """Whether all trials train heads on the cached features of one frozen backbone."""
        varies_more = self.space.freeze is not None or self.space.augment is not None
        return super().reads_features and not varies_more

    def trial_spec(self, config: Config) -> TrainSpec:
        """Return the spec of the training of one configuration.

        Raises:
            SpecError: The configuration is out of range.
        """
        shared = {name: getattr(self, name) for name in TrainOptions.model_fields}
        if self.folds is not None:  # all epochs are trained: the metric ranks trials, and chooses no epoch
            shared = {name: value for name, value in shared.items() if name not in EPOCH_CHOICE_OPTIONS}
            shared |= {"folds": self.folds, "repeats": self.fold_repeats}
        return build(TrainSpec, **shared | config)

    @property
    def default_config(self) -> Config:
        """The configuration of the default trial: the defaults of `train` where an option varies, else its value."""
        return {name: getattr(self, name) for name in SEARCHED}

    @property
    def excluded_defaults(self) -> Config:
        """The defaults of `train` that no trial can have, by option: outside of its range, or no point of the grid."""
        dimensions = self.space.grid_axes if self.algorithm == "grid" else self.space.dimensions
        return {name: getattr(self, name) for name, values in dimensions.items() if getattr(self, name) not in values}

    def is_default(self, config: Config) -> bool:
        """Whether a trial has the configuration of the default trial; one of an older version may lack options."""
        return not self.excluded_defaults and all(
            config.get(name, value) == value for name, value in self.default_config.items()
        )

    @property
    def trainings_per_trial(self) -> int:
        """How many heads or networks each trial trains: one for each seed, or for each fold of each repeat."""
        return self.repeats if self.folds is None else self.folds * self.fold_repeats

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits that a data set must have; folds need no valid split."""
        return super().required_splits if self.folds is None else ("train",)

    @field_validator("window")
    @classmethod
    def _window_opens(cls, window: str | None) -> str | None:
        return None if window is None else _or_value_error(lambda: str(TimeWindow.parse(window)))

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"timezone {name!r} is unknown; write an IANA name such as Europe/Berlin")
        return name

    @model_validator(mode="after")
    def _folds_fit_the_search(self) -> Self:
        if self.folds is None:
            if self.fold_repeats > 1:
                raise ValueError(
                    f"--repeats {self.fold_repeats} repeats the folds of --folds; add --folds 5, or use "
                    f"--seeds {self.fold_repeats} to train each configuration with several seeds"
                )
            return self
        option = f"--folds {self.folds}"
        if self.repeats > 1:
            raise ValueError(
                f"{option} trains each fold with a seed of its own; use --repeats {self.repeats} instead of "
                f"--seeds {self.repeats}"
            )
        if self.early_stopping:
            raise ValueError(f"{option} trains all folds of a trial for all epochs; leave out --early-stopping")
        if self.refit:
            raise ValueError(f"{option} publishes a model that is trained on train and valid; leave out --refit")
        if not self.cache:
            raise ValueError(f"{option} reads the cached features in each trial; leave out --no-cache")
        if self.patience != type(self).model_fields["patience"].default:
            raise ValueError(f"{option} trains all epochs of each fold: --patience has no effect; leave it out")
        return self

    @model_validator(mode="after")
    def _every_trial_can_run(self) -> Self:
        for config in self.space.corners():
            _or_value_error(partial(self.trial_spec, config))
        if self.algorithm == "grid" and self.extend is None and self.trials > self.space.grid_size:
            raise ValueError(
                f"{self.trials} trials are more than the {self.space.grid_size} points of the grid; "
                f"use --trials {self.space.grid_size}, or more points as in --lr 1e-5:1e-2:9"
            )
        if self.space.augment_strength and not (self.augment or self.space.augment):
            raise ValueError("augment_strength varies where nothing is augmented; add --augment")
        return self


def _or_value_error(make: Callable[[], T]) -> T:
    """Call `make`; turn our errors into ValueError, which pydantic reports as a validation error."""
    try:
        return make()
    except (SpecError, SettingsError) as error:
        raise ValueError(str(error)) from error
