import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from kdnas.core.objective import ACCURACY
from kdnas.core.space import SearchSpace
from kdnas.core.task import Input, TaskSpec, image_classification
from kdnas.errors import ConfigError, TeacherError
from kdnas.nn.cutting import outputs
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import Taps, find_stages, stage_names
from kdnas.nn.teacher import Teacher
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.students import STUDENTS, FamilyContext, derived
from kdnas.teachers._fitted import Fitted

sys.path.insert(0, str(Path(__file__).parents[1] / "nn" / "anatomy"))
from test_convnets import randomised
from test_transformers import NETWORKS

UNDERIVED = SearchSpace("own", "derived", ())
QUICK = ["timm:mobilenetv3_small_050", "timm:resnet18", "timm_vit", "hf_vit", "bert", "gpt2", "llama"]
SLOW = ["timm:tf_efficientnet_lite0", "timm:convnext_atto", "torchvision:mobilenet_v2", "distilbert", "qwen2", "qwen3"]


def teacher_of(network, task, name="teacher", classifier=None):
    """A teacher whose network is behind its own normalisation where it sees pixels."""
    network.eval().requires_grad_(False)
    if task.inputs[0].kind == "tokens":
        return Teacher(name, network, (), None, f"{name}-hash")
    module = Normalised(network, (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)).eval()
    stages, found = ((), None) if hasattr(network, "config") else find_stages(module, torch.zeros(2, *task.image_shape))
    return Teacher(name, module, stages, classifier or found, f"{name}-hash")


def samples_of(task, seed=0):
    def samples(count):
        generator, taken = torch.Generator().manual_seed(seed), task.inputs[0]
        inputs = torch.randint(0, taken.levels, (min(count, 24), *taken.shape), generator=generator)
        targets = torch.randint(0, 2, (min(count, 24),), generator=generator)
        return ((inputs.float() if taken.kind == "pixels" else inputs,), targets)

    return samples


def family_of(network, task, *, kept=None, **options):
    context = FamilyContext(task, {"teacher": teacher_of(network, task)}, samples_of(task), kept)
    return STUDENTS.build("derived", context, **options)


def case(name):
    """(network, task) of a kind of teacher."""
    torch.manual_seed(0)
    if name in NETWORKS:
        kind, make = NETWORKS[name]
        if kind != "vit":
            words = (Input("tokens", (10,), "tokens", 100),)
            return make(), TaskSpec("words", words, 2, 1, ACCURACY)
        size, classes = (32, 5) if name.startswith("timm") else (16, 2)
        return make(), image_classification((3, size, size), classes)
    library, _, called = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    return randomised(make(called, num_classes=5)), image_classification((3, 32, 32), 5)


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def opened(request):
    """(family, its space, raw samples) over one kind of teacher."""
    network, task = case(request.param)
    bounds = {} if request.param != "gpt2" else {"importance": "l1"}
    family = family_of(network, task, **bounds)
    return family, family.space(UNDERIVED), samples_of(task, seed=1)(4)[0][0]


def drawn(family, space, count, seed=0):
    rng = np.random.default_rng(seed)
    return [family.canonical(space.active(space.random(rng))) for _ in range(count)]


def test_the_whole_student_is_the_teacher_bit_for_bit(opened):
    family, _, raw = opened
    whole = family.inherit(family.canonical({}))
    with torch.no_grad():
        theirs, ours = family.ancestor().module(raw), whole(raw)
    assert torch.equal(getattr(ours, "logits", ours), getattr(theirs, "logits", theirs))
    mine = {parameter.data_ptr() for parameter in whole.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in family.ancestor().module.parameters()}
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_a_student_costs_what_is_counted_on_it_and_runs(opened):
    family, space, raw = opened
    for arch in drawn(family, space, 4):
        student = family.build(arch)
        assert family.price(arch).macs == traced_macs(student, raw[:1])
        assert family.price(arch).params == parameter_count(student)
        assert torch.isfinite(outputs(family.inherit(arch), raw)).all()


def test_what_is_told_of_a_teacher_spells_and_prices_its_students_where_none_is_open(opened):
    family, space, _ = opened
    told = pickle.loads(pickle.dumps(family.outline))
    elsewhere = STUDENTS.build("derived", FamilyContext(family.task, outline=told))
    smallest = elsewhere.canonical(space.active(space.corners[0]))
    for arch in [*drawn(family, space, 20), family.canonical({})]:
        assert elsewhere.canonical(arch.choices) == arch
        assert elsewhere.price(arch) == family.price(arch)
        assert elsewhere.is_part(smallest, arch) == family.is_part(smallest, arch)
    assert not elsewhere.is_part(elsewhere.canonical({}), smallest)
    with pytest.raises(ConfigError):
        elsewhere.build(smallest)


