"""A folder of transformers is measured as it is: texts as long as it says, its own multiply-accumulates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdnas.cli.main import main
from kdnas.errors import ConfigError, DataError, TeacherError
from kdnas.tokenizing import train_tokenizer
from kdnas.workshop.measuring import subjects
from kdnas.workshop.stock_folder import StockFolder

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    made: dict[str, Any] = {
        "bert": transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=260, max_position_embeddings=48, num_labels=3, **SIZES)
        ),
        "value": transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=260, max_position_embeddings=48, num_labels=1, **SIZES)
        ),
        "gpt": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=257, n_positions=40, n_embd=32, n_layer=2, n_head=4)
        ),
        "encoder": transformers.BertModel(transformers.BertConfig(vocab_size=260, **SIZES)),
    }
    for name, network in made.items():
        purpose = "running" if name == "gpt" else "labelled"
        train_tokenizer("bytes", (), folder / name, vocabulary=260, purpose=purpose)  # type: ignore[arg-type]
        network.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "length", "outputs"),
    [
        ("bert", "text_classification", 48, 3),
        ("value", "text_regression", 48, 1),
        ("gpt", "language_modelling", 40, 257),
    ],
)
def test_its_shape_is_that_of_its_config_and_tokenizer(
    root: Path, name: str, kind: str, length: int, outputs: int
) -> None:
    (subject,) = subjects(root / name)
    assert (subject.task.kind, subject.task.size, subject.task.outputs) == (kind, length, outputs)
    price = subject.family.price(subject.arch)
    network = subject.family.build(subject.arch)
    assert price.params == sum(parameter.numel() for parameter in network.parameters())
    layers = 2 * (length * (4 * 32 * 32 + 2 * 32 * 64 if name != "gpt" else 12 * 32 * 32) + 2 * length * length * 32)
    head = {"bert": 32 * 32 + 32 * 3, "value": 32 * 32 + 32, "gpt": length * 32 * 257}[name]
    assert price.macs == layers + head
    assert network(*(torch.ones(1, length, dtype=torch.int64) for _ in subject.task.inputs)).isfinite().all()


def test_an_exports_own_length_comes_first_and_a_user_sees_it_measured(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "bert", tmp_path / "bert")
    (tmp_path / "bert/preprocessing.json").write_text(json.dumps({"length": 16}))
    assert subjects(tmp_path / "bert")[0].task.size == 16
    options = ["--repeats", "5", "--max-drift", "50", "--json"]
    assert main(["measure", str(tmp_path / "bert"), "--target", "cpu", *options]) == 0
    (report,) = json.loads(capsys.readouterr().out)["targets"]
    assert report["students"][0]["latency_ms"]["value"] > 0
    assert report["students"][0]["params"] > 10_000


def test_what_is_neither_a_classifier_nor_a_language_model_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a BertModel .*a text classifier or a language model"):
        StockFolder(root / "encoder")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        subjects(tmp_path)
    shutil.copytree(root / "gpt", tmp_path / "gpt")
    (tmp_path / "gpt/model.safetensors").unlink()
    with pytest.raises(TeacherError, match="cannot be loaded"):
        (subject,) = subjects(tmp_path / "gpt")
        subject.family.build(subject.arch)
