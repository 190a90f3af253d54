"""Numbers predicted of pairs of texts: what a teacher must be, what is learnt, and a whole study to its exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kdnas.core.objective import ACCURACY, SPEARMAN
from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, DataError, TeacherError
from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes
from kdnas.students import family_for
from kdnas.study.config import DataConfig, Member, StudyConfig
from kdnas.tasks import task_of
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import evaluate
from kdnas.training.loss import TrainingLoss, task_loss
from kdnas.training.recipe import Distillation, Training, training_for
from kdnas.workshop.opening import Sources, Workshop, first_samples
from kdnas.workshop.teacher_check import report_teacher

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
WORDS = "a fine day no good at all then some bad worse sun rain wind cold warm".split()  # noqa: SIM905


def rows(count: int, seed: int) -> list[tuple[str, str, float]]:
    """Return pairs of texts, and how many words they have in common, of 5."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        one = list(rng.choice(WORDS, 6, replace=False))
        other = [word if rng.random() < 0.5 else str(rng.choice(WORDS)) for word in one]
        made.append((" ".join(one), " ".join(other), 5 * len(set(one) & set(other)) / len(set(one) | set(other))))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of texts with a number, and a small BERT with a head of one number, fitted by least squares."""
    from kdnas.tokenizing import Tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("pairs")
    for name, count, seed in (("train", 160, 0), ("test", 40, 1)):
        lines = [json.dumps({"sentence1": a, "sentence2": b, "score": value}) for a, b, value in rows(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    train_tokenizer("bpe", WORDS, folder / "teacher", vocabulary=300, purpose="labelled")
    tokenizer = Tokenizer(folder / "teacher")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.size, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=96, num_labels=1, problem_type="regression", initializer_range=0.08,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        pooled = []
        for a, b, _ in rows(160, 0):
            (one,) = tokenizer.encode([(a, b)], 64)
            ids, segments = torch.tensor([list(one.ids)]), torch.tensor([list(one.segments)])
            pooled.append(network.bert(ids, token_type_ids=segments).pooler_output)
        read = torch.cat([torch.cat(pooled), torch.ones(160, 1)], 1)
        wanted = torch.tensor([[value] for _, _, value in rows(160, 0)])
        weights = torch.linalg.solve(read.T @ read + 0.1 * torch.eye(65), read.T @ wanted)
        network.classifier.weight.copy_(weights[:-1].T)
        network.classifier.bias.copy_(weights[-1])
    network.save_pretrained(folder / "teacher")
    return folder


OPTIONS = {"train": "train.jsonl", "test": "test.jsonl", "tokenizer": "teacher", "length": 64}


@pytest.fixture(scope="module")
def data(root: Path) -> TextData:
    found: TextData = DATASETS.build("text_table", root, root / "cache", **OPTIONS)
    return found


def open_teacher(root: Path, data: Any) -> Teacher:
    context = TeacherContext(data, root, CPU, pytest.fail)
    teacher: Teacher = TEACHERS.build("sequence_classifier", context, model="teacher")
    return teacher


def test_pairs_reach_the_teacher_with_their_segments(root: Path, data: TextData) -> None:
    teacher = open_teacher(root, data)
    (batch,) = Batches(data, np.arange(8), device=CPU).ordered(batch_size=8)
    assert [taken.name for taken in data.task.inputs] == ["tokens", "mask", "segments"]
    assert batch.targets.dtype == torch.float32
    assert (batch.inputs[2].max(dim=1).values == 1).all()
    own = transformers.AutoModelForSequenceClassification.from_pretrained(root / "teacher").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "teacher")
    pairs = [(a, b) for a, b, _ in rows(160, 0)[:8]]
    with torch.no_grad():
        given = tokenizer([a for a, _ in pairs], [b for _, b in pairs], return_tensors="pt", padding=True)
        names = ("input_ids", "attention_mask", "token_type_ids")
        wanted = own(**{name: given[name] for name in names}).logits
        assert torch.allclose(teacher.module(*batch.inputs), wanted, atol=1e-5)


def test_the_teacher_is_scored_by_its_correlation(root: Path, data: TextData) -> None:
    stats = pytest.importorskip("scipy.stats")
    teacher, output = open_teacher(root, data), []
    training = training_for("text_regression")(precision="float32")
    report = report_teacher(teacher, data, np.arange(160), training, device=CPU, notify=output.append)
    batches = Batches(data, np.arange(160), device=CPU)
    printed = torch.cat([teacher.module(*batch.inputs)[:, 0] for batch in batches.ordered(batch_size=32)])
    assert report.score == pytest.approx(stats.spearmanr(printed.numpy(), data.train.targets).statistic)
    assert report.score > 0.3
    assert evaluate(teacher.module, batches, training, batch_size=7) == pytest.approx(report.score)
    with torch.no_grad():
        teacher.module.network.classifier.weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(TeacherError, match="0 is reached by one constant output"):
        report_teacher(teacher, data, np.arange(160), training, device=CPU)


def test_a_classifier_of_several_classes_is_no_teacher_of_numbers(root: Path, data: TextData, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(root / "teacher", num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "teacher" / file).write_bytes((root / "teacher" / file).read_bytes())
    with pytest.raises(TeacherError, match="names one of 2 classes, and the labels of .* are numbers"):
        open_teacher(tmp_path, data)


def test_the_loss_is_the_squared_error_of_labels_and_of_the_teacher() -> None:
    ours, theirs, labels = torch.randn(9, 1), torch.randn(9, 1), torch.randn(9)
    rows_of = Rows(ours, labels)
    assert torch.allclose(task_loss(rows_of, 0.0), ((ours[:, 0] - labels) ** 2).mean())
    recipe = Distillation(task_weight=0.25, losses=({"type": "mse", "weight": 2.0},))
    loss = TrainingLoss(recipe, OutputShapes(1), {"teacher": OutputShapes(1)}, seed=0)
    wanted = 0.25 * ((ours[:, 0] - labels) ** 2).mean() + 2 * ((ours - theirs) ** 2).mean()
    assert torch.allclose(loss(Outputs(ours), OutputsByTeacher({"teacher": Outputs(theirs)}), rows_of), wanted)


@pytest.mark.parametrize("name", ["kd", "dkd", "reverse_kl", "jensen_shannon", "skew_kl", "hard"])
def test_losses_of_probabilities_are_refused_where_one_number_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="of one number there are none"):
        LOSSES.build(name, OutputShapes(1), OutputShapes(1))


def test_what_a_study_of_numbers_says_and_leaves_unsaid(root: Path, tmp_path: Path) -> None:
    stated = {"name": "x", "data": {"type": "text_table", **OPTIONS}, "teacher": "student", "space": "texts_bert"}
    config = StudyConfig.model_validate({**stated, "task": {"score": "spearman"}})
    assert config.objectives == ("spearman", "macs")
    assert [(term.type, term.weight) for term in config.distillation.losses] == [("mse", 0.9)]
    assert StudyConfig.model_validate(config.model_dump()) == config
    for score, wrong in ((ACCURACY, True), (SPEARMAN, False)):
        sources = Sources(DataConfig(type="text_table", **OPTIONS), {"t": Member(type="student")}, "bert", 0, Training(), score=score)  # type: ignore[arg-type]  # fmt: skip  # noqa: E501
        workshop = Workshop(sources, data_root=root, cache=tmp_path, device=CPU)
        if wrong:
            with pytest.raises(DataError, match="a regression, which is not scored by accuracy"):
                _ = workshop.data
        else:
            assert workshop.data.task.score == SPEARMAN


def test_students_are_cut_out_of_it_and_the_whole_one_is_the_teacher(root: Path, data: TextData) -> None:
    teacher, train = open_teacher(root, data), Batches(data, np.arange(160), device=CPU)
    family = family_for(
        "derived", data.task, {"teacher": teacher}, lambda count: first_samples(train, count),
        options={"importance": "taylor"},
    )  # fmt: skip
    (batch,) = Batches(data, np.arange(9), device=CPU).ordered(batch_size=9)
    whole, half = (family.inherit(family.canonical(one)) for one in ({}, {"depth": 2, "inner": 0.5}))
    with torch.no_grad():
        assert torch.allclose(whole(*batch.inputs), teacher.module(*batch.inputs), atol=1e-5)
        assert half(*batch.inputs).shape == (9, 1)
    assert task_of(data.task).worst(np.arange(3.0)) == 0.0


@pytest.mark.slow
def test_a_study_ends_in_a_student_that_tells_the_number(root: Path, tmp_path: Path) -> None:
    study = {
        "name": "pairs",
        "task": {"score": "spearman"},
        "data": {"type": "text_table", **OPTIONS, "validation_fraction": 0.3},
        "teacher": {"type": "sequence_classifier", "model": "teacher"},
        "space": {"derive": "teacher", "width": [1.0], "heads": [1.0]},
        "costs": {},
        "training": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.001},
        "budget": {"trials": 2},
        "final": {"seeds": 1, "max_students": 1, "control": False},
        "export": {"formats": ["huggingface", "onnx", "safetensors", "student_py", "train_yaml", "model_card"]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "kdnas", "search", str(tmp_path), "--out", str(run), "--data-root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = run / "export"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(out / "huggingface")
    assert (network.config.num_labels, network.config.problem_type) == (1, "regression")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "huggingface")
    a, b, _ = rows(1, 5)[0]
    given = tokenizer([a], [b], return_tensors="pt")
    with torch.no_grad():
        wanted = float(network(**given).logits)
    for name in ("student.onnx", "student.py"):
        script = [sys.executable, str(out / "predict.py"), "--json", "--network", name, f"{a}\t{b}"]
        printed = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
        assert printed["value"] == pytest.approx(wanted, abs=1e-3)
    own = [sys.executable, str(out / "huggingface" / "predict.py"), f"{a}\t{b}"]
    output = subprocess.run(own, capture_output=True, text=True, check=True).stdout
    assert float(output.rpartition(":")[2]) == pytest.approx(wanted, abs=2e-3)
    assert "Spearman correlation" in (out / "MODEL_CARD.md").read_text()
