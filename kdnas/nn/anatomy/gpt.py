"""Decoders: GPT-2, those of the Llama kind with grouped queries (Llama, Mistral, Qwen, Gemma, Phi), OPT, NeoX, kdnas's.

Where positions are encoded by slopes that follow the number of heads (BLOOM, MPT; Press et al., "ALiBi", ICLR 2022), or
all queries share one head of keys (Falcon), heads stay.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy

_GPT2 = LayerRoles(
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    head_size="attn.head_dim",
    counts=(("attn.num_heads", "heads"), ("attn.split_size", "width")),
)
_LLAMA = LayerRoles(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    head_size="self_attn.head_dim",
    counts=(("self_attn.num_heads", "heads"), ("self_attn.num_key_value_heads", "groups")),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
)
_STARCODER = replace(_LLAMA, up=("mlp.c_fc",), down="mlp.c_proj")
_PHI = replace(_LLAMA, out="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2")
_PHI3 = replace(
    _LLAMA,
    qkv=("self_attn.qkv_proj",),
    up=("mlp.gate_up_proj",),
    counts=(("self_attn.num_key_value_heads", "groups"), ("self_attn.config.num_attention_heads", "heads")),
)
_OPT = replace(
    _LLAMA,
    out="self_attn.out_proj",
    up=("fc1",),
    down="fc2",
)
_GPT_J = LayerRoles(
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up=("mlp.fc_in",),
    down="mlp.fc_out",
    head_size="attn.head_dim",
    counts=(("attn.num_attention_heads", "heads"),),
)
_GPT_NEO = LayerRoles(
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    head_size="attn.attention.head_dim",
    counts=(("attn.attention.num_heads", "heads"),),
)
_NEOX = LayerRoles(
    qkv=("attention.query_key_value",),
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    head_size="attention.head_size",
    packed="heads",
)
_ALIBI = "the slopes that encode its positions follow the number of heads"
_BLOOM = LayerRoles(
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    head_size="self_attention.head_dim",
    heads_stay=_ALIBI,
)
_FALCON = replace(
    _BLOOM,
    heads_stay="its queries share heads of keys and values in ways that kdnas does not cut",
)
_MPT = LayerRoles(
    qkv=("attn.Wqkv",),
    out="attn.out_proj",
    up=("ffn.up_proj",),
    down="ffn.down_proj",
    head_size="attn.head_dim",
    heads_stay=_ALIBI,
)
_MAKES = (_GPT2, _LLAMA, _STARCODER, _PHI, _PHI3, _OPT, _GPT_J, _GPT_NEO, _NEOX)
_OWN = replace(HUGGING_FACE_VIT, causal=True)

ROLES = (*_MAKES, _OWN)
"""Of the layers of every make."""


@ANATOMIES.register
def gpt(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a decoder: query groups and MLP neurons of every layer, its layers, and the width they share.

    Heads are cut with all the queries that share their keys and values, and never inside: rotary pairs stay whole.
    """
    makes = (*_MAKES, _FALCON if _is_falcon(network) else _BLOOM, _MPT, _OWN)
    found = (transformer("gpt", network, roles, example, finish=set_hugging_face_sizes) for roles in makes)
    return next((anatomy for anatomy in found if anatomy is not None), None)


def _is_falcon(network: nn.Module) -> bool:
    """Whether the network's attention has a setting by which one head of keys and values serves all queries."""
    return any(hasattr(module, "multi_query") for module in network.modules())
