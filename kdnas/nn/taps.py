"""Feature taps: read a network's stage outputs and embedding with hooks, leaving the network as it is.

Shapes: B batch, N tokens, T positions of a sequence, M predictions (B, or B * T), V outputs of each, C channels, H and
W height and width, D embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdnas.core.task import Head, TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.nn.attention import AttentionShape, AttentionTaps, Projections, attention_layers
from kdnas.nn.recalibration import evaluating

Output = Literal["logits", "stages", "embedding", "attention", "classifier"]
"""What a loss may read of a network; `classifier` is none that changes with the batch: the linear layer at its end."""
ALL_OUTPUTS: frozenset[Output] = frozenset({"logits", "stages", "embedding"})
"""Without the attention: it is three tensors a layer."""
EVERYTHING: frozenset[Output] = ALL_OUTPUTS | {"attention"}


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch: `logits` [M, V], `embedding` [M, D], `stages` and `attention`.

    A stage is a map [B, C, H, W], or the tokens [B, N, C] of a layer; a vector [B, C] is taken for one token. `mask`
    [B, N] is 1 where a token is text; None where all are. B is a batch's samples, or of lists all their candidates,
    whose scores are the `logits` of a list. `attention` is what the layers attend with. `taught` [M, V]
    are the logits of a head that learns from the teacher in place of `logits`, which then learn from the labels alone;
    None where there is no such head.
    """

    logits: Tensor
    stages: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    attention: tuple[Projections, ...] = ()
    mask: Tensor | None = None
    taught: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that there are, in an order of their own."""
        flat = [tensor for layer in self.attention for tensor in layer.tensors]
        more = [tensor for tensor in (self.embedding, self.mask, self.taught) if tensor is not None]
        return [self.logits, *self.stages, *flat, *more]

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the same outputs with every tensor changed."""
        return self.of([change(tensor) for tensor in self.tensors])

    def of(self, tensors: Sequence[Tensor]) -> Outputs:
        """Return outputs like these that hold `tensors`, in the order of `tensors`."""
        left = iter(tensors)
        logits, stages = next(left), tuple(next(left) for _ in self.stages)
        attention = tuple(replace(p, queries=next(left), keys=next(left), values=next(left)) for p in self.attention)
        embedding = None if self.embedding is None else next(left)
        mask = None if self.mask is None else next(left)
        return Outputs(logits, stages, embedding, attention, mask, None if self.taught is None else next(left))

    @property
    def learning(self) -> Outputs:
        """These outputs as they learn from the teacher: with the logits that do."""
        return self if self.taught is None else replace(self, logits=self.taught, taught=None)

    def float(self) -> Outputs:
        """Return the same outputs in float32."""
        return self.map(Tensor.float)

    def detach(self) -> Outputs:
        """Return the same outputs, cut off from the graph that made them."""
        return self.map(Tensor.detach)

    def at(self, places: slice) -> Outputs:
        """Return the same outputs with the logits at `places` alone."""
        return replace(self, logits=self.logits[:, places])


@dataclass(frozen=True, eq=False)
class Classifier:
    """The weights [V, D] and biases [V] of a linear layer: the network's own, which change as it is trained."""

    weight: Tensor
    bias: Tensor | None

    def at(self, places: slice) -> Classifier:
        """Return the part that gives the logits at `places`."""
        return Classifier(self.weight[places], None if self.bias is None else self.bias[places])


@dataclass(frozen=True)
class OutputShapes:
    """The shapes of `Outputs` without the batch: logits, each stage's (C, H, W) or (N, C), and the embedding's width.

    `attention` are the widths that each layer attends with; `classifier` is the network's own linear layer at its end,
    where logits are what it makes of the embedding and nothing else; `pooled` is whether the embedding is the mean over
    the places of the last stage, a map. `heads` are the tasks whose logits these are, where a student answers several:
    a specialist has one of them.
    """

    outputs: int
    stages: tuple[tuple[int, ...], ...] = ()
    embedding: int = 0
    attention: tuple[AttentionShape, ...] = ()
    classifier: Classifier | None = field(default=None, compare=False, repr=False)
    heads: tuple[Head, ...] = ()
    pooled: bool = field(default=False, compare=False, repr=False)

    def head(self, name: str) -> Head | None:
        """Return the head of the task called `name`; None where there is none."""
        return next((head for head in self.heads if head.name == name), None)

    def at(self, head: Head) -> OutputShapes:
        """Return the shapes with the logits of `head` alone."""
        classifier = None if self.classifier is None else self.classifier.at(head.places)
        return replace(self, outputs=head.outputs, classifier=classifier, heads=())


