"""Decoders: GPT-2, those of the Llama kind (Llama, Mistral, Qwen, SmolLM) with grouped queries, and kdnas's own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, StreamRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy

_GPT2 = LayerRoles(
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    head_size="attn.head_dim",
    counts=(("attn.num_heads", "heads"), ("attn.split_size", "width")),
)
_LLAMA = LayerRoles(
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    head_size="self_attn.head_dim",
    counts=(),
)
_STREAM = StreamRoles(writes=("wte", "wpe", "embed_tokens"), norms=("ln_f", "norm"))
_HEADS = StreamRoles(reads=("lm_head", "score", "classifier"))


_OWN = replace(HUGGING_FACE_VIT, causal=True)
_OWN_STREAM = StreamRoles(norms=("layernorm",))
_OWN_TABLES = StreamRoles(
    writes=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    reads=("classifier",),
)
_OWN_PROJECTED = StreamRoles(writes=("embeddings_project",), reads=("head_project",))
"""Where the tables of words are narrower than the stream."""


ROLES = (_GPT2, _LLAMA, _OWN)
"""Of the layers of every make."""


@ANATOMIES.register
def gpt(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a decoder: query groups and MLP neurons of every layer, its layers, and the width they share.

    Heads are cut with all the queries that share their keys and values, and never inside: rotary pairs stay whole.
    """
    stream = _HEADS
    for base in ("", "transformer.", "model."):
        stream = stream.merged(_STREAM.below(base))
    for roles in (_GPT2, _LLAMA):
        found = transformer("gpt", network, roles, stream, finish=set_hugging_face_sizes)
        if found is not None:
            return found
    tables = _OWN_TABLES if getattr(network, "embeddings_project", None) is None else _OWN_PROJECTED
    return transformer("gpt", network, _OWN, _OWN_STREAM.merged(tables), finish=set_hugging_face_sizes)