def test_an_inherited_student_holds_the_teachers_weights_and_a_random_one_none(opened):
    family, space, _ = opened
    arch = drawn(family, space, 1, seed=3)[0]

    def weights(module):
        return np.concatenate([p.detach().flatten().numpy() for p in module.parameters() if p.ndim > 1])

    theirs = weights(family.ancestor().module)
    as_cut = STUDENTS.build("derived", family.context, importance="l1", reconstruct=False)
    assert np.isin(weights(as_cut.inherit(arch)), theirs).all()
    assert (
        np.isin(weights(family.build(arch)), theirs).mean() < 0.5
    )  # float32 has few numbers beside 11 million weights


def test_a_random_start_is_a_function_of_torchs_generator(opened):
    family, space, _ = opened
    arch = drawn(family, space, 1)[0]
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append([p.detach().clone() for p in family.build(arch).parameters()])
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


def test_taps_are_the_teachers_at_the_same_places():
    network, task = case("timm:resnet18")
    family = family_of(network, task)
    space = family.space(UNDERIVED)
    assert stage_names(family.build(family.canonical({}))) == (family.ancestor().stages, "network.fc")
    least = family.canonical(space.active({choice.name: choice.values[0] for choice in space.choices}))
    student = family.inherit(least)
    stages, classifier = stage_names(student)
    with torch.no_grad(), Taps(student, stages, classifier) as tapped:
        seen = tapped(samples_of(task)(2)[0][0])
    assert [stage.shape[1] for stage in seen.stages] == [16, 32, 64]
    assert seen.embedding.shape == (2, 128)


def test_a_tap_in_a_block_that_is_gone_is_that_of_the_block_before_it():
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5)
    task = image_classification((3, 32, 32), 5)
    teacher = teacher_of(randomised(network), task)
    stages = tuple(f"network.features.{place}" for place in (3, 6, 13, 18))
    teacher = dataclasses.replace(teacher, stages=stages)
    family = STUDENTS.build("derived", FamilyContext(task, {"teacher": teacher}), width=1, inner=1)
    least = family.canonical({f"stage{index}.depth": 1 for index in range(1, 6)})
    # Of every run of blocks its first is left: 0, 1, 2, 4, 7, 11, 14, 17, and the head, 18.
    assert stage_names(family.build(least))[0] == tuple(f"network.features.{place}" for place in (2, 3, 5, 8))


def test_a_smaller_student_is_a_part_of_a_larger_one():
    network, task = case("bert")
    family = family_of(network, task, width=1, reconstruct=False)
    large = family.inherit(family.canonical({"inner": 48, "heads": 3})).state_dict()
    small = family.inherit(family.canonical({"inner": 16, "heads": 1})).state_dict()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    rows = {tuple(row.tolist()) for row in large[name]}
    assert len(small[name]) == 16
    assert all(tuple(row.tolist()) in rows for row in small[name])


def test_what_is_known_of_a_teacher_is_kept_and_read_again(tmp_path):
    network, task = case("timm:mobilenetv3_small_050")
    kept = tmp_path / "calibration.json"
    first = family_of(network, task, kept=kept)
    space = first.space(UNDERIVED)
    assert not kept.exists()  # nothing is written before the study is known to be sound
    first.keep()
    again = family_of(network, task, kept=kept, importance="taylor")
    assert again.fingerprints == first.fingerprints
    assert again.space(UNDERIVED) == space
    arch = drawn(first, space, 1)[0]
    one, other = first.inherit(arch).state_dict(), again.inherit(arch).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    kept.write_text(json.dumps({"teacher": 3}))
    with pytest.raises(ConfigError, match="is damaged"):
        _ = family_of(network, task, kept=kept).choices


def test_units_that_matter_more_stay_longer():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    with torch.no_grad():
        network[0].weight[[1, 4, 6]] = 0.0
        network[0].bias[[1, 4, 6]] = 0.0
    family = family_of(network, image_classification((3, 8, 8), 2), round_to=1, granularity="block", freeze=("2",))
    family.space(UNDERIVED)
    axis = next(axis for axis in family.anatomy.axes if axis.name == "0.channels")
    assert sorted(axis.order[-3:]) == [1, 4, 6]


def test_a_teacher_of_which_nothing_can_be_cut_says_why():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(
        TeacherError, match=r"nothing of a Sequential can be cut \(its layers are of no kind .*\); what"
    ):
        family_of(network, image_classification((3, 4, 4), 2)).space(UNDERIVED)


def test_a_teacher_too_small_to_cut_says_so():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ConfigError, match="the teacher is too small to cut"):
        family_of(network, image_classification((3, 4, 4), 2)).space(UNDERIVED)


