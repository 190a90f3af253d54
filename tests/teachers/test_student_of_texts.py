"""The `student` teacher of texts: what the training layer returns, its stages and classifier by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdnas.core.data import Samples
from kdnas.core.text import CorpusData, TextData
from kdnas.students import family_for
from kdnas.teachers import TEACHERS, Teacher, TeacherContext

CHOICES = {"width": 32, "depth": 2, "heads": 1, "embedding_width": 32, "layer1.mlp_ratio": 1}
CHOICES |= {"layer2.mlp_ratio": 1, "head_size": 32}
TOKENS = np.random.default_rng(0).integers(1, 40, (6, 12)).astype(np.uint16)


def texts() -> TextData:
    inputs = {"tokens": TOKENS, "mask": np.ones((6, 12), np.uint8)}
    samples = Samples(inputs, np.arange(6) % 2)
    return TextData("texts", samples, samples, ("bad", "good"), "f", tokenizer=Path("t"), length=12, vocabulary=40)


def corpus() -> CorpusData:
    samples = Samples({"tokens": TOKENS}, np.roll(TOKENS, -1, axis=1).astype(np.int64))
    return CorpusData(
        "corpus", samples, samples, (), "f", tokenizer=Path("t"), length=12, vocabulary=40, bytes_per_token=(1.0, 1.0)
    )


def opened(data: TextData | CorpusData, family: str, tmp_path: Path) -> tuple[Teacher, torch.nn.Module]:
    member = family_for(family, data.task)
    arch = member.canonical({**CHOICES, **({"norm": "first", "length": 12} if family == "bert" else {})})
    torch.manual_seed(0)
    network = member.build(arch)
    context = TeacherContext(data, tmp_path, torch.device("cpu"), lambda *given: (network, arch))
    return TEACHERS.build("student", context, family=family, choices=CHOICES), network


@pytest.mark.parametrize(("data", "family"), [(texts(), "bert"), (corpus(), "gpt")], ids=["texts", "corpus"])
def test_it_answers_as_the_trained_network(data: TextData | CorpusData, family: str, tmp_path: Path) -> None:
    teacher, network = opened(data, family, tmp_path)
    inputs = [torch.from_numpy(np.asarray(data.train.inputs[part.name], dtype=np.int64)) for part in data.task.inputs]
    torch.testing.assert_close(teacher.module(*inputs), network.eval()(*inputs))
    modules = dict(teacher.module.named_modules())
    assert [modules[name] for name in teacher.stages] == list(network.stages)
    assert modules[str(teacher.classifier)] is network.classifier
    assert teacher.arch is not None
    assert teacher.arch.family == family
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    again, _ = opened(data, family, tmp_path)
    assert (again.fingerprint, again.answers) == (teacher.fingerprint, teacher.answers)
