"""The supernet of students that are cut out of their teacher is the teacher itself."""

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdnas.errors import ConfigError, TeacherError
from kdnas.nn.cutting import outputs

sys.path.insert(0, str(Path(__file__).parent))
from test_derived import UNDERIVED, case, drawn, family_of, samples_of

KINDS = ["timm:mobilenetv3_small_050", "timm_vit", "bert", "gpt2", "llama"]


@pytest.fixture(scope="module", params=KINDS)
def opened(request):
    """(family, its space, raw samples, the supernet that has the teacher's weights)."""
    network, task = case(request.param)
    family = family_of(network, task, importance="l1")
    space = family.space(UNDERIVED)
    supernet = family.supernet(space)
    whole = family.canonical({})
    assert family.inherit_supernet(supernet, whole, ()) == 1.0
    return family, space, samples_of(task, seed=1)(4)[0][0], supernet.eval()


def test_its_largest_subnet_is_the_teacher_bit_for_bit(opened):
    family, _, raw, supernet = opened
    with torch.no_grad():
        assert torch.equal(outputs(supernet.running(family.canonical({})), raw), outputs(family.ancestor().module, raw))


def test_a_subnet_computes_what_the_student_cut_out_of_the_teacher_does(opened):
    family, space, raw, supernet = opened
    for arch in drawn(family, space, 2, seed=1):
        kept = family.anatomy.prefix(family.choices.sizes(arch.choices))
        cut = family._student(family.anatomy.cut(family.network, kept), arch).eval()
        with torch.no_grad():
            assert torch.equal(outputs(supernet.running(arch), raw), outputs(cut, raw))
            assert torch.equal(outputs(supernet.subnet(arch), raw), outputs(cut, raw))
        assert supernet.subnet(arch).state_dict().keys() == family.build(arch).state_dict().keys()


def test_what_a_subnet_learns_is_learnt_by_those_that_have_a_part_in_it_and_by_no_other_place(opened):
    family, space, raw, supernet = opened
    least = family.canonical(space.active({choice.name: choice.values[0] for choice in space.choices}))
    before = {name: value.detach().clone() for name, value in supernet.named_parameters()}
    supernet.zero_grad()
    outputs(supernet.running(least), raw, grad=True).square().sum().backward()
    touched = {name: p.grad is not None and p.grad.ne(0) for name, p in supernet.named_parameters()}
    assert any(part is False or not part.all() for part in touched.values())
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign())
    changed = supernet.subnet(least)
    with torch.no_grad():
        assert torch.equal(outputs(supernet.running(least), raw), outputs(changed, raw))
        for name, parameter in supernet.named_parameters():
            if touched[name] is False:
                assert torch.equal(parameter, before[name])
            else:
                assert torch.equal(parameter[~touched[name]], before[name][~touched[name]])
            parameter.copy_(before[name])


def test_weights_of_a_student_are_taken_into_its_places(opened):
    family, space, raw, _ = opened
    supernet = family.supernet(space).eval()
    torch.manual_seed(7)
    arch = drawn(family, space, 1, seed=5)[0]
    student = family.build(arch).eval()
    supernet.adopt(arch, student)
    with torch.no_grad():
        assert torch.equal(outputs(supernet.running(arch), raw), outputs(student, raw))


def test_tied_weights_stay_one_in_a_subnet():
    network, task = case("gpt2")
    family = family_of(network, task, importance="l1")
    supernet = family.supernet(family.space(UNDERIVED))
    tensors = supernet.running(family.canonical({"width": 0.5})).tensors()
    assert tensors["lm_head.weight"] is tensors["transformer.wte.weight"]


def test_a_shell_has_no_weights_of_its_own_and_can_be_moved():
    network, task = case("timm:mobilenetv3_small_050")
    family = family_of(network, task, importance="l1")
    supernet = family.supernet(family.space(UNDERIVED))
    shell = supernet.running(family.canonical({"stage1.width": 8})).to("cpu").student
    assert all(weight.is_meta for weight in shell.get_submodule("network").parameters())


