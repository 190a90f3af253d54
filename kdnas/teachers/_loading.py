"""Weights from files, without running anything that a file holds, and into a network only where they fit exactly."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdnas.core.words import data_root_in_words
from kdnas.errors import Problem, TeacherError

HOW_TO_CONVERT = (
    "where you trust it, load it yourself and save its state dict: "
    "safetensors.torch.save_model(model, 'teacher.safetensors')"
)
MAYBE_SEEN = "its accuracy on the validation split is optimistic if it was trained on these images"
_STATE_KEYS = ("state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


def require(package: str, extra: str) -> ModuleType:
    """Return the imported `package`. Raises TeacherError naming the extra of kdnas that brings it."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise TeacherError(
            f"this teacher needs the package {package}, which cannot be imported ({type(error).__name__}: {error}); "
            f"install it with: pip install 'kdnas[{extra}]'"
        ) from error


def find_file(path: str, root: Path) -> Path:
    """Return the file `path`, taken relative to `root`. Raises TeacherError when there is none."""
    found = root / Path(path).expanduser()
    if not found.is_file():
        what = f"there is no file {found}. {data_root_in_words(root)}"
        raise TeacherError(Problem("weights", what, "a .safetensors file or a torch checkpoint"))
    return found


@contextlib.contextmanager
def only_weights() -> Iterator[None]:
    """Within it, torch loads nothing but weights, whatever a library asks of it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in `path` (safetensors, or a torch checkpoint that holds only tensors), on the CPU.

    A checkpoint may be a plain state dict or hold one under `state_dict` or `model`. Names that a wrapper put before
    every key (DataParallel's `module.`, torch.compile's `_orig_mod.`) are taken off. Raises TeacherError for anything
    else: .pt2 programs, TorchScript archives and pickled modules execute code when loaded; damaged files do not fit.
    """
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise TeacherError(Problem(str(path), f"is damaged or truncated: {error}")) from error
    else:
        _refuse_programs(path)
        state = _read_checkpoint(path)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(
            Problem(str(path), "holds no state dict", f"tensors by name, plain or under {' or '.join(_STATE_KEYS)}")
        )
    state = {str(name): tensor for name, tensor in state.items()}
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _refuse_programs(path: Path) -> None:
    """Raise TeacherError for an exported program or a TorchScript archive, by content as well as by suffix."""
    names: list[str] = []
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names} | set(names)
    if path.suffix == ".pt2" or inside & {"archive_format", "serialized_exported_program.json"}:
        kind = "is an exported program (.pt2)"
    elif "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        kind = "is a TorchScript archive"
    else:
        return
    raise TeacherError(Problem(str(path), f"{kind}: it executes code when loaded, so it is refused; {HOW_TO_CONVERT}"))


def _read_checkpoint(path: Path) -> Any:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead it to
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and _is_pickle_or_zip(path)):
            what = f"holds pickled Python objects ({named[1] if named else 'of unknown kind'})"
            raise TeacherError(
                Problem(str(path), f"{what}: these execute code when loaded, so it is refused; {HOW_TO_CONVERT}")
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TeacherError(
            Problem(str(path), f"is damaged, truncated or no torch checkpoint: {type(error).__name__}: {reason[:160]}")
        ) from error
    for key in _STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            return loaded[key]
    return loaded


def _is_pickle_or_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2)[:1] == b"\x80" or zipfile.is_zipfile(path)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `network`, whose names and shapes must be the same.

    Raises TeacherError with every kind of difference: missing and unexpected names (the first few, and how many),
    other shapes, values that are not finite. Batch norm's update counters may be missing: eval mode reads none.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    other = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the network"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    broken = [
        name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all().item()
    ]
    kinds = (
        ("weights that the network needs are missing", missing),
        ("weights that the network does not have", unexpected),
        ("weights of another shape", other),
        ("weights that are NaN or infinite", broken),
    )
    problems = [Problem(where, f"{len(names)} {kind}: {_first(names)}") for kind, names in kinds if names]
    if problems:
        raise TeacherError(problems)
    network.load_state_dict(dict(state), strict=False)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
