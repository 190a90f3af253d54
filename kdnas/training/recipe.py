"""The recipe of one training: read from a study's YAML, written to train.yaml, followed by `distil`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import Field, SerializeAsAny

from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError
from kdnas.plugins import short_name
from kdnas.registry import Member, Section, later
from kdnas.tasks import TASKS, Task

M = TypeVar("M", bound=pydantic.BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


NUMERICS = ("precision", "threads", "fused_norms")
"""Training settings that decide how numbers are computed: `auto` until `kdnas.training.numerics` settles them."""


class LossTerm(pydantic.BaseModel):
    """One distillation loss: its registry name, its weight, and its own options."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    type: str
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Unless stated, that of the loss's authors, as `kdnas list losses` shows: 1 for most, 1000 for attention."""
    of: Annotated[str, Field(min_length=1)] | None = later(None)
    """Whose outputs it learns: a teacher's name; `ensemble`, all teachers together; `peers`, students that begin at
    other weights, or are others, and learn with it; `ema`, the moving average of its own weights; or `self`, its own
    outputs as they are. None: the only teacher's, the ensemble's where there are several."""
    warmup_fraction: Fraction = later(0.0)
    """Share of all steps in which the weight rises in equal steps to `weight`, as dkd's authors have it."""
    during: tuple[Fraction, Fraction] | None = later(None)
    """The stretch of the steps, in shares of all, in which it counts: `[0, 0.5]` for the first half, TinyBERT's step of
    layers, `[0.5, 1]` for what follows. None: all of them. A warm-up begins with it."""

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options."""
        return dict(self.model_extra or {})

    @property
    def words(self) -> str:
        """What it is called, and whose outputs it learns where that is stated."""
        return short_name(self.type) + (f" of {self.of}" if self.of else "")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _weighted_as_usual(cls, given: Any) -> Any:
        """Let a term that states no weight have its loss's; a loss that does not exist is reported elsewhere."""
        if not isinstance(given, dict) or "weight" in given or not isinstance(given.get("type"), str):
            return given
        from kdnas.losses import LOSSES  # here, because it brings torch

        try:
            return {**given, "weight": LOSSES.get(given["type"]).usual_weight}
        except ConfigError:
            return given

    @pydantic.model_validator(mode="after")
    def _some_stretch(self) -> LossTerm:
        if self.during is not None and not self.during[0] < self.during[1]:
            raise ValueError(f"during {list(self.during)} is no stretch: its first share must be below its second")
        return self

    def share_at(self, progress: float) -> float:
        """Return which share of the weight counts in a step that ends at the share `progress` of the training, 0 to 1.

        A supernet's first step ends at 0, since its progress is what was spent before.
        """
        first, last = self.during or (0.0, 1.0)
        if not (first < progress <= last or progress == first == 0.0):
            return 0.0
        return 1.0 if self.warmup_fraction == 0.0 else min(1.0, (progress - first) / self.warmup_fraction)

    @property
    def changes(self) -> bool:
        """Whether its weight is not the same in all steps."""
        return self.warmup_fraction > 0.0 or self.during is not None


ENSEMBLE = "ensemble"
"""Whom a term learns of that learns of all teachers together."""
PEERS, EMA, SELF = "peers", "ema", "self"
LEARNING = (PEERS, EMA, SELF)
"""Whom a term learns of that are no teachers: they change while the student is trained."""
RESERVED = {
    ENSEMBLE: "all teachers together",
    PEERS: "the students trained together with one",
    EMA: "the moving average of a student",
    SELF: "the student itself",
}
"""What cannot be a teacher's name, and what it is."""
FRONT = "front"
"""As `peers` of finalists: the other ones."""
SOURCE_OF = {"peers": PEERS, "ema_teacher": EMA}
"""Settings of a distillation that speak of one source of outputs alone."""