def test_students_of_smaller_samples_cost_less_and_are_refused_where_the_teacher_takes_none():
    network, task = case("timm:mobilenetv3_small_050")
    family = family_of(network, task, importance="l1")
    arch = family.canonical({"stage1.width": 8})
    assert family.at(32) is family
    smaller = family.at(16)
    assert smaller.price(arch).params == family.price(arch).params
    assert smaller.price(arch).macs < family.price(arch).macs
    assert smaller.canonical({"stage1.width": 8}) == arch
    vit, task = case("timm_vit")
    with pytest.raises(TeacherError, match="takes no samples of size 16"):
        family_of(vit, task, importance="l1").at(16)


def test_a_supernet_moves_its_batch_norm_statistics_with_its_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(),
                            nn.Linear(16 * 16, 5))  # fmt: skip
    from kdnas.core.task import image_classification

    family = family_of(network, image_classification((3, 8, 8), 5), granularity="block", importance="l1")
    supernet = family.supernet(family.space(UNDERIVED)).eval()
    arch = family.canonical({family.choices.choices[0].name: 8})
    assert len(supernet.subnet(arch).get_submodule("network.1").running_mean) == 8


@pytest.mark.parametrize("name", KINDS)
def test_a_student_cut_out_of_a_trained_larger_one_is_that_one_cut_directly(name):
    network, task = case(name)
    family = family_of(network, task, importance="l1")
    family.context = dataclasses.replace(family.context, samples=None)  # no batch norm is estimated anew
    space = family.space(UNDERIVED)
    values = [(choice.name, choice.values) for choice in space.choices]
    small, large = (family.canonical(space.active({n: v[place(len(v))] for n, v in values})) for place in PLACES)
    assert family.is_part(small, large)
    assert not family.is_part(large, small)
    trained = family.inherit(large)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    cut = family.cut_on(small, large, trained)
    # Directly: the small student's places in the teacher, found again among those of the large one.
    marked = family.ancestor().module.get_submodule(family._place)
    numbered = copy.deepcopy(marked)
    with torch.no_grad():
        for weight in numbered.parameters():
            weight.copy_(torch.arange(weight.numel()).reshape(weight.shape))
    sizes = [family.anatomy.prefix(family.choices.sizes(arch.choices)) for arch in (small, large)]
    ours, theirs = (family._student(family.anatomy.cut(numbered, kept), arch) for kept, arch in
                    zip(sizes, (small, large), strict=True))  # fmt: skip
    names = {key: name for key, (name, _) in pieces_of(family, sizes[1], theirs).items()}
    found = {name: key for key, name in names.items()}
    whole = {key: name for key, (name, _) in pieces_of(family, sizes[0], ours).items()}
    for key, weight in ours.named_parameters():
        there = found[whole[key]]
        places = {float(mark): place for place, mark in enumerate(theirs.get_parameter(there).flatten())}
        picked = [places[float(mark)] for mark in weight.flatten()]
        assert torch.equal(cut.get_parameter(key).flatten(), trained.get_parameter(there).flatten()[picked])


PLACES = (lambda count: 0, lambda count: count // 2)


def pieces_of(family, kept, student):
    supernet = family.supernet(family.space(UNDERIVED))
    return supernet._pieces(kept, family.anatomy.places(supernet.network, kept), list(student.state_dict()))


def test_a_student_that_is_no_part_of_another_is_not_cut_out_of_it():
    network, task = case("bert")
    family = family_of(network, task, importance="l1")
    heads, inner = family.canonical({"heads": 1}), family.canonical({"inner": 16})
    assert not family.is_part(heads, inner)
    with pytest.raises(ConfigError, match="is no part of"):
        family.cut_on(heads, inner, family.inherit(inner))
