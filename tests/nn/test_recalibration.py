"""Batch-norm statistics estimated anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdnas.nn.recalibration import recalibrate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    return net.train()


def test_statistics_are_the_means_over_the_batches():
    net, batches = network(), [torch.randn(8, 2, 5, 5) + i for i in range(3)]
    net[1].running_mean.fill_(7.0)
    net[1].momentum = 0.3
    net[4].eval()
    weights = [p.clone() for p in net.parameters()]
    assert recalibrate(net, ((batch,) for batch in batches)) == 24
    features = [net[0](batch) for batch in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in features]).mean(dim=0))
    variances = [x.transpose(0, 1).flatten(1).var(dim=1) for x in features]
    torch.testing.assert_close(net[1].running_var, torch.stack(variances).mean(dim=0))
    assert net[1].momentum == 0.3
    assert net.training
    assert net[1].training
    assert not net[4].training
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    # Later layers see what they will see in eval mode but for the norms: dropout is off.
    second = [net[3](net[1].train()(x)) for x in features]
    torch.testing.assert_close(
        net[4].running_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in second]).mean(dim=0), rtol=1e-4, atol=1e-5
    )


def test_no_samples_are_refused():
    net = network()
    with pytest.raises(ValueError, match="no samples"):
        recalibrate(net, [])
    assert net.training
    assert net[1].momentum == 0.1
