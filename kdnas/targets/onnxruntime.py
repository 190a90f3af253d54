"""ONNX Runtime on this machine's processor."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.core.measurement import Measurement
from kdnas.errors import ConfigError, Problem, RunError
from kdnas.nn.onnx_program import EXTRA, REQUIRES, onnx_model
from kdnas.nn.timing import Run, median_and_spread
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target
from kdnas.targets._energy import processor_energy

_MEMORY_REPEATS = 5
_MEMORY_TIMEOUT_S = 120


@TARGETS.register
class OnnxRuntime(Target):
    """ONNX Runtime's CPU provider. One thread is timed by the processor time that it takes, as on the target cpu."""

    takes_onnx = True

    def __init__(
        self,
        *,
        threads: Annotated[int, Field(ge=1, le=1024)] = 1,
        batch_size: Annotated[int, Field(ge=1, le=65536)] = 1,
    ):
        missing = [package for package in REQUIRES if importlib.util.find_spec(package) is None]
        if missing:
            what = f"needs {', '.join(missing)}: pip install 'kdnas[{EXTRA}]'"
            raise ConfigError(Problem("target onnxruntime", what))
        self.threads, self.batch_size = threads, batch_size
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        self.where = f"onnxruntime, CPU provider, {threads} thread{'s' * (threads > 1)}, batch {batch_size}, float32"

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Change nothing: each session has its own threads."""
        yield

    def run(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Run:
        """Return a function that runs `network`, a module or an ONNX file, once on `inputs` [B, ...]."""
        session = self._session(_model_bytes(network, inputs))
        given = {entry.name: taken.numpy() for entry, taken in zip(session.get_inputs(), inputs, strict=True)}
        return lambda: session.run(None, given)

    def peak_memory_bytes(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Measurement | Missing:
        """Return how far the resident memory of a fresh process rises from loading the model to its second pass."""
        if not Path("/proc/self/clear_refs").exists():
            return Missing("the peak of a process is read from Linux's /proc, which is not here")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student.onnx"
            path.write_bytes(_model_bytes(network, inputs))
            for number, taken in enumerate(inputs):
                np.save(Path(folder) / f"{number}.npy", taken.numpy())
            peaks = [_resident_peak(path, self.threads) for _ in range(_MEMORY_REPEATS)]
        median, spread = median_and_spread(peaks)
        how = "growth of a fresh process's resident memory, the runtime's own buffers included"
        return Measurement(median, spread, len(peaks), f"{self.where}; {how}")

    def energy_counter(self) -> EnergyCounter | Missing:
        """Return the processor's counter."""
        return processor_energy()

    def _session(self, model: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model_bytes(network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> bytes:
    if isinstance(network, Path):
        return network.read_bytes()
    plain = copy.deepcopy(network).to("cpu", torch.float32).eval()
    # Two samples: of one, the converter would make a constant.
    example = {
        f"input{number}" if number else "images": torch.cat([taken[:1], taken[-1:]])
        for number, taken in enumerate(inputs)
    }
    model: bytes = onnx_model(plain, example).SerializeToString()
    return model


_CHILD = """
import pathlib, sys
import numpy, onnxruntime
path, threads = sys.argv[1], int(sys.argv[2])
arrays = [numpy.load(file) for file in sorted(pathlib.Path(path).parent.glob("*.npy"))]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is reset to what is resident now
before = kilobytes("VmRSS:")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
given = {entry.name: array for entry, array in zip(session.get_inputs(), arrays)}
for _ in range(2):
    session.run(None, given)
print((kilobytes("VmHWM:") - before) * 1024 + sum(taken.nbytes for taken in given.values()))
"""


def _resident_peak(path: Path, threads: int) -> float:
    """Return the peak bytes of a fresh process that loads the model at `path` and runs it twice. Raises RunError."""
    command = [sys.executable, "-I", "-c", _CHILD, str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_MEMORY_TIMEOUT_S, check=False)
    if done.returncode:
        raise RunError(f"ONNX Runtime cannot run the student: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return float(done.stdout)
