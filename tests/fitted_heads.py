"""Teachers in no time: random networks whose last linear layer is fitted to the real digits in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

CLASSES = 10
_FITTED = 400


def digits(size: int, *, channels: int = 3, mean: float = 77.8, std: float = 95.9) -> tuple[Tensor, Tensor]:
    """Return the first digits as networks see them that kdnas resizes to `size`, and their labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.round(images[:_FITTED] * 255 / 16).reshape(-1, 1, 8, 8)).float()
    if size != 8:
        pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return ((pixels - mean) / std).repeat(1, channels, 1, 1), torch.from_numpy(labels[:_FITTED])


@torch.no_grad()
def fit_head(
    network: nn.Module,
    head: str,
    inputs: Sequence[Tensor],
    labels: Tensor,
    *,
    run: Callable[..., object] | None = None,
    ridge: float = 0.1,
) -> nn.Module:
    """Return `network`, in eval mode, whose linear layer `head` says by ridge regression what class a sample is of."""
    network.eval()
    linear, seen = network.get_submodule(head), []
    handle = linear.register_forward_pre_hook(lambda layer, fed: seen.append(fed[0].flatten(1)))
    for batch in zip(*(one.split(100) for one in inputs), strict=True):
        (run or network)(*batch)
    handle.remove()
    features = torch.cat(seen).double()
    wide = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    scale = wide.square().mean() * len(wide)
    wanted = nn.functional.one_hot(labels, linear.out_features).double()
    damped = wide.T @ wide + ridge * scale / wide.shape[1] * torch.eye(wide.shape[1])
    solved = torch.linalg.solve(damped, wide.T @ wanted)
    linear.weight.copy_(10 * solved[:-1].T)
    linear.bias.copy_(10 * solved[-1] - 5)
    return network
