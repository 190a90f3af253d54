"""A user's own network: the function that builds it, and its weights."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from kdnas.errors import ConfigError, Problem, TeacherError
from kdnas.nn.origin import Origin
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Deviations, Expected, InputSize, Statistics, fit_teacher
from kdnas.teachers._class_names import ClassNames, names_near, names_on, naming_of
from kdnas.teachers._loading import MAYBE_SEEN, find_file, read_weights
from kdnas.teachers._own_inputs import fit_own
from kdnas.teachers._plain import plain_network, refuse_inside_script, refuse_without_weights
from kdnas.teachers._state_dict import load_weights
from kdnas.user_code import UserCodeFailed, UserFunction, load_user_function


@TEACHERS.register
def module(
    context: TeacherContext,
    *,
    factory: str,
    arguments: dict[str, Any] | None = None,
    weights: str | None = None,
    weights_key: str | None = None,
    mean: Statistics = None,
    std: Deviations = None,
    input_size: InputSize = None,
    stages: tuple[str, ...] | None = None,
    classifier: str | None = None,
    class_names: ClassNames = None,
) -> Teacher:
    """A user's `module:function` or `file.py:function` that returns a torch module, with weights from a file.

    Both are relative to the data root; weights are safetensors or a torch checkpoint of tensors only. The file's
    folder and the data root are importable by its code. Of texts it takes tokens [B, T], and where it can a mask
    [B, T] and segments [B, T]; it gives logits [B, K], of running text [B, T, V]. Raises TeacherError.

    Args:
        context: What the study hands over.
        factory: `module:function` or `file.py:function`, relative to the data root.
        arguments: What the function that builds the network is called with.
        weights: A file under the data root; without, those that the function returns.
        weights_key: Where in the file the weights stand, as `state_dict_ema`, where several places fit; `.` is the top.
        mean: One number a channel on the 0-255 scale, subtracted from the pixels.
        std: One number a channel on the 0-255 scale, by which pixels are then divided.
        input_size: Height and width in pixels, or one number for both, that images are resized to.
        stages: Dotted names of the submodules whose outputs [B, C, H, W] losses compare; looked for where not given.
        classifier: Dotted name of the last linear layer, whose input is the embedding; looked for where not given.
        class_names: The names of the network's classes, in its own order; matched with the data's by name.
    """
    path = find_file(weights, context.data_root) if weights is not None else None
    function = _factory(factory, context.data_root)
    network, unwrapped = plain_network(_built(function, arguments or {}))
    notes = [MAYBE_SEEN, *function.notes, *unwrapped]
    if path is not None:
        notes += load_weights(network, read_weights(path), weights_key)
    refuse_without_weights(network, factory)
    refuse_inside_script(network, (*(stages or ()), *([classifier] if classifier else ())))
    if path is None:
        notes.append(f"no weights file was stated: the weights are those that {factory} returns")
    name = path.stem if path is not None else factory.rpartition(":")[2]
    known: Any = {
        "facts": {"factory": factory, "arguments": arguments or {}, "code": _code_hash(function)},
        "stages": stages,
        "classifier": classifier,
        "naming": naming_of(class_names, *(names_near(path) if path is not None else ()), names_on(network)),
        "notes": notes,
        "origin": Origin("module", function.name, arguments or {}, files=function.sources),
    }
    if context.data.task.inputs[0].kind == "pixels":
        return fit_teacher(name, network, context, Expected(mean, std, input_size), **known)
    if any(option is not None for option in (mean, std, input_size)):
        what = f"the data {context.data.name} are {context.data.task.samples}"
        raise TeacherError(Problem("mean, std, input_size", what, "these are of images"))
    return fit_own(name, network, context, **known)


def _factory(factory: str, root: Path) -> UserFunction:
    try:
        return load_user_function(factory, root)
    except ConfigError as error:
        raise TeacherError(Problem("factory", problem.what, problem.allowed) for problem in error.problems) from error


def _built(function: UserFunction, arguments: dict[str, Any]) -> nn.Module:
    try:
        network = function(**arguments)
    except UserCodeFailed as error:
        raise TeacherError(Problem("factory", str(error))) from error
    if not isinstance(network, nn.Module):
        what = f"{function.spec!r} returned an object of type {type(network).__name__}"
        raise TeacherError(Problem("factory", what, "a torch.nn.Module"))
    return network


def _code_hash(function: UserFunction) -> str:
    """Return a hash of the source file that the factory stands in."""
    try:
        source = inspect.getsourcefile(function.function)
    except TypeError:
        source = None
    code = Path(source).read_bytes() if source is not None and Path(source).is_file() else b""
    return hashlib.sha256(code).hexdigest()[:16]
