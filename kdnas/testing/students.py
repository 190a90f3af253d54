"""What every student family keeps that is known without a teacher, on random archs of its spaces.

Shapes: B samples, N tokens, C channels, H and W height and width.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import TaskSpec, image_classification
from kdnas.errors import ConfigError
from kdnas.nn.tracing import fvcore_macs, traced_macs
from kdnas.students import STUDENTS, FamilyContext, StudentFamily
from kdnas.testing._member import MemberConformance

TASKS = (
    image_classification((1, 8, 8), 10),
    image_classification((3, 32, 32), 10),
    image_classification((1, 28, 28), 2),
    image_classification((3, 17, 9), 7),
    image_classification((2, 1, 1), 3),
    image_classification((4, 5, 31), 101),
)
_ALONE = """
import runpy, sys, typing
sys.modules["kdnas"] = None  # importing it would now fail
import torch
torch.set_num_threads(1)
saved = torch.load(f"{sys.argv[1]}/saved.pt", weights_only=True)
for index, (state, inputs, y) in enumerate(saved):
    names = runpy.run_path(f"{sys.argv[1]}/student{index}.py")
    for value in list(names.values()):
        if isinstance(value, type) and hasattr(value, "__dataclass_fields__"):
            typing.get_type_hints(value, globalns=names)  # no annotation names what was left behind
    student = names["build_student"]()
    student.load_state_dict(state)
    assert torch.equal(student.eval()(*inputs), y), index
print("same", len(saved))
"""


def random_inputs(task: TaskSpec, count: int) -> tuple[torch.Tensor, ...]:
    """Return the inputs of `count` samples: normalised pixels, any tokens, and masks that hide the ends of some."""
    made = []
    for taken in task.inputs:
        if taken.kind == "mask":
            lengths = torch.arange(count)[:, None] % taken.shape[0]
            made.append((torch.arange(taken.shape[0]) < taken.shape[0] - lengths).long())
        elif taken.kind == "tokens":
            made.append(torch.randint(0, taken.levels, (count, *taken.shape)))
        else:
            made.append(torch.randn(count, *taken.shape))
    return tuple(made)


def signature(module: nn.Module) -> tuple[Any, ...]:
    """Return everything that makes a network but its values: parts, settings, weights' shapes and which are tied."""
    structure = tuple((path, module.extra_repr()) for path, module in module.named_modules())
    shortcuts = tuple(
        (path, type(m).__name__, getattr(m, "stride", None), getattr(m, "skip", None))
        for path, m in module.named_modules()
    )
    shapes = tuple((key, tuple(value.shape)) for key, value in module.state_dict().items())
    return structure, shortcuts, shapes, [name for name, _ in module.named_parameters()]


