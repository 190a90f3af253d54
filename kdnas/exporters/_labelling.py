"""What predict.py is for, whatever it labels: the networks that it asks, and answers that are the student's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdnas.errors import ExportError
from kdnas.exporters._alone import run_alone

SCRIPT = "predict.py"
_TOLERANCE = 1e-4
"""The largest difference of a probability, and of a number as a share of it."""


@dataclass(frozen=True)
class Loader:
    """What predict.py holds for one kind of network."""

    file: str
    """The network's, by which it is known to be there."""
    function: str
    needs: str
    text: str
    """Of `function`, which takes nothing and returns a function of raw inputs by name, arrays [B, ...], to logits."""
    unneeded: tuple[str, ...] = ()
    """Packages of kdnas that it does without."""


_STUDENT = '''

def load_student():
    """Return the network of student.py, a function: its inputs by name to logits [B, K]. Needs PyTorch."""
    import runpy

    import torch

    code = runpy.run_path(str(FOLDER / "student.py"))
    network = code["load_student"](FOLDER / "student.safetensors")

    @torch.no_grad()
    def logits_of(inputs):
        return code["logits_of"](network, *map(torch.from_numpy, inputs.values())).numpy()

    return logits_of
'''

_ONNX = '''

def load_onnx():
    """Return the network of student.onnx, a function: its inputs by name to logits [B, K]. Needs onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / "student.onnx", providers=["CPUExecutionProvider"])

    def logits_of(inputs):
        return session.run(["logits"], inputs)[0]

    return logits_of
'''

_OPENVINO = '''

def load_openvino():
    """Return the network of student.xml, a function: its inputs by name to logits [B, K]. Needs openvino."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(FOLDER / "student.xml", "CPU", settings)

    def logits_of(inputs):
        return network(inputs)["logits"]

    return logits_of
'''

_EXECUTORCH = '''

def load_executorch():
    """Return the network of student.pte, a function: its inputs by name to logits [B, K]. Needs executorch."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(FOLDER / "student.pte")
    method = program.load_method("forward")

    def logits_of(inputs):
        _ = program  # which the method needs
        return method.execute([torch.from_numpy(part) for part in inputs.values()])[0].numpy().copy()

    return logits_of
'''

LOADERS = {
    loader.file: loader
    for loader in (
        Loader("student.py", "load_student", "PyTorch", _STUDENT),
        Loader("student.onnx", "load_onnx", "onnxruntime", _ONNX, unneeded=("torch",)),
        Loader("student.xml", "load_openvino", "openvino", _OPENVINO, unneeded=("torch",)),
        Loader("student.pte", "load_executorch", "executorch", _EXECUTORCH),
    )
}
"""Those of networks that take what kdnas's own students do; folders of a library's kind have one of their own."""


def loaders_of(folder: Path) -> list[Loader]:
    """Return the loaders of the networks that lie in `folder`."""
    return [loader for file, loader in LOADERS.items() if (folder / file).exists()]


def printed_alone(script: Path, loader: Loader, *arguments: object, folder: Path, classes: int) -> str:
    """Return what predict.py, run alone in `folder` with the loader's network, prints: all `classes` as JSON."""
    options = ["--json", "--top", classes, "--network", loader.file]
    absent = loader.unneeded
    return run_alone(script, *options, "--", *arguments, folder=folder, absent=absent, threads="torch" not in absent)


def check_printed(printed: str, loader: Loader, names: Sequence[str], expected: Iterable[Sequence[float]]) -> None:
    """Raise ExportError unless the lines `printed` give each class the probability `expected` of it."""
    for line, wanted in zip(printed.splitlines(), expected, strict=True):
        found = {entry["class"]: entry["probability"] for entry in json.loads(line)["classes"]}
        for name, probability in zip(names, wanted, strict=True):
            if not abs(found.get(name, -1.0) - probability) <= _TOLERANCE:
                raise ExportError(
                    f"{SCRIPT}: for {name} {loader.file} gives {found.get(name)}, the student {probability}"
                )


def check_printed_ranking(printed: str, loader: Loader, texts: Sequence[str], expected: Sequence[float]) -> None:
    """Raise ExportError unless what is `printed` ranks the candidates `texts` by the scores `expected` of them."""
    found = [(entry["score"], entry["candidate"]) for entry in json.loads(printed)["candidates"]]
    wanted = sorted(zip(expected, texts, strict=True), key=lambda pair: -pair[0])
    apart = max(abs(a - b) / max(1.0, abs(b)) for (a, _), (b, _) in zip(found, wanted, strict=True))
    if not apart <= _TOLERANCE:
        raise ExportError(f"{SCRIPT}: {loader.file} gives the scores {found}, the student {wanted}")


def check_printed_values(printed: str, loader: Loader, expected: Iterable[float]) -> None:
    """Raise ExportError unless the lines `printed` contain the numbers `expected`."""
    for line, wanted in zip(printed.splitlines(), expected, strict=True):
        value = json.loads(line)["value"]
        if not abs(value - wanted) <= _TOLERANCE * max(1.0, abs(wanted)):
            raise ExportError(f"{SCRIPT}: {loader.file} gives {value}, the student {wanted}")
