"""Teacher sources keep their family's contract, on networks built here without anything downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdnas.teachers import TEACHERS
from kdnas.testing import TeacherConformance

_OWN = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


class TestModule(TeacherConformance):
    member = "module"

    def write(self, data_root: Path):
        (data_root / "own.py").write_text(f"import torch\ntorch.manual_seed(0)\n{_OWN}")
        torch.manual_seed(1)
        names: dict = {}
        exec(_OWN, names)
        save_file(names["build"]().state_dict(), data_root / "w.safetensors")
        return {"factory": "own.py:build", "weights": "w.safetensors", "mean": (127.0,) * 3, "std": (64.0,) * 3}


class TestTimm(TeacherConformance):
    member = "timm"

    def write(self, data_root: Path):
        timm = pytest.importorskip("timm")
        torch.manual_seed(1)
        network = timm.create_model("test_resnet", pretrained=False, num_classes=10)
        save_file({name: value.clone() for name, value in network.state_dict().items()}, data_root / "w.safetensors")
        return {"model": "test_resnet", "weights": "w.safetensors", "input_size": 32}


class TestTorchvision(TeacherConformance):
    member = "torchvision"

    def write(self, data_root: Path):
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(1)
        network = torchvision.models.mobilenet_v3_small(num_classes=10)
        save_file({name: value.clone() for name, value in network.state_dict().items()}, data_root / "w.safetensors")
        return {"model": "mobilenet_v3_small", "weights": "w.safetensors", "input_size": 32}


def test_the_others_have_tests_of_their_own() -> None:
    tried = {suite.member for suite in TeacherConformance.__subclasses__()}
    whole_folders = {"causal_lm", "huggingface", "sequence_classifier"}
    assert set(TEACHERS.names()) - tried == whole_folders | {"student", "parties", "run", "label_rules"}
