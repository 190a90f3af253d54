"""The weights of one network inside a checkpoint: the one place whose names and shapes are the network's own.

Training scripts save a state dict plain or nested (`state_dict`, `model`, `net`, `ema` ...), and with what wrappers put
into its names (DataParallel, torch.compile, Lightning, averaging). No such word is known here beyond the wrappers that
torch itself puts between two names: a place is right when everything in it fits, and when no other place fits too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdnas.core.words import counted
from kdnas.errors import Problem, TeacherError
from kdnas.teachers._loading import Checkpoint

TOP = "."
"""The place of weights that stand plain in the file."""
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
_FORMS: tuple[frozenset[str], ...] = (frozenset(), _WRAPPERS, _WRAPPERS | {"module"})
_DEPTH = 4
_SHOWN = 5
_MADE_BY_EVERY_FORWARD = "num_batches_tracked"  # eval mode reads none, so it may be missing


@dataclass(frozen=True)
class Found:
    """The weights for a network at `place` in a checkpoint, by the network's names, and what does not fit.

    `outside` names the tensors of the same nest that stand under no common prefix with them.
    """

    place: str
    state: Mapping[str, Tensor]
    outside: tuple[str, ...]
    outside_share: float
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether names, shapes and kinds are the network's."""
        return not (self.missing or self.unexpected or self.other)

    @property
    def faults(self) -> int:
        """The number of names that differ, or that fit in name alone."""
        return len(self.missing) + len(self.unexpected) + len(self.other)

    def same_as(self, found: Found) -> bool:
        """Whether the same values would be loaded."""
        return all(_equal(value, found.state[name]) for name, value in self.state.items())


def load_weights(network: nn.Module, checkpoint: Checkpoint, place: str | None = None) -> list[str]:
    """Load the weights at `place` of `checkpoint` into `network`; None is the one place that fits. Return notes.

    Raises TeacherError with every kind of difference where none fits, and with the places where several do.
    """
    return load_found(network, find_weights(network, checkpoint, place), checkpoint)


def find_weights(network: nn.Module, checkpoint: Checkpoint, place: str | None = None) -> Found:
    """Return the weights at `place` of `checkpoint`; None is the one place that fits, or the closest where none does.

    Raises TeacherError where several fit with other values, where `place` is none, and where nothing is a state dict.
    """
    path, shape = checkpoint.where, _Network.of(network)
    nests = [
        _Nest(keys, tensors, {} if keys else checkpoint.tied) for keys, tensors in _nests(checkpoint.content) if tensors
    ]
    if not nests:
        raise TeacherError(
            Problem(path, f"holds no state dict; {_top(checkpoint)}", "tensors by name, plain or nested")
        )
    found = [candidate for nest in nests for candidate in _candidates(shape, nest)]
    if place is not None:
        stated = [candidate for candidate in found if candidate.place == place]
        if not stated:
            known = dict.fromkeys([*(f.place for f in found), *(nest.at("") for nest in nests)])
            raise TeacherError(Problem("weights_key", f"{path} has no weights at {place!r}", ", ".join(known)[:600]))
        found = stated
    fitting = [candidate for candidate in found if candidate.fits]
    whole = [candidate for candidate in fitting if candidate.outside_share <= 0.5 or place is not None]
    if fitting and not whole:
        what = (
            f"{fitting[0].place} fits the network, but most of the tensors next to it do not belong to it "
            f"({_first(fitting[0].outside)}); where it is meant, state weights_key: {fitting[0].place}"
        )
        raise TeacherError(Problem(path, what))
    others = [candidate for candidate in whole[1:] if not candidate.same_as(whole[0])]
    if others:
        places = ", ".join(dict.fromkeys(candidate.place for candidate in (whole[0], *others)))
        what = f"several places in it fit the network, with other values: {places}; name one, as weights_key"
        raise TeacherError(Problem(path, what))
    return whole[0] if whole else min(found, key=lambda candidate: candidate.faults - len(candidate.state))


