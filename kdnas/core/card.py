"""What is known of a trained student, as records: its scores, costs, teacher, data and limits, for every export.

The sections are those of a model card: Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kdnas.core.fidelity import Start
from kdnas.core.route import Route

Begun = Literal[Start, "plan"]


@dataclass(frozen=True)
class MeanScore:
    """A score on one split, as the mean over so many trainings."""

    mean: float
    ci95: float | None
    """Half width of Student's t interval; None: of one training there is none."""
    trainings: int


@dataclass(frozen=True)
class WeightsRecord:
    """How the weights that are exported were made."""

    seed: int
    epochs: int
    data_fraction: float
    start: Begun
    train_seconds: float
    score: float | None = None
    """On the validation split, of these weights alone."""
    test_score: float | None = None
    chosen_by: str = ""
    """How they were chosen among several, in words."""
    cut_from: str | None = None
    """The arch id of the larger trained student that they were cut from; None: of none."""
    cut_from_trial: int | None = None
    """Its trial, of a student of a search."""
    route: Route = "direct"
    """By whom it was taught: its teacher, or what was trained before it on a part of its budget."""


@dataclass(frozen=True)
class FurtherScore:
    """What else is known on the test split, as the mean over so many trainings."""

    mean: float
    ci95: float | None
    trainings: int
    teacher: float | None
    """What the teacher has."""


@dataclass(frozen=True)
class CostRecord:
    """A cost of the student; measured ones have a spread, the interquartile range of so many repeats."""

    value: float
    unit: str
    spread: float | None = None
    repeats: int | None = None
    context: str = ""
    """On what it was measured."""


@dataclass(frozen=True)
class TeacherCard:
    """The teacher, as far as it was measured."""

    name: str
    score: float | None = None
    test_score: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """Its costs, by name."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataCard:
    """The data set and its splits."""

    name: str
    fingerprint: str
    split: str
    """How it was split, in words."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ControlCard:
    """The same student trained once without its teacher."""

    validation: float
    test: float | None


@dataclass(frozen=True)
class StudentCard:
    """Everything that was measured of a student, and how it came to be. What is not known is None or empty."""

    study: str = ""
    trial: int | None = None
    made_by: str = ""
    validation: MeanScore | None = None
    test: MeanScore | None = None
    further: Mapping[str, FurtherScore] = field(default_factory=dict)
    weights: WeightsRecord | None = None
    control: ControlCard | None = None
    quantities: Mapping[str, CostRecord] = field(default_factory=dict)
    teacher: TeacherCard | None = None
    further_teachers: Mapping[str, TeacherCard] = field(default_factory=dict)
    """Those after the first, by name."""
    data: DataCard | None = None
    limits: tuple[str, ...] = ()

    def as_dict(self, score: str) -> dict[str, Any]:
        """Return the plain form, in which what students are scored by is called `score`, such as accuracy."""
        plain = asdict(self)
        if not plain["further_teachers"]:
            del plain["further_teachers"]
        for section in (plain["weights"], plain["teacher"], *plain.get("further_teachers", {}).values()):
            if section is not None:
                section[score], section[f"test_{score}"] = section.pop("score"), section.pop("test_score")
        plain[score] = {"validation": plain.pop("validation"), "test": plain.pop("test")}
        if plain["weights"] is not None:
            known = plain["weights"].items()
            plain["weights"] = {
                key: value for key, value in known if not key.startswith("cut_from") or value is not None
            }
        plain["quantities"] = {
            name: {key: value for key, value in cost.items() if value not in (None, "")}
            for name, cost in plain["quantities"].items()
        }
        return plain
