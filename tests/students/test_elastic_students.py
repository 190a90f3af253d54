"""Supernets of every family: a subnet that is cut out is the network that ran inside, for any arch of any space."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.route import space_down_to, space_up_to
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.nn.elastic import Supernet, Unfilled
from kdnas.students import STUDENTS, FamilyContext, StudentFamily, family_for
from kdnas.students._elastic import StagedLayout
from kdnas.study.spaces import arch_of, load_space, space_names
from kdnas.training.supernet.subnets import ElasticSpace

FAMILIES = [name for name in STUDENTS.names() if STUDENTS.get(name).supernet is not StudentFamily.supernet]
TASKS = {"digits_resnet": image_classification((1, 8, 8), 10)}
CIFAR = image_classification((3, 9, 7), 10)

WIDER = {
    "resnet": {
        "stem_width": (3, 8),
        "stem_stride": (1, 2),
        **{f"stage{i}.depth": (0, 1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 8) for i in (1, 2, 3)},
        **{f"stage{i}.stride": (1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.bottleneck": ("plain", 0.3, 1.5) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "projection", "none") for i in (1, 2, 3)},
    },
    "mobilenet": {
        "stem_width": (3, 8),
        "head_width": (0, 6, 12),
        **{f"stage{i}.depth": (0, 1, 3) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 5, 8) for i in (1, 2, 3)},
        **{f"stage{i}.expand": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.kernel": (3, 5, 7) for i in (1, 2, 3)},
        **{f"stage{i}.squeeze_excite": (False, True) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "none") for i in (1, 2, 3)},
    },
}
SPACES = [load_space(name, None) for name in space_names()] + [  # type: ignore[arg-type]
    SearchSpace(f"wider_{family}", family, tuple(Choice(name, values) for name, values in choices.items()))
    for family, choices in WIDER.items()
]
SPACES = [space for space in SPACES if space.family in FAMILIES]


def family_of(space: SearchSpace) -> StudentFamily:
    return family_for(space.family, TASKS.get(space.name, CIFAR))


def random_archs(space: SearchSpace, count: int, seed: int) -> list[Arch]:
    family, rng, archs = family_of(space), np.random.default_rng(seed), []
    while len(archs) < count:
        assignment = space.random(rng)
        if any(value for name, value in assignment.items() if name.endswith(".depth")):
            archs.append(arch_of(space, assignment, family))
    return archs


def supernet_of(space: SearchSpace, seed: int = 0) -> Supernet:
    """A supernet in which no weight has a special value, norm scales and learned kernel maps included."""
    torch.manual_seed(seed)
    supernet = family_of(space).supernet(space)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if parameter.ndim == 1 or "@" in name:
                parameter.copy_(torch.rand_like(parameter) * 0.4 + (0.8 if parameter.ndim == 1 else -0.2))
    return supernet


def images_of(space: SearchSpace, count: int = 4) -> torch.Tensor:
    return torch.randn(count, *TASKS.get(space.name, CIFAR).image_shape)


@pytest.fixture(params=SPACES, ids=lambda space: space.name)
def space(request) -> SearchSpace:
    return request.param


def test_a_cut_subnet_is_the_one_that_ran_inside(space):
    supernet, family = supernet_of(space), family_of(space)
    for arch in random_archs(space, 3, seed=1):
        images = images_of(space)
        for training in (True, False):
            supernet.train(training)
            cut = supernet.subnet(arch)
            assert cut.training is training
            assert type(cut) is type(family.build(arch))
            torch.testing.assert_close(cut(images), supernet(images, arch), rtol=1e-5, atol=1e-5)
        assert sum(p.numel() for p in cut.parameters()) == family.price(arch).params
        # Training mode updated the running statistics, inside as outside.
        inside = supernet.running(arch).tensors()
        assert all(torch.equal(inside[key], value) for key, value in supernet.subnet(arch).state_dict().items())


def test_running_in_training_mode_gathers_the_same_statistics_as_the_cut_subnet(space):
    supernet = supernet_of(space).train()
    (arch,) = random_archs(space, 1, seed=2)
    cut, images = supernet.subnet(arch), images_of(space)
    cut(images)
    supernet(images, arch)
    after = supernet.subnet(arch).state_dict()
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(after[key], value)


def test_macs_of_cut_subnets_are_the_closed_form(space):
    supernet, family = supernet_of(space), family_of(space)
    for arch in random_archs(space, 3, seed=3):
        macs = 0

        def count(module, inputs, output):
            nonlocal macs
            places = output[0, 0].numel() if output.ndim == 4 else 1
            macs += module.weight.numel() * places

        cut = supernet.subnet(arch).eval()
        for module in cut.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        cut(images_of(space, 1))
        assert macs == family.price(arch).macs


def test_gradients_reach_the_shared_weights_and_only_the_running_pieces(space):
    supernet = supernet_of(space).train()
    (arch,) = random_archs(space, 1, seed=4)
    cut, images = supernet.subnet(arch), images_of(space)
    supernet(images, arch).square().sum().backward()
    cut(images).square().sum().backward()
    names = supernet.layout.shared_names(arch, list(cut.state_dict()))
    own = {names[key] for key, _ in cut.named_parameters()}
    for name in supernet.layout.tensors:
        gradient = supernet.shared(name).grad
        assert (gradient is not None) == (name in own)
    for key, parameter in cut.named_parameters():
        gradient = supernet.shared(names[key]).grad
        if parameter.ndim < 4 or parameter.shape[2:] == gradient.shape[2:]:  # smaller kernels: through the learned map
            piece = gradient[tuple(slice(size) for size in parameter.shape)]
            torch.testing.assert_close(piece, parameter.grad, rtol=1e-3, atol=1e-4)
            total = gradient.abs().sum()
            torch.testing.assert_close(total, piece.abs().sum(), rtol=1e-4, atol=1e-5)  # zero outside


def test_smaller_arch_is_a_piece_of_the_larger(space):
    """Two archs share the leading channels of every tensor that plays the same part."""
    supernet = supernet_of(space)
    one, two = random_archs(space, 2, seed=5)
    states = [supernet.subnet(arch).state_dict() for arch in (one, two)]
    names = [supernet.layout.shared_names(arch, list(state)) for arch, state in zip((one, two), states, strict=True)]
    by_name = [{names[i][key]: states[i][key] for key in states[i]} for i in (0, 1)]
    shared = by_name[0].keys() & by_name[1].keys()
    assert "stem.0.weight" in shared
    for name in shared:
        a, b = by_name[0][name], by_name[1][name]
        if a.ndim < 4 or a.shape[2:] == b.shape[2:]:
            common = tuple(slice(min(pair)) for pair in zip(a.shape, b.shape, strict=True))
            assert torch.equal(a[common], b[common])


def test_sorting_channels_changes_no_network_at_the_full_widths(space):
    supernet = supernet_of(space).eval()
    widest = {
        choice.name: max(choice.values)
        if all(type(value) in (int, float) for value in choice.values)
        else choice.values[0]
        for choice in space.choices
    }
    # A later stage takes the place of one that is left out, and with it the channels, which may be more than its own.
    stages = sorted({name.partition(".")[0] for name in widest if name.startswith("stage")})
    optional = [choice.name for choice in space.choices if choice.name.endswith(".depth") and 0 in choice.values]
    widest |= dict.fromkeys((name for name in optional if name.partition(".")[0] != stages[-1]), 0)
    family, images = family_of(space), images_of(space)
    skips = next(choice.values for choice in space.choices if choice.name.endswith(".skip"))
    bottlenecks = [choice.values for choice in space.choices if choice.name.endswith(".bottleneck")] or [(None,)]
    sorted_ = copy.deepcopy(supernet)
    sorted_.sort_channels()
    for skip, bottleneck in itertools.product(skips, ("plain", max(bottlenecks[0][1:], default=None))):
        for name in widest:
            if name.endswith(".skip"):
                widest[name] = skip
            if name.endswith(".bottleneck"):
                widest[name] = bottleneck
        arch = arch_of(space, widest, family)
        torch.testing.assert_close(sorted_(images, arch), supernet(images, arch), rtol=1e-3, atol=1e-3)
    before, after = supernet.importance(), sorted_.importance()
    changed = 0
    for axis, score in after.items():
        torch.testing.assert_close(score.sort().values, before[axis].sort().values, rtol=1e-4, atol=1e-4)
        if not any(axis in chain and len(chain) > 1 for chain in supernet.layout.aligned):
            assert (score.diff() <= 1e-4).all()
            changed += not torch.equal(score, before[axis])
    assert changed


def test_adopting_a_student_makes_it_a_subnet(space):
    supernet, family = supernet_of(space), family_of(space)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if "@" in name:
                parameter.zero_()
    (arch,) = random_archs(space, 1, seed=6)
    student = family.build(arch)
    supernet.adopt(arch, student)
    state = supernet.subnet(arch).state_dict()
    assert all(torch.equal(state[key], value) for key, value in student.state_dict().items())


def test_building_and_running_draw_no_random_numbers_but_the_first_weights():
    space = SPACES[0]
    supernet = supernet_of(space)
    state = torch.get_rng_state()
    for arch in random_archs(space, 3, seed=7):
        supernet.subnet(arch)
        supernet.running(arch)
    assert torch.equal(torch.get_rng_state(), state)
    again = supernet_of(space)
    assert all(
        torch.equal(a, b) for a, b in zip(supernet.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_norms_start_at_scale_one_as_those_of_students_do(space):
    supernet = family_of(space).supernet(space)
    scales = [
        name for name, tensor in supernet.layout.tensors.items() if name.endswith("1.weight") and len(tensor.shape) == 1
    ]
    assert scales
    assert all((supernet.shared(name) == 1).all() for name in scales)


def test_a_family_without_elastic_networks_says_so():
    class Rigid(StudentFamily):
        canonical = groups = build = source = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="cannot share weights"):
        Rigid(FamilyContext(CIFAR)).supernet(SPACES[0])


@pytest.mark.parametrize("name", ["digits_resnet", "cifar_resnet", "cifar_mobilenet"])
@pytest.mark.parametrize("part", [space_down_to, space_up_to])
def test_every_network_around_a_student_finds_room_in_the_shared_tensors(name, part):
    """Where a part of a space begins or ends with equal widths, its widest projection is at neither end."""
    space = next(space for space in SPACES if space.name == name)
    family = family_of(space)
    ladders, rng = ElasticSpace(space, family).ladders, np.random.default_rng(0)
    for _ in range(6):
        around = part(space, ladders, space.random(rng))
        layout = StagedLayout(family, around)
        for _ in range(15):
            arch = family.canonical(around.active(around.random(rng)))
            with Unfilled():
                wanted = {key: tuple(value.shape) for key, value in family.build(arch).state_dict().items()}
            names = layout.shared_names(arch, list(wanted))
            short = [key for key, shape in wanted.items() if np.less(layout.tensors[names[key]].shape, shape).any()]
            assert not short, (arch.choices, around)


def test_a_projection_narrower_than_the_widest_stage_is_shared_whole():
    """A stage as wide as what it reads has an identity there: of widths 4 to 16 after 16 channels, 12 is the widest."""
    choices = {"stem_width": (16,), "stage1.depth": (1,), "stage1.width": (16, 12, 8, 4)}
    kinds = {"stage1.bottleneck": ("plain",), "stage1.skip": ("projection",)}
    space = SearchSpace("s", "resnet", tuple(Choice(name, values) for name, values in {**choices, **kinds}.items()))
    family = family_for("resnet", image_classification((1, 8, 8), 10))
    supernet = family.supernet(space).eval()
    samples = torch.randn(2, 1, 8, 8)
    for width in (4, 8, 12, 16):
        arch = family.canonical(space.active({**{c.name: c.values[0] for c in space.choices}, "stage1.width": width}))
        assert torch.equal(supernet(samples, arch), supernet.subnet(arch)(samples))
