"""Vision transformers: published sizes, one spelling a network, two heads, what is inherited, and what reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdnas.core.arch import Arch
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import sound_part
from kdnas.nn.normalise import Normalised
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes, Taps, taught_head
from kdnas.nn.teacher import Teacher
from kdnas.nn.transformers import Attention, LayerPlan
from kdnas.students import family_for
from kdnas.students._inheriting_layers import inherit_layers, ranked_anatomy
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.loss import TrainingLoss
from kdnas.training.recipe import Distillation, LossTerm

TASK = image_classification((3, 16, 16), 5)
SMALL = {"width": 24, "depth": 3, "heads": 3, "head_size": 8, "mlp_ratio": 2, "patch_size": 4}
VIT = family_for("vit", TASK)


def built(seed: int = 0, **choices: Any) -> Any:
    torch.manual_seed(seed)
    return VIT.build(VIT.canonical({**SMALL, **choices})).eval()


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_deit_has_the_published_size() -> None:
    """Touvron et al. (ICML 2021): 5.7, 22 and 86 M parameters, here to the last one; 1.3 G MACs of the tiny one."""
    family = family_for("vit", image_classification((3, 224, 224), 1000))
    for width, params in ((192, 5_717_416), (384, 22_050_664), (768, 86_567_656)):
        assert family.price(family.canonical({"width": width, "depth": 12, "patch_size": 16})).params == params
    tiny = {"width": 192, "depth": 12, "patch_size": 16}
    assert family.price(family.canonical(tiny)).macs == pytest.approx(1.26e9, rel=0.01)
    distilled = family.price(family.canonical({**tiny, "distillation_token": True}))
    assert distilled.params == 5_910_800  # of deit_tiny_distilled_patch16_224


def test_spellings_of_one_network_are_one_arch() -> None:
    def same(**choices: Any) -> bool:
        return VIT.canonical({**SMALL, **choices}) == VIT.canonical(SMALL)

    assert same(distillation_token=False)
    assert same(**{"layer2.heads": 3, "layer3.mlp_ratio": 2.001})
    assert same(depth=5, **{"layer2.skip": True, "layer5.skip": True, "layer2.heads": 1})  # layers left out
    assert same(**{"layer4.heads": 1})  # which is not there
    assert same(heads=1, **{f"layer{i}.heads": 3 for i in (1, 2, 3)})
    assert not same(**{"layer2.heads": 2})
    assert not same(head_size=4, heads=6)
    left_out = VIT.canonical({**SMALL, "depth": 4, "layer1.skip": True, "layer4.heads": 1})
    assert left_out == VIT.canonical({**SMALL, "layer3.heads": 1})


def test_heads_are_as_many_as_fill_the_width_unless_stated() -> None:
    arch = VIT.canonical({"width": 192, "depth": 1, "patch_size": 4})
    assert (arch.choices["heads"], arch.choices["head_size"], arch.choices["mlp_ratio"]) == (3, 64, 4)


@pytest.mark.parametrize(
    ("choices", "where", "what"),
    [
        ({"width": 8, "depth": 1}, ["patch_size"], "is required"),
        ({**SMALL, "heads": 0}, ["heads"], "cannot be 0"),
        ({**SMALL, "layer1.skip": 1}, ["layer1.skip"], "cannot be 1"),
        ({**SMALL, "depth": 1, "layer1.skip": True}, ["depth"], "at least one must remain"),
        ({**SMALL, "mlp_ratio": float("nan"), "wings": 1}, ["mlp_ratio", "wings"], "cannot be nan"),
    ],
)
def test_bad_choices_are_refused_all_at_once(choices: dict[str, Any], where: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VIT.canonical(choices)
    assert [problem.where for problem in caught.value.problems] == where
    assert what in caught.value.problems[0].what


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_own_fused_or_not(causal: bool, masked: bool) -> None:
    """Against nn.MultiheadAttention with the same weights."""
    torch.manual_seed(0)
    plain, fused = (Attention(LayerPlan(24, 3, 8, 1, causal, fused=fused)) for fused in (False, True))
    fused.load_state_dict(plain.state_dict())
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        parts = [plain.q_proj, plain.k_proj, plain.v_proj]
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(plain.o_proj.state_dict())
    x = torch.randn(4, 7, 24)
    mask = (torch.arange(7) < torch.tensor([[7], [5], [3], [1]])).long() if masked else None
    later = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    padding = None if mask is None else mask == 0
    expected, _ = theirs(x, x, x, attn_mask=later, key_padding_mask=padding, need_weights=False)
    for attention in (plain, fused):
        torch.testing.assert_close(attention(x, mask), expected, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_keep_their_places() -> None:
    network = built()
    assert network(torch.randn(2, 3, 12, 20)).shape == (2, 5)
    with torch.no_grad():
        network.embeddings.position_embeddings[1:] = 0.7  # the same everywhere, hence at any size
        larger = network.embeddings(torch.zeros(1, 3, 24, 24))
        smaller = network.embeddings(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(larger[0, 1], smaller[0, 1])


def test_a_distilled_student_answers_by_the_mean_of_two_heads_that_learn_apart() -> None:
    network = built(distillation_token=True)
    head = taught_head(network)
    assert head == "distillation_classifier"
    assert taught_head(built()) is None
    with Taps(network, (), "classifier", taught=head) as tapped:
        outputs = tapped(images())
    assert outputs.taught is not None
    assert not torch.allclose(outputs.logits, outputs.taught)
    torch.testing.assert_close((outputs.logits + outputs.taught) / 2, network(images()))
    assert torch.equal(outputs.learning.logits, outputs.taught)
    assert len(outputs.tensors) == 3
    assert torch.equal(outputs.of([tensor + 1 for tensor in outputs.tensors]).taught, outputs.taught + 1)


def test_it_can_be_cut_as_a_teacher() -> None:
    network = built(distillation_token=True)
    anatomy = sound_part(read_anatomy(network, images(2)), network, images(2))
    assert anatomy.kind == "vit"
    assert not anatomy.uncut
    assert anatomy.sizes == {
        **{f"stages.{i}.{role}": size for i in range(3) for role, size in (("heads", 3), ("inner", 48))},
        "width": 24,
        "stages.depth": 3,
    }


def teacher_of(**choices: Any) -> tuple[Any, Teacher]:
    network = built(seed=7, **choices)
    module = Normalised(network, [0.0] * 3, [1.0] * 3)
    arch = VIT.canonical({**SMALL, **choices})
    return network, Teacher("own", module, (), None, fingerprint="own", arch=arch)


def inherited(teacher: Teacher, arch: Arch) -> Any:
    family = family_for("vit", TASK, {"own": teacher}, lambda count: ((images(64),), torch.zeros(64).long()))
    assert family.ancestor() is teacher
    return family.inherit(arch).eval()


def test_a_student_of_its_teachers_arch_is_the_teacher() -> None:
    network, teacher = teacher_of(distillation_token=True)
    assert teacher.arch is not None
    assert torch.equal(inherited(teacher, teacher.arch)(images()), network(images()))


def test_a_smaller_student_is_the_teacher_cut_along_what_matters_least() -> None:
    network, teacher = teacher_of()
    smaller = VIT.canonical({**SMALL, "depth": 2, "layer1.heads": 2, "layer2.mlp_ratio": 1})
    anatomy = ranked_anatomy(network, images(64))
    first, second = sorted(anatomy.by_name["stages.depth"].order[:2])
    cut = anatomy.cut(
        network, anatomy.prefix({"stages.depth": 2, f"stages.{first}.heads": 2, f"stages.{second}.inner": 24})
    )
    torch.testing.assert_close(inherited(teacher, smaller)(images()), cut(images()))


def test_a_distillation_token_begins_as_the_class_token() -> None:
    _, teacher = teacher_of()
    student = inherited(teacher, VIT.canonical({**SMALL, "distillation_token": True}))
    with Taps(student, (), "classifier", taught="distillation_classifier") as tapped:
        outputs = tapped(images())
    torch.testing.assert_close(outputs.taught, outputs.logits)


def test_other_patches_see_what_the_teachers_do() -> None:
    """Of an image without detail: the same tokens from patches of another size."""
    _, teacher = teacher_of()
    student = inherited(teacher, VIT.canonical({**SMALL, "patch_size": 8}))
    flat = torch.full((1, 3, 16, 16), 0.3)
    ours, theirs = (each.embeddings.patch_embeddings(flat)[0, :, 0, 0] for each in (student, teacher.module.network))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_the_teacher_has_not_stays_as_it_was() -> None:
    network, _ = teacher_of()
    student = built(seed=3, depth=4, width=32)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    share = inherit_layers(student, network, ranked_anatomy(network, images(64)))
    after = student.state_dict()
    assert 0.3 < share < 0.8
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("stages.3."))
    assert torch.equal(after["classifier.weight"][:, 24:], before["classifier.weight"][:, 24:])
    assert torch.equal(after["classifier.weight"][:, :24], network.classifier.weight)


def test_the_loss_of_the_labels_and_those_of_the_teacher_reach_their_own_heads() -> None:
    recipe = Distillation(task_weight=0.5, losses=(LossTerm(type="hard", weight=0.25),))
    loss = TrainingLoss(recipe, OutputShapes(5), {"teacher": OutputShapes(5)}, seed=0)
    labels, theirs = torch.tensor([0, 1, 2, 3, 4, 0]), torch.randn(6, 5)
    network = built(distillation_token=True)
    with Taps(network, (), "classifier", taught="distillation_classifier") as tapped:
        outputs = tapped(images())
    value = loss(outputs, OutputsByTeacher({"teacher": Outputs(theirs)}), Rows(outputs.logits, labels))
    expected = 0.5 * F.cross_entropy(outputs.logits, labels)
    expected = expected + 0.25 * F.cross_entropy(outputs.taught, theirs.argmax(1))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("distilled", [False, True])
def test_an_exported_program_takes_any_batch_and_holds_both_heads(distilled: bool) -> None:
    network = built(distillation_token=distilled)
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(network, (images(2),), dynamic_shapes=batch)
    for count in (1, 3, 5):
        torch.testing.assert_close(program.module()(images(count)), network(images(count)))
    assert ("distillation_classifier.weight" in program.state_dict) is distilled
