"""Weights inherited from a teacher: exact where nothing is left out, the most important where something is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdnas.core.arch import Arch
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.nn.normalise import Normalised
from kdnas.nn.teacher import Teacher
from kdnas.students import _elastic, _inheriting, family_for
from kdnas.students._inheriting import Inheritance, block_influence, inherit_supernet
from kdnas.students._inheriting import inherit as inherit_within
from kdnas.study.spaces import arch_of, load_space

TASK = image_classification((3, 12, 12), 7)
RESNET = {"stem_width": 8} | {
    f"stage{i}.{name}": value
    for i, width in ((1, 8), (2, 16))
    for name, value in {"depth": 3, "width": width, "bottleneck": "plain", "skip": "identity"}.items()
}
MOBILENET = {"stem_width": 8, "head_width": 12} | {
    f"stage{i}.{name}": value
    for i, width in ((1, 8), (2, 12))
    for name, value in {
        **{"depth": 2, "width": width, "expand": 3, "kernel": 5, "squeeze_excite": True, "skip": "identity"}
    }.items()
}


def inherit(student: nn.Module, arch: Arch, teacher: nn.Module, teacher_arch: Arch, seen: torch.Tensor) -> Inheritance:
    return inherit_within(family_for(arch.family, TASK), student, arch, teacher, teacher_arch, seen)


def network(choices: dict[str, Any], seed: int) -> tuple[nn.Module, Arch]:
    """A network in which every weight is drawn, norm scales and statistics included."""
    family = family_for("mobilenet" if "stage1.kernel" in choices else "resnet", TASK)
    arch = family.canonical(choices)
    torch.manual_seed(seed)
    module = family.build(arch)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.ndim == 1:
                value.copy_(torch.rand_like(value) + (0.5 if "var" in name or "weight" in name else -0.5))
    return module.eval(), arch


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, *TASK.image_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choices", [RESNET, MOBILENET], ids=["resnet", "mobilenet"])
def test_a_student_of_the_teachers_arch_becomes_the_teacher(choices):
    teacher, arch = network(choices, 1)
    student, _ = network(choices, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    report = inherit(student, arch, teacher, arch, images(64))
    assert report.share == 1.0
    assert report.stages == ((0, 0), (1, 1))
    assert report.blocks == tuple(tuple(range(int(choices[f"stage{i}.depth"]))) for i in (1, 2))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    x = images(16, seed=1)
    # Channels may stand in another order, and statistics are those of the images: compared in training mode.
    torch.testing.assert_close(student.train()(x), teacher.train()(x), rtol=1e-3, atol=1e-3)


def drawn(rng: np.random.Generator, family: str) -> dict[str, Any]:
    """Choices whose widths grow and shrink from stage to stage; all of them are even."""
    widths = (2, 4, 6, 8, 12, 16)
    choices: dict[str, Any] = {"stem_width": int(rng.choice(widths))}
    if family == "mobilenet":
        choices["head_width"] = int(rng.choice((0, 8)))
    for stage in range(1, int(rng.integers(1, 4)) + 1):
        own: dict[str, Any] = {"depth": int(rng.integers(1, 4)), "width": int(rng.choice(widths))}
        own["stride"] = int(rng.integers(1, 3))
        if family == "resnet":
            own["bottleneck"] = ("plain", 0.5, 1.0)[rng.integers(3)]
            own["skip"] = ("identity", "identity", "projection", "none")[rng.integers(4)]
        else:
            own |= {"expand": int(rng.integers(1, 4)), "kernel": int(rng.choice((3, 5))), "squeeze_excite": False}
            own["skip"] = ("identity", "none")[rng.integers(2)]
        choices |= {f"stage{stage}.{name}": value for name, value in own.items()}
    return choices


@pytest.mark.parametrize(("family", "count"), [("resnet", 100), ("mobilenet", 40)])
def test_any_student_of_the_teachers_arch_computes_the_very_same(family, count):
    rng, x = np.random.default_rng(7), images(4)
    for seed in range(count):
        choices = drawn(rng, family)
        teacher, arch = network(choices, seed)
        student, _ = network(choices, seed + 1000)
        report = inherit(student, arch, teacher, arch, x)
        assert report.share == 1.0, choices
        assert torch.equal(student.eval()(x), teacher.eval()(x)), choices


def silence_what_is_left_out(teacher: nn.Module, student: nn.Module) -> None:
    """Switch off the channels of each norm of `teacher` whose scales the student's norm of the same name has not."""
    own = dict(student.named_modules())
    for name, norm in teacher.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            silent = ~torch.isin(norm.weight, own[name].weight)
            assert int((~silent).sum()) == own[name].num_features
            norm.weight[silent] = 0
            norm.bias[silent] = 0


