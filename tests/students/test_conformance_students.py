"""Every family whose networks are known without a teacher keeps its contract, on committed spaces and a wider one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdnas.core.space import SearchSpace
from kdnas.core.text import language_modelling, text_classification
from kdnas.errors import ConfigError
from kdnas.students import STUDENTS
from kdnas.study.spaces import load_space, space_names
from kdnas.testing import StudentConformance, suites

STATED = [name for name in STUDENTS.names() if not STUDENTS.get(name).derived]
"""The families whose networks are known without a teacher."""

WIDER = {
    "resnet": {
        "stem_width": (3, 8),
        "stem_stride": (1, 2),
        "projected": (0, 1, 24),
        **{f"stage{i}.depth": (0, 1, 2) if i > 1 else (1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 8) for i in (1, 2, 3)},
        **{f"stage{i}.stride": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.bottleneck": ("plain", 0.1, 0.25, 0.3, 1, 1.5) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "projection", "none") for i in (1, 2, 3)},
    },
    "mobilenet": {
        "stem_width": (3, 8),
        "head_width": (0, 12),
        "projected": (0, 7),
        **{f"stage{i}.depth": (0, 1, 2) if i > 1 else (1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 8) for i in (1, 2, 3)},
        **{f"stage{i}.stride": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.expand": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.kernel": (3, 5, 7) for i in (1, 2, 3)},
        **{f"stage{i}.squeeze_excite": (False, True) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "none") for i in (1, 2, 3)},
    },
    "vit": {
        "width": (6, 16),
        "depth": (1, 3),
        "patch_size": (2, 3, 8),
        "distillation_token": (False, True),
        "heads": (1, 2),
        "head_size": (3, 6),
        "mlp_ratio": (0.1, 0.15, 2),
        "layer2.heads": (1, 2, 3),
        "layer3.mlp_ratio": (0.5, 2),
        **{f"layer{i}.skip": (False, True) for i in (2, 3)},
    },
    "bert": {
        "width": (6, 16),
        "depth": (1, 3),
        "length": (0, 5),
        "norm": ("first", "last"),
        "embedding_width": (0, 6),
        "heads": (1, 2),
        "head_size": (3, 6),
        "mlp_ratio": (0.1, 0.15, 2),
        "layer2.skip": (False, True),
    },
    "gpt": {
        "width": (6, 16),
        "depth": (1, 3),
        "embedding_width": (0, 6),
        "tied": (False, True),
        "heads": (1, 2),
        "head_size": (3, 6),
        "mlp_ratio": (0.1, 0.15, 2),
        "layer2.heads": (1, 2),
        "layer2.skip": (False, True),
    },
}
"""A space of each family, with several spellings of one network."""
TEXTS = (text_classification(9, 30, 3), text_classification(7, 11, 2, pairs=True), text_classification(130, 40, 5))
RUNNING = (language_modelling(9, 30), language_modelling(3, 5), language_modelling(130, 40))
OTHERS = {"bert": {"tasks": TEXTS}, "gpt": {"tasks": RUNNING}}


class BuiltIn(StudentConformance):
    """On the spaces that kdnas carries, too."""

    @property
    def spaces(self) -> list[SearchSpace]:
        carried = [load_space(name, Path()) for name in space_names()]
        return [*(space for space in carried if space.family == self.member), *super().spaces]


SUITES = suites(
    BuiltIn,
    *(name for name in STUDENTS.names() if name not in STATED),
    **{name: {"choices": choices, **OTHERS.get(name, {})} for name, choices in WIDER.items()},
)
globals().update(SUITES)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES.values())
def test_price_of_many(suite: type[BuiltIn]) -> None:
    suite().check_prices(120)


@pytest.mark.parametrize("name", STATED)
def test_a_family_takes_no_options(name: str) -> None:
    assert not STUDENTS.options(name).model_fields


@pytest.mark.parametrize("suite", SUITES.values())
def test_unknown_choices_are_told_at_once_with_what_is_allowed(suite: type[BuiltIn]) -> None:
    family = suite().family()
    choices = {**suite().archs(1)[0].choices, "wings": 2, "stage1.colour": 1, "stage0.depth": 1, "layer1.colour": 1}
    with pytest.raises(ConfigError) as caught:
        family.canonical(choices)
    assert [problem.where for problem in caught.value.problems] == [
        "wings",
        "stage1.colour",
        "stage0.depth",
        "layer1.colour",
    ]
    assert all(next(iter(suite.choices)) in problem.allowed for problem in caught.value.problems)
