"""Several teachers: whose outputs a loss learns, what an ensemble says, one cache each, and trainings that go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from torch.nn import functional as F
from trainings import CPU, batches, net, same

from kdnas.core.data import ImageData, Samples
from kdnas.core.pairing import paired
from kdnas.errors import ConfigError
from kdnas.nn.normalise import Normalised
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.teachers import Teacher
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.loop import Course, Pupil, Trained, distil, train
from kdnas.training.loss import TrainingLoss, needs_by_teacher
from kdnas.training.recipe import Distillation, Ensemble, LossTerm, Recipe, Training, training_for
from kdnas.training.teacher_cache import TeacherCache

M, V = 9, 5
TERM = LossTerm(type="kd", weight=1.0, temperature=3.0)


def outputs_of_two(seed: int = 0) -> OutputsByTeacher:
    generator = torch.Generator().manual_seed(seed)
    return OutputsByTeacher({name: Outputs(3 * torch.randn(M, V, generator=generator)) for name in "abc"})


def rows(targets: torch.Tensor | None = None) -> Rows:
    return Rows(torch.zeros(M, V), torch.arange(M) % V if targets is None else targets)


def value(recipe: Distillation, theirs: OutputsByTeacher, ours: torch.Tensor) -> torch.Tensor:
    shapes = {name: OutputShapes(V) for name in theirs.by}
    return TrainingLoss(recipe, OutputShapes(V), shapes, seed=0)(Outputs(ours), theirs, replace(rows(), logits=ours))


def kl(theirs: torch.Tensor, ours: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    p, log_q = (theirs / 3).softmax(1), (ours / 3).log_softmax(1)
    gaps = (p * (p.log() - log_q)).sum(1)
    return 9 * (gaps if weights is None else weights * gaps).mean()


@pytest.mark.parametrize("weights", ["equal", {"a": 1.0, "c": 3.0}, "confidence"])
def test_kd_of_an_ensemble_has_the_gradient_of_the_mean_of_kd_of_each(weights: object) -> None:
    """At one temperature; by confidence: CA-MKD's weights, which add up to 1 for each sample."""
    theirs, ours = outputs_of_two(), torch.randn(M, V, generator=torch.Generator().manual_seed(9)).requires_grad_()
    recipe = Distillation(task_weight=0, losses=(TERM,), ensemble=Ensemble(temperature=3.0, weights=weights))
    found = torch.autograd.grad(value(recipe, theirs, ours), ours)[0]
    if weights == "confidence":
        costs = torch.stack(
            [F.cross_entropy(each.logits, rows().targets, reduction="none") for each in theirs.by.values()]
        )
        shares = (1 - costs.exp() / costs.exp().sum(0)) / 2
        torch.testing.assert_close(shares.sum(0), torch.ones(M))
    else:
        shares = torch.tensor([1 / 3] * 3 if weights == "equal" else [0.25, 0.0, 0.75]).unsqueeze(1).expand(3, M)
    each = [kl(outputs.logits, ours, share) for outputs, share in zip(theirs.by.values(), shares, strict=True)]
    expected = torch.autograd.grad(sum(each), ours)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_logits_or_probabilities_are_averaged() -> None:
    theirs = outputs_of_two()
    logits = torch.stack([each.logits for each in theirs.by.values()])
    by_logits = theirs.together(Ensemble(mean="logits"), rows()).logits
    torch.testing.assert_close(by_logits, logits.mean(0))
    by_shares = theirs.together(Ensemble(), rows()).logits
    torch.testing.assert_close(by_shares.softmax(1), logits.softmax(2).mean(0))


def test_mixed_labels_tell_confidence_too() -> None:
    targets = torch.eye(V)[torch.arange(M) % V] * 0.6 + torch.eye(V)[(torch.arange(M) + 1) % V] * 0.4
    found = outputs_of_two().together(Ensemble(weights="confidence"), rows(targets)).logits
    assert torch.isfinite(found).all()


def test_a_term_learns_of_whom_it_names() -> None:
    theirs, ours = outputs_of_two(), torch.randn(M, V)
    terms = (TERM.model_copy(update={"of": "b"}), TERM.model_copy(update={"of": "ensemble", "weight": 0.5}))
    recipe = Distillation(task_weight=0, losses=terms, ensemble=Ensemble(mean="logits"))
    mean = torch.stack([each.logits for each in theirs.by.values()]).mean(0)
    expected = kl(theirs.by["b"].logits, ours) + 0.5 * kl(mean, ours)
    torch.testing.assert_close(value(recipe, theirs, ours), expected, rtol=1e-5, atol=1e-6)


