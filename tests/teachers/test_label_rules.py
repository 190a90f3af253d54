"""Rules on labels as a teacher: what they allow, what students learn of them, and what they change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, TeacherError
from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.ruling import allowed_by
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.training.evaluation import tally_and_ruled
from kdnas.training.recipe import Training

pytest.importorskip("tokenizers")
TEXTS = [("how many days are there?", "number"), ("who is it?", "person"), ("where is it?", "place")]
RULES: list[dict[str, Any]] = [
    {"when": r"^HOW MANY\b", "then": "number"},
    {"when": "who", "never": ["place", "number"]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    root = tmp_path_factory.mktemp("asked")
    lines = [f"{label}\t{text}" for text, label in TEXTS]
    (root / "train.tsv").write_text("\n".join(["label\ttext", *lines * 6]) + "\n")
    (root / "test.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n")
    found: TextData = DATASETS.build(
        "text_table", root, root / "cache", train="train.tsv", test="test.tsv", tokenizer="bytes", length=32
    )
    return found


def opened(data: Any, rules: Any = RULES) -> Teacher:
    context = TeacherContext(data, Path(), torch.device("cpu"), lambda *given: None)  # type: ignore[arg-type, return-value]
    teacher: Teacher = TEACHERS.build("label_rules", context, rules=rules)
    return teacher


def test_a_text_may_have_the_classes_that_all_rules_allow(data: TextData) -> None:
    teacher = opened(data)
    (batch,) = Batches(data, np.arange(3), device=torch.device("cpu"), split="test").ordered(batch_size=3)
    allowed = allowed_by(teacher.module(*batch.laid_out))
    assert data.class_names == ("number", "person", "place")
    assert allowed.tolist() == [[True, False, False], [False, True, False], [True, True, True]]
    assert teacher.outputs == "rules"
    assert teacher.notes[0] == "rule 0 is about 33.3 % of the training texts and allows 100.0 % of their labels"
    assert opened(data).fingerprint == teacher.fingerprint != opened(data, RULES[:1]).fingerprint


def test_rules_that_leave_nothing_forbid_nothing(data: TextData) -> None:
    teacher = opened(data, [{"then": "number"}, {"when": "who", "then": "place"}, {"when": "xyz", "then": "place"}])
    (batch,) = Batches(data, np.arange(3), device=torch.device("cpu"), split="test").ordered(batch_size=3)
    assert allowed_by(teacher.module(*batch.laid_out)).tolist() == [
        [True, False, False],
        [True] * 3,
        [True, False, False],
    ]
    assert teacher.notes[2] == "rule 2 is about 0.0 % of the training texts"


def test_what_is_wrong_with_rules_is_told_at_once(data: TextData) -> None:
    with pytest.raises(TeacherError, match=r"rules\.0: the data have no label 'No' \(allowed: number, person, place\)"):
        opened(data, [{"then": ["number", "No"]}])
    with pytest.raises(ConfigError, match="is no regular expression"):
        opened(data, [{"when": "(", "then": "number"}])
    with pytest.raises(ConfigError, match="states either `then`"):
        opened(data, [{"when": "a"}])
    with pytest.raises(TeacherError, match="there are none"):
        opened(data, [])


def test_a_teacher_of_rules_is_for_texts() -> None:
    from kdnas.testing.teachers import random_data

    with pytest.raises(TeacherError, match="rules are about the classes of texts"):
        opened(random_data())


def test_the_penalty_is_what_the_student_gives_to_the_forbidden() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]).requires_grad_()
    rules = torch.tensor([[0.0, -1e4, 0.0], [0.0, 0.0, 0.0]])
    shapes = OutputShapes(3)
    value = LOSSES.build("semantic", shapes, shapes)(
        Outputs(logits), Outputs(rules), Rows(logits, torch.tensor([0, 1]))
    )
    probabilities = logits.detach().double().softmax(1)
    assert float(value) == pytest.approx(-0.5 * math.log(1 - float(probabilities[0, 1])), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[0, 1] > 0 > gradient[0, 0]
    assert gradient[1].abs().max() < 1e-6


def test_the_share_of_answers_that_rules_change_is_told(data: TextData) -> None:
    class Always(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 1.0, 2.0]).expand(len(tokens), 3)

    batches = Batches(data, np.arange(3), device=torch.device("cpu"), split="test")
    _, found = tally_and_ruled(Always(), {"rules": opened(data).module}, batches, Training())
    assert found["rules"].changed == pytest.approx(2 / 3)
    assert batches.task.score(found["rules"].tally) == 1.0  # always "place" was right of one text