def load_found(network: nn.Module, found: Found, checkpoint: Checkpoint) -> list[str]:
    """Load `found` into `network` and return notes. Raises TeacherError, nothing loaded, where it does not fit."""
    path = checkpoint.where
    broken = tuple(
        name
        for name, value in found.state.items()
        if value.is_floating_point() and not torch.isfinite(value.float()).all().item()
    )
    kinds = (
        ("weights that the network needs are missing", found.missing),
        ("weights that the network does not have", found.unexpected),
        ("weights of another shape or kind", found.other),
        ("weights that are NaN or infinite", broken),
    )
    problems = [Problem(path, f"{len(names)} {kind}: {_first(names)}") for kind, names in kinds if names]
    if problems:
        if found.place != TOP or any(isinstance(value, Mapping) for value in checkpoint.content.values()):
            head = f"no place in it fits the network; {_top(checkpoint)}; below, what stands at {found.place!r}"
            problems.insert(0, Problem(path, head))
        elif re.search(r"-\d+-of-\d+\.\w+$", path):
            problems.append(
                Problem(path, "is one shard of several", "the index of the shards, which ends in .index.json")
            )
        raise TeacherError(problems)
    network.float()  # the file's own precision is kept where the network was made in half
    own = network.state_dict()
    # `assign` is for networks that were made without memory, on torch's meta device.
    bare = any(isinstance(value, Tensor) and value.is_meta for value in own.values())
    state = {name: value.float() if value.is_floating_point() else value for name, value in found.state.items()}
    network.load_state_dict({**own, **state}, strict=True, assign=bare)
    notes = []
    if low := sorted({str(value.dtype)[6:] for value in found.state.values()} & {"float16", "bfloat16"}):
        notes.append(f"the weights in {path} are {' and '.join(low)}: the network computes in float32")
    if found.outside:
        place = "" if found.place == TOP else f" outside {found.place}"
        notes.append(f"left out of {path}, as no weights of the network: {_first(found.outside)}{place}")
    return notes


@dataclass(frozen=True)
class _Network:
    """What weights have to fit: tensors by name, the other names of each that has several, and every buffer."""

    own: Mapping[str, Tensor]
    twins: Mapping[str, Sequence[str]]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> _Network:
        state = network.state_dict(keep_vars=True)
        own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        groups: dict[int, list[str]] = {}
        for name, value in own.items():
            groups.setdefault(id(value), []).append(name)
        twins = {name: [other for other in group if other != name] for group in groups.values() for name in group}
        return cls(own, twins, dict(network.named_buffers()))


@dataclass(frozen=True)
class _Nest:
    """The tensors at one nesting of a file, by name; `keys` lead there. `tied`: see `Checkpoint`."""

    keys: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    tied: Mapping[str, str]

    def at(self, prefix: str) -> str:
        """Return the name of the place under `prefix`."""
        return ".".join([*self.keys, *([prefix.removesuffix(".")] if prefix else [])]) or TOP