class StudentConformance(MemberConformance):
    """The suite of student families."""

    registry = STUDENTS
    choices: ClassVar[Mapping[str, Sequence[Scalar]]]
    """A space of the family, as wide as it can be: the values of each choice."""
    tasks: ClassVar[Sequence[TaskSpec]] = TASKS
    """What its students can be made for."""
    redundant: ClassVar[bool] = True
    """Whether some of `choices` have several spellings of one network."""
    price_seconds: ClassVar[float] = 200e-6
    """What pricing an arch may take, once others were priced: a search prices thousands."""

    @property
    def spaces(self) -> list[SearchSpace]:
        """The spaces whose archs are tried, that of `choices` last."""
        choices = tuple(Choice(name, tuple(values)) for name, values in self.choices.items())
        return [SearchSpace("wide", STUDENTS.get(self._member).name, choices)]

    def family(self, task: TaskSpec | None = None) -> StudentFamily:
        """Return the family for `task`, the first of `tasks` by default."""
        family: StudentFamily = self.build(FamilyContext(task or self.tasks[0]))
        return family

    def archs(self, count: int, seed: int = 0) -> list[Arch]:
        """Return `count` random archs of each space."""
        rng, family = np.random.default_rng(seed), self.family()
        return [family.canonical(space.active(space.random(rng))) for space in self.spaces for _ in range(count)]

    def check_prices(self, count: int) -> None:
        """Assert that closed forms equal fvcore's and torch's counts and the parameters', for `count` archs a space."""
        for index, arch in enumerate(self.archs(count, seed=count)):
            task = self.tasks[index % len(self.tasks)]
            family = self.family(task)
            module, price = family.build(arch), family.price(arch)
            example = random_inputs(task, 1)
            assert price.macs == fvcore_macs(module.eval(), *example), (arch, task)
            assert price.macs == traced_macs(module, *example), (arch, task)
            assert price.params == sum(p.numel() for p in module.parameters()), (arch, task)

    def test_price_equals_fvcore_and_the_parameter_count(self) -> None:
        self.check_prices(12)

    def test_a_network_has_stages_and_a_classifier(self) -> None:
        for index, arch in enumerate(self.archs(6, seed=1)):
            task = self.tasks[index % len(self.tasks)]
            module: Any = self.family(task).build(arch)
            assert isinstance(module.stages, nn.ModuleList)
            assert isinstance(module.classifier, nn.Linear)
            seen: list[torch.Tensor] = []
            for stage in module.stages:
                stage.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
            embedding: list[torch.Tensor] = []
            module.classifier.register_forward_hook(lambda _, inputs, __, e=embedding: e.append(inputs[0]))
            logits = module(*random_inputs(task, 3))
            rows = (3, task.rows) if task.rows > 1 else (3,)
            assert logits.shape == (*rows, task.outputs)
            assert torch.isfinite(logits).all()
            assert len(seen) == len(module.stages) >= 1
            assert all(output.ndim in (2, 3, 4) for output in seen), (
                "maps [B, C, H, W], tokens [B, N, C], vectors [B, C]"
            )
            assert embedding[0].shape == (*rows, module.classifier.in_features)

    def test_an_arch_carries_the_familys_name_and_is_canonical(self) -> None:
        family = self.family()
        for arch in self.archs(40, seed=2):
            assert arch.family == family.name, "Arch.of(cls.name, ...)"
            assert family.canonical(arch.choices) == arch == Arch.from_json(arch.canonical_json)

    def test_an_arch_is_one_network_and_a_network_one_arch(self) -> None:
        """Neighbours of a space: archs are equal exactly where the networks are that are built from them."""
        rng, space = np.random.default_rng(5), self.spaces[-1]
        family = self.family()
        equal = 0
        for _ in range(100):
            one = space.random(rng)
            two = space.mutate(one, rng, int(rng.integers(1, 3)))
            archs = [family.canonical(space.active(assignment)) for assignment in (one, two)]
            modules = [family.build(arch) for arch in archs]
            assert (archs[0] == archs[1]) == (signature(modules[0]) == signature(modules[1])), (one, two)
            assert (archs[0] == archs[1]) == (archs[0].arch_id == archs[1].arch_id)
            equal += archs[0] == archs[1]
        if self.redundant:
            assert 5 < equal < 95

    def test_the_canonical_spelling_builds_what_the_raw_one_says(self) -> None:
        rng, space = np.random.default_rng(6), self.spaces[-1]
        family = self.family()
        for _ in range(60):
            raw = Arch.of(family.name, space.active(space.random(rng)))
            canonical = family.canonical(raw.choices)
            assert family.price(raw) == family.price(canonical)
            assert signature(family.build(raw)) == signature(family.build(canonical))

    def test_building_follows_torchs_generator(self) -> None:
        family, arch = self.family(), self.archs(1)[0]
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(next(p.detach() for p in family.build(arch).parameters() if p.ndim > 1))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_source_alone_reproduces_the_student_bit_by_bit(self, tmp_path: Path) -> None:
        saved = []
        for index, arch in enumerate(self.archs(2, seed=3)):
            task = self.tasks[index % len(self.tasks)]
            family = self.family(task)
            module = family.build(arch)
            for p in module.parameters():
                nn.init.uniform_(p, -0.5, 0.5)
            module.eval()
            inputs = random_inputs(task, 4)
            with torch.no_grad():
                saved.append((module.state_dict(), inputs, module(*inputs)))
            source = family.source(arch)
            if source is None:
                pytest.skip("its networks are not written as code")
            assert arch.arch_id in source
            (tmp_path / f"student{index}.py").write_text(source, encoding="utf-8")
        torch.save(saved, tmp_path / "saved.pt")
        command = [sys.executable, "-I", "-c", _ALONE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == f"same {len(saved)}", done.stderr

    def test_source_imports_only_torch_and_the_standard_library(self) -> None:
        source = self.family().source(self.archs(1)[0])
        lines = (source or "").splitlines()
        imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
        assert imported <= {"torch", *sys.stdlib_module_names}
        assert max(map(len, lines), default=0) <= 120

    def test_price_is_fast(self) -> None:
        family, archs = self.family(), self.archs(300, seed=4)
        for arch in archs:
            family.price(arch)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for arch in archs:
                family.price(arch)
            best = min(best, (time.perf_counter() - start) / len(archs))
        assert best < self.price_seconds

    def test_an_unknown_choice_is_refused_with_what_is_allowed(self) -> None:
        choices = {**self.archs(1)[0].choices, "wings_": 2}
        with pytest.raises(ConfigError) as caught:
            self.family().canonical(choices)
        assert [problem.where for problem in caught.value.problems] == ["wings_"]
        assert next(iter(self.choices)) in caught.value.problems[0].allowed
