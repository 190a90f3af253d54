"""Where a network's code stands, and what was cut out of it: enough to write it down as code without kdnas.

A student that was cut out of a network is described by what differs from the whole one: blocks that are gone, shapes of
tensors, and sizes that modules hold as attributes. The weights are loaded afterwards.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kdnas.nn.cutting import Anatomy, Example, Kept, _refit, named_tensors, remove_blocks

Library = Literal["timm", "torchvision", "transformers", "module"]
CODE_FOLDER = "teacher_code"
"""Where an export keeps the user's own files."""


@dataclass(frozen=True)
class Entrance:
    """What stands between raw images [B, C, H, W] in 0..255 and a network, and between its answers and the logits."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    repeat: int = 1
    """Into how many channels each of the image's is copied."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized to, antialiased; None: they come as they are."""
    classes: tuple[int, ...] = ()
    """Which of the network's answers is the data's first class, second, ...; empty: they are the same."""
    total: float | None = None
    """What its answers sum to where they are probabilities, whose logarithm is taken."""
    outputs: int | None = None
    """How many answers the network gives; None: as many as the data has classes."""


@dataclass(frozen=True)
class Origin:
    """How a network is made anew, with random weights."""

    library: Library
    model: str
    """Its name in the library; of transformers the class; of a user's module `module:function`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is made with: plain data. Of transformers the configuration."""
    config: str = ""
    """Of transformers the configuration's class."""
    inputs: tuple[str, ...] = ()
    """What it calls those of the task's inputs that it takes; empty: it takes them all."""
    channels: tuple[int, ...] = ()
    """Which normalised channel is the network's first, second, ...; empty: in their own order."""
    entrance: Entrance | None = None
    """None where the network takes raw inputs and gives logits."""
    folder: Path | None = None
    """Of a Hugging Face network: where its tokenizer and its image processor lie."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Of a user's module: his files, by where they lie in the folder that they are imported from."""

    @property
    def code(self) -> str:
        """Python that defines `whole_network()`, and of transformers the names of its INPUTS."""
        module, _, function = self.model.rpartition(":")
        arguments = {name: value for name, value in self.arguments.items() if name != "transformers_version"}
        return f"ARGUMENTS = {_literal(arguments)}\n\n" + _CODE[self.library].format(
            model=self.model,
            module=module,
            function=function,
            config=self.config,
            inputs=self.inputs,
            folder=CODE_FOLDER,
        )


@dataclass(frozen=True)
class Cut:
    """What a student was cut from, and how: `whole` as its library makes it, with the weights of the teacher."""

    origin: Origin
    whole: nn.Module
    anatomy: Anatomy
    kept: Kept
    example: Example | None = None
    """What `whole` can be run on."""

    @property
    def gone(self) -> tuple[str, ...]:
        """Dotted names of the blocks that were left out."""
        return self.anatomy.gone(self.kept)


def cut_source(cut: Cut, network: nn.Module) -> str:
    """Return Python without kdnas that defines `build_student()`: `network`, which was cut from `cut.whole`.

    It defines `answer(network, *inputs)` too, which gives the logits. Raises ValueError where the difference between
    the two differ in more than blocks, shapes and numbers.
    """
    rebuilt = copy.deepcopy(cut.whole)
    tables = _tables(cut)
    keep_places(rebuilt, tables)
    remove_blocks(rebuilt, cut.gone)
    shapes = _shapes(rebuilt, network)
    set_shapes(rebuilt, shapes)
    data = {"BLOCKS_THAT_ARE_GONE": cut.gone, "SHAPES": shapes, "NUMBERS": _numbers(rebuilt, network)}
    parts: list[Callable[..., Any]] = [remove_blocks, set_shapes, _refit, set_numbers]
    build = _BUILD.format(kept=_KEPT if tables else "")
    if tables:
        data["PLACES"] = tables
        parts.insert(0, keep_places)
    text = "\n".join(f"{name} = {_literal(value)}" for name, value in data.items())
    functions = "\n\n".join(map(inspect.getsource, parts))
    return "\n\n\n".join(
        part.strip("\n") for part in (_HEAD, cut.origin.code, text, functions, build, _answer(cut.origin))
    )


def _tables(cut: Cut) -> dict[str, dict[int, list[int]]]:
    """Return which places stay of the buffers of `cut.whole` that no file of weights holds: its code computes them."""
    saved = cut.whole.state_dict(keep_vars=True)
    computed = {name for name, _ in cut.whole.named_buffers(remove_duplicate=False) if name not in saved}
    places = cut.anatomy.places(cut.whole, cut.kept)
    return {
        name: {dim: left.tolist() for dim, left in dims.items()} for name, dims in places.items() if name in computed
    }


def keep_places(network: nn.Module, places: Mapping[str, Mapping[int, Sequence[int]]]) -> None:
    """Leave of buffers, by dotted name and dimension, what stands at these places."""
    for name, dims in places.items():
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        for dim, left in dims.items():
            setattr(module, leaf, getattr(module, leaf).index_select(dim, torch.tensor(left)))