def _nests(
    content: Mapping[str, object], nest: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping in `content` that holds tensors, by the keys that lead to it."""
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
    if tensors:
        yield nest, tensors
    if len(nest) < _DEPTH:
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _nests(value, (*nest, name))


def _candidates(network: _Network, nest: _Nest) -> Iterator[Found]:
    """Yield what each prefix in `nest` under which names of the network stand would give, the plainest first."""
    for wrappers in _FORMS:
        here = {_without(name, wrappers): name for name in network.own}
        there = {_without(name, wrappers): name for name in (*nest.tied, *nest.tensors)}
        if len(here) < len(network.own) or len(there) < len(nest.tensors) + len(nest.tied):
            continue  # without these words two names are one
        for cut in _common_prefixes(here):
            wanted = {name.removeprefix(cut): full for name, full in here.items()}
            matched = Counter(prefix for name in there for prefix in _prefixes(name, wanted))
            if not cut and not matched:
                matched[""] = 0
            most = max(matched.values(), default=0)
            for prefix in (prefix for prefix, count in matched.most_common() if 2 * count >= most):
                yield _compared(network, nest, prefix, wanted, there)


def _compared(
    network: _Network, nest: _Nest, prefix: str, wanted: Mapping[str, str], there: Mapping[str, str]
) -> Found:
    """Return what stands under `prefix`: `wanted` and `there` give the real names of the network's and the nest's."""
    by_name = {full: name for name, full in wanted.items()}
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    for name, full in wanted.items():
        stand = (there.get(prefix + by_name[twin]) for twin in (full, *network.twins[full]))
        real = next((real for real in stand if real is not None), None)
        if real is not None:
            state[full] = nest.tensors[nest.tied.get(real, real)]
        elif name.rpartition(".")[2] != _MADE_BY_EVERY_FORWARD:
            missing.append(full)
    more = {name.removeprefix(prefix): real for name, real in there.items() if name.startswith(prefix)}
    unexpected = [
        real
        for name, real in more.items()
        if name not in wanted and not (real in nest.tied or _is_computed(network, name, nest.tensors[real]))
    ]
    outside = tuple(real for name, real in there.items() if not name.startswith(prefix) and real in nest.tensors)
    numbers = sum(nest.tensors[name].numel() for name in outside)
    return Found(
        nest.at(prefix),
        state,
        outside,
        numbers / max(numbers + sum(value.numel() for value in state.values()), 1),
        tuple(missing),
        tuple(unexpected),
        tuple(_other(network, state)),
    )


def _is_computed(network: _Network, name: str, value: Tensor) -> bool:
    """Whether `value` is what the network computes itself and no longer saves: another version of the code saved it."""
    return name in network.buffers and _equal(network.buffers[name], value)


def _other(network: _Network, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield, in words, what has the right name and another shape, another kind, or other values than its twin."""
    for name, value in state.items():
        made = network.own[name]
        if not is_lazy(made) and value.shape != made.shape:
            yield f"{name} is {tuple(value.shape)} in the file and {tuple(made.shape)} in the network"
        elif name.rpartition(".")[2] == _MADE_BY_EVERY_FORWARD:  # averages hold it as a fraction
            continue
        elif value.is_quantized or value.is_floating_point() != made.is_floating_point():
            kinds = [str(part.dtype).removeprefix("torch.") for part in (value, made)]
            yield f"{name} is {kinds[0]} in the file and {kinds[1]} in the network (a quantised network's is no weight)"
        for twin in network.twins[name]:
            if twin > name and twin in state and not _equal(value, state[twin]):
                yield f"{name} and {twin} are one tensor in the network and two in the file"


def _equal(left: Tensor, right: Tensor) -> bool:
    return left is right or (left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right))


def _without(name: str, words: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in words) if words else name


def _prefixes(name: str, wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield each beginning of `name`, "" or up to a dot, after which a wanted name follows."""
    begin = 0
    while True:
        if name[begin:] in wanted:
            yield name[:begin]
        begin = name.find(".", begin) + 1
        if not begin:
            return


def _common_prefixes(names: Mapping[str, str]) -> list[str]:
    """Return "", and the beginnings up to a dot that all `names` share: a network inside a wrapper of the user's."""
    first = next(iter(names), "")
    cuts = [first[: place + 1] for place, letter in enumerate(first) if letter == "."]
    return ["", *(cut for cut in cuts if all(name.startswith(cut) for name in names))]


def _top(checkpoint: Checkpoint) -> str:
    """Return, in words, what stands at the top of the checkpoint: nests with how many tensors they hold."""
    shown: list[str] = []
    plain = 0
    for name, value in checkpoint.content.items():
        if isinstance(value, Mapping):
            tensors = sum(len(inner) for _, inner in _nests(value))
            shown.append(f"{name} ({counted(tensors, 'tensor')})" if tensors else f"{name} (no tensors)")
        elif isinstance(value, Tensor):
            plain += 1
        else:
            shown.append(str(name))
    if plain:
        shown.append(counted(plain, "plain tensor"))
    return f"it holds at the top {', '.join(shown[:20])}" if shown else "it is empty"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
