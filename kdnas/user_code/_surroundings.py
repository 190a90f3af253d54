"""What a program may set for its whole process: kept for kdnas, and apart from it for the user's code."""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

_VARIABLES = (  # those that kdnas and torch read
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "KDNAS_DATA",
    "KDNAS_CACHE",
)
_SUBNORMAL = 1e-310


@dataclass(frozen=True)
class Setting:
    """One thing that holds for the whole process. `reported` is False where no user meant to set it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    reported: bool = True


Surroundings = dict[str, Any]
"""The value of each setting, by name."""


def read_surroundings() -> Surroundings:
    """Return the settings of this process as they are."""
    found: Surroundings = {}
    for setting in _all():
        try:
            found[setting.name] = setting.read()
        except (RuntimeError, OSError, AttributeError):  # not in this build of torch; a folder that is gone
            continue
    return found


def differing(left: Surroundings, right: Surroundings) -> list[str]:
    """Return the names of the settings that both have and that differ."""
    return [name for name, value in left.items() if name in right and not _equal(value, right[name])]


def write_surroundings(wanted: Surroundings, now: Surroundings) -> None:
    """Make the settings, which are `now`, those of `wanted`, as far as it has them."""
    changed = set(differing(now, wanted))
    for setting in _all() if changed else ():
        if setting.name in changed:
            setting.write(wanted[setting.name])


def reported(names: Sequence[str]) -> list[str]:
    """Return those of `names` that should be reported to the user."""
    silent = {setting.name for setting in _all() if not setting.reported}
    return [name for name in names if name not in silent]


def _equal(left: Any, right: Any) -> bool:
    return left is right or bool(left == right)


def _all() -> tuple[Setting, ...]:
    return _settings(threading.current_thread() is threading.main_thread())


@functools.cache  # a function of the user's may be called for each of thousands of students
def _settings(in_main_thread: bool) -> tuple[Setting, ...]:
    return tuple(_made(in_main_thread))


def _made(in_main_thread: bool) -> Iterator[Setting]:
    yield Setting("the working folder", Path.cwd, os.chdir)
    yield Setting("environment variables", lambda: [os.environ.get(name) for name in _VARIABLES], _write_variables)
    yield Setting(
        "sys.path", lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path), reported=False
    )
    yield Setting("sys.stdout, sys.stderr", lambda: (sys.stdout, sys.stderr), _write_streams, reported=False)
    yield Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield Setting("logging", _read_logging, _write_logging)
    # Importing a library adds filters too, which need no report.
    yield Setting("warning filters", lambda: (list(warnings.filters), warnings.showwarning), _write_filters)
    yield Setting("how processes start", _read_start_method, _write_start_method)
    if in_main_thread:
        for number in sorted(set(signal.Signals) - {signal.SIGCHLD}):  # torch sets that once, for all DataLoaders
            if signal.getsignal(number) is not None:  # None: set by no Python code, so by none restored
                read, write = partial(_handler, number), partial(signal.signal, number)
                yield Setting(f"the handler of {number.name}", read, write)
    yield Setting("Python's random state", random.getstate, random.setstate, reported=False)
    yield Setting("NumPy's random state", _read_numpy_random, _write_numpy_random, reported=False)
    yield Setting("NumPy's error handling", np.geterr, lambda handling: np.seterr(**handling))
    yield from _torch_settings()


def _torch_settings() -> Iterator[Setting]:
    import torch  # here: commands that run no code of the user's answer without it

    yield Setting("inference mode", torch.is_inference_mode_enabled, _write_inference_mode)
    yield Setting("gradients on or off", torch.is_grad_enabled, torch.set_grad_enabled)
    yield Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Setting("the default device", _read_device, torch.set_default_device)
    yield Setting("the number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda modes: torch.use_deterministic_algorithms(modes[0], warn_only=modes[1]),
    )
    yield _attribute("filling of new memory", torch.utils.deterministic, "fill_uninitialized_memory")
    yield Setting(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda modes: torch.autograd.set_detect_anomaly(*modes),
    )
    yield Setting("flushing of subnormal numbers", lambda: _flushes(torch), torch.set_flush_denormal)
    yield Setting("float32's precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    for name in ("enabled", "benchmark", "deterministic", "allow_tf32"):
        yield _attribute(f"cudnn.{name}", torch.backends.cudnn, name)
    yield Setting(
        "oneDNN on or off", lambda: torch.backends.mkldnn.enabled, lambda on: torch.backends.mkldnn.set_flags(on)
    )
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        read, write = (getattr(torch.backends.cuda, part) for part in (f"{name}_sdp_enabled", f"enable_{name}_sdp"))
        yield Setting(f"{name} attention on or off", read, write)
    for device in ("cpu", "cuda"):
        enabled = partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        dtype = partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)
        yield Setting(f"autocast on {device}", *enabled)
        yield Setting(f"the dtype of autocast on {device}", *dtype)
    # Weights that autocast has cast are kept until its outermost context ends: one left open would keep them for good.
    yield Setting("how deep in autocast", _read_autocast_depth, _write_autocast_depth, reported=False)
    shared = torch.multiprocessing
    yield Setting("how tensors are shared", shared.get_sharing_strategy, shared.set_sharing_strategy)
    yield Setting("torch's random seed", torch.initial_seed, lambda seed: None)  # written with the state
    cuda = torch.cuda
    random_state = partial(_read_torch_random, torch.get_rng_state), partial(_write_torch_random, torch.set_rng_state)
    yield Setting("torch's random state", *random_state, reported=False)
    # Reading these would begin to use CUDA.
    yield Setting(
        "CUDA's random state",
        lambda: [bytes(state.numpy()) for state in cuda.get_rng_state_all()] if cuda.is_initialized() else None,
        lambda states: cuda.set_rng_state_all([torch.tensor(list(state), dtype=torch.uint8) for state in states or ()]),
        reported=False,
    )
    yield Setting(
        "the current CUDA device",
        lambda: cuda.current_device() if cuda.is_initialized() else None,
        lambda device: None if device is None else cuda.set_device(device),
    )


_handler: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
"""`signal.getsignal` without making an enumeration's member of each number, which takes longer than all else here."""