class Ensemble(Section):
    """How several teachers speak as one, to the terms `of: ensemble`."""

    mean: Literal["probabilities", "logits"] = "probabilities"
    """Of what."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """At which probabilities are averaged. A kd at the same one learns the teachers' mean softened probabilities, which
    is the mean of what it would learn of each."""
    weights: Literal["equal", "confidence", "learned"] | dict[str, Annotated[float, Field(ge=0.0)]] = "equal"
    """By a teacher's name, 0 where it is not named; by confidence: for each prediction the more the likelier a teacher
    finds the label (CA-MKD, 2022); or learned beside the student: those whose ensemble finds the labels likeliest."""


class OnPolicy(Section):
    """Language models that learn from what they write themselves (GKD, ICLR 2024), in a share of the batches."""

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Of the batches, drawn: 1 for all of them, each of which takes the student as many passes as it writes tokens."""
    prompt: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a block that it goes on from; None: a quarter of the block."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.9
    """At which it draws the tokens."""

    def prompt_of(self, length: int) -> int:
        """Return the tokens of a block of `length` that are given."""
        return max(1, length // 4) if self.prompt is None else self.prompt


class Peer(Section):
    """A student that learns with others: of which family, by which choices."""

    family: str
    choices: dict[str, bool | int | float | str]


MOST_PEERS = 16
"""Students that learn together."""
Others = Annotated[tuple[Peer, ...], Field(min_length=1, max_length=MOST_PEERS - 1)]


class Distillation(Section):
    """loss = task_weight * cross entropy + the sum of weight * distillation loss.

    The default is that of kd. Beside dkd and losses that read features their authors set `task_weight` to 1, each loss
    states its weight. It is 1 too unless stated where no loss learns of a fixed teacher: what such a student
    learns comes from the labels.
    """

    task_weight: Annotated[float, Field(ge=0.0)] = 0.1
    label_smoothing: Fraction = 0.0
    losses: tuple[LossTerm, ...] = (LossTerm(type="kd", weight=0.9),)
    ensemble: Ensemble | None = later(None)
    """None: the mean of the probabilities."""
    peers: Annotated[int, Field(ge=2, le=MOST_PEERS)] | Others | Literal["front"] | None = later(None)
    """How many students of a kind learn together where a loss is `of: peers` (Zhang et al., "Deep mutual learning",
    CVPR 2018): they begin at other weights and see the same batches, each learns of each other one, and the first is
    scored and kept. Or which others learn with each student: `[{family: resnet, choices: {...}}]`, as `kdnas front
    --json` has those of a front, and in `final.distillation` `front`, the other finalists, each of which then costs
    what all of them do. They begin as the student does. None: 2."""
    ema_teacher: Annotated[float, Field(gt=0.0, lt=1.0)] | None = later(None)
    """The decay of the moving average that losses `of: ema` learn of (Tarvainen and Valpola, "Mean teachers", NeurIPS
    2017). None: 0.999."""
    teacher_top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the teacher's logits a prediction, the mass of the others spread evenly, where thousands of
    classes would fill the disk. None: all of them, exactly."""
    teacher_draws: Annotated[int, Field(ge=1)] | None = later(None)
    """Keep only so many draws from each of the teacher's answers, the tokens by their probabilities, and how often each
    was drawn: kd at temperature 1 has the right gradient on average, which the largest logits alone have not."""

    on_policy: OnPolicy | None = later(None)
    """Language models: in some batches the student goes on by itself, and its teachers predict what should follow
    each token. Beside losses such as `{type: jensen_shannon, beta: 0.5}`. None: never."""

    @pydantic.model_validator(mode="after")
    def _teachers_of_what_is_written(self) -> Distillation:
        if self.on_policy is not None and all(term.of in LEARNING for term in self.losses if term.weight > 0):
            raise ValueError("on_policy: no loss learns of a teacher, who alone knows what should follow")
        return self

    @pydantic.model_validator(mode="after")
    def _from_labels_without_teacher(self) -> Distillation:
        terms = [term for term in self.losses if term.weight > 0]
        if not self.losses and self.task_weight == 0:
            raise ValueError("task_weight is 0 and there are no losses: there is nothing to learn")
        if terms and all(term.of in LEARNING for term in terms):
            if "task_weight" not in self.model_fields_set:
                object.__setattr__(self, "task_weight", 1.0)
            elif self.task_weight == 0:
                raise ValueError(
                    "task_weight is 0 and no loss learns of a fixed teacher: there is nothing to learn from"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _asked_for(self) -> Distillation:
        for name, whose in SOURCE_OF.items():
            if getattr(self, name) is not None and not self.learns_of(whose):
                raise ValueError(f"{name} is stated, and no loss learns of it: none has `of: {whose}`")
        return self

    @pydantic.model_validator(mode="after")
    def _draws_for_what_is_linear_in_them(self) -> Distillation:
        if self.teacher_draws is None:
            return self
        if self.teacher_top_k is not None:
            raise ValueError("teacher_draws and teacher_top_k are two ways to keep fewer logits: state one")
        from kdnas.losses import LOSSES  # here, because it brings torch

        for term in self.losses:
            try:
                reads = "logits" in LOSSES.get(term.type).needs
            except (ConfigError, ImportError):
                continue  # reported elsewhere
            if term.weight > 0 and reads and not (term.type == "kd" and term.options.get("temperature") == 1):
                raise ValueError(
                    f"teacher_draws are right on average for kd at temperature 1 alone, and losses has {term.type}; "
                    "teacher_top_k keeps the largest logits"
                )
        return self

    def learns_of(self, whose: str) -> bool:
        """Return whether a loss is `of: whose` by name."""
        return any(term.weight > 0 and term.of == whose for term in self.losses)

    @property
    def further_peers(self) -> int:
        """How many students are trained together with each one."""
        if not self.learns_of(PEERS):
            return 0
        if isinstance(self.peers, tuple):
            return len(self.peers)
        return self.peers - 1 if isinstance(self.peers, int) else 1

    @property
    def average_decay(self) -> float | None:
        """The decay of the moving average that a loss learns of; None where none does."""
        return (self.ema_teacher or 0.999) if self.learns_of(EMA) else None

    def whose(self, term: LossTerm, teachers: Collection[str]) -> str:
        """Return whom a term learns of, where these are the teachers: one of them, `ensemble`, or one of `LEARNING`."""
        if term.of is not None:
            return term.of
        return next(iter(teachers)) if len(teachers) == 1 else ENSEMBLE


def labels_alone(distillation: Distillation) -> Distillation:
    """Return what is learnt without a teacher: cross entropy at weight 1, smoothed as in `distillation`."""
    return Distillation(task_weight=1.0, label_smoothing=distillation.label_smoothing, losses=())


class Training(Section):
    """How a student is trained. `epochs`, `data_fraction` and `resolution_fraction` are the fidelity of the score."""

    task: ClassVar[str] = ""
    """The kind of the task whose views `augmentation` states; empty: of none."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training split that is used, by the study's seed."""
    proxy: Member | None = later(None)
    """Who chooses that share: a name of `kdnas list proxies`. None: it is drawn at random, of every class its part."""
    resolution_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = later(1.0)
    """Share of the samples' size, an image's height and width or a text's tokens, that the student is trained and
    scored at: a whole number, at least 4. The teacher sees them whole, the student's costs are those at the whole size,
    and retrainings are at it."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """SGD's Nesterov momentum; AdamW ignores it."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 5e-4
    """Not applied to biases and norm parameters."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps with a linear warm-up; a cosine to zero follows."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = later(None)
    """Decay of the moving average of the weights, such as 0.999, that is scored and kept in their place; in the first
    steps it is smaller. None: the weights themselves. A supernet is trained without it."""
    augmentation: SerializeAsAny[Section] | None = None
    """The task's `Views`: how samples are varied at random (`training_for`). None: samples as they are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the processor computes it natively, else float32. What is `auto` here and below is
    decided once and recorded: `kdnas.training.numerics`."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = later("auto")
    """CPU threads of one training, whatever number of workers there is; auto: 1."""
    fused_norms: Literal["auto"] | bool = later("auto")
    """Batch norm, residual sum and ReLU in one compiled pass where one CPU thread trains for long enough to pay for it.
    auto: where there is a C compiler."""

    @property
    def fidelity(self) -> Fidelity:
        """How much of full training a score has seen that was reached so, from a random start."""
        return Fidelity(self.epochs, self.data_fraction, resolution_fraction=self.resolution_fraction)

    def __reduce__(self) -> Any:
        """Go to other processes by the task's name, whose section is made there anew."""
        if not self.task:
            return super().__reduce__()
        return _restored, (self.task, self.model_dump(exclude_unset=True))


def training_for(kind: str) -> type[Training]:
    """Return the section `training` of the task called `kind`. Raises ConfigError where there is no such task."""
    task: type[Task] = TASKS.get(kind)
    return _training_of(kind, task.Views)


@functools.cache
def _training_of(kind: str, views: type[Section]) -> type[Training]:
    fields: dict[str, Any] = {"augmentation": (views, views())}
    section = pydantic.create_model("Training", __base__=Training, __module__=__name__, **fields)
    section.task = kind
    return section


def _restored(kind: str, plain: dict[str, Any]) -> Training:
    return training_for(kind).model_validate(plain)


@functools.cache
def with_training(model: type[M], section: type[Training]) -> type[M]:
    """Return `model`, a section of which is `training`, as it is where that is this `section`."""
    fields: dict[str, Any] = {"training": (section, section())}
    return pydantic.create_model(model.__name__, __base__=model, __module__=model.__module__, **fields)


def for_task(model: type[M], kind: str) -> type[M]:
    """Return `model` with the section `training` of the task called `kind`, as it is where there is no such task."""
    try:
        return with_training(model, training_for(kind))
    except (ConfigError, ImportError):
        return model


def training_as(kind: str, value: Any, otherwise: Callable[[Any], Any]) -> Any:
    """Return `value`, plain or a section, validated as the section `training` of the task called `kind`.

    `otherwise` reads it where there is no such task: whoever needs one reports that.
    """
    try:
        section = training_for(kind)
    except (ConfigError, ImportError):
        return otherwise(value)
    if isinstance(value, Training) and not isinstance(value, section):
        value = {name: given for name in value.model_fields_set if (given := getattr(value, name)) is not None}
    return section.model_validate(value)


def numerics_of(training: Training, other: Training | Mapping[str, Any]) -> Training:
    """Return `training` with the numerics of `other`, a training or its plain form, where its own are `auto`."""
    decided = other if isinstance(other, Mapping) else {name: getattr(other, name) for name in NUMERICS}
    update = {name: decided[name] for name in NUMERICS if getattr(training, name) == "auto" and name in decided}
    return training.model_copy(update=update)


class Recipe(Section):
    """One training, whole: what `distil` follows."""

    training: Training = Training()
    distillation: Distillation = Distillation()
