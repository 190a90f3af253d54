"""Two texts a sample: how they are cut, and teachers that tell them apart by segments or not at all."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kdnas.core.text import TextData
from kdnas.datasets import DATASETS
from kdnas.tasks import task_of
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.tokenizing import Tokenizer, train_tokenizer
from kdnas.training.batches import Batches

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
WORDS = "a fine day no good at all then some bad worse sun rain wind cold warm".split()  # noqa: SIM905
SMALL = {"max_position_embeddings": 100, "num_labels": 2, "initializer_range": 0.08}
MODELS: dict[str, Any] = {
    "Bert": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "Roberta": {
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        **{"type_vocab_size": 1, "pad_token_id": 0},
    },
    "DistilBert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
}


def rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        one = list(map(str, rng.choice(WORDS, rng.integers(3, 9))))
        other = list(map(str, rng.choice(WORDS[:4] if number % 2 else WORDS[8:], rng.integers(3, 9))))
        made.append((" ".join(one), " ".join(other), "early" if number % 2 else "late"))
    return made


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    for name, count, seed in (("train", 120, 0), ("test", 30, 1)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("premise", "hypothesis", "label"), *rows(count, seed)])
    tokenizer = train_tokenizer("bpe", WORDS, folder / "teacher", vocabulary=300, purpose="labelled")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=tokenizer.size, **MODELS[kind], **SMALL)
    network = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    head = [part for part in network.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 2][-1]
    fed: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda part, given: fed.append(given[0]))
    with torch.no_grad():
        for a, b, _ in rows(120, 0):
            (one,) = tokenizer.encode([(a, b)], 48)
            network(torch.tensor([list(one.ids)]), attention_mask=torch.ones(1, len(one.ids), dtype=torch.int64))
        handle.remove()
        read = torch.cat([torch.cat(fed), torch.ones(120, 1)], 1)
        wanted = torch.tensor([[3.0, -3.0] if label == "early" else [-3.0, 3.0] for _, _, label in rows(120, 0)])
        weights = torch.linalg.solve(read.T @ read + 0.1 * torch.eye(read.shape[1]), read.T @ wanted)
        head.weight.copy_(weights[:-1].T)
        head.bias.copy_(weights[-1])
    network.config.id2label, network.config.label2id = {0: "early", 1: "late"}, {"early": 0, "late": 1}
    network.save_pretrained(folder / "teacher")
    return folder


OPTIONS = {"train": "train.csv", "test": "test.csv", "tokenizer": "teacher", "length": 48}


@pytest.fixture(scope="module")
def data(root: Path) -> TextData:
    found: TextData = DATASETS.build("text_table", root, root / "cache", **OPTIONS)
    return found


def test_a_teacher_is_given_segments_where_it_has_two_kinds_of_them(root: Path, data: TextData, kind: str) -> None:
    context = TeacherContext(data, root, CPU, pytest.fail)
    teacher: Teacher = TEACHERS.build("sequence_classifier", context, model="teacher")
    (batch,) = Batches(data, np.arange(8), device=CPU).ordered(batch_size=8)
    assert [taken.name for taken in data.task.inputs] == ["tokens", "mask", "segments"]
    own = transformers.AutoModelForSequenceClassification.from_pretrained(root / "teacher").eval()
    tokens, mask, segments = batch.inputs
    more = {"token_type_ids": segments} if kind == "Bert" else {}
    with torch.no_grad():
        wanted = own(input_ids=tokens, attention_mask=mask, **more).logits
        assert torch.allclose(teacher.module(*batch.inputs), wanted, atol=1e-6)
    assert task_of(data.task).spec.rows == 1


def test_of_two_texts_the_longer_is_cut_first(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("bpe", WORDS, tmp_path / "t", vocabulary=300, purpose="labelled")
    long, short = " ".join(WORDS * 3), "a fine day"
    whole = len(tokenizer.encode([short], None, special=False)[0].ids)
    for pair in ((long, short), (short, long)):
        (one,) = tokenizer.encode([pair], 24)
        assert len(one.ids) == 24
        assert one.cut
        kept = [sum(place == side for place in one.segments) for side in (0, 1)]
        # Special tokens: [CLS] and [SEP] are of the first text, the last [SEP] of the second.
        assert kept[pair.index(short)] == whole + (2 if pair[0] == short else 1)
    assert not tokenizer.encode([(short, short)], 24)[0].cut
    both = tokenizer.encode([(long, long)], 23)[0]
    assert abs(sum(place == 0 for place in both.segments) - 12) <= 1
    assert Tokenizer(tmp_path / "t").encode([(short, short)], 24)[0].segments[-1] == 1


@pytest.mark.slow
def test_a_study_of_pairs_ends_in_exports_that_take_two_texts(root: Path, kind: str, tmp_path: Path) -> None:
    study = {
        "name": "pairs",
        "task": {"score": "f1"},
        "data": {"type": "text_table", **OPTIONS, "validation_fraction": 0.3},
        "teacher": {"type": "sequence_classifier", "model": "teacher"},
        "space": {"derive": "teacher", "width": [1.0], "heads": [1.0]},
        "costs": {},
        "training": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.001},
        "budget": {"trials": 2},
        "final": {"seeds": 1, "max_students": 1, "control": False},
        "export": {"formats": ["huggingface", "onnx", "safetensors", "train_yaml", "model_card"]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "kdnas", "search", str(tmp_path), "--out", str(run), "--data-root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = run / "export"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(out / "huggingface").eval()
    tokenizer = Tokenizer(out / "huggingface")
    (one,) = tokenizer.encode([rows(1, 7)[0][:2]], 48)
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if kind == "Bert" else ()))
    given = (torch.tensor([list(one.ids)]), torch.ones(1, len(one.ids)).long(), torch.tensor([list(one.segments)]))
    with torch.no_grad():
        share = float(network(**dict(zip(names, given, strict=False))).logits.softmax(1)[0, 0])
    asked = "\t".join(rows(1, 7)[0][:2])
    script = [sys.executable, str(out / "predict.py"), "--network", "student.onnx", asked]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert f"early {100 * share:.1f} %" in printed
    card = (out / "MODEL_CARD.md").read_text()
    assert "| mean macro F1 |" in card
    assert "| Matthews correlation |" in card
