"""Vision transformers: timm's (ViT, DeiT, EVA, DINO) and Hugging Face's (ViT, DeiT)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, StreamRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy, Kept

_TIMM = LayerRoles(
    qkv=("attn.qkv",),
    out="attn.proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    norms=("norm1", "norm2"),
    head_size="attn.head_dim",
    counts=(("attn.num_heads", "heads"), ("attn.attn_dim", "width")),
    scales=("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2"),
    head_norms=("attn.norm",),
    neuron_norms=("mlp.norm",),
    uncuttable_without="attn.attn_dim",
)
_TIMM_GATED = replace(_TIMM, up=("mlp.fc1_g", "mlp.fc1_x"))
_TIMM_STREAM = StreamRoles(
    writes=("patch_embed.proj",),
    reads=("head", "head_dist"),
    norms=("norm_pre", "norm", "fc_norm"),
    tensors=("cls_token", "dist_token", "reg_token", "pos_embed"),
)
_HUGGING_FACE_STREAM = StreamRoles(
    writes=("embeddings.patch_embeddings.projection",),
    reads=("pooler.dense",),
    norms=("layernorm",),
    tensors=(
        "embeddings.cls_token",
        "embeddings.distillation_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
    ),
)
_HEADS = StreamRoles(reads=("classifier", "cls_classifier", "distillation_classifier"))


ROLES = (_TIMM, _TIMM_GATED, HUGGING_FACE_VIT)
"""Of the layers of every make."""


@ANATOMIES.register
def vit(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a vision transformer: heads and MLP neurons of every layer, its layers, and the width they share."""
    for roles in (_TIMM, _TIMM_GATED):
        found = transformer("vit", network, roles, _TIMM_STREAM, finish=_set_timm_sizes)
        if found is not None:
            return found
    stream = _HEADS
    for base in ("", "vit.", "deit."):
        stream = stream.merged(_HUGGING_FACE_STREAM.below(base))
    return transformer("vit", network, HUGGING_FACE_VIT, stream, finish=set_hugging_face_sizes)


def _set_timm_sizes(network: nn.Module, kept: Kept) -> None:
    """Set what a timm network says of its own width."""
    width = kept.get("width")
    for name in ("embed_dim", "num_features", "head_hidden_size"):
        if width is not None and isinstance(getattr(network, name, None), int):
            setattr(network, name, len(width))
