import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import outputs
from kdnas.nn.recalibration import recalibrate
from kdnas.nn.reconstruction import RIDGE, Reconstruction

sys.path.insert(0, str(Path(__file__).parent / "anatomy"))
from test_convnets import randomised
from test_transformers import NETWORKS


class Small(nn.Module):
    """A stem whose channels a 3x3 convolution reads: 64 pictures of 8x8 pixels are as many rows as are looked at."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.pool(self.body(self.stem(x).relu()).relu()).flatten(1))


def test_a_layer_is_the_ridge_regression_of_what_it_read_on_what_it_reads():
    torch.manual_seed(0)
    network, inputs = Small().eval(), torch.randn(64, 3, 8, 8)
    anatomy = read_anatomy(network, inputs[:2])
    (axis,) = (axis.name for axis in anatomy.axes if axis.name.startswith("stem"))
    kept = {axis: (0, 3, 4, 9, 10)}
    cut = anatomy.cut(network, kept)
    Reconstruction(network, anatomy, network, inputs).mend(cut, kept, cut)
    read = network.stem(inputs).relu().movedim(1, -1).flatten(0, -2).detach().double().numpy()
    stay = list(kept[axis])
    fed, mean = read[:, stay] - read[:, stay].mean(0), read.mean(0)
    seen = 3 * len(fed) // 4
    lost = read - mean
    lost[:, stay] -= fed
    # Ridge regression as least squares: a row more a feature pulls what changes towards nothing.
    pull = np.sqrt(RIDGE * np.square(fed).mean() * seen)
    rows = np.concatenate([fed[:seen], pull * np.eye(5)])
    change = np.linalg.lstsq(rows, np.concatenate([lost[:seen], np.zeros((5, 16))]), rcond=None)[0]
    factor = np.linalg.lstsq((fed[seen:] @ change).reshape(-1, 1), lost[seen:].reshape(-1), rcond=None)[0][0]
    assert 0.5 < factor < 1.5
    mixing = change.T * min(factor, 1.0)
    mixing[stay, range(5)] += 1.0
    weight = network.body.weight.detach().double().numpy()
    np.testing.assert_allclose(cut.body.weight.detach().numpy(), np.einsum("ofhw,fg->oghw", weight, mixing), atol=1e-5)
    offset = weight.sum(axis=(2, 3)) @ (mean - mixing @ mean[stay])
    np.testing.assert_allclose(cut.body.bias.detach().numpy(), network.body.bias.detach().numpy() + offset, atol=1e-5)
    assert torch.equal(cut.stem.weight, network.stem.weight[stay])


@pytest.mark.parametrize("name", ["resnet18", "timm_vit", "bert", "gpt2"])
def test_mended_students_answer_more_like_the_whole_network(name):
    torch.manual_seed(0)
    if name in NETWORKS:
        kind, make = NETWORKS[name]
        network = make().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        inputs = torch.randn(96, 3, 32, 32) if kind == "vit" else torch.randint(1, 99, (96, 10))
    else:
        network, inputs = timm.create_model(name, num_classes=5).eval(), torch.randn(192, 3, 32, 32)
        recalibrate(network, [(inputs,)])
    network.requires_grad_(False)
    learnt, others = inputs[:-32], inputs[-32:]
    anatomy = read_anatomy(network, inputs[:2])
    inner = [axis for axis in anatomy.axes if axis.role != "width"]
    kept = anatomy.prefix({axis.name: max(axis.least, 3 * axis.size // 4) for axis in inner})
    cut = anatomy.cut(network, kept)
    mended = copy.deepcopy(cut)
    recalibrate(cut, [(learnt,)])
    Reconstruction(network, anatomy, network, learnt).mend(mended, kept, mended)
    theirs, plain, ours = (outputs(one, others) for one in (network, cut, mended))
    gaps = [float((answer - theirs).norm() / theirs.norm()) for answer in (plain, ours)]
    assert gaps[1] < 0.95 * gaps[0], gaps
    assert not mended.training
    assert all(torch.isfinite(value).all() for value in mended.state_dict().values())


@pytest.mark.parametrize("name", ["resnet18", "timm_vit", "bert", "gpt2"])
def test_a_fit_stays_only_where_it_brings_the_answers_nearer(name):
    torch.manual_seed(0)
    if name == "resnet18":
        network, inputs = timm.create_model(name, num_classes=5).eval(), torch.randn(24, 3, 32, 32)
        recalibrate(network, [(inputs,)])
    else:
        network, inputs = NETWORKS[name][1]().eval(), torch.randint(1, 99, (24, 10))
        inputs = torch.randn(24, 3, 32, 32) if name == "timm_vit" else inputs
    anatomy = read_anatomy(network.requires_grad_(False), inputs[:2])
    kept = anatomy.prefix({part.name: 1 for part in anatomy.depths} | {a.name: a.size // 2 for a in anatomy.axes})
    for verdicts, stays in (((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, math.nan), False)):
        said, seen = iter(verdicts), []

        def apart(ours, theirs, said=said, seen=seen):
            seen.append((ours, theirs))
            return next(said)

        cut = anatomy.cut(network, kept)
        as_cut = copy.deepcopy(cut)
        if name == "resnet18":
            recalibrate(as_cut, [(inputs,)])
        Reconstruction(network, anatomy, network, inputs, apart=apart).mend(cut, kept, cut)
        before = as_cut.state_dict()
        same = all(torch.equal(value, before[key]) for key, value in cut.state_dict().items())
        assert same is not stays
        held = outputs(as_cut.eval(), inputs[-6:])  # a quarter of the samples, the last ones
        torch.testing.assert_close(seen[0], (held, outputs(network, inputs[-6:])), rtol=1e-4, atol=1e-5)


def test_padding_is_nothing_that_layers_are_fitted_to():
    torch.manual_seed(0)
    network = NETWORKS["bert"][1]().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    words, mask = torch.randint(1, 99, (64, 12)), torch.arange(12).expand(64, 12) < torch.randint(3, 13, (64, 1))
    anatomy = read_anatomy(network, (words[:2], mask[:2].long()))
    kept = anatomy.prefix({axis.name: axis.size // 2 for axis in anatomy.axes if axis.role == "inner"})
    fitted = []
    for padding in (0, 50):
        cut = anatomy.cut(network, kept)
        inputs = (torch.where(mask, words, padding), mask.long())
        Reconstruction(network, anatomy, network, inputs, mask=1).mend(cut, kept, cut)
        fitted.append(cut.state_dict())
    assert any(not torch.equal(value, before) for value, before in zip(
        fitted[0].values(), anatomy.cut(network, kept).state_dict().values(), strict=True))  # fmt: skip
    for name, value in fitted[0].items():
        torch.testing.assert_close(value, fitted[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_flags_and_momenta_are_left_as_they_were():
    network, inputs = randomised(timm.create_model("resnet18", num_classes=5)).eval(), torch.randn(16, 3, 32, 32)
    anatomy = read_anatomy(network, inputs[:2])
    kept = anatomy.prefix({axis.name: axis.size // 2 for axis in anatomy.axes})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cut = anatomy.cut(network, kept)
    cut.layer1.train()
    Reconstruction(network, anatomy, network, inputs).mend(cut, kept, cut)
    assert (cut.layer1[0].bn1.training, cut.layer2[0].bn1.training) == (True, False)
    assert {part.momentum for part in cut.modules() if isinstance(part, nn.BatchNorm2d)} == {0.1}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
