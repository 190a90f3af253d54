"""Swin transformers, timm's and Hugging Face's: stages of windowed attention, each with a width of its own.

Between two stages the tokens of every square of four stand side by side, four times as wide as the stage's stream, and
are read by one linear layer. Every head has a column in the table of relative positions (Liu et al., "Swin
Transformer", ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._roles import HUGGING_FACE_VIT, LayerRoles, staged_transformer
from kdnas.nn.anatomy._stream import StreamRoles
from kdnas.nn.cutting import Anatomy, Kept

_TIMM = LayerRoles(
    qkv=("attn.qkv",),
    out="attn.proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    heads="attn.num_heads",
    counts=(("attn.num_heads", "heads"),),
    head_tables=("attn.relative_position_bias_table",),
)
_HUGGING_FACE = replace(
    HUGGING_FACE_VIT, head_tables=("attention.relative_position_bias.relative_position_bias_table",)
)


@ANATOMIES.register
def swin(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a Swin transformer: heads and MLP neurons of every layer, and the layers and the width of every stage."""
    return _of_timm(network) or _of_hugging_face(network)


def _of_timm(network: nn.Module) -> Anatomy | None:
    """Return the anatomy of a timm network, whose stages begin with the merging of squares."""
    stages = getattr(network, "layers", None)
    if not isinstance(stages, nn.Sequential):
        return None
    merging = [f"layers.{index}.downsample" for index in range(1, len(stages))]
    first = StreamRoles(writes=("patch_embed.proj",), norms=("patch_embed.norm",))
    last = StreamRoles(reads=("head.fc", "head"), norms=("norm",))
    return staged_transformer("swin", network, _TIMM, _streams(first, merging, last), finish=_set_timm_sizes)


def _of_hugging_face(network: nn.Module) -> Anatomy | None:
    """Return the anatomy of a Hugging Face network, whose stages end with the merging of squares."""
    for base in ("swin.", ""):
        encoder = dict(network.named_modules()).get(f"{base}encoder.layers")
        if isinstance(encoder, nn.ModuleList):
            merging = [f"{base}encoder.layers.{index}.downsample" for index in range(len(encoder) - 1)]
            embedding = StreamRoles(
                writes=("embeddings.patch_embeddings.projection",),
                norms=("embeddings.norm",),
                tensors=("embeddings.mask_token", "embeddings.position_embeddings"),
            )
            last = StreamRoles(norms=("layernorm",)).below(base).merged(StreamRoles(reads=("classifier",)))
            streams = _streams(embedding.below(base), merging, last)
            return staged_transformer("swin", network, _HUGGING_FACE, streams, finish=_set_hugging_face_sizes)
    return None


def _streams(first: StreamRoles, merging: Sequence[str], last: StreamRoles) -> list[StreamRoles]:
    """Return what touches the stream of every stage, where `merging` are the modules between two of them."""
    begins = [first, *(StreamRoles(writes=(f"{name}.reduction",)) for name in merging)]
    ends = [*(StreamRoles(reads=(f"{name}.reduction",), norms=(f"{name}.norm",)) for name in merging), last]
    return [begin.merged(end) for begin, end in zip(begins, ends, strict=True)]


def _set_timm_sizes(network: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Set a timm network's size attributes to the sizes of its weights."""
    settings: dict[str, int] = {}
    for path, stage in network.get_submodule("layers").named_children():
        blocks = stage.get_submodule("blocks")
        settings[f"layers.{path}.depth"] = len(list(blocks.children()))
        for number, block in blocks.named_children():
            width = len(block.get_parameter("norm1.weight"))
            settings |= dict.fromkeys((f"layers.{path}.blocks.{number}.{name}" for name in ("dim", "attn.dim")), width)
        if not isinstance(stage.get_submodule("downsample"), nn.Identity):
            after, before = stage.get_parameter("downsample.reduction.weight").shape
            settings |= {f"layers.{path}.downsample.dim": before // 4, f"layers.{path}.downsample.out_dim": after}
    settings |= dict.fromkeys(("num_features", "head_hidden_size"), len(network.get_parameter("norm.weight")))
    for name, size in settings.items():
        path, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(path), leaf, size)


def _set_hugging_face_sizes(network: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Set the sizes in the network's `config` that it can express, perhaps not all of them: widths double there."""
    config = getattr(network, "config", None)
    stages = next(module for name, module in network.named_modules() if name.endswith("encoder.layers"))
    if config is None:
        return
    layers = [list(stage.get_submodule("blocks").children()) for stage in stages.children()]
    widths = [len(inside[0].get_parameter("layernorm_before.weight")) for inside in layers]
    config.embed_dim, config.hidden_size = widths[0], widths[-1]
    config.depths = [len(inside) for inside in layers]
    config.num_heads = [inside[0].get_submodule("attention").num_attention_heads for inside in layers]
    config.mlp_ratio = layers[0][0].get_parameter("mlp.fc1.weight").shape[0] / widths[0]
    for module in network.modules():
        if isinstance(getattr(module, "num_features", None), int) and hasattr(module, "encoder"):
            setattr(module, "num_features", widths[-1])  # noqa: B010 - modules have what they are given
