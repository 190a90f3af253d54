"""Transformers built from a plan, as `kdnas.nn.blocks` builds convolutional students.

Layers, embeddings and heads are called as Hugging Face calls them, so `kdnas.nn.anatomy` reads these networks, too.
This file needs only torch: an exported student is a copy of the classes it uses, with its plan.

Shapes: B batch, N tokens, C channels (the width of the tokens), h heads, d width of a head, K classes, H and W height
and width in pixels.

Sources: Vaswani et al., "Attention is all you need" (NeurIPS 2017); vision transformers, Dosovitskiy et al. (ICLR
2021); the distillation token, Touvron et al., "Training data-efficient image transformers" (ICML 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class LayerPlan:
    """A layer on tokens that are `width` wide: `heads` of `head_size`, an MLP of `inner` neurons.

    `causal` tokens look only back. A norm stands before attention and MLP, or after their sums (`norm_first` false).
    `fused` attention never holds the heads' N x N products in memory, which pays where there are many tokens.
    """

    width: int
    heads: int
    head_size: int
    inner: int
    causal: bool = False
    norm_first: bool = True
    fused: bool = False


@dataclass(frozen=True)
class VisionPlan:
    """A vision transformer for images of `shape` (channels, height, width), cut into squares of `patch` pixels.

    Where it is `distilled`, one more token learns from the teacher, with a classifier of its own.
    """

    shape: tuple[int, int, int]
    patch: int
    width: int
    layers: tuple[LayerPlan, ...]
    num_classes: int
    distilled: bool = False


@dataclass(frozen=True)
class TextPlan:
    """A transformer for at most `length` tokens of a `vocabulary`, `segments` kinds of them (0: not distinguished).

    Words are looked up `embedding_width` wide and brought to `width` where that is another. `outputs` are classes of a
    whole text, or of every token's successor; there `tied` logits are read off the table of words.
    """

    vocabulary: int
    length: int
    segments: int
    embedding_width: int
    width: int
    layers: tuple[LayerPlan, ...]
    outputs: int
    tied: bool = False


class Attention(nn.Module):
    """Every token gathers from those that it may look at, by several heads."""

    def __init__(self, plan: LayerPlan):
        super().__init__()
        self.num_attention_heads, self.head_dim = plan.heads, plan.head_size
        self.causal, self.fused = plan.causal, plan.fused
        width, inner = plan.width, plan.heads * plan.head_size
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.o_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from `x` [B, N, C]; nobody looks at tokens where `mask` [B, N] is 0."""
        q, k, v = (self._heads(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        hidden = self._hidden(x, mask)
        # A tracer counts the products, which are hidden inside the fused kernel.
        if self.fused and not torch.jit.is_tracing():
            least = torch.finfo(q.dtype).min
            added = None if hidden is None else torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, least)
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        else:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
            if hidden is not None:
                scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            y = scores.softmax(-1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """Return [B, h, N, d] from [B, N, h * d]."""
        return x.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)

    def _hidden(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return bool [B or 1, 1, N or 1, N], true where a token may not look; None: nowhere."""
        hidden = None if mask is None else (mask == 0)[:, None, None, :]
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)[None, None]
            hidden = later if hidden is None else hidden | later
        return hidden

    def extra_repr(self) -> str:
        """Add the settings that the shapes of the weights do not show."""
        return f"heads={self.num_attention_heads}, causal={self.causal}"


class MLP(nn.Module):
    """Two linear layers with GELU in between."""

    def __init__(self, plan: LayerPlan):
        super().__init__()
        self.fc1 = nn.Linear(plan.width, plan.inner)
        self.fc2 = nn.Linear(plan.inner, plan.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C] from `x` [B, N, C]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Attention, then an MLP, each added to what comes in."""

    def __init__(self, plan: LayerPlan):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(plan.width)
        self.attention = Attention(plan)
        self.layernorm_after = nn.LayerNorm(plan.width)
        self.mlp = MLP(plan)
        self.norm_first = plan.norm_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from `x` [B, N, C]; `mask` [B, N] is 0 where a token is padding."""
        if self.norm_first:
            x = x + self.attention(self.layernorm_before(x), mask)
            return x + self.mlp(self.layernorm_after(x))
        x = self.layernorm_before(x + self.attention(x, mask))
        return self.layernorm_after(x + self.mlp(x))

    def extra_repr(self) -> str:
        """Add where the norms stand."""
        return f"norm_first={self.norm_first}"


class PatchEmbeddings(nn.Module):
    """A token for every square of the image, which is padded with zeros to whole ones."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, patch)
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, C, H / patch, W / patch] from `images`."""
        bottom, right = -images.shape[2] % self.patch, -images.shape[3] % self.patch
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom))
        return self.projection(images)


def resized_places(places: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Return the places [N, C] of a grid of `before` rows and columns as those of another grid."""
    laid_out = places.T.unflatten(1, before)[None]
    return functional.interpolate(laid_out, after, mode="bicubic", antialias=True)[0].flatten(1).T


class VisionEmbeddings(nn.Module):
    """The tokens of an image with their places: a class token, one that learns from a teacher, patches row by row."""

    def __init__(self, plan: VisionPlan):
        super().__init__()
        channels, height, width = plan.shape
        self.grid = -(-height // plan.patch), -(-width // plan.patch)
        self.extra = 2 if plan.distilled else 1
        self.patch_embeddings = PatchEmbeddings(channels, plan.patch, plan.width)
        self.cls_token = nn.Parameter(torch.zeros(1, plan.width))
        if plan.distilled:
            self.distillation_token = nn.Parameter(torch.zeros(1, plan.width))
        self.position_embeddings = nn.Parameter(torch.zeros(self.extra + self.grid[0] * self.grid[1], plan.width))

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, N, C] from `images`; those of another size get the places of the grid resized."""
        patches = self.patch_embeddings(images)
        grid = patches.shape[2], patches.shape[3]
        places: Tensor = self.position_embeddings
        if grid != self.grid:
            places = torch.cat([places[: self.extra], resized_places(places[self.extra :], self.grid, grid)])
        tokens = self.cls_token if self.extra == 1 else torch.cat([self.cls_token, self.distillation_token])
        first = tokens.expand(images.shape[0], -1, -1)
        return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + places


class VisionTransformer(nn.Module):
    """The network of a plan.

    Each entry of `stages` is a layer and gives tokens [B, N, C]; the input of `classifier` is the embedding. Where
    there is a `distillation_classifier` the answer is the mean of both: the two are separate in training alone.
    """

    def __init__(self, plan: VisionPlan):
        super().__init__()
        self.embeddings = VisionEmbeddings(plan)
        self.stages = nn.ModuleList(Layer(layer) for layer in plan.layers)
        self.layernorm = nn.LayerNorm(plan.width)
        self.classifier = nn.Linear(plan.width, plan.num_classes)
        self.distillation_classifier = nn.Linear(plan.width, plan.num_classes) if plan.distilled else None
        begin(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] from normalised `images`."""
        x = self.embeddings(images)
        for stage in self.stages:
            x = stage(x)
        x = self.layernorm(x[:, : self.embeddings.extra])
        logits = self.classifier(x[:, 0])
        if self.distillation_classifier is None:
            return logits
        return (logits + self.distillation_classifier(x[:, 1])) / 2


class TextEmbeddings(nn.Module):
    """Words with their places."""

    def __init__(self, plan: TextPlan, *, normed: bool):
        super().__init__()
        self.word_embeddings = nn.Embedding(plan.vocabulary, plan.embedding_width)
        self.position_embeddings = nn.Embedding(plan.length, plan.embedding_width)
        self.token_type_embeddings = nn.Embedding(plan.segments, plan.embedding_width) if plan.segments else None
        self.LayerNorm = nn.LayerNorm(plan.embedding_width) if normed else None

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return [B, N, C] from `tokens` int64 [B, N] and the `segments` [B, N] that they are of; None: of one."""
        x = self.word_embeddings(tokens) + self.position_embeddings.weight[: tokens.shape[1]]
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings(torch.zeros_like(tokens) if segments is None else segments)
        return x if self.LayerNorm is None else self.LayerNorm(x)


class TextEncoder(nn.Module):
    """The network of a plan that names the class of a text by the mean of its tokens.

    Each entry of `stages` is a layer and gives tokens [B, N, C]; the input of `classifier` is the embedding.
    """

    def __init__(self, plan: TextPlan):
        super().__init__()
        norm_first = plan.layers[0].norm_first
        self.length = plan.length
        self.embeddings = TextEmbeddings(plan, normed=not norm_first)
        narrow = plan.embedding_width != plan.width
        self.embeddings_project = nn.Linear(plan.embedding_width, plan.width) if narrow else None
        self.stages = nn.ModuleList(Layer(layer) for layer in plan.layers)
        self.layernorm = nn.LayerNorm(plan.width) if norm_first else None
        self.classifier = nn.Linear(plan.width, plan.outputs)
        begin(self)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Return logits [B, K] of `tokens` int64 [B, N]; `mask` [B, N] is 0 where there is no text.

        Texts longer than the plan's length are truncated to their beginning.
        """
        mask = None if mask is None else mask[:, : self.length]
        segments = None if segments is None else segments[:, : self.length]
        x = self.embeddings(tokens[:, : self.length], segments)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)
        for stage in self.stages:
            x = stage(x, mask)
        if self.layernorm is not None:
            x = self.layernorm(x)
        if mask is None:
            return self.classifier(x.mean(dim=1))
        counts = mask.unsqueeze(-1).to(x.dtype)
        return self.classifier((x * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1))


