"""What experiment.yml says, which somebody has to write down before the first answer."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .decide import sample_size

Name = Annotated[str, Field(pattern="^[a-z0-9-]{1,30}$")]
Share = Annotated[float, Field(gt=0, lt=1)]


class Written(BaseModel):
    """Refuses unknown keys, NaN, and values of another type, such as "0.9"."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Arms(Written):
    """The version that users have now, and the new one."""

    a: Name
    b: Name


class Experiment(Written):
    """Who gets the new version, and how it is judged."""

    name: Name
    arms: Arms
    steps: list[Annotated[int, Field(ge=1, le=50)]] = Field(min_length=1, max_length=20)
    step: int
    event: str = Field(min_length=1, max_length=100)
    event_within_seconds: float = Field(gt=0, le=2_592_000)
    baseline: Share
    least_effect: Share
    alpha: float = Field(ge=0.001, le=0.2)
    power: float = Field(ge=0.5, le=0.99)
    harm_error_share: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def agree(self) -> Self:
        if self.arms.a == self.arms.b:
            raise ValueError("arms.a and arms.b are the same")
        if self.steps != sorted(set(self.steps)):
            raise ValueError("steps do not rise")
        if self.step not in self.steps:
            raise ValueError(f"step {self.step} is none of the steps")
        if self.baseline + self.least_effect >= 1:
            raise ValueError("baseline and least_effect are 1 or more together")
        return self

    @property
    def weights(self) -> tuple[int, int]:
        return 100 - self.step, self.step

    @property
    def planned(self) -> tuple[int, int]:
        """How many users of each version the test needs."""
        return sample_size(
            self.baseline, self.least_effect, self.step / 100, self.alpha, self.power
        )
