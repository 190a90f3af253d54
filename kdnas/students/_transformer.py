"""What families of transformers share: flat choices to layers, canonical archs, closed-form prices, inheritance.

A transformer is an embedding, layers that are equally wide, and a head. Its choices are named

    width, depth, heads (width / head_size), head_size (64), mlp_ratio (4)
    layer<i>.heads, layer<i>.mlp_ratio    what layer i has in place of the network's
    layer<i>.skip (false)                 leaves layer i out, as LayerDrop does

and whatever the family adds; those with a default in brackets may be left out. In a canonical arch the layers that
remain are numbered 1, 2, ..., sizes that all of them share are stated once, and the family's own choices at their
default are left out, so that two spellings of one network are one arch.

Sources: layers that differ, Chen et al., "AutoFormer" (ICCV 2021); LayerDrop, Fan et al. (ICLR 2020).
"""

from __future__ import annotations

import functools
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar, normalise_scalar
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.errors import ConfigError, Problem
from kdnas.nn import transformers
from kdnas.nn.cutting import Anatomy
from kdnas.nn.transformers import LayerPlan, TextPlan, VisionPlan
from kdnas.students._inheriting_layers import State, inherit_layers, ranked_anatomy
from kdnas.students._kin import KinFamily
from kdnas.students._settings import Setting, one_of, whole
from kdnas.students._source import standalone

FUSED_FROM = 128
"""Tokens from which fused attention is the quicker one, on a CPU; and it holds no N x N products in memory."""
_LAYER = re.compile(r"layer([1-9][0-9]?)\.(.+)")
_HEADS = whole(1, 256)
_MLP_RATIO = Setting(
    lambda value: type(value) in (int, float) and 0 < float(value) <= 16, "a ratio above 0 and up to 16"
)
_SHARED = {
    "width": whole(1, 8192),
    "depth": whole(1, 99),
    "heads": _HEADS,
    "head_size": whole(1, 1024),
    "mlp_ratio": _MLP_RATIO,
}
_OF_LAYERS = {"heads": _HEADS, "mlp_ratio": _MLP_RATIO, "skip": one_of(False, True)}
_REQUIRED = ("width", "depth")
_KEYS = tuple((f"layer{i}.heads", f"layer{i}.mlp_ratio", f"layer{i}.skip") for i in range(1, 100))


class LayerSizes(NamedTuple):
    """What a layer has inside."""

    heads: int
    inner: int


OwnT = TypeVar("OwnT", bound=NamedTuple)
"""What a family adds to the choices of every transformer."""


class Network(NamedTuple, Generic[OwnT]):
    """The settings of a network, layers that are skipped left out; `own` are the family's."""

    width: int
    head_size: int
    layers: tuple[LayerSizes, ...]
    own: OwnT


