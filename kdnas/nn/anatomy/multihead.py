"""Transformers that attend by torch's own MultiheadAttention: torchvision's ViT, torch's encoder layers, users' own.

It keeps queries, keys and values in one table as wide as its input, and takes the width of a head from that: heads and
the residual stream stay whole, MLP neurons and layers may go.
"""

from __future__ import annotations

from torch import nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import LayerRoles, transformer
from kdnas.nn.cutting import Anatomy, Example, left_alone

_WHY = "torch's MultiheadAttention takes the width of its heads from that of its input"


def _roles(attention: str, up: str, down: str) -> LayerRoles:
    return LayerRoles(
        qkv=(),
        out=f"{attention}.out_proj",
        up=(up,),
        down=down,
        head_size=f"{attention}.head_dim",
        heads_stay=_WHY,
        width_stays=_WHY,
    )


_MAKES = (
    _roles("self_attention", "mlp.0", "mlp.3"),  # torchvision
    _roles("self_attn", "linear1", "linear2"),  # torch
    _roles("attn", "mlp.c_fc", "mlp.c_proj"),  # OpenCLIP
)


@ANATOMIES.register
def multihead(network: nn.Module, example: Example) -> Anatomy | None:
    """Read a transformer of MultiheadAttention: the MLP neurons of every layer, and its layers."""
    if not any(isinstance(module, nn.MultiheadAttention) for module in network.modules()):
        return None
    found = (transformer("multihead", network, roles, example, finish=left_alone) for roles in _MAKES)
    return next((anatomy for anatomy in found if anatomy is not None), None)
