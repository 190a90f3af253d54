"""A user's network as one plain module: without what training and serving wrap around it, with weights that exist."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from kdnas.errors import Problem, TeacherError

_QUANTISED = (  # modules whose layers compute in integers
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "bitsandbytes",
    "torchao",
)
_SHOWN = 5


def plain_network(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return `network` without its wrappers, and notes on those. Raises TeacherError where it is quantised.

    Taken off are torch.compile (its code is made for a batch size and a precision), DataParallel and its distributed
    form, and AveragedModel, whose averaged network stays.
    """
    notes: list[str] = []
    while (inner := _inside(network)) is not None:
        notes.append(f"{_wrapper(network)} is taken off the network")
        network = inner
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            while (inner := _inside(child)) is not None:
                notes.append(f"{_wrapper(child)} is taken off {name}")
                child = inner
                setattr(parent, name, child)
        if getattr(parent, "_compiled_call_impl", None) is not None:  # `module.compile()`
            parent._compiled_call_impl = None
            notes.append("torch.compile is taken off the network")
    quantised = list(dict.fromkeys(_quantised(network)))
    if quantised:
        what = f"the network is quantised ({', '.join(quantised[:_SHOWN])})"
        raise TeacherError(Problem("factory", what, "the network in floating point, from before it was quantised"))
    if any(
        not is_lazy(value) and value.is_inference() for value in _tensors(network)
    ):  # made in inference mode: not to be changed outside
        network = copy.deepcopy(network)
    if any(isinstance(part, torch.jit.ScriptModule) for part in network.modules()):
        notes.append("parts of it are TorchScript: losses on what stands inside these cannot learn of it")
    return network, list(dict.fromkeys(notes))


def refuse_inside_script(network: nn.Module, names: Iterable[str]) -> None:
    """Raise TeacherError where one of the dotted `names` of modules is TorchScript, which nobody can look into."""
    parts = dict(network.named_modules())
    hidden = [name for name in names if isinstance(parts.get(name), torch.jit.ScriptModule)]
    if hidden:
        what = f"{', '.join(hidden)} cannot be watched: the network is TorchScript, traced or scripted"
        raise TeacherError(Problem("stages, classifier", what, "the network from before it was made TorchScript"))


def refuse_without_weights(network: nn.Module, factory: str) -> None:
    """Raise TeacherError where parts of `network` have no values: lazy layers, tensors on the meta device."""
    parts = network.state_dict(keep_vars=True)
    lazy = [name for name, value in parts.items() if isinstance(value, Tensor) and is_lazy(value)]
    if lazy:
        what = f"{factory!r} returns lazy layers, which have no weights before their first input: {_first(lazy)}"
        allowed = "a weights file, or a factory that calls the network once before it loads its weights"
        raise TeacherError(Problem("factory", what, allowed))
    tensors = {**parts, **dict(network.named_buffers())}
    bare = [name for name, value in tensors.items() if isinstance(value, Tensor) and value.is_meta]
    if bare:
        what = f"{factory!r} returns tensors without values, on torch's meta device: {_first(bare)}"
        raise TeacherError(Problem("factory", what, "a weights file that has them, or a network made on the CPU"))


def _inside(network: nn.Module) -> nn.Module | None:
    """Return the network that `network` is only a wrapper of; None where it is none."""
    if isinstance(network, (DataParallel, DistributedDataParallel, AveragedModel)):
        return network.module
    original = getattr(network, "_orig_mod", None)
    is_compiled = type(network).__name__ == "OptimizedModule" and isinstance(original, nn.Module)
    return original if is_compiled else None


def _wrapper(network: nn.Module) -> str:
    name = type(network).__name__
    return "torch.compile" if name == "OptimizedModule" else name


def _quantised(network: nn.Module) -> Iterator[str]:
    """Yield the names of what computes in integers."""
    for name, part in network.named_modules():
        if type(part).__module__.startswith(_QUANTISED):
            yield name or type(part).__name__
    for name, value in network.named_parameters():
        integers = not is_lazy(value) and not (value.is_floating_point() or value.is_complex())
        if integers or any(kind.__module__.startswith(_QUANTISED) for kind in (type(value), type(value.data))):
            yield name
    for name, buffer in network.named_buffers():
        if buffer.is_quantized:
            yield name


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