def test_each_teacher_is_asked_for_what_is_learnt_of_it() -> None:
    terms = (TERM, LossTerm(type="hint", of="b"), LossTerm(type="cosine", of="c", weight=0.0))
    needs = needs_by_teacher(Distillation(losses=terms), "ab")
    assert needs == {"a": {"logits"}, "b": {"logits", "stages"}}
    assert needs_by_teacher(Distillation(losses=terms[1:]), "ab") == {"b": {"stages"}}


@pytest.mark.parametrize(
    ("term", "names", "message"),
    [
        (LossTerm(type="kd", of="z"), "ab", "of: no teacher is called 'z' \\(allowed: a, b, ensemble"),
        (LossTerm(type="kd", of="ensemble"), "a", "of: an ensemble takes several teachers, and there is one"),
        (LossTerm(type="hint"), "ab", "of: hint reads more than logits, and an ensemble has no more \\(allowed: a, b"),
        (LossTerm(type="kd"), "", "there is no teacher that kd could learn from"),
    ],
)
def test_who_cannot_be_learnt_of_is_named(term: LossTerm, names: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        needs_by_teacher(Distillation(losses=(term,)), names)


# -- trained -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(data: ImageData) -> dict[str, Teacher]:
    """Two untrained networks of other widths, each with a normalisation of its own."""
    made = {}
    for place, (name, widths) in enumerate({"small": (8, 12), "large": (12, 24, 32)}.items()):
        mean, std = [100.0 * place], [50.0]
        module = Normalised(net(*widths, seed=place + 3), mean, std).eval()
        stages = tuple(f"network.stages.{index}" for index in range(len(widths)))
        made[name] = Teacher(name, module, stages, "network.classifier", fingerprint=name)
    return made


TERMS = (LossTerm(type="kd", weight=0.9), LossTerm(type="hint", weight=1.0, of="large"))


def recipe(*terms: LossTerm, **training: object) -> Recipe:
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", **training}
    how = Ensemble(weights="confidence")
    return Recipe(training=Training(**settings), distillation=Distillation(task_weight=0.5, losses=terms, ensemble=how))


def trained(data: ImageData, teaching: object, *terms: LossTerm, **options: object) -> Trained:
    given = recipe(*terms, **options.pop("training", {}))
    return distil(net(8, 16), teaching, batches(data, 0, 300), None, given, data=data, seed=1, device=CPU, **options)


def test_cached_answers_of_all_teachers_are_the_live_ones(data, teachers, tmp_path: Path) -> None:
    kd = TERMS[:1]
    live = trained(data, teachers, *kd)
    cached = trained(data, teachers, *kd, teacher_cache=TeacherCache(tmp_path))
    assert same(live.network, cached.network)
    assert len(list(tmp_path.iterdir())) == 2  # one a teacher
    assert live.live_teacher
    assert not cached.live_teacher


def test_the_same_teacher_twice_is_one(data, teachers) -> None:
    alone = trained(data, teachers["large"], LossTerm(type="kd", weight=0.9))
    twice = {"first": teachers["large"], "second": teachers["large"]}
    half = LossTerm(type="kd", weight=0.45)
    both = trained(data, twice, *(half.model_copy(update={"of": name}) for name in twice))
    for one, other in zip(alone.network.parameters(), both.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_training_by_several_goes_on_exactly_and_with_no_others(data, teachers, tmp_path: Path) -> None:
    whole = trained(data, teachers, *TERMS)

    class Stop(Exception):
        pass

    def stop(record: object) -> None:
        raise Stop

    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        trained(data, teachers, *TERMS, checkpoint=path, on_epoch=stop)
    other = {**teachers, "small": replace(teachers["small"], fingerprint="another")}
    with pytest.raises(Exception, match="another training"):
        trained(data, other, *TERMS, checkpoint=path)
    assert same(trained(data, teachers, *TERMS, checkpoint=path).network, whole.network)


def test_students_trained_at_once_are_those_trained_alone(data, teachers) -> None:
    course = Course(data, batches(data, 0, 300), None, teachers, 1, CPU)
    widths = ((8, 16), (4, 8, 12))
    pupils = [Pupil(net(*each), recipe(*TERMS), 1) for each in widths]
    together = train(course, pupils)
    for each, outcome in zip(widths, together, strict=True):
        assert isinstance(outcome, Trained)
        (alone,) = train(course, [Pupil(net(*each), recipe(*TERMS), 1)])
        assert same(outcome.network, alone.network)


def test_one_teacher_is_what_it_was(data) -> None:
    """By its name or without one, alone in a mapping or as it is."""
    teacher = trainings.teacher(data)
    plain = trained(data, teacher, TERM)
    named = trained(data, {"mine": teacher}, TERM.model_copy(update={"of": "mine"}))
    assert same(plain.network, named.network)


# -- a teacher that is given samples of its own ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upside_down(data: ImageData) -> ImageData:
    """The digits, each paired with one of its class, larger and upside down."""
    pixels = {split: np.flip(np.asarray(getattr(data, split).inputs["pixels"]), 2) for split in ("train", "test")}
    turned = {
        split: Samples({"pixels": np.repeat(np.repeat(whole, 2, 2), 2, 3)}, getattr(data, split).targets)
        for split, whole in pixels.items()
    }
    parts = (np.arange(300), np.arange(300, len(data.train)))
    return paired(replace(data, **turned, fingerprint="turned"), data, "label", parts, seed=0)


def test_a_teacher_answers_on_its_own_samples(data, teachers, upside_down, tmp_path: Path) -> None:
    """Kept and live answers are those that it gives to the partner of each sample, whatever the students' view."""
    teacher = replace(teachers["large"], data=upside_down)
    asked: list[torch.Tensor] = []
    views = {"augmentation": training_for("image_classification")(augmentation={"crop_padding": 1}).augmentation}
    kept = trained(data, teacher, *TERMS[:1], teacher_cache=TeacherCache(tmp_path), training=views)
    hook = teacher.module.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    try:
        live = trained(data, teacher, *TERMS[:1], training=views)
    finally:
        hook.remove()
    assert same(live.network, kept.network)
    shown = torch.cat(asked)
    whole = torch.from_numpy(upside_down.train.inputs["pixels"][:300]).float()
    assert {image.numpy().tobytes() for image in shown if image.shape == whole[0].shape} >= {
        image.numpy().tobytes() for image in whole
    }
    assert not same(live.network, trained(data, teachers["large"], *TERMS[:1], training=views).network)
    assert len([path for path in next(tmp_path.iterdir()).iterdir() if path.suffix == ".npy"]) <= 2  # one view for all


def test_two_teachers_of_other_samples_are_asked_each_for_its_own(data, teachers, upside_down) -> None:
    seen: dict[str, set[int]] = {"small": set(), "large": set()}
    mixed = {**teachers, "large": replace(teachers["large"], data=upside_down)}
    hooks = [
        each.module.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].add(inputs[0].shape[-1]))
        for name, each in mixed.items()
    ]
    outcome = trained(data, mixed, *TERMS)
    for hook in hooks:
        hook.remove()
    assert seen == {"small": {8}, "large": {16}}
    assert outcome.history[-1].loss < outcome.history[0].loss


