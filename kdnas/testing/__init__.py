"""Conformance suites: what every member of a family keeps, to be run on one of your own, as kdnas does on its own.

    from kdnas.testing import LossConformance
    from my_losses import MyLoss

    class TestMyLoss(LossConformance):
        member = MyLoss                 # or the name of a registered member
        options = {"power": 3.0}        # its options, where it needs some

pytest finds the tests by themselves. What a suite needs to know of a member beyond that is documented on it. Importing
this package imports no family and no pytest before a suite is asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdnas.testing._member import MemberConformance as MemberConformance
    from kdnas.testing._member import suites as suites
    from kdnas.testing.costs import CostConformance as CostConformance
    from kdnas.testing.datasets import DatasetConformance as DatasetConformance
    from kdnas.testing.evaluators import EvaluatorConformance as EvaluatorConformance
    from kdnas.testing.executors import ExecutorConformance as ExecutorConformance
    from kdnas.testing.exporters import ExporterConformance as ExporterConformance
    from kdnas.testing.losses import LossConformance as LossConformance
    from kdnas.testing.policies import PolicyConformance as PolicyConformance
    from kdnas.testing.proxies import ProxyConformance as ProxyConformance
    from kdnas.testing.samplers import SamplerConformance as SamplerConformance
    from kdnas.testing.students import StudentConformance as StudentConformance
    from kdnas.testing.targets import TargetConformance as TargetConformance
    from kdnas.testing.tasks import TaskConformance as TaskConformance
    from kdnas.testing.teachers import TeacherConformance as TeacherConformance
    from kdnas.testing.trackers import TrackerConformance as TrackerConformance

_FILES = {
    "CostConformance": "costs",
    "DatasetConformance": "datasets",
    "EvaluatorConformance": "evaluators",
    "ExecutorConformance": "executors",
    "ExporterConformance": "exporters",
    "LossConformance": "losses",
    "MemberConformance": "_member",
    "PolicyConformance": "policies",
    "ProxyConformance": "proxies",
    "SamplerConformance": "samplers",
    "StudentConformance": "students",
    "TargetConformance": "targets",
    "TaskConformance": "tasks",
    "TeacherConformance": "teachers",
    "TrackerConformance": "trackers",
    "suites": "_member",
}

__all__ = sorted(_FILES)


if "pytest" in sys.modules:  # failures are then shown with their values
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}.{file}" for file in sorted({*_FILES.values()})))


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