def _attribute(name: str, owner: object, attribute: str) -> Setting:
    return Setting(name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value))


def _read_device() -> Any:
    """Return the default device that was set, None where none was: `get_default_device` does not distinguish these."""
    import torch

    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return None if context is None else context.device


_held: list[Any] = []
"""Guards of torch's inference mode, each of which would undo itself if nobody held it."""


def _write_inference_mode(on: bool) -> None:
    import torch

    guard = torch.inference_mode(on)
    guard.__enter__()
    _held.append(guard)


def _read_autocast_depth() -> int:
    import torch

    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _write_autocast_depth(depth: int) -> None:
    import torch

    while _read_autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    while _read_autocast_depth() < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _read_numpy_random() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return kind, bytes(keys), *rest


def _write_numpy_random(state: tuple[Any, ...]) -> None:
    kind, keys, *rest = state
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))


def _read_torch_random(read: Callable[[], Any]) -> bytes:
    return bytes(read().numpy())


def _write_torch_random(write: Callable[[Any], None], state: bytes) -> None:
    import torch

    write(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _flushes(torch: Any) -> bool:
    number = torch.full((1,), _SUBNORMAL, dtype=torch.float64, device="cpu")
    return bool((number * 1.0).item() == 0)


def _write_variables(values: list[str | None]) -> None:
    for name, value in zip(_VARIABLES, values, strict=True):
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _write_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _read_logging() -> tuple[int, int, list[logging.Handler]]:
    return logging.root.level, logging.root.manager.disable, list(logging.root.handlers)


def _write_logging(value: tuple[int, int, list[logging.Handler]]) -> None:
    logging.root.setLevel(value[0])
    logging.disable(value[1])
    logging.root.handlers[:] = value[2]


def _write_filters(value: tuple[list[Any], Any]) -> None:
    warnings.filters[:] = value[0]  # type: ignore[index]
    warnings.showwarning = value[1]
    getattr(warnings, "_filters_mutated", lambda: None)()  # warnings printed once are remembered with the filters


def _read_start_method() -> str:
    """Return how processes start; the system's own way too where nobody has asked yet."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _write_start_method(method: str) -> None:
    multiprocessing.set_start_method(method, force=True)