def test_learned_weights_go_to_who_finds_the_labels_likely_and_teach_the_student_as_constants() -> None:
    labels = torch.arange(M) % V
    knows, errs = 4 * F.one_hot(labels, V).float(), 4 * F.one_hot((labels + 1) % V, V).float()
    theirs = OutputsByTeacher({"knows": Outputs(knows), "errs": Outputs(errs)})
    recipe = Distillation(task_weight=0, losses=(TERM,), ensemble=Ensemble(weights="learned"))
    loss = TrainingLoss(recipe, OutputShapes(V), {"knows": OutputShapes(V), "errs": OutputShapes(V)}, seed=0)
    ours = torch.zeros(M, V, requires_grad=True)
    equal = Distillation(task_weight=0, losses=(TERM,))
    mixed = (knows.softmax(1) + errs.softmax(1)) / 2
    found = loss(Outputs(ours), theirs, replace(rows(labels), logits=ours))
    own = F.cross_entropy(mixed.log(), labels)
    torch.testing.assert_close(found - own, value(equal, theirs, ours.detach()))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(Outputs(ours), theirs, replace(rows(labels), logits=ours)).backward()
        optimizer.step()
    assert loss.mixture.softmax(0)[0] > 0.95
    gradient = torch.autograd.grad(loss(Outputs(ours), theirs, replace(rows(labels), logits=ours)), ours)[0]
    weights = loss.mixture.detach().softmax(0)
    target = (weights[0] * knows.softmax(1) + weights[1] * errs.softmax(1)).log()
    plain = ours.detach().clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(kl(target, plain), plain)[0])
