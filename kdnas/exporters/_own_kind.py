"""What exports in the user's own kind share: a folder that the library of the teacher opens by itself.

Its network answers in the order of the teacher's classes, and takes what the teacher's network took.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.exporters._alone import run_alone
from kdnas.exporters._card import card_text
from kdnas.exporters._probe import plain_copy
from kdnas.nn.exact import apart
from kdnas.nn.origin import Cut, Library, Origin

ROUNDING = 1e-5
"""Share of the largest answer: kernels sum by where in memory the weights lie, which a file read anew changes."""
_OF = {"timm": "timm", "transformers": "Hugging Face"}


def foreign(cut: Cut | None, library: Library) -> str:
    """Return why no network of `library` alone answers as the student does; empty where one can."""
    if cut is None or cut.origin.library != library:
        return f"only students cut from a {_OF[library]} teacher are its kind of network"
    entrance = cut.origin.entrance
    if entrance is None:
        return ""
    if entrance.total is not None:
        return "the teacher gives probabilities, whose logarithm kdnas takes"
    if entrance.classes and entrance.outputs not in (None, len(entrance.classes)):
        return "the teacher answers for other classes than the data's, too"
    return ""


def other_shape(stock: nn.Module, network: nn.Module) -> str:
    """Return the first tensor of `network` that `stock` has otherwise, in words; empty where they are the same."""
    theirs = {name: tuple(value.shape) for name, value in stock.state_dict().items()}
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            return f"{name} of the student is {ours.get(name, 'not there')}, and {theirs.get(name, 'not there')} in it"
    return ""


def in_own_order(student: TrainedStudent, origin: Origin) -> TrainedStudent:
    """Return the student with its class names as the teacher's network orders its answers."""
    entrance, given = origin.entrance, student.preprocessing
    if entrance is None or not entrance.classes:
        return student
    names = list(given.class_names)
    for position, index in enumerate(entrance.classes):
        names[index] = given.class_names[position]
    return dataclasses.replace(student, preprocessing=dataclasses.replace(given, class_names=tuple(names)))


def normalised_probes(given: Preprocessing) -> Tensor:
    """Return a batch [3, C, H, W] as the network takes it, normalised."""
    return torch.randn(3, *given.network_shape, generator=torch.Generator().manual_seed(0))


def write_card(student: TrainedStudent, folder: Path, library: str, pipeline: str) -> str:
    """Write README.md, a model card as model hubs read it, and return its name."""
    head = f"---\nlibrary_name: {library}\n" + (f"pipeline_tag: {pipeline}\n" if pipeline else "") + "---\n\n"
    (folder / "README.md").write_text(head + card_text(student), encoding="utf-8")
    return "README.md"


def check_opened(student: TrainedStudent, folder: Path, opener: str, inputs: dict[str, Tensor]) -> None:
    """Raise ExportError unless what a process without kdnas opens gives the outputs of the student's network.

    `opener` is Python that makes `network` from `folder`; `inputs` are by the name of the argument, or "" for one that
    has none.
    """
    script = f"import sys, torch\nfolder, probes, answers = sys.argv[1:]\n{opener}\n{_ASK}"
    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        checker, probes, answers = (Path(scratch) / name for name in (f"{folder.name}.py", "probes", "answers"))
        checker.write_text(script, encoding="utf-8")
        torch.save(inputs, probes)
        run_alone(checker, folder, probes, answers, folder=Path(scratch))
        found = torch.load(answers, weights_only=True)
    network = plain_copy(student.network)
    with torch.no_grad():
        answer = network(*inputs.values()) if "" in inputs else network(**inputs)
    expected = getattr(answer, "logits", answer)
    if not apart(found, expected) <= ROUNDING:
        raise ExportError(f"{folder.name}: opened by its library it does not give the student's outputs")


_ASK = """
inputs = torch.load(probes, weights_only=True)
with torch.no_grad():
    answer = network.eval()(*inputs.values()) if "" in inputs else network.eval()(**inputs)
torch.save(getattr(answer, "logits", answer).clone(), answers)
"""
