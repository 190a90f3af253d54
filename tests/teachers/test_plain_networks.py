"""What a user's factory may return besides a plain network: taken as what is inside, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdnas.errors import TeacherError
from kdnas.teachers import TEACHERS, Teacher

_CODE = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 10)
    def forward(self, images):
        return self.fc(self.features(images).mean((2, 3)))

def plain(): return Net()
def parallel(): return nn.DataParallel(Net())
def compiled(): return torch.compile(Net())
def compiled_in_place():
    net = Net()
    net.compile()
    return net
def compiled_inside():
    net = Net()
    net.features = torch.compile(net.features)
    return net
def averaged(): return AveragedModel(nn.DataParallel(Net()))
def half(): return Net().half()
def double(): return Net().double()
def bare():
    with torch.device("meta"):
        return Net()
def lazy():
    net = Net()
    net.fc = nn.LazyLinear(10)
    return net
def traced(): return torch.jit.trace(Net().eval(), torch.zeros(1, 3, 32, 32))
def scripted(): return torch.jit.script(Net().eval())
@torch.inference_mode()
def in_inference_mode(): return Net()
def grad_off():
    torch.set_grad_enabled(False)
    return Net()
def integers():
    net = Net()
    net.fc.weight = nn.Parameter(torch.zeros(10, 8, dtype=torch.int8), requires_grad=False)
    return net
def dynamic():
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)
"""


@pytest.fixture
def build(tmp_path: Path, open_context) -> Callable[..., Teacher]:
    (tmp_path / "nets.py").write_text(_CODE)
    namespace: dict = {}
    exec(_CODE, namespace)
    torch.manual_seed(0)
    save_file(namespace["Net"]().state_dict(), tmp_path / "w.safetensors")

    def run(factory: str, weights: str | None = "w.safetensors", **more) -> Teacher:
        options = {"factory": f"nets.py:{factory}", "mean": (0, 0, 0), "std": (255, 255, 255)}
        return TEACHERS.build("module", open_context(), weights=weights, **options, **more)

    return run


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("factory", "note"),
    [
        ("parallel", "DataParallel is taken off the network"),
        ("compiled", "torch.compile is taken off the network"),
        ("compiled_in_place", "torch.compile is taken off the network"),
        ("compiled_inside", "torch.compile is taken off features"),
        ("averaged", "AveragedModel is taken off the network"),
        ("half", ""),
        ("double", ""),
        ("bare", ""),
        ("lazy", ""),
        ("traced", "parts of it are TorchScript"),
        ("scripted", "parts of it are TorchScript"),
        ("in_inference_mode", ""),
        ("grad_off", "changed what holds for the whole process (gradients on or off): put back"),
    ],
)
def test_it_answers_as_the_plain_network_does(build, raw_images, open_context, factory: str, note: str) -> None:
    images = raw_images(open_context())
    expected = build("plain").module(images)
    teacher = build(factory)
    torch.testing.assert_close(teacher.module(images), expected)
    assert teacher.classifier is not None or factory in ("traced", "scripted")  # whose inside cannot be watched
    assert all(value.dtype == torch.float32 for value in teacher.module.parameters())
    assert any(note in printed for printed in teacher.notes)
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("factory", "weights", "message"),
    [
        ("lazy", None, r"'nets.py:lazy' returns lazy layers.*: fc.weight, fc.bias \(allowed: a weights file, or"),
        ("bare", None, r"returns tensors without values, on torch's meta device: features.0.weight.*made on the CPU"),
        ("integers", None, r"the network is quantised \(fc.weight\) \(allowed: the network in floating point"),
        ("dynamic", None, r"the network is quantised \(fc"),
    ],
)
def test_what_has_no_usable_weights_is_refused(build, factory: str, weights: str | None, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        build(factory, weights)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("factory", ["traced", "scripted"])
def test_what_stands_inside_torchscript_cannot_be_named(build, factory: str) -> None:
    with pytest.raises(TeacherError, match=r"features cannot be watched: the network is TorchScript"):
        build(factory, stages=("features",))
