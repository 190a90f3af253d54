"""A network begun anew: random weights for a network that has been trained."""

from __future__ import annotations

import torch
from torch import nn

_SPREAD = 0.02
"""Standard deviation of weights whose module does not state its initialisation, as in transformers."""


@torch.no_grad()
def initialise_anew(network: nn.Module) -> None:
    """Give `network` the weights that it had before it was trained, as its modules define them, from torch's generator.

    A module with a `reset_parameters` of its own begins by that. Other parameters of several dimensions are drawn
    narrowly around 0, weights of one dimension (norms, scales) are 1, biases 0.
    """
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and own:
            reset()
            continue
        for name, parameter in own.items():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=_SPREAD)
            else:
                parameter.fill_(0.0 if "bias" in name else 1.0)
