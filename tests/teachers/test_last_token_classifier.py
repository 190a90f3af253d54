"""Classifiers that answer at a text's last token, as GPT-2 with a head does: inputs go in by name, padding is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.errors import TeacherError
from kdnas.students import STUDENTS, FamilyContext
from kdnas.students.derived import Derived
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.tokenizing import train_tokenizer
from kdnas.training.batches import Batches

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
WORDS = "a fine day no good at all then some bad worse sun rain wind cold warm".split()  # noqa: SIM905


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice(WORDS, rng.integers(2, 9))), ("bad", "good")[number % 2]) for number in range(60)]
    for name, part in (("train", rows[:40]), ("test", rows[40:])):
        lines = [f"{label}\t{text}\n" for text, label in (("text", "label"), *part)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    tokenizer = train_tokenizer("bpe", WORDS, tmp_path / "teacher", vocabulary=300, purpose="labelled")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.size, n_positions=40, n_embd=32, n_layer=2, n_head=2, num_labels=2,
        pad_token_id=tokenizer.pad, initializer_range=0.3, id2label={0: "good", 1: "bad"},
    )  # fmt: skip
    transformers.GPT2ForSequenceClassification(config).eval().save_pretrained(tmp_path / "teacher")
    return tmp_path


def opened(root: Path) -> tuple[TextData, Teacher]:
    options = {"train": "train.tsv", "test": "test.tsv", "tokenizer": "teacher", "length": 24}
    data: TextData = DATASETS.build("text_table", root, root / "cache", **options)
    context = TeacherContext(data, root, CPU, pytest.fail)
    return data, TEACHERS.build("sequence_classifier", context, model="teacher")


def test_its_answers_are_those_of_each_text_alone(root: Path) -> None:
    data, teacher = opened(root)
    (batch,) = Batches(data, np.arange(16), device=CPU).ordered(batch_size=16)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(root / "teacher").eval()
    with torch.no_grad():
        answers = teacher.module(*batch.inputs)
        lengths = batch.inputs[1].sum(dim=1).tolist()
        assert len(set(lengths)) > 1
        alone = [own(tokens[None, :count]).logits for tokens, count in zip(batch.inputs[0], lengths, strict=True)]
    assert data.class_names == ("bad", "good")
    assert torch.allclose(answers, torch.cat(alone)[:, [1, 0]], atol=1e-5)


def test_a_pad_token_that_is_not_the_datas_is_told(root: Path) -> None:
    config = json.loads((root / "teacher/config.json").read_text())
    (root / "teacher/config.json").write_text(json.dumps({**config, "pad_token_id": config["pad_token_id"] + 1}))
    with pytest.raises(TeacherError, match="texts are filled up with"):
        opened(root)


def test_no_student_is_cut_out_of_it_which_is_said(root: Path) -> None:
    data, teacher = opened(root)
    family: Derived = STUDENTS.build("derived", FamilyContext(data.task, {"teacher": teacher}))
    with pytest.raises(TeacherError, match="students are not cut out of such a network"):
        _ = family.network
