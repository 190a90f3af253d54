"""A user's own module as the teacher of texts: what it is given, what it may answer, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdnas.datasets import DATASETS
from kdnas.errors import TeacherError
from kdnas.nn.origin import cut_source
from kdnas.students import family_for
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.workshop.opening import first_samples

pytest.importorskip("tokenizers")

CPU = torch.device("cpu")
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, answers, vocabulary=260):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0) for _ in range(2)
        )
        self.head = nn.Linear(16, answers)

    def read(self, tokens, mask=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if mask is None else mask == 0)
        return x


class Pooled(Net):
    def forward(self, tokens, mask):
        kept = mask[..., None].to(torch.float32)
        return self.head((self.read(tokens, mask) * kept).sum(1) / kept.sum(1))


class Spelled(Pooled):
    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        return super().forward(input_ids, attention_mask)


class Alone(Net):
    def forward(self, x):
        return self.head(self.read(x).mean(1))


class Recorded(Pooled):
    def forward(self, tokens, mask):
        return {"hidden": self.read(tokens, mask), "logits": super().forward(tokens, mask)}


class Sure(Pooled):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask).softmax(1)


class One(Pooled):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask)[:, 0]


class Running(Net):
    def forward(self, tokens):
        return self.head(self.read(tokens))


class Asking(Net):
    def forward(self, tokens, mask, lengths):
        return self.head(self.read(tokens).mean(1))


class Wide(Net):
    def forward(self, tokens, mask):
        return self.head(self.read(tokens))


def build(kind, answers=2, **more):
    return globals()[kind](answers, **more)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    rows = [f"{'ab'[n % 2]}\ttext {'good' if n % 2 else 'no'} number {n}" for n in range(48)]
    (folder / "a.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    values = [f"{n / 7}\ttext number {n}" for n in range(48)]
    (folder / "values.tsv").write_text("label\ttext\n" + "\n".join(values) + "\n")
    (folder / "a.txt").write_text("Once there was a king.\n" * 60)
    (folder / "own.py").write_text(CODE)
    return folder


def opened(root: Path, kind: str = "labels") -> Any:
    where: dict[str, tuple[str, dict[str, Any]]] = {
        "labels": ("text_table", {"train": "a.tsv", "test_fraction": 0.25, "length": 32}),
        "values": ("text_table", {"train": "values.tsv", "test_fraction": 0.25, "length": 32}),
        "running": ("text_corpus", {"train": "a.txt", "documents": "lines", "test": 0.2, "length": 16}),
    }
    name, options = where[kind]
    return DATASETS.build(name, root, root / "cache", tokenizer="bytes", **options)


def taught(
    root: Path, data: Any, kind: str, answers: int = 2, more: dict[str, Any] | None = None, **options: Any
) -> Teacher:
    arguments = {"kind": kind, "answers": answers, **(more or {})}
    context = TeacherContext(data, root, CPU, pytest.fail)
    teacher: Teacher = TEACHERS.build("module", context, factory="own.py:build", arguments=arguments, **options)
    return teacher


def batch_of(data: Any) -> Any:
    (batch,) = Batches(data, np.arange(8), device=CPU).ordered(batch_size=8)
    return batch


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("Pooled", "tokens as tokens, mask as mask"),
        ("Spelled", "tokens as input_ids, mask as attention_mask"),
        ("Recorded", "tokens as tokens, mask as mask"),
        ("Alone", "tokens as x"),
    ],
)
def test_it_is_given_what_it_takes(root: Path, kind: str, given: str) -> None:
    data = opened(root)
    teacher, batch = taught(root, data, kind), batch_of(data)
    assert f"it is given {given}" in teacher.notes
    plain = teacher.module.network
    inputs = batch.inputs[: given.count(" as ")]
    with torch.no_grad():
        answer = plain(*inputs)
        logits = answer["logits"] if kind == "Recorded" else answer
        torch.testing.assert_close(teacher.module(*batch.inputs), logits)
    assert teacher.classifier == "network.head"
    stated = taught(root, data, kind, stages=("layers.0", "layers.1"))
    assert stated.stages == ("network.layers.0", "network.layers.1")


def test_classes_are_matched_by_name_and_probabilities_taken_apart(root: Path) -> None:
    data = opened(root)
    batch = batch_of(data)
    plain = taught(root, data, "Pooled")
    turned = taught(root, data, "Pooled", class_names=("b", "a"))
    torch.testing.assert_close(turned.module(*batch.inputs), plain.module(*batch.inputs)[:, [1, 0]])
    sure = taught(root, data, "Sure")
    assert sure.outputs == "probabilities"
    torch.testing.assert_close(sure.module(*batch.inputs).softmax(1), plain.module(*batch.inputs).softmax(1))


def test_numbers_and_running_text(root: Path) -> None:
    values, running = opened(root, "values"), opened(root, "running")
    assert taught(root, values, "One").module(*batch_of(values).inputs).shape == (8, 1)
    vocabulary = running.vocabulary
    teacher = taught(root, running, "Running", vocabulary, {"vocabulary": vocabulary})
    assert teacher.module(*batch_of(running).inputs).shape == (8, 16, vocabulary)
    assert teacher.classifier == "network.head"


@pytest.mark.parametrize(
    ("kind", "answers", "more", "options", "told"),
    [
        ("Asking", 2, {}, {}, "forward asks for tokens, mask, lengths, and the data have tokens, mask"),
        ("Pooled", 3, {}, {}, "3 classes"),
        ("Pooled", 2, {"vocabulary": 100}, {}, "fails on the data's texts: IndexError"),
        ("Pooled", 2, {}, {"mean": [1.0], "std": [2.0]}, "these are of images"),
        ("Pooled", 2, {}, {"classifier": "nowhere"}, "the network has no nowhere"),
        ("Pooled", 2, {}, {"stages": ["nowhere"]}, "the network has no nowhere"),
        ("Pooled", 2, {}, {"class_names": ["a", "x"]}, "x"),
    ],
)
def test_what_cannot_teach_is_told(
    root: Path, kind: str, answers: int, more: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(TeacherError, match=told):
        taught(root, opened(root), kind, answers, more, **options)


def test_answers_of_another_kind_are_told(root: Path) -> None:
    running, values = opened(root, "running"), opened(root, "values")
    with pytest.raises(TeacherError, match="logits \\[B, T, V\\]"):
        taught(root, running, "Alone", running.vocabulary, {"vocabulary": running.vocabulary})
    with pytest.raises(TeacherError, match="gives 9 numbers"):
        taught(root, running, "Running", 9, {"vocabulary": running.vocabulary})
    with pytest.raises(TeacherError, match="gives 2 numbers"):
        taught(root, values, "Pooled")


def test_students_cut_out_of_it_stand_alone(root: Path) -> None:
    data = opened(root)
    teacher, train = taught(root, data, "Alone", class_names=("b", "a")), Batches(data, np.arange(32), device=CPU)
    family = family_for("derived", data.task, {"teacher": teacher}, lambda count: first_samples(train, count))
    whole = family.inherit(family.canonical({}))
    batch = batch_of(data)
    with torch.no_grad():
        torch.testing.assert_close(whole(*batch.inputs), teacher.module(*batch.inputs))
    arch = family.canonical({"stage1.depth": 1, "stage1.inner": 0.5})
    student = family.inherit(arch)
    network, cut = family.cut(arch, student)
    scope: dict[str, Any] = {"__file__": str(root / "student.py")}
    (root / "teacher_code").mkdir(exist_ok=True)
    (root / "teacher_code" / "own.py").write_text(CODE)
    exec(cut_source(cut, network), scope)
    alone = scope["build_student"]().eval()
    alone.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(scope["answer"](alone, *batch.inputs), student(*batch.inputs))