def test_without_a_teacher_there_are_no_students():
    family = STUDENTS.build("derived", FamilyContext(image_classification((3, 8, 8), 2)))
    with pytest.raises(ConfigError, match="cut out of a teacher, and none is open"):
        family.space(UNDERIVED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "all"}, "depth: must be shares of the whole"),
        ({"width": (1.5,)}, "width: must be .*: 1.5 is no share, being above 1, and no size"),
        ({"width": (0.5, 96)}, "width: must be .* mixes shares and sizes"),
        ({"round_to": 0}, "round_to: must be at least 1, got 0"),
        ({"granularity": "layer"}, "granularity: must be 'network', 'stage' or 'block'"),
        ({"importance": "size"}, "importance: must be"),
        ({"widths": (0.5,)}, r"widths: unknown key; did you mean 'width'\?"),
    ],
)
def test_options_are_checked_before_a_teacher_is_open(options, message):
    context = FamilyContext(image_classification((3, 8, 8), 2))
    with pytest.raises(ConfigError, match=message):
        STUDENTS.build("derived", context, **options)


def test_costs_are_of_the_tasks_length_where_the_texts_at_hand_are_shorter():
    network, task = case("bert")
    length = task.inputs[0].shape[0]

    def short(count):
        (inputs,), targets = samples_of(task)(count)
        return (inputs[:, : length // 3],), targets

    family = STUDENTS.build("derived", FamilyContext(task, {"teacher": teacher_of(network, task)}, short))
    arch = family.canonical({"depth": 1})
    tokens = torch.randint(0, task.inputs[0].levels, (1, length))
    assert family.price(arch).macs == traced_macs(family.build(arch).eval(), tokens)


class Odd(nn.Module):
    """A small residual network that is odd in one way."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.stem, self.mid, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Conv2d(16, 2, 1) if kind == "no linear classifier" else nn.Linear(16, 2)
        if kind == "a buffer of fixed size":
            self.register_buffer("scale", torch.linspace(0.5, 1.5, 16).view(1, 16, 1, 1))

    def forward(self, images):
        maps = torch.relu(self.stem(images))
        if self.kind == "a buffer of fixed size":
            maps = maps * self.scale
        if self.kind == "control flow" and bool(maps.mean() > 1e9):
            return self.head(maps.mean((2, 3)))
        maps = self.last(torch.relu(self.mid(maps)))
        if self.kind == "no linear classifier":
            return self.head(maps).mean((2, 3))
        logits = self.head(maps.mean((2, 3)))
        return {"a mapping": {"logits": logits}, "a tuple": (logits, maps)}.get(self.kind, logits)


@pytest.mark.parametrize(
    "kind", ["a mapping", "a tuple", "no linear classifier", "a buffer of fixed size", "control flow", "half precision"]
)
def test_odd_teachers_are_cut_as_far_as_they_can_be_and_the_rest_is_said(kind):
    torch.manual_seed(0)
    task = image_classification((3, 12, 12), 2)
    module = Fitted(Odd(kind), (120.0,) * 3, (60.0,) * 3, classes=2).eval().requires_grad_(False)
    teacher = Teacher("odd", module, (), None, "odd")
    family = STUDENTS.build("derived", FamilyContext(task, {"teacher": teacher}, samples_of(task)), round_to=4)
    space = family.space(UNDERIVED)
    raw = samples_of(task, seed=1)(4)[0][0]
    with torch.no_grad():
        assert torch.equal(family.inherit(family.canonical({}))(raw), module(raw))
    for arch in drawn(family, space, 3):
        assert family.inherit(arch)(raw).shape == (4, 2)
        assert family.price(arch).params == parameter_count(family.build(arch))
    if kind == "a buffer of fixed size":  # what is multiplied by it stays whole, with the reason
        assert family.anatomy.uncut
        assert all(part.why for part in family.anatomy.uncut)


def test_a_teacher_that_is_dear_to_read_is_shown_fewer_samples(monkeypatch):
    network, task = case("timm:mobilenetv3_small_050")
    shown = []

    def asked(**options):
        family = family_of(network, task, **options)
        draw = family.context.samples
        family.context = dataclasses.replace(family.context, samples=lambda count: shown.append(count) or draw(count))
        _ = family.anatomy
        return shown.pop()

    assert asked() == 512
    macs = traced_macs(network, torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(derived, "_MACS", 100 * macs + 1)
    assert asked() == 100
    monkeypatch.setattr(derived, "_MACS", 10 * macs)
    assert asked() == 64
    assert asked(samples=30) == 30


def test_a_run_whose_teacher_has_other_parts_now_is_told(tmp_path):
    network, task = case("timm:resnet18")
    family = family_of(network, task, kept=tmp_path / "family.json", importance="l1")
    family.keep()
    known = json.loads((tmp_path / "family.json").read_text())
    known["parts"][0] = "elsewhere.channels"
    (tmp_path / "family.json").write_text(json.dumps(known))
    with pytest.raises(TeacherError, match=r"parts of it .* not found any more: elsewhere\.channels"):
        _ = family_of(network, task, kept=tmp_path / "family.json", importance="l1").anatomy
