"""The schema of study.yaml. Reading a file (line numbers, overrides, cross checks) is `kdnas.study.loading`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field, model_validator

from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Constraint, parse_constraint
from kdnas.training.recipe import Distillation, Recipe, Section, Training


class Member(pydantic.BaseModel):
    """A registry member: its name and its options beside it. A bare string is the name alone."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    type: str

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The member's own options."""
        return dict(self.model_extra or {})


class DataConfig(Member):
    """The data set, and how much of its training split is carved off to score students on."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2


class TuneRange(Section):
    """A training setting searched jointly with the architecture, uniformly or on a log scale."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> TuneRange:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("needs low < high, and low > 0 where log is true")
        return self


class Budget(Section):
    """When the search stops."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 40
    """Students scored, failed ones counted."""
    trial_time_limit_s: Annotated[float, Field(gt=0.0)] = 3600.0
    """A trial that runs longer is stopped and recorded as failed. A retraining may run longer in proportion to its
    epochs and data."""


class ExecutorConfig(Member):
    """Who runs the evaluations."""

    type: str = "local"
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """None: one a core on a CPU, one a device on GPUs."""


class Final(Section):
    """How the front is earned: its students retrained from scratch, several seeds, then the test split."""

    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    epochs: Annotated[int, Field(ge=1)] | None = None
    """None: as many as in the search."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_students: Annotated[int, Field(ge=1, le=1000)] = 8
    """Of a larger front, those with the largest hypervolume contributions."""


class ExportConfig(Section):
    """What is exported when the search ends; nothing when `formats` is empty."""

    pick: str = "knee"
    formats: tuple[str, ...] = ("safetensors", "student_json", "student_py", "train_yaml", "model_card")


def _bound(text: str) -> str:
    parse_constraint(text)
    return text


class StudyConfig(Section):
    """One study, every default resolved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    teacher: Member
    space: str
    """The name of a space that kdnas carries, or a path to a YAML file relative to the study."""
    objectives: Annotated[tuple[str, ...], Field(min_length=2, max_length=4)] = ("accuracy", "macs")
    constraints: tuple[Annotated[str, AfterValidator(_bound)], ...] = ()
    costs: dict[str, dict[str, Any]] = Field(default={"latency_ms": {}})
    """Options of measured costs, by name: `latency_ms: {threads: 1, batch_size: 1}`."""
    training: Training = Training()
    distillation: Distillation = Distillation()
    tune: dict[str, TuneRange] = Field(default_factory=dict)
    """Dotted recipe settings that are searched too: `training.learning_rate: {low: 0.01, high: 0.3, log: true}`."""
    sampler: Member = Member(type="auto")
    executor: ExecutorConfig = ExecutorConfig()
    budget: Budget = Budget()
    final: Final = Final()
    export: ExportConfig = ExportConfig()

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(parse_constraint(text) for text in self.constraints)

    @property
    def final_fidelity(self) -> Fidelity:
        """How much training each retraining of a finalist sees."""
        return Fidelity(self.final.epochs or self.training.epochs, self.final.data_fraction)

    @property
    def recipe(self) -> Recipe:
        """The recipe of a search trial."""
        return Recipe(training=self.training, distillation=self.distillation)