class TextDecoder(nn.Module):
    """The network of a plan that predicts every next token from those before it.

    Each entry of `stages` is a layer and gives tokens [B, N, C]; the input of `classifier` is the embedding.
    """

    def __init__(self, plan: TextPlan):
        super().__init__()
        self.embeddings = TextEmbeddings(plan, normed=False)
        narrow = plan.embedding_width != plan.width
        self.embeddings_project = nn.Linear(plan.embedding_width, plan.width) if narrow else None
        self.stages = nn.ModuleList(Layer(layer) for layer in plan.layers)
        self.layernorm = nn.LayerNorm(plan.width)
        self.head_project = nn.Linear(plan.width, plan.embedding_width) if narrow else None
        self.classifier = nn.Linear(plan.embedding_width, plan.outputs, bias=False)
        begin(self)
        if plan.tied:
            self.classifier.weight = self.embeddings.word_embeddings.weight

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits [B, N, V] of `tokens` int64 [B, N]; `mask` [B, N] is 0 where there is no text."""
        x = self.embeddings(tokens)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)
        for stage in self.stages:
            x = stage(x, mask)
        x = self.layernorm(x)
        return self.classifier(x if self.head_project is None else self.head_project(x))


@torch.no_grad()
def begin(network: nn.Module) -> None:
    """Draw matrices by Glorot's rule, as the first vision transformers did, places and tokens as large as patches.

    The narrow draws of BERT, GPT-2 and DeiT are for widths of 768 and long trainings: in brief ones of narrow students
    they lose much (16 points on the handwritten digits). Words are drawn so that logits read off them are about 1.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear | nn.Conv2d) and parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(parameter, std=module.embedding_dim**-0.5)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
            elif name == "bias":
                nn.init.zeros_(parameter)
