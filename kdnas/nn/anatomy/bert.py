"""Encoders of the BERT kind: BERT, MiniLM, RoBERTa, ELECTRA, CamemBERT, XLM-R; and DistilBERT."""

from __future__ import annotations

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy

_BERT = LayerRoles(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    head_size="attention.self.attention_head_size",
    counts=(("attention.self.num_attention_heads", "heads"), ("attention.self.all_head_size", "width")),
)
_DISTILBERT = LayerRoles(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    head_size="attention.attention_head_size",
    counts=(("attention.n_heads", "heads"), ("attention.dim", "width")),
)
ROLES = (_BERT, _DISTILBERT)
"""Of the layers of every make."""


@ANATOMIES.register
def bert(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read an encoder of the BERT kind: heads and MLP neurons of every layer, its layers, and the width they share."""
    roles = [_BERT, _DISTILBERT]
    if any(name == "embeddings.word_embeddings" for name, _ in network.named_modules()):
        roles.insert(0, HUGGING_FACE_VIT)  # kdnas's own, whose layers are those of its vision transformers
    found = (transformer("bert", network, each, example, finish=set_hugging_face_sizes) for each in roles)
    return next((anatomy for anatomy in found if anatomy is not None), None)
