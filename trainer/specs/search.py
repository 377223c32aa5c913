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
from trainer.specs.search_space import Config, Space
from trainer.specs.train import TrainOptions, TrainSpec

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
        max_failures: The search fails when more trials than this fail.
        until: Deadline. No trial starts that cannot finish by then; running trials pause then, and the search ends.
        max_duration_seconds: A deadline relative to the first start of the search.
        window: Daily time window in which the search runs, as `20:00-07:00`; it resumes when the window opens again.
        timezone: IANA time zone of `window`; None means the machine's.
        extend: Id of an earlier search whose trials become the first trials of this one.
        refit: Train the best configuration again on the train and valid splits together, and publish that model.
    """

    kind: Literal["search"] = "search"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 32
    space: Space = Space()
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    early_stopping: bool | None = None
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    max_failures: Annotated[int, Field(ge=0)] = 10
    until: AwareDatetime | None = None
    max_duration_seconds: Annotated[float, Field(gt=0)] | None = None
    window: str | None = None
    timezone: str | None = None
    extend: str | None = None
    refit: bool = False

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
        return build(TrainSpec, **shared | config)

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
