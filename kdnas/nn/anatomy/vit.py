"""Vision transformers: timm's (ViT, DeiT, EVA, DINO) and Hugging Face's (ViT, DeiT)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy, Kept

_TIMM = LayerRoles(
    qkv=("attn.qkv",),
    out="attn.proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    head_size="attn.head_dim",
    counts=(("attn.num_heads", "heads"), ("attn.attn_dim", "width")),
    scales=("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2"),
    head_norms=("attn.norm",),
    neuron_norms=("mlp.norm",),
    uncuttable_without="attn.attn_dim",
)
_TIMM_GATED = replace(_TIMM, up=("mlp.fc1_g", "mlp.fc1_x"))

ROLES = (_TIMM, _TIMM_GATED, HUGGING_FACE_VIT)
"""Of the layers of every make."""


@ANATOMIES.register
def vit(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a vision transformer: heads and MLP neurons of every layer, its layers, and the width they share."""
    makes = {_TIMM: _set_timm_sizes, _TIMM_GATED: _set_timm_sizes, HUGGING_FACE_VIT: set_hugging_face_sizes}
    found = (transformer("vit", network, roles, example, finish=finish) for roles, finish in makes.items())
    return next((anatomy for anatomy in found if anatomy is not None), None)


def _set_timm_sizes(network: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Set a timm network's width attributes."""
    width = kept.get("width")
    for name in ("embed_dim", "num_features", "head_hidden_size"):
        if width is not None and isinstance(getattr(network, name, None), int):
            setattr(network, name, len(width))
