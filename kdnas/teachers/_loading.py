"""What files of weights hold, read without running anything that stands in them."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import importlib
import json
import os
import pathlib
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from kdnas.core.words import data_root_in_words
from kdnas.errors import Problem, TeacherError

HOW_TO_CONVERT = (
    "where you trust it, load it yourself and save its state dict: "
    "safetensors.torch.save_model(model, 'teacher.safetensors')"
)
MAYBE_SEEN = "its score on the validation split is optimistic if it was trained on that split"
_INDEX = ".index.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, plain or nested among other values.

    `tied` names what safetensors left out, since it is the same tensor as another, with that other's name.
    """

    where: str
    content: Mapping[str, Any]
    tied: Mapping[str, str] = field(default_factory=dict)


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


def read_weights(path: Path) -> Checkpoint:
    """Return what `path` holds, on the CPU: safetensors, their index where they are sharded, or a torch checkpoint.

    A checkpoint holds tensors and plain values alone. Raises TeacherError for anything else: .pt2 programs, TorchScript
    archives and pickled modules execute code when loaded; damaged files do not fit.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _refuse_programs(path)
    content = _read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise TeacherError(
            Problem(
                str(path), f"holds no state dict but a {type(content).__name__}", "tensors by name, plain or nested"
            )
        )
    return Checkpoint(str(path), content)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise TeacherError(Problem(str(path), f"is damaged or truncated: {error}")) from error
    # `safetensors.torch.save_model` notes each name that it leaves out with the name of the same tensor.
    tied = {name: kept for name, kept in metadata.items() if name not in state and kept in state}
    return Checkpoint(str(path), state, tied)


def _read_shards(path: Path) -> Checkpoint:
    """Return the tensors of every shard that the index at `path` names; the shards lie next to it."""
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in shards.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TeacherError(Problem(str(path), f"is no index of shards: {type(error).__name__}: {error}")) from error
    absent = [name for name in names if Path(name).name != name or not (path.parent / name).is_file()]
    if absent:
        what = f"names {len(names)} shards, of which these do not lie next to it: {', '.join(absent[:5])}"
        raise TeacherError(Problem(str(path), what))
    parts = [read_weights(path.parent / name) for name in names]
    content = {name: value for part in parts for name, value in part.content.items()}
    lost = [name for name in shards if name not in content]
    if lost:
        what = f"its shards lack {len(lost)} of the weights that it names: {', '.join(lost[:5])}"
        raise TeacherError(Problem(str(path), what))
    return Checkpoint(str(path), content, {name: kept for part in parts for name, kept in part.tied.items()})


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
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
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


def _is_pickle_or_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2)[:1] == b"\x80" or zipfile.is_zipfile(path)


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what training scripts put next to the weights and what only holds values: making one runs nothing.

    torch's restricted unpickler takes these in addition to tensors and plain values: parsed arguments, NumPy's numbers
    and arrays, paths, dates.
    """
    plain: list[Callable[..., Any]] = [argparse.Namespace, collections.defaultdict, np.ndarray, np.dtype]
    plain += [datetime.datetime, datetime.date, datetime.timedelta, pathlib.PosixPath, pathlib.PurePosixPath]
    plain += [type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"]
    multiarray = sys.modules["numpy._core.multiarray" if "numpy._core" in sys.modules else "numpy.core.multiarray"]
    named: list[tuple[Callable[..., Any], str]] = [
        (getattr(multiarray, function), f"numpy.{core}.multiarray.{function}")
        for function in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ]
    return [*plain, (pathlib.PosixPath, "pathlib._local.PosixPath"), *named]


_HARMLESS = _harmless()
