"""Text classification on small texts: padding, buckets, what a teacher must be, and a whole study to its exports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.errors import TeacherError
from kdnas.students import family_for
from kdnas.tasks import task_of
from kdnas.tasks._texts import TextViews
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches, bucketed
from kdnas.training.evaluation import evaluate
from kdnas.training.recipe import training_for
from kdnas.workshop.opening import first_samples

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
GOOD, BAD = "a fine and moving film", "a dull film , far too long to bear"


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = ["very", "truly", "oh", "and", "so", "yes"]
    made = []
    for number in range(count):
        more = " ".join(rng.choice(words, rng.integers(0, 9)))
        kind = number % 2
        made.append(("good" if kind else "bad", f"{GOOD if kind else BAD} {more} {number}".strip()))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts, and a small BERT as transformers saves it, its classes in another order than the data's.

    Its classifier is fitted to the texts by least squares, so that it is no teacher at chance.
    """
    from kdnas.tokenizing import Tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("texts")
    for name, count, seed in (("train", 96, 0), ("test", 24, 1)):
        lines = [f"{label}\t{text}" for label, text in rows(count, seed)]
        (folder / f"{name}.tsv").write_text("label\ttext\n" + "\n".join(lines) + "\n")
    train_tokenizer("bytes", (), folder / "teacher", vocabulary=260, purpose="labelled")
    tokenizer = Tokenizer(folder / "teacher")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1},
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config).eval()
    ids = [tokenizer.encode([text], 96)[0].ids for _, text in rows(96, 0)]
    with torch.no_grad():
        pooled = torch.cat([network.bert(torch.tensor([list(one)])).pooler_output for one in ids])
        wanted = torch.tensor([[4.0, -4.0] if label == "good" else [-4.0, 4.0] for label, _ in rows(96, 0)])
        read = torch.cat([pooled, torch.ones(96, 1)], 1)
        weights = torch.linalg.solve(read.T @ read + 0.01 * torch.eye(33), read.T @ wanted)  # little rounding: ridge
        network.classifier.weight.copy_(weights[:-1].T)
        network.classifier.bias.copy_(weights[-1])
    network.save_pretrained(folder / "teacher")
    return folder


OPTIONS = {"train": "train.tsv", "test": "test.tsv", "tokenizer": "teacher", "length": 96}


@pytest.fixture(scope="module")
def data(root: Path) -> TextData:
    found: TextData = DATASETS.build("text_table", root, root / "cache", **OPTIONS)
    return found


def open_teacher(root: Path, data: Any, **options: Any) -> Teacher:
    context = TeacherContext(data, root, CPU, pytest.fail)
    teacher: Teacher = TEACHERS.build("sequence_classifier", context, **{"model": "teacher", **options})
    return teacher