@pytest.mark.parametrize(("family", "count"), [("resnet", 40), ("mobilenet", 20)])
def test_a_student_of_half_the_widths_is_the_teacher_without_the_other_channels(family, count):
    rng = np.random.default_rng(8)
    for seed in range(count):
        choices = drawn(rng, family)
        half = {name: value // 2 if name.endswith("width") else value for name, value in choices.items()}
        teacher, arch = network(choices, seed)
        student, own = network(half, seed + 1000)
        assert inherit(student, own, teacher, arch, images(8)).share == 1.0, choices
        x = images(8, seed=1)
        with torch.no_grad():
            silence_what_is_left_out(teacher, student)
            torch.testing.assert_close(student.train()(x), teacher.train()(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_any_narrower_student_is_filled_with_the_teachers_weights(family):
    rng, tried = np.random.default_rng(9), 0
    for seed in range(40):
        choices = {
            name: "plain" if name.endswith("bottleneck") else value for name, value in drawn(rng, family).items()
        }
        narrow = {
            name: int(rng.integers(1, value + 1)) if name.endswith("width") and value else value
            for name, value in choices.items()
        }
        teacher, arch = network(choices, seed)
        student, own = network(narrow, seed + 1000)
        if own.choices.keys() != arch.choices.keys() or any(
            own.choices[name] != value for name, value in arch.choices.items() if name.endswith("skip")
        ):
            continue  # other widths ask for other shortcuts: the teacher has no projection there
        tried += 1
        assert inherit(student, own, teacher, arch, images(4)).share == 1.0, (choices, narrow)
    assert tried > 10


def test_a_supernet_inherits_where_a_shortcut_narrows():
    fixed = {"stem_width": 16} | {
        f"stage{i}.{name}": value for i in (1, 2) for name, value in {"bottleneck": "plain", "skip": "identity"}.items()
    }
    widths = Choice("stage1.width", (4, 8)), Choice("stage2.width", (8, 16))
    space = SearchSpace("narrowing", "resnet", widths, fixed=fixed | {"stage1.depth": 2, "stage2.depth": 1})
    teacher, arch = network({**space.fixed, "stage1.width": 8, "stage2.width": 16}, 1)
    supernet = family_for("resnet", TASK).supernet(space)
    assert inherit_supernet(family_for("resnet", TASK), supernet, arch, teacher, arch, images(8)).share == 1.0
    x = images(8, seed=1)
    torch.testing.assert_close(supernet.eval()(x, arch), teacher.eval()(x), rtol=1e-4, atol=1e-4)
    importance = supernet.importance()["stages.0.0.inner"].tolist()
    assert importance == sorted(importance, reverse=True)


def test_unimportant_channels_are_the_ones_left_out():
    """Channels that nobody reads can be dropped without changing what the network computes."""
    teacher, arch = network(RESNET, 1)
    dead = {"stem": [1, 6], "second": [1, 6, 9, 14]}  # the second stage keeps the first one's places
    with torch.no_grad():
        first, second = teacher.stages
        for block in first:
            block.branch[0][0].weight[:, dead["stem"]] = 0
            block.branch[1][0].weight[:, dead["stem"]] = 0
        second[0].branch[0][0].weight[:, dead["stem"]] = 0
        for block in (*second[1:],):
            block.branch[0][0].weight[:, dead["second"]] = 0
        for block in second:
            block.branch[1][0].weight[:, dead["second"]] = 0
        teacher.classifier.weight[:, dead["second"]] = 0
    student, own = network({**RESNET, "stem_width": 6, "stage1.width": 6, "stage2.width": 12}, 2)
    report = inherit(student, own, teacher, arch, images(64))
    assert report.share == 1.0
    x = images(16, seed=1)
    torch.testing.assert_close(student.train()(x), teacher.train()(x), rtol=1e-3, atol=1e-3)


def test_blocks_that_change_nothing_are_left_out():
    teacher, arch = network(RESNET, 1)
    with torch.no_grad():
        for stage, block in ((0, 1), (1, 2)):
            teacher.stages[stage][block].branch[1][1].weight.zero_()
            teacher.stages[stage][block].branch[1][1].bias.zero_()
    influence = block_influence(teacher, images())
    assert influence[0][1] == pytest.approx(0, abs=1e-5)
    assert influence[1][2] == pytest.approx(0, abs=1e-5)
    assert influence[1][0] == 1.0  # the shape changes
    student, own = network({**RESNET, "stage1.depth": 2, "stage2.depth": 2}, 2)
    report = inherit(student, own, teacher, arch, images(64))
    assert report.blocks == ((0, 2), (0, 1))
    x = images(16, seed=1)
    torch.testing.assert_close(student.train()(x), teacher.train()(x), rtol=1e-3, atol=1e-3)


def test_what_a_teachers_blocks_change_is_found_once_for_all_students(monkeypatch):
    teacher, arch = network(RESNET, 1)
    module = Normalised(teacher, (0.5, 0.4, 0.3), (2.0, 1.5, 1.0))
    found = []
    monkeypatch.setattr(_elastic, "block_influence", lambda *asked: found.append(block_influence(*asked)) or found[-1])
    monkeypatch.setattr(_inheriting, "block_influence", lambda *asked: pytest.fail("found again"))
    kept = Teacher("teacher", module, (), None, "hash", arch=arch)
    family = family_for("resnet", TASK, {"teacher": kept}, lambda count: ((images(64),), torch.zeros(64)))
    choices = [{**RESNET, "stage1.depth": 2}, {**RESNET, "stage2.depth": 2, "stage2.width": 12}]
    students = []
    for seed, stated in enumerate(choices):
        torch.manual_seed(seed)
        students.append(family.inherit(family.canonical(stated)))
    assert len(found) == 1
    monkeypatch.undo()
    seen = (images(64) - module.mean) / module.std
    for seed, (stated, student) in enumerate(zip(choices, students, strict=True)):
        own = family.canonical(stated)
        torch.manual_seed(seed)
        alone = family.build(own)
        inherit(alone, own, teacher, arch, seen)
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in alone.state_dict().items())


def test_influence_is_one_minus_the_cosine_and_leaves_the_network_alone():
    teacher, _ = network(RESNET, 1)
    teacher.train()
    teacher.stages[0].eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    influence = block_influence(teacher, images())
    assert teacher.training
    assert not teacher.stages[0].training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher.eval()
    x = teacher.stem(images())
    for block, found in zip(teacher.stages[0], influence[0], strict=True):
        y = block(x)
        a, b = x.flatten(1).detach().numpy(), y.flatten(1).detach().numpy()
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found == pytest.approx(1 - cosine.mean(), abs=1e-4)
        x = y


def test_kernels_are_cut_from_the_centre():
    teacher, arch = network(MOBILENET, 1)
    student, own = network({**MOBILENET, "stage1.kernel": 3, "stage2.kernel": 7}, 2)
    inherit(student, own, teacher, arch, images(64))
    ours, theirs = (net.stages[0][0].branch[1][0].weight for net in (student, teacher))
    centre = theirs[:, :, 1:-1, 1:-1]
    order = [int((centre - row).abs().sum(dim=(1, 2, 3)).argmin()) for row in ours]
    assert sorted(order) == list(range(len(theirs)))
    assert torch.equal(centre[order], ours)
    wide = student.stages[1][0].branch[1][0].weight
    assert not wide[:, :, 0].any()
    assert not wide[:, :, :, -1].any()
    assert wide[:, :, 1:-1, 1:-1].all()


def test_what_the_teacher_lacks_stays_as_it_was():
    teacher, arch = network(RESNET, 1)
    more = {**RESNET, "stage1.depth": 4, "stage2.bottleneck": 0.5, "stage2.width": 20}
    student, own = network(more, 2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    report = inherit(student, own, teacher, arch, images(64))
    after = student.state_dict()
    assert 0 < report.share < 1
    kept = {name for name, value in after.items() if torch.equal(value, before[name]) and value.ndim == 4}
    assert {name for name in kept if name.startswith("stages.0.3.branch")} == {
        f"stages.0.3.branch.{i}.0.weight" for i in (0, 1)
    }
    assert all(f"stages.1.{block}.branch.{i}.0.weight" in kept for block in range(3) for i in range(3))
    assert "stem.0.weight" not in kept
    changed = (after["classifier.weight"] != before["classifier.weight"]).all(dim=0)
    assert changed.tolist() == [True] * 16 + [False] * 4


def test_random_students_of_random_teachers_inherit_without_complaint():
    """Any pair of a space works, and what is inherited is finite."""
    for name in ("cifar_resnet", "cifar_mobilenet"):
        space: SearchSpace = load_space(name, None)  # type: ignore[arg-type]
        family, rng = family_for(space.family, TASK), np.random.default_rng(0)
        for _ in range(2):
            archs = [arch_of(space, space.random(rng), family) for _ in range(2)]
            student, teacher = (family.build(arch) for arch in archs)
            report = inherit(student, archs[0], teacher, archs[1], images(8))
            assert 0 < report.share <= 1
            assert torch.isfinite(student.eval()(images(2))).all()


def test_bad_input_is_refused():
    teacher, arch = network(RESNET, 1)
    other, other_arch = network(MOBILENET, 1)
    with pytest.raises(ConfigError, match="weights are inherited within a family"):
        inherit(other, other_arch, teacher, arch, images())
    with pytest.raises(ConfigError, match="teacher: is not the resnet network of arch"):
        inherit(teacher, arch, other, arch, images())
    with pytest.raises(ConfigError, match="student: is not the resnet network of arch"):
        inherit(other, arch, teacher, arch, images())
