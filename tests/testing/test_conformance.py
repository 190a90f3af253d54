"""The suites themselves: found by pytest on a member of one's own, passed by a sound one, failed by a broken one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdnas import testing

_SUITE = """
import pytest
import torch

from kdnas.losses import DistillationLoss
from kdnas.testing import LossConformance


class Sound(DistillationLoss):
    '''Squared distance of logits.'''

    def __init__(self, student, teacher, *, scale: float):
        super().__init__(student, teacher)
        self.scale = scale

    def forward(self, student, teacher, rows):
        return self.scale * (student.logits.float() - teacher.logits.float().detach()).square().mean()


class Teaching(Sound):
    '''Lets the gradient reach the teacher.'''

    def forward(self, student, teacher, rows):
        return self.scale * (student.logits.float() - teacher.logits.float()).square().mean()


class TestSound(LossConformance):
    member = Sound
    options = {"scale": 2.0}


class TestTeaching(LossConformance):
    member = Teaching
    options = {"scale": 2.0}
"""


def test_a_sound_member_passes_and_a_broken_one_is_told_why(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(_SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 10, done.stdout
    assert all("TestTeaching::test_it_is_a_scalar_whose_gradient_reaches_the_student_alone" in line for line in failed)
    assert "the teacher is fixed: detach its outputs" in done.stdout
    assert "warning" not in done.stdout.splitlines()[-1]


def test_the_suites_are_those_that_are_documented() -> None:
    families = (
        "Cost",
        "Dataset",
        "Evaluator",
        "Executor",
        "Exporter",
        "Loss",
        "Policy",
        "Proxy",
        "Sampler",
        "Student",
        "Target",
        "Task",
        "Teacher",
        "Tracker",
    )
    suites = {f"{family}Conformance" for family in families}
    assert set(testing.__all__) == {*suites, "MemberConformance", "suites"}
    for name in suites:
        suite = getattr(testing, name)
        assert issubclass(suite, testing.MemberConformance)
        assert suite.__doc__
    with pytest.raises(AttributeError):
        testing.Nothing  # noqa: B018


def test_asking_for_nothing_imports_nothing() -> None:
    code = "import sys, kdnas.testing; print(sorted({'torch', 'pytest', 'optuna'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_suite_is_made_of_every_registered_member_but_those_left_out() -> None:
    made = testing.suites(testing.LossConformance, "dkd", hint={"zero_when_equal": False})
    assert "TestDkd" not in made
    assert made["TestHint"].member == "hint"
    assert not made["TestHint"].zero_when_equal
    assert made["TestKd"].zero_when_equal
