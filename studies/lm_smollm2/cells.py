"""What is trained, and what is completed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SHAPE = {"depth": 10, "inner": 0.25}
"""Of a third of the parameters; README.md says what else was tried."""
FILES = {
    "LAMBADA": ("lm/lambada/test.jsonl", 2.0),
    "HellaSwag": ("lm/hellaswag/val2000.jsonl", 1.0),
    "cloze": ("lm/fairybooks/cloze4.jsonl", 1.0),
    "NQ-open": ("qa/nq_open/dev.jsonl", 0.5),
    "WebQuestions": ("qa/webquestions/test.jsonl", 0.5),
}
"""What is completed: the file, and its items as a share of those asked for."""
CHANCE = {"LAMBADA": 0.0, "HellaSwag": 0.25, "cloze": 0.25, "NQ-open": 0.0, "WebQuestions": 0.0}


@dataclass(frozen=True)
class Cell:
    """One network: where it begins, what it learns from, and on how much."""

    name: str
    start: Literal["teacher", "inherited", "random"]
    share: float
    """Of the study's tokens."""
    temperature: float = 1.0
    task_weight: float = 0.0
    completes: bool = True
    choices: Mapping[str, float] = field(default_factory=lambda: dict(SHAPE))

    @property
    def learning_rate(self) -> float:
        """What suits the start."""
        return 1e-3 if self.start == "inherited" else 2e-3


def _grid() -> list[Cell]:
    """Return the study of temperature and task weight, which at T = 1 and weight 0 is the cell `inherited`."""
    return [
        Cell(f"T{temperature}_w{weight:g}", "inherited", 1, temperature, weight)
        for weight in (0.0, 0.1, 0.5)
        for temperature in (1, 2, 4)
        if (temperature, weight) != (1, 0.0)
    ]


_FIRST, *_GRID = _grid()
CELLS = (
    Cell("teacher", "teacher", 0),
    Cell("inherited", "inherited", 1),
    Cell("random", "random", 1),
    Cell("inherited_3", "inherited", 3),
    Cell("inherited_third", "inherited", 1 / 3, completes=False),
    Cell("random_3", "random", 3, completes=False),
    Cell("cut", "inherited", 0),
    _FIRST,
    *_GRID,
    Cell("inherited_ninth", "inherited", 1 / 9, completes=False),
    Cell("inherited_9", "inherited", 9),
    Cell("random_9", "random", 9),
)
"""Those that say most first."""
