"""What every student family keeps, each checked on random archs of the committed spaces and of a wider one."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import TaskSpec, image_classification
from kdnas.errors import ConfigError
from kdnas.students import STUDENTS, family_for
from kdnas.study.spaces import arch_of, load_space, space_names

TASKS = (
    image_classification((1, 8, 8), 10),
    image_classification((3, 32, 32), 10),
    image_classification((1, 28, 28), 2),
    image_classification((3, 17, 9), 7),
    image_classification((2, 1, 1), 3),
    image_classification((4, 5, 31), 101),
)
STATED = [name for name in STUDENTS.names() if not STUDENTS.get(name).derived]
"""The families whose networks are known without a teacher."""
COUNTED = {"conv", "linear", "addmm", "matmul", "bmm", "einsum"}

WIDER = {
    "resnet": {
        "stem_width": (3, 8),
        "stem_stride": (1, 2),
        **{f"stage{i}.depth": (0, 1, 2) if i > 1 else (1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 8) for i in (1, 2, 3)},
        **{f"stage{i}.stride": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.bottleneck": ("plain", 0.1, 0.25, 0.3, 1, 1.5) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "projection", "none") for i in (1, 2, 3)},
    },
    "mobilenet": {
        "stem_width": (3, 8),
        "head_width": (0, 12),
        **{f"stage{i}.depth": (0, 1, 2) if i > 1 else (1, 2) for i in (1, 2, 3)},
        **{f"stage{i}.width": (3, 8) for i in (1, 2, 3)},
        **{f"stage{i}.stride": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.expand": (1, 2, 3) for i in (1, 2, 3)},
        **{f"stage{i}.kernel": (3, 5, 7) for i in (1, 2, 3)},
        **{f"stage{i}.squeeze_excite": (False, True) for i in (1, 2, 3)},
        **{f"stage{i}.skip": ("identity", "none") for i in (1, 2, 3)},
    },
}


def spaces_of(family: str) -> list[SearchSpace]:
    carried = [load_space(name, Path()) for name in space_names()]
    wider = SearchSpace("wider", family, tuple(Choice(name, values) for name, values in WIDER[family].items()))
    return [space for space in [*carried, wider] if space.family == family]


def random_archs(family: str, count: int, seed: int = 0) -> list[Arch]:
    """`count` archs of every space of the family."""
    rng = np.random.default_rng(seed)
    return [arch_of(space, space.random(rng)) for space in spaces_of(family) for _ in range(count)]


def fvcore_macs(module: nn.Module, task: TaskSpec) -> int:
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    counts = FlopCountAnalysis(module.eval(), torch.zeros(1, *task.image_shape)).unsupported_ops_warnings(False)
    return int(sum(value for name, value in counts.by_operator().items() if name in COUNTED))


@pytest.fixture(params=STATED)
def name(request) -> str:
    return request.param


@pytest.fixture
def family(name):
    return family_for(name, TASKS[0])


def test_has_a_summary_and_no_options(name):
    assert STUDENTS.summary(name)
    assert not STUDENTS.options(name).model_fields


@pytest.mark.parametrize("count", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_price_equals_fvcore_and_the_parameter_count(name, count):
    archs = random_archs(name, count, seed=count)
    assert len(archs) >= 2 * count
    for index, arch in enumerate(archs):
        task = TASKS[index % len(TASKS)]
        family = family_for(name, task)
        module = family.build(arch)
        price = family.price(arch)
        assert price.macs == fvcore_macs(module, task), (arch, task)
        assert price.params == sum(p.numel() for p in module.parameters()), (arch, task)


def test_module_contract(name):
    for index, arch in enumerate(random_archs(name, 6, seed=1)):
        task = TASKS[index % len(TASKS)]
        family = family_for(name, task)
        module = family.build(arch)
        assert isinstance(module.stages, nn.ModuleList)
        assert isinstance(module.classifier, nn.Linear)
        seen = []
        for stage in module.stages:
            stage.register_forward_hook(lambda _, __, output: seen.append(output))  # noqa: B023
        embedding = []
        module.classifier.register_forward_hook(lambda _, inputs, __, e=embedding: e.append(inputs[0]))
        logits = module(torch.randn(3, *task.image_shape))
        assert logits.shape == (3, task.outputs)
        assert torch.isfinite(logits).all()
        assert len(seen) == len(module.stages) >= 1
        assert all(output.ndim == 4 for output in seen)
        assert embedding[0].shape == (3, module.classifier.in_features)


def test_canonical_is_idempotent_and_survives_json(name, family):
    for arch in random_archs(name, 40, seed=2):
        assert family.canonical(arch.choices) == arch == Arch.from_json(arch.canonical_json)


def signature(module: nn.Module) -> tuple:
    """Everything that makes a network but its values: submodules in order, their settings, its weights' shapes."""
    structure = tuple((path, module.extra_repr()) for path, module in module.named_modules())
    shortcuts = tuple(
        (path, type(m).__name__, getattr(m, "stride", None), getattr(m, "skip", None))
        for path, m in module.named_modules()
    )
    return structure, shortcuts, tuple((key, tuple(value.shape)) for key, value in module.state_dict().items())