def test_padding_changes_no_answer_and_batches_hold_little_of_it(root: Path, data: TextData) -> None:
    teacher, task = open_teacher(root, data), task_of(data.task)
    train = Batches(data, np.arange(96), device=CPU)
    lengths = np.asarray(data.train.inputs["mask"]).sum(axis=1)
    seen = 0
    for batch in train.epoch(0, batch_size=32, seed=0):
        own = lengths[batch.samples.numpy()].astype(int)
        assert batch.inputs[0].shape == batch.inputs[1].shape
        assert batch.inputs[0].shape[1] == min(96, -(-own.max() // 8) * 8)
        seen += len(batch)
        whole = tuple(torch.from_numpy(np.asarray(data.train.inputs[name][batch.samples.numpy()])).long()
                      for name in ("tokens", "mask"))  # fmt: skip
        with torch.no_grad():
            assert torch.allclose(teacher.module(*batch.inputs), teacher.module(*whole), atol=1e-5)
    assert seen == 96
    assert {len(next(train.ordered(batch_size=5)).inputs)} == {len(task.spec.inputs)}
    score = evaluate(teacher.module, train, training_for("text_classification")(precision="float32"), batch_size=7)
    assert score > 0.9
    assert sorted(torch.cat([batch.samples for batch in train.grouped(batch_size=7)]).tolist()) == list(range(96))


def test_buckets_hold_every_sample_once_and_differ_from_epoch_to_epoch() -> None:
    lengths = np.random.default_rng(0).integers(4, 60, 1000)
    orders = []
    for epoch in (0, 1):
        rng = np.random.default_rng(epoch)
        orders.append(bucketed(rng.permutation(1000), lengths, rng))
        assert np.array_equal(np.sort(orders[-1]), np.arange(1000))
        padded = sum(lengths[part].max() * len(part) for part in np.array_split(orders[-1], range(32, 1000, 32)))
        assert padded < 1.1 * lengths.sum()
    assert not np.array_equal(*orders)


def test_hidden_tokens_are_a_function_of_seed_view_and_sample(data: TextData) -> None:
    train, views = Batches(data, np.arange(96), device=CPU), TextViews(token_dropout=0.3)

    def masks(size: int) -> dict[int, list[int]]:
        found = {}
        for batch in train.epoch(2, batch_size=size, views=views, seed=5):
            for sample, mask in zip(batch.samples.tolist(), batch.inputs[1], strict=True):
                found[sample] = mask[: int(np.asarray(data.train.inputs["mask"][sample]).sum())].tolist()
        return found

    first, again = masks(32), masks(16)
    assert first == again
    assert all(mask[0] == 1 for mask in first.values())
    shown = np.concatenate([mask[1:] for mask in first.values()])
    assert shown.mean() == pytest.approx(0.7, abs=0.03)


def test_the_teachers_classes_are_matched_by_name(root: Path, data: TextData) -> None:
    teacher = open_teacher(root, data)
    assert data.class_names == ("bad", "good")
    assert any("by their names" in note for note in teacher.notes)
    (batch,) = Batches(data, np.arange(8), device=CPU).ordered(batch_size=8)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(root / "teacher").eval()
    with torch.no_grad():
        logits = own(input_ids=batch.inputs[0], attention_mask=batch.inputs[1]).logits
        assert torch.allclose(teacher.module(*batch.inputs), logits[:, [1, 0]], atol=1e-6)
    assert (teacher.module(*batch.inputs).argmax(1) == batch.targets).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_size": 300}, "embeddings"),
        ({"id2label": {"0": "x", "1": "y", "2": "z"}}, "3 classes"),
        ({"num_labels": 1}, "one number"),
    ],
)
def test_what_cannot_teach_is_refused(
    root: Path, data: TextData, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    config = transformers.BertConfig.from_pretrained(root / "teacher")
    config.update({"label2id": None, **change} if "vocab_size" not in change else change)
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(TeacherError, match=expected):
        open_teacher(tmp_path, data)


def test_another_tokenizer_is_refused(root: Path, data: TextData, tmp_path: Path) -> None:
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    file = tmp_path / "teacher" / "tokenizer.json"
    plain = json.loads(file.read_text())
    plain["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(plain))
    with pytest.raises(TeacherError, match="another tokenizer"):
        open_teacher(tmp_path, data)


def test_students_are_cut_out_of_it_and_the_whole_one_is_the_teacher(root: Path, data: TextData) -> None:
    teacher, train = open_teacher(root, data), Batches(data, np.arange(96), device=CPU)
    family = family_for("derived", data.task, {"teacher": teacher}, lambda count: first_samples(train, count))
    (batch,) = Batches(data, np.arange(9), device=CPU).ordered(batch_size=9)
    whole = family.inherit(family.canonical({}))
    half = family.inherit(family.canonical({"depth": 2, "inner": 0.5, "heads": 0.5}))
    with torch.no_grad():
        assert torch.allclose(whole(*batch.inputs), teacher.module(*batch.inputs), atol=1e-6)
        assert half(*batch.inputs).shape == (9, 2)
    assert sum(p.numel() for p in half.parameters()) == family.price(family.canonical({"depth": 2, "inner": 0.5, "heads": 0.5})).params  # fmt: skip  # noqa: E501


def test_what_stays_is_fitted_to_texts_and_not_to_their_padding(root: Path, data: TextData) -> None:
    teacher, train = open_teacher(root, data), Batches(data, np.arange(96), device=CPU)

    def padded_by(token: int) -> Callable[[int], tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        def samples(count: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
            (tokens, mask), targets = first_samples(train, count)
            return (torch.where(mask.bool(), tokens, token), mask), targets

        return samples

    students = []
    for token in (0, 99):
        family = family_for("derived", data.task, {"teacher": teacher}, padded_by(token))
        students.append(family.inherit(family.canonical({"inner": 0.5})).state_dict())
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_study_ends_in_a_student_that_transformers_and_onnxruntime_open(root: Path, tmp_path: Path) -> None:
    study = {
        "name": "texts",
        "data": {"type": "text_table", **OPTIONS, "validation_fraction": 0.3},
        "teacher": {"type": "sequence_classifier", "model": "teacher"},
        "space": {"derive": "teacher", "width": [1.0], "heads": [1.0]},  # what a stock BERT can be
        "objectives": ["accuracy", "latency_ms"],
        "costs": {"latency_ms": {"length": 32}},
        "training": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.001},
        "budget": {"trials": 3},
        "final": {"seeds": 1, "max_students": 1, "control": False},
        "export": {"formats": ["huggingface", "onnx", "student_json", "train_yaml", "model_card"]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "kdnas", "search", str(tmp_path), "--out", str(run), "--data-root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = run / "export"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(out / "huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "huggingface")
    assert network.config.id2label == {0: "good", 1: "bad"}
    answers = network(**tokenizer([GOOD, BAD], return_tensors="pt", padding=True)).logits.softmax(1)
    for text, probabilities in ((GOOD, answers[0]), (BAD, answers[1])):
        script = [sys.executable, str(out / "predict.py"), "--json", "--network", "student.onnx", text]
        printed = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
        found = {entry["class"]: entry["probability"] for entry in printed["classes"]}
        assert found["good"] == pytest.approx(float(probabilities[0]), abs=1e-3)
    card = (out / "MODEL_CARD.md").read_text() if (out / "MODEL_CARD.md").exists() else ""
    assert "image" not in card
    assert "32 tokens" in (run / "trials.csv").read_text() or "latency_ms" in (run / "front.csv").read_text()