class TransformerFamily(KinFamily, Generic[OwnT]):
    """A family of transformers. Members define what stands before and after the layers."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Setting]]
    """The family's own choices."""
    defaults: ClassVar[Mapping[str, Scalar]]
    """Of those that may be left out."""
    own_class: ClassVar[Callable[..., Any]]
    """The record of them, a field a choice."""
    network_class: ClassVar[type[nn.Module]]
    """What its plans are built as."""
    embeddings: ClassVar[tuple[Callable[..., Any], ...]]
    """The classes and functions of what stands before the layers, for the source."""
    causal: ClassVar[bool] = False
    optimizer = "adamw"
    learning_rate = 2e-3
    learning_rates = (5e-4, 8e-3)
    weight_decay = 0.05

    @classmethod
    def stated_choices(cls) -> Mapping[str, tuple[str, str | None]]:
        """Return for every choice the values it takes and its default; `layer<i>` stands for layer1, layer2, ..."""
        defaults = {"heads": "width / head_size", "head_size": "64", "mlp_ratio": "4"}
        own = {name: _plainly(value) for name, value in cls.defaults.items()}
        stated = {
            name: (setting.allowed, {**defaults, **own}.get(name)) for name, setting in cls._network_settings().items()
        }
        layers = {"heads": "heads", "mlp_ratio": "mlp_ratio", "skip": "false"}
        return stated | {f"layer<i>.{part}": (_OF_LAYERS[part].allowed, value) for part, value in layers.items()}

    @classmethod
    def canonical(cls, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell. Raises ConfigError naming every problem."""
        given = {name: normalise_scalar(value) for name, value in choices.items()}
        if problems := cls._problems(given):
            raise ConfigError(problems)
        network = cls._read(given)
        if not network.layers:
            raise ConfigError(Problem("depth", "every layer is skipped; at least one must remain"))
        spelled: dict[str, Scalar] = {
            "width": network.width,
            "depth": len(network.layers),
            "head_size": network.head_size,
            **{name: value for name in cls.settings if (value := getattr(network.own, name)) != cls.defaults.get(name)},
        }
        heads = [layer.heads for layer in network.layers]
        ratios = [layer.inner / network.width for layer in network.layers]
        for part, values in (("heads", heads), ("mlp_ratio", ratios)):
            if len(set(values)) == 1:
                spelled[part] = values[0]
            else:
                spelled |= {f"layer{place}.{part}": value for place, value in enumerate(values, 1)}
        return Arch.of(cls.name, spelled)

    def network(self, arch: Arch) -> Network[OwnT]:
        """Return the sizes of `arch`, in whatever spelling."""
        return _network(type(self), arch)

    def layer_plans(self, network: Network[OwnT], tokens: int, *, norm_first: bool = True) -> tuple[LayerPlan, ...]:
        """Return the layers of `network` on so many `tokens`."""
        width, size, fused = network.width, network.head_size, tokens >= FUSED_FROM
        return tuple(
            LayerPlan(width, layer.heads, size, layer.inner, self.causal, norm_first, fused) for layer in network.layers
        )

    @abstractmethod
    def plan(self, arch: Arch) -> VisionPlan | TextPlan:
        """Return every layer's shape for `arch`."""

    def build(self, arch: Arch) -> nn.Module:
        """Return the student, freshly initialised from torch's global generator."""
        return self.network_class(self.plan(arch))

    def source(self, arch: Arch) -> str:
        """Return Python source that needs only torch and defines `build_student()` for this arch."""
        plan = self.plan(arch)
        layers = (transformers.Attention, transformers.MLP, transformers.Layer)
        parts = (LayerPlan, type(plan), *layers, *self.embeddings, self.network_class, transformers.begin)
        built = f"{self.network_class.__name__}(PLAN)"
        return standalone(self.name, arch, self.task, parts, _written(plan), built)

    def inherit(self, arch: Arch) -> nn.Module:
        """Return the student with what a teacher of this family has for it. Raises ConfigError."""
        teacher, anatomy = self._ranked_ancestor
        student = self.build(arch).to(next(teacher.parameters()).device)
        inherit_layers(student, teacher, anatomy, lambda state: self.fitted(state, teacher, student))
        return student

    @functools.cached_property
    def _ranked_ancestor(self) -> tuple[nn.Module, Anatomy]:
        """The ancestor's network, and what of it matters: the same for every student."""
        network, samples = self.ancestral()
        return network, ranked_anatomy(network, samples)

    @abstractmethod
    def ancestral(self) -> tuple[nn.Module, Tensor]:
        """Return the network of the ancestor, and inputs that show what of it matters. Raises ConfigError."""

    @staticmethod
    def fitted(state: State, teacher: Any, student: Any) -> State:
        """Return a cut teacher's `state` as the student calls and shapes it: here as it is."""
        return state

    def groups(self, arch: Arch) -> Sequence[OperatorGroup]:
        """Return the embedding, the layers, and the head."""
        network = self.network(arch)
        tokens = self.tokens(network)
        layers = [
            _layer(network.width, layer.heads * network.head_size, layer.inner, tokens) for layer in network.layers
        ]
        return [self.entry(network), *layers, self.ending(network)]

    @abstractmethod
    def tokens(self, network: Network[OwnT]) -> int:
        """Return how many tokens the layers work on."""

    @abstractmethod
    def entry(self, network: Network[OwnT]) -> OperatorGroup:
        """Return what stands before the layers: the same object for equal sizes."""

    @abstractmethod
    def ending(self, network: Network[OwnT]) -> OperatorGroup:
        """Return what stands after the layers: the same object for equal sizes."""

    @classmethod
    def simplified(cls, width: int, own: OwnT) -> OwnT:
        """Return the one spelling of the family's own choices among those that give the same network."""
        return own

    @classmethod
    def _network_settings(cls) -> Mapping[str, Setting]:
        return {**_SHARED, **cls.settings}

    @classmethod
    def _problems(cls, given: Mapping[str, Scalar]) -> list[Problem]:
        """Return every unknown, missing and impossible choice."""
        settings, problems = cls._network_settings(), []
        for name, value in given.items():
            match = _LAYER.fullmatch(name)
            setting = _OF_LAYERS.get(match[2]) if match else settings.get(name)
            if setting is None:
                known = (*settings, *(f"layer<i>.{part}" for part in _OF_LAYERS))
                problems.append(Problem(name, f"is no choice of {cls.name}", ", ".join(known)))
            elif not setting.accepts(value):
                problems.append(Problem(name, f"cannot be {value!r}", setting.allowed))
        required = (*_REQUIRED, *(name for name in cls.settings if name not in cls.defaults))
        missing = [name for name in required if name not in given]
        return problems + [Problem(name, "is required", settings[name].allowed) for name in missing]

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Network[OwnT]:
        """Return the network that sound choices spell."""
        get = given.get
        width, size = given["width"], get("head_size", 64)
        heads, ratio = get("heads") or max(1, width // size), get("mlp_ratio", 4)
        layers = [
            LayerSizes(get(own_heads, heads), _inner(width, get(own_ratio, ratio)))
            for own_heads, own_ratio, skip in _KEYS[: given["depth"]]
            if not get(skip)
        ]
        own: OwnT = cls.own_class(**{name: get(name, cls.defaults.get(name)) for name in cls.settings})
        return Network(width, size, tuple(layers), cls.simplified(width, own))


def _written(plan: Any) -> str:
    """Return a plan as Python source, a layer a line."""
    lines = [f"{type(plan).__name__}("]
    for name, value in vars(plan).items():
        if name == "layers":
            lines += ["    layers=(", *(f"        {layer!r}," for layer in value), "    ),"]
        else:
            lines.append(f"    {name}={value!r},")
    return "\n".join([*lines, ")"])


@functools.lru_cache(maxsize=1024)
def _network(family: type[TransformerFamily[OwnT]], arch: Arch) -> Network[OwnT]:
    return family._read(dict(arch.items))


@functools.lru_cache(maxsize=4096)
def group(*operators: Operator) -> OperatorGroup:
    """Return the one group of these operators."""
    return OperatorGroup(operators)


@functools.lru_cache(maxsize=1 << 16)
def _layer(width: int, attending: int, inner: int, tokens: int) -> OperatorGroup:
    norm, add = (Operator(kind, width, width, tokens, 1) for kind in ("norm", "add"))
    into = Operator("linear", width, attending, tokens, 1)
    attention = (norm, into, into, into, Operator("attention", attending, attending, tokens, 1))
    mlp = (norm, Operator("linear", width, inner, tokens, 1), Operator("linear", inner, width, tokens, 1))
    return OperatorGroup((*attention, Operator("linear", attending, width, tokens, 1), add, *mlp, add))


def _inner(width: int, ratio: float) -> int:
    """Return the neurons of an MLP, halves rounded up, at least one."""
    return max(1, math.floor(width * ratio + 0.5))


def _plainly(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