def set_shapes(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give parameters and buffers other shapes, by dotted names; tied ones stay tied."""
    named = dict([*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)])
    made: dict[int, torch.Tensor] = {}
    for name, shape in shapes.items():
        old = named[name]
        if id(old) not in made:
            empty = torch.zeros(tuple(shape), dtype=old.dtype)
            made[id(old)] = nn.Parameter(empty) if isinstance(old, nn.Parameter) else empty
        path, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(path), leaf, made[id(old)])
    for path in {name.rpartition(".")[0] for name in shapes}:
        _refit(network.get_submodule(path))


def set_numbers(network: nn.Module, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """Set size attributes of modules and configurations: by dotted name and attribute, the network's own first.

    A module whose configuration states something else than the network's gets one of its own.
    """
    for path, values in numbers.items():
        holder, _, leaf = path.rpartition(".")
        owner: Any = network.get_submodule(holder if leaf == "config" else path)
        if leaf == "config":
            owner.config = copy.copy(owner.config) if holder else owner.config
            owner = owner.config
        for name, value in values.items():
            setattr(owner, name, value)


def _shapes(whole: nn.Module, cut: nn.Module) -> dict[str, tuple[int, ...]]:
    ours, theirs = dict(named_tensors(cut)), dict(named_tensors(whole))
    if ours.keys() != theirs.keys():
        odd = ", ".join(sorted(ours.keys() ^ theirs.keys())[:3])
        raise ValueError(f"the student and what it was cut from have other tensors: {odd}")
    return {name: tuple(value.shape) for name, value in ours.items() if value.shape != theirs[name].shape}


def _numbers(whole: nn.Module, cut: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the size attributes of the modules of `cut`, and of their configurations, that differ from `whole`'s."""
    theirs = dict(whole.named_modules(remove_duplicate=False))
    found: dict[str, dict[str, Any]] = {}
    configured = hasattr(cut, "config") and not isinstance(cut.config, nn.Module)
    if configured:
        found["config"] = _differing(whole.config, cut.config)
    for path, module in cut.named_modules(remove_duplicate=False):
        found[path] = _differing(theirs[path], module)
        before, own = getattr(theirs[path], "config", None), getattr(module, "config", None)
        if configured and path and before is whole.config and own is not cut.config:
            found[f"{path}.config"] = _differing(cut.config, own)
    return {path: values for path, values in found.items() if values}


def _differing(theirs: object, ours: object) -> dict[str, Any]:
    before = vars(theirs)
    return {
        name: value
        for name, value in vars(ours).items()
        if name != "training"
        and _is_plain(value)
        and (name not in before or before[name] != value or type(before[name]) is not type(value))
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _literal(value: Any) -> str:
    """Return plain data as Python, an entry a line."""
    if isinstance(value, Mapping):
        return "{\n" + "".join(f"    {key!r}: {entry!r},\n" for key, entry in value.items()) + "}" if value else "{}"
    return "(\n" + "".join(f"    {entry!r},\n" for entry in value) + ")" if value else "()"


def _answer(origin: Origin) -> str:
    """Return the text of `answer`: from what `build_student()` gives and its inputs to the logits of the data."""
    if origin.library == "transformers":
        steps = ["logits = network(**dict(zip(INPUTS, inputs)), return_dict=True).logits"]
    elif origin.inputs:
        steps = [f"logits = network(*inputs[:{len(origin.inputs)}])"]
    else:
        steps = ["logits = network(*inputs)"]
    entrance = origin.entrance
    if entrance is not None and origin.library != "transformers":
        steps.append("logits = getattr(logits, 'logits', logits)")
        if entrance.mean:
            steps.append("logits = logits.flatten(1) if logits.ndim > 2 else logits")
    if entrance is not None and entrance.total is not None:
        least = "torch.finfo(torch.float32).tiny"
        steps.append(f"logits = (logits.float() / {entrance.total!r}).clamp_min({least}).log()")
    if entrance is not None and entrance.classes:
        steps.append(f"logits = logits[:, {list(entrance.classes)}]")
    body = "\n    ".join([*steps, "return logits"])
    return f'def answer(network, *inputs):\n    """Return the logits, from what the network takes."""\n    {body}\n'


_HEAD = "from __future__ import annotations\n\nimport copy\n\nimport torch\nfrom torch import Tensor, nn"
_KEPT = "\n    keep_places(network, PLACES)"
_BUILD = '''
def build_student():
    """Return the student: the whole network cut to its sizes. Its weights are loaded afterwards."""
    network = whole_network(){kept}
    remove_blocks(network, BLOCKS_THAT_ARE_GONE)
    set_shapes(network, SHAPES)
    set_numbers(network, NUMBERS)
    return network
'''
_CODE: dict[Library, str] = {
    "timm": '''
import timm


def whole_network():
    """Return the network that the student was cut from, with random weights."""
    return timm.create_model("{model}", **ARGUMENTS)
''',
    "torchvision": '''
import torchvision


def whole_network():
    """Return the network that the student was cut from, with random weights."""
    return torchvision.models.get_model("{model}", weights=None, **ARGUMENTS)
''',
    "transformers": '''
import transformers

INPUTS = {inputs}


def whole_network():
    """Return the network that the student was cut from, with random weights."""
    config = transformers.{config}.from_dict(ARGUMENTS)
    return transformers.{model}(config)
''',
    "module": '''
import importlib
import sys
from pathlib import Path


def whole_network():
    """Return the network that the student was cut from, with whatever weights its function gives it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "{folder}"))
    return importlib.import_module("{module}").{function}(**ARGUMENTS)
''',
}