def test_an_arch_is_one_network_and_a_network_one_arch(name):
    """Neighbours in a space with many redundant spellings: equal archs exactly where the built modules are equal."""
    rng, space = np.random.default_rng(5), spaces_of(name)[-1]
    family = family_for(name, image_classification((2, 13, 11), 3))
    equal = 0
    for _ in range(100):
        one = space.random(rng)
        two = space.mutate(one, rng, int(rng.integers(1, 3)))
        archs = [arch_of(space, assignment, family) for assignment in (one, two)]
        # The networks are built from the raw spellings' own archs, never from one shared object.
        modules = [family.build(arch) for arch in archs]
        assert (archs[0] == archs[1]) == (signature(modules[0]) == signature(modules[1])), (one, two)
        assert (archs[0] == archs[1]) == (archs[0].arch_id == archs[1].arch_id)
        equal += archs[0] == archs[1]
    assert 5 < equal < 95


def test_canonical_spelling_builds_what_the_raw_spelling_says(name):
    """Canonicalising changes no network: price and modules of the raw choices equal those of the canonical arch."""
    rng, space = np.random.default_rng(6), spaces_of(name)[-1]
    family = family_for(name, image_classification((3, 12, 12), 4))
    for _ in range(60):
        raw = Arch.of(name, space.active(space.random(rng)))
        canonical = family.canonical(raw.choices)
        assert family.price(raw) == family.price(canonical)
        assert signature(family.build(raw)) == signature(family.build(canonical))


def test_building_follows_torchs_generator(name, family):
    (arch,) = random_archs(name, 1)[:1]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(family.build(arch).stem[0].weight.detach())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


CHECK = """
import runpy, sys, traceback, typing
sys.modules["kdnas"] = None  # importing it would now fail
import torch
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    try:
        saved = torch.load(f"{folder}/saved.pt", weights_only=True)
        for index, (state, x, y) in enumerate(saved):
            names = runpy.run_path(f"{folder}/student{index}.py")
            for name in ("StudentPlan", type(names["PLAN"].stages[0][0]).__name__):
                typing.get_type_hints(names[name], globalns=names)  # no annotation names what was left behind
            student = names["build_student"]()
            student.load_state_dict(state)
            assert torch.equal(student.eval()(x), y), index
        print(folder, "same", len(saved))
    except Exception:
        print(folder, "differs", *traceback.format_exc().split())
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """By family, how many students were written as source, and what a process without kdnas says of them."""
    folders, counts = {}, {}
    for name in STATED:
        folder, saved = tmp_path_factory.mktemp(name), []
        for index, arch in enumerate(random_archs(name, 2, seed=3)):
            task = TASKS[index % len(TASKS)]
            family = family_for(name, task)
            module = family.build(arch)
            for p in module.parameters():
                nn.init.uniform_(p, -0.5, 0.5)
            module.eval()
            x = torch.randn(4, *task.image_shape)
            with torch.no_grad():
                saved.append((module.state_dict(), x, module(x)))
            source = family.source(arch)
            assert arch.arch_id in source
            (folder / f"student{index}.py").write_text(source)
        torch.save(saved, folder / "saved.pt")
        folders[name], counts[name] = str(folder), len(saved)
    command = [sys.executable, "-I", "-c", CHECK, *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = {line.partition(" ")[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}
    return {name: (counts[name], said[folder]) for name, folder in folders.items()}


def test_source_alone_reproduces_the_student_bit_by_bit(name, alone):
    count, said = alone[name]
    assert count >= 2
    assert said == f"same {count}"


def test_source_imports_only_torch_and_the_standard_library(name, family):
    source = family.source(random_archs(name, 1)[0])
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", "collections", "dataclasses", "typing", "torch"}
    assert max(map(len, source.splitlines())) <= 120


def test_price_is_fast(name, family):
    archs = random_archs(name, 300, seed=4)
    for arch in archs:
        family.price(arch)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for arch in archs:
            family.price(arch)
        best = min(best, (time.perf_counter() - start) / len(archs))
    assert best < 200e-6  # about 10 microseconds on a quiet machine


def test_unknown_choices_are_told_at_once_with_what_is_allowed(name, family):
    choices = {**random_archs(name, 1)[0].choices, "wings": 2, "stage1.colour": 1, "stage0.depth": 1}
    with pytest.raises(ConfigError) as caught:
        family.canonical(choices)
    assert [problem.where for problem in caught.value.problems] == ["wings", "stage1.colour", "stage0.depth"]
    assert all("stem_width" in problem.allowed for problem in caught.value.problems)