class Taps:
    """A network whose call gives `Outputs`: a context manager that removes its hooks on exit.

        with Taps(module, ("stages.0", "stages.1"), "classifier") as tapped:
            outputs = tapped(*inputs)

    `stages` and `classifier` are dotted names inside `module`; `classifier` None means that there is no embedding. Only
    the outputs in `needs` are captured; the attention is that of the layers whose roles kdnas recognises. `mask` is the
    place among the inputs of the attention mask. `taught` is the dotted name of a second
    classifier that learns from the teacher: the logits are then what `classifier` gives, not the network's answer. A
    submodule that runs several times in one forward gives its last output.
    Raises ValueError when a name does not exist.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str] = (),
        classifier: str | None = None,
        *,
        needs: Collection[Output] = ALL_OUTPUTS,
        mask: int | None = None,
        taught: str | None = None,
    ):
        names = list(stages) if "stages" in needs else []
        wanted = [*names, *(name for name in (classifier, taught) if name is not None)]
        # Aliases count: a submodule may be registered under two names.
        modules = dict(module.named_modules(remove_duplicate=False))
        missing = [name for name in wanted if name not in modules]
        if missing:
            raise ValueError(f"the network has no submodule called {', '.join(map(repr, missing))}")
        self._module = module
        self._stages = [modules[name] for name in names]
        self._classifier = modules[classifier] if classifier is not None and "embedding" in needs else None
        self._handles: list[RemovableHandle] = []
        self._captured: dict[int, Tensor] = {}
        self._embedding: Tensor | None = None
        self._attention = AttentionTaps(module) if "attention" in needs else None
        self._mask = mask
        self._heads = [modules[name] for name in (classifier, taught) if name is not None] if taught else []
        self._head_logits: dict[int, Tensor] = {}

    def __enter__(self) -> Taps:
        for position, stage in enumerate(self._stages):
            self._handles.append(stage.register_forward_hook(self._stage_hook(position)))
        if self._classifier is not None:
            self._handles.append(self._classifier.register_forward_pre_hook(self._embedding_hook))
        for position, head in enumerate(self._heads):
            self._handles.append(head.register_forward_hook(self._head_hook(position)))
        if self._attention is not None:
            self._handles += self._attention.hooks()
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._release()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return the outputs of one forward of the network on `inputs` [B, ...]. Only inside the context.

        The predictions [B, T, V] of sequences stand one after the other, and so do their embeddings.
        """
        try:
            logits = self._module(*inputs)
            stages = tuple(self._captured[position] for position in range(len(self._stages)))
            embedding = self._embedding
            if embedding is not None:
                embedding = embedding.flatten(0, 1) if logits.ndim == embedding.ndim == 3 else embedding.flatten(1)
            attention = () if self._attention is None else self._attention.taken()
            mask = text_mask(inputs, self._mask)
            logits, taught = (
                (self._head_logits[0], self._head_logits[1].flatten(0, -2)) if self._heads else (logits, None)
            )
            return Outputs(logits.flatten(0, -2), stages, embedding, attention, mask, taught)
        finally:
            self._release()  # holding the last batch's graph would keep its memory

    def _release(self) -> None:
        self._captured.clear()
        self._head_logits.clear()
        self._embedding = None
        if self._attention is not None:
            self._attention.release()

    def _stage_hook(self, position: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            stage = _first_tensor(output)
            self._captured[position] = stage.unsqueeze(1) if stage.ndim == 2 else stage

        return hook

    def _head_hook(self, position: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            self._head_logits[position] = output

        return hook

    def _embedding_hook(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._embedding = arguments[0]


def output_shapes(
    module: nn.Module,
    stages: Sequence[str],
    classifier: str | None,
    *example: Tensor,
    heads: tuple[Head, ...] = (),
) -> OutputShapes:
    """Return the shapes of what `Taps` gives, from one forward on `example` inputs [B, ...] in eval mode.

    `heads` are the tasks that the logits answer, where students answer several.
    The network is left as it was, training flags and running statistics included. Raises ConfigError where a stage is
    neither a map, nor tokens, nor a vector.
    """
    with evaluating(module), torch.no_grad(), Taps(module, stages, classifier, needs=EVERYTHING) as tapped:
        outputs = tapped(*example)
        head = _classifier_at_the_end(module, classifier, outputs)
    for name, stage in zip(stages, outputs.stages, strict=True):
        if stage.ndim not in (3, 4):
            allowed = "a module that gives a map [B, C, H, W], tokens [B, N, C] or a vector [B, C]"
            raise ConfigError(Problem("stages", f"{name!r} gives a tensor of {tuple(stage.shape)}", allowed))
    shapes = tuple(tuple(stage.shape[1:]) for stage in outputs.stages)
    embedding = 0 if outputs.embedding is None else outputs.embedding.shape[1]
    attention = tuple(projections.shape for projections in outputs.attention)
    return OutputShapes(outputs.logits.shape[1], shapes, embedding, attention, head, heads, _pooled(outputs))


def _pooled(outputs: Outputs) -> bool:
    """Return whether the embedding is the mean over the places of the last stage."""
    if outputs.embedding is None or not outputs.stages or outputs.stages[-1].ndim != 4:
        return False
    mean = outputs.stages[-1].float().mean((2, 3))
    same = mean.shape == outputs.embedding.shape
    return same and torch.allclose(mean, outputs.embedding.float(), rtol=1e-3, atol=1e-4)


def _classifier_at_the_end(module: nn.Module, name: str | None, outputs: Outputs) -> Classifier | None:
    """Return the linear layer called `name`, where it maps the embedding to the logits; else None."""
    layer = None if name is None else dict(module.named_modules(remove_duplicate=False))[name]
    weight, bias = (getattr(layer, part, None) for part in ("weight", "bias"))
    if not isinstance(weight, Tensor) or weight.is_meta or outputs.embedding is None:
        return None  # meta: a supernet's view holds its weights only while it runs
    if weight.shape != (outputs.logits.shape[1], outputs.embedding.shape[1]):
        return None
    logits = nn.functional.linear(outputs.embedding.float(), weight.float(), None if bias is None else bias.float())
    same = torch.allclose(logits, outputs.logits.float(), rtol=1e-3, atol=1e-4)
    return Classifier(weight, bias) if same else None


def mask_place(spec: TaskSpec) -> int | None:
    """Return which input of the task is the attention mask; None where there is none."""
    return next((place for place, taken in enumerate(spec.inputs) if taken.kind == "mask"), None)


def text_mask(inputs: Sequence[Tensor], place: int | None) -> Tensor | None:
    """Return the attention mask [B, T] at `place` of `inputs`; of lists, inputs [B, K, T], a row a candidate."""
    return None if place is None else inputs[place].flatten(0, -2)


def example_samples(spec: TaskSpec, device: torch.device, count: int = 2) -> tuple[Tensor, ...]:
    """Return `count` samples of the task: `example_inputs`, or lists of them, [B, K, ...]."""
    made = example_inputs(spec, device, count * spec.runs)
    return tuple(taken.unflatten(0, (count, *spec.listed)) for taken in made)


def example_inputs(spec: TaskSpec, device: torch.device, count: int = 2) -> tuple[Tensor, ...]:
    """Return what a network takes for `count` samples of the task: pixels, tokens and floats 0, masks 1.

    Of lists it takes one candidate at a time.
    """
    made = []
    for taken in spec.inputs:
        dtype = torch.float32 if taken.kind in ("pixels", "floats") else torch.int64
        made.append(torch.full((count, *taken.shape), float(taken.kind == "mask"), dtype=dtype, device=device))
    return tuple(made)


def find_stages(module: nn.Module, example: Tensor) -> tuple[tuple[str, ...], str | None]:
    """Return (stage names, classifier name or None) of an unknown network, from one forward on `example` [B, C, H, W].

    A stage is the last submodule that gives [B, C, H, W] at a spatial size, sizes falling, 1x1 left out (pooling,
    squeeze-excite). Leading sizes with fewer than two convolutions are the stem. The stages of a transformer are its
    layers, which give tokens [B, N, C]. The classifier is the last linear layer, when it reads [B, D] and gives the
    logits.
    """
    last_at: dict[tuple[int, int], str] = {}
    convolutions: Counter[tuple[int, int]] = Counter()
    linears: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def observe(name: str) -> Any:
        def hook(submodule: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if isinstance(submodule, nn.Linear):
                linears.append((name, tuple(arguments[0].shape), tuple(output.shape)))
            elif isinstance(output, Tensor) and _is_feature_map(output, example):
                size = (output.shape[2], output.shape[3])
                last_at.pop(size, None)
                last_at[size] = name  # re-inserted: the dictionary's order is that of the last outputs
                convolutions[size] += isinstance(submodule, nn.Conv2d)

        return hook

    # TorchScript runs its inside by itself: no hook of a part is called, and most parts take none.
    watched = {name: part for name, part in module.named_modules() if not isinstance(part, torch.jit.ScriptModule)}
    handles = [part.register_forward_hook(observe(name)) for name, part in watched.items() if name]
    try:
        with evaluating(module), torch.no_grad():
            logits = module(example)
    finally:
        for handle in handles:
            handle.remove()
    classifier = None
    if linears and len(linears[-1][1]) == 2 and linears[-1][2] == tuple(logits.shape):
        classifier = linears[-1][0]
    maps = tuple(last_at[size] for size in _after_stem(list(last_at), convolutions))
    return maps or tuple(layer.path for layer in attention_layers(module)), classifier


def with_taps(module: nn.Module, stages: tuple[str, ...], classifier: str | None) -> nn.Module:
    """Return `module`, which from now on holds the names of its stages and its classifier."""
    module.taps = stages, classifier  # type: ignore[assignment]
    return module


def stage_names(module: nn.Module) -> tuple[tuple[str, ...], str | None]:
    """Return (stage names, classifier name) of a network that keeps the student families' contract.

    It holds them itself (`with_taps`), or its `stages` is a ModuleList and its `classifier` a module; either may be
    missing.
    """
    if (marked := getattr(module, "taps", None)) is not None:
        return marked
    stages = getattr(module, "stages", None)
    count = len(stages) if isinstance(stages, nn.ModuleList) else 0
    classifier = "classifier" if isinstance(getattr(module, "classifier", None), nn.Module) else None
    return tuple(f"stages.{index}" for index in range(count)), classifier


def taught_head(module: nn.Module) -> str | None:
    """Return the name of the classifier next to `classifier` that learns from the teacher; None where there is none."""
    name = "distillation_classifier"
    return name if isinstance(getattr(module, name, None), nn.Module) else None


def _after_stem(sizes: list[tuple[int, int]], convolutions: Counter[tuple[int, int]]) -> list[tuple[int, int]]:
    falling: list[tuple[int, int]] = []
    for size in sizes:
        if not falling or size[0] * size[1] < falling[-1][0] * falling[-1][1]:
            falling.append(size)
    for position, size in enumerate(falling):
        if convolutions[size] >= 2:
            return falling[position:]
    # One convolution a size all the way is a small plain network; a lone one is the patch embedding of a transformer.
    plain = [size for size in falling if convolutions[size]]
    return plain if len(plain) > 1 else []


def _is_feature_map(output: Tensor, example: Tensor) -> bool:
    if output.ndim != 4 or output.shape[0] != example.shape[0]:
        return False
    height, width = output.shape[2:]
    # Channels-last maps [B, H, W, C] of some transformers are recognised by an aspect ratio that is not the images'.
    keeps_aspect = abs(height * example.shape[3] - width * example.shape[2]) <= max(example.shape[2:])
    return height * width > 1 and keeps_aspect


def _first_tensor(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output
