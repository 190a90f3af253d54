"""The suites on members of a user's own: those of a kind of work that kdnas has not, and small ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import own_members
import own_signals
import pytest

from kdnas.study.loading import load_study
from kdnas.study.members import FAMILIES
from kdnas.testing import (
    CostConformance,
    DatasetConformance,
    EvaluatorConformance,
    ExecutorConformance,
    ExporterConformance,
    LossConformance,
    PolicyConformance,
    ProxyConformance,
    SamplerConformance,
    StudentConformance,
    TargetConformance,
    TaskConformance,
    TeacherConformance,
    TrackerConformance,
)
from kdnas.workshop.evaluators import EvaluatorContext


class TestSignals(TaskConformance):
    member = own_signals.Signals

    def data(self, kind):
        return dataclasses.replace(own_signals.waves(None, None, count=24), kind=kind)


class TestPerceptrons(StudentConformance):
    member = own_signals.Perceptrons
    choices: ClassVar = {"width": (4, 8, 16), "depth": (1, 2)}
    tasks = (own_signals.waves(None, None, count=3).task,)
    redundant = False


class TestWaves(DatasetConformance):
    member = own_signals.waves
    options: ClassVar = {"count": 30}


class TestFitted(TeacherConformance):
    member = own_signals.teacher

    def data(self):
        return own_signals.waves(None, None)


class TestStripes(DatasetConformance):
    member = own_members.stripes
    options: ClassVar = {"count": 40}


class TestEachFirst(ProxyConformance):
    member = own_members.each_first


class TestEager(SamplerConformance):
    member = own_members.eager
    options: ClassVar = {"start": 2}


class TestFollow(TrackerConformance):
    member = own_members.Follow


class TestSoft(LossConformance):
    member = own_members.Soft
    options: ClassVar = {"temperature": 4.0}
    zero_when_equal = False


class TestMicrojoules(CostConformance):
    member = own_members.Microjoules


class TestChannelsFirst(TargetConformance):
    member = own_members.ChannelsFirst


class TestFormula(EvaluatorConformance):
    member = own_members.Formula

    @pytest.fixture
    def context(self, tmp_path):
        (tmp_path / "space.yaml").write_text("name: small\nchoices:\n  depth: [1, 2, 3]\n  width: [8, 16]\n")
        (tmp_path / "study.yaml").write_text(
            "name: small\nevaluator: {type: own_members:Formula}\nspace: space.yaml\nobjectives: [accuracy, params]\n"
        )
        study = load_study(tmp_path)
        return EvaluatorContext(study.config, study.space, tmp_path, tmp_path, tmp_path, "cpu")


class TestPolite(ExecutorConformance):
    member = own_members.Polite


class TestWrite(ExporterConformance):
    member = own_members.write


class TestLargestFirst(PolicyConformance):
    member = own_members.LargestFirst


def test_every_kind_of_member_has_an_example():
    kinds = {heading.partition(",")[0].split(" ", 1)[1].lower() for heading in own_members.WHOLE}
    assert kinds == {
        *("cost", "data set", "evaluator", "executor", "exporter", "loss", "policy", "proxy", "sampler", "target"),
        "tracker",
    }
    assert len(kinds) + len(("family", "task", "teacher")) == len(FAMILIES)
