"""Tokens drawn from a teacher's answers: right on average, and so is the gradient of kd, which the largest are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.training.recipe import Distillation
from kdnas.training.teacher_cache import NEVER, TeacherCache, ViewsKey, drawing_error, drawn, restored, truncated

ROWS, CLASSES, DRAWS = 5, 40, 12


def answers() -> torch.Tensor:
    return 2 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))


def every_begin(steps: int = 600) -> torch.Tensor:
    return (torch.arange(steps) + 0.5) / steps


def kept(logits: torch.Tensor, begin: float) -> torch.Tensor:
    begins = torch.full((len(logits),), begin)
    return restored(*drawn(logits, DRAWS, begins), logits.shape[1])


def test_a_token_is_drawn_as_often_as_it_is_probable_on_average() -> None:
    logits = answers()
    true, mean = logits.double().softmax(1), torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    for begin in every_begin():
        shares = kept(logits, float(begin)).double().exp()
        counts = DRAWS * shares
        assert torch.allclose(counts, counts.round(), atol=1e-4)
        assert (counts - DRAWS * true).abs().max() < 1 + 1e-6  # rounded down or up
        assert torch.allclose(shares.sum(1), torch.ones(ROWS, dtype=torch.float64), atol=1e-6)
        mean += shares / len(every_begin())
    assert (mean - true).abs().max() < 2 / len(every_begin())


def test_the_gradient_of_kd_is_right_on_average_and_that_of_the_largest_logits_is_not() -> None:
    logits, ours = answers(), torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1))
    loss = LOSSES.build("kd", OutputShapes(CLASSES), OutputShapes(CLASSES), temperature=1)

    def gradient(teacher: torch.Tensor) -> torch.Tensor:
        student = ours.clone().requires_grad_()
        loss(Outputs(student), Outputs(teacher), Rows(student, torch.zeros(ROWS, dtype=torch.int64))).backward()
        assert student.grad is not None
        return student.grad.double()

    whole = gradient(logits)
    means = torch.stack([gradient(kept(logits, float(begin))) for begin in every_begin(200)]).mean(0)
    largest = gradient(restored(*truncated(logits, DRAWS), CLASSES))
    assert (means - whole).norm() < 0.02 * whole.norm()
    assert (largest - whole).norm() > 3 * (means - whole).norm()


def test_certain_and_rare_answers_are_drawn_without_a_fault() -> None:
    certain = torch.full((2, 6), -1e4)
    certain[0, 5], certain[1, 0] = 50.0, 50.0
    values, places = drawn(certain, 4, torch.tensor([0.0, 0.999999]))
    assert places.tolist() == [[5] * 4, [0] * 4]
    assert values.tolist() == [[0.0] * 4 + [NEVER]] * 2
    mass, different = drawing_error(certain, 4)
    assert mass == pytest.approx(0, abs=1e-6)
    assert different == 1
    mass, different = drawing_error(answers(), 4000)
    assert mass < 0.01
    assert different > 20


def test_what_is_drawn_is_kept_and_read_back(tmp_path: Path) -> None:
    stated = {"teacher": "t", "data": "d", "augmentation": "none", "view_seed": 0, "precision": "float32"}
    key = ViewsKey(**stated, device="cpu", samples=3, outputs=CLASSES, embedding=0, top_k=DRAWS, predictions=5)
    sampled = ViewsKey(
        **stated, device="cpu", samples=3, outputs=CLASSES, embedding=0, top_k=DRAWS, predictions=5, drawn=True
    )
    assert key.digest != sampled.digest
    begins = torch.rand(ROWS, generator=torch.Generator().manual_seed(2))
    rows, places = sampled.pack([Outputs(answers())], begins)
    cache = TeacherCache(tmp_path, top_k=DRAWS, drawn=True)
    assert cache.write(sampled, 0, np.array([1]), rows, places)
    view = cache.read(sampled, 0)
    assert view is not None
    assert view.places is not None
    back = sampled.unpack(torch.from_numpy(view.rows[[1]]), torch.from_numpy(view.places[[1]])).logits
    assert torch.equal(back, restored(*drawn(answers(), DRAWS, begins), CLASSES))
    assert torch.isfinite(functional.log_softmax(back, 1)).all()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([{"type": "kd"}], "kd at temperature 1 alone, and losses has kd"),
        ([{"type": "kd", "temperature": 1}, {"type": "reverse_kl"}], "losses has reverse_kl"),
        ([{"type": "dkd"}], "losses has dkd"),
    ],
)
def test_losses_that_would_be_wrong_by_draws_are_refused(losses: list[dict[str, object]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Distillation.model_validate({"teacher_draws": 50, "losses": losses})


def test_draws_stand_for_kd_beside_losses_that_read_no_logits() -> None:
    losses = [{"type": "kd", "temperature": 1}, {"type": "reverse_kl", "weight": 0}, {"type": "hidden"}]
    stated = Distillation.model_validate({"teacher_draws": 50, "losses": losses})
    assert stated.model_dump()["teacher_draws"] == 50
    assert not {"teacher_draws", "ensemble"} & Distillation().model_dump().keys()
    with pytest.raises(ValueError, match="two ways to keep fewer"):
        Distillation.model_validate({"teacher_draws": 50, "teacher_top_k": 5, "losses": losses})
