"""Encoders of the BERT kind: BERT, MiniLM, RoBERTa, ELECTRA, CamemBERT, XLM-R; and DistilBERT."""

from __future__ import annotations

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, StreamRoles, transformer
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.cutting import Anatomy

_NAMED = ("bert.", "roberta.", "electra.", "distilbert.")
_BASES = ("", *_NAMED)
_BERT = LayerRoles(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    head_size="attention.self.attention_head_size",
    counts=(("attention.self.num_attention_heads", "heads"), ("attention.self.all_head_size", "width")),
)
_BERT_STREAM = StreamRoles(
    writes=(
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ),
    norms=("embeddings.LayerNorm",),
)
_PROJECTED = StreamRoles(writes=("embeddings_project",))
"""ELECTRA's embeddings may be narrower than the stream, which a projection begins then."""
_BETWEEN = ("pooler.dense", *(f"{base}pooler.dense" for base in _NAMED), "pre_classifier", "classifier.dense")
_HEADS = StreamRoles(writes=_BETWEEN, reads=(*_BETWEEN, "classifier", "classifier.out_proj", "qa_outputs"))
"""What stands between the stream and the classes is as wide as the stream, as configurations have it."""
_DISTILBERT = LayerRoles(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    head_size="attention.attention_head_size",
    counts=(("attention.n_heads", "heads"), ("attention.dim", "width")),
)
_OWN = StreamRoles(norms=("layernorm",))
"""Of kdnas's own encoders, where norms come first."""


ROLES = (_BERT, _DISTILBERT)
"""Of the layers of every make."""


@ANATOMIES.register
def bert(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read an encoder of the BERT kind: heads and MLP neurons of every layer, its layers, and the width they share."""
    modules = dict(network.named_modules())
    projected = any(f"{base}embeddings_project" in modules for base in _BASES)
    stream = _HEADS
    for base in _BASES:
        stream = stream.merged((_PROJECTED if projected else _BERT_STREAM).below(base))
    if "embeddings.word_embeddings" in modules:  # kdnas's own, whose layers are those of its vision transformers
        found = transformer("bert", network, HUGGING_FACE_VIT, stream.merged(_OWN), finish=set_hugging_face_sizes)
        if found is not None:
            return found
    for roles in (_BERT, _DISTILBERT):
        found = transformer("bert", network, roles, stream, finish=set_hugging_face_sizes)
        if found is not None:
            return found
    return None
