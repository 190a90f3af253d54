"""Language modelling on a small corpus: perplexity, pieces, what a teacher must be, and students cut out of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.text import CorpusData, language_modelling
from kdnas.datasets import DATASETS
from kdnas.errors import TeacherError
from kdnas.nn.pieces import InPieces
from kdnas.students import family_for
from kdnas.tasks import task_of
from kdnas.tasks.language_modelling import LanguageModelling
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate, evaluation_batch
from kdnas.training.loop import Course, Pupil, Trained, train
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
LENGTH = 16
FLOAT32 = {"precision": "float32"}
TALES = "".join(f"= {n} =\nOnce there was a king who had {n} sons, and one day they went away.\n" for n in range(60))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a small random GPT-2 as transformers saves it, with a tokenizer of bytes."""
    from kdnas.tokenizing import train_tokenizer

    folder = tmp_path_factory.mktemp("lm")
    (folder / "train.txt").write_text(TALES)
    (folder / "test.txt").write_text(TALES[:600])
    train_tokenizer("bytes", (), folder / "teacher", vocabulary=257, purpose="running")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=257, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    for dropout in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        setattr(config, dropout, 0.0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def data(root: Path) -> CorpusData:
    options = {"train": "train.txt", "test": "test.txt", "begins": "^= .* =$", "tokenizer": "teacher", "length": LENGTH}
    found: CorpusData = DATASETS.build("text_corpus", root, root / "cache", **options)
    return found


def open_teacher(root: Path, data: Any, model: str = "teacher") -> Teacher:
    teacher: Teacher = TEACHERS.build("causal_lm", TeacherContext(data, root, CPU, pytest.fail), model=model)
    return teacher


def test_the_score_is_the_perplexity_that_transformers_tells(root: Path, data: CorpusData) -> None:
    teacher = open_teacher(root, data)
    few = np.arange(40)
    score = evaluate(teacher.module, Batches(data, few, device=CPU), Training(**FLOAT32), batch_size=7)
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "teacher").eval()
    nats = []
    with torch.no_grad():
        for block in range(40):
            text = [*data.train.inputs["tokens"][block].tolist(), int(data.train.targets[block, -1])]
            # What transformers calls the loss is the mean over all tokens but the first.
            nats.append(float(model(torch.tensor([text]), labels=torch.tensor([text])).loss))
    assert score == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)


def test_the_worst_score_is_that_of_how_often_each_token_stands(data: CorpusData) -> None:
    task, targets = task_of(data.task), np.asarray(data.train.targets)
    counts = np.bincount(targets.ravel(), minlength=257)

    class Unigram(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            shares = torch.tensor(counts / counts.sum()).clamp_min(1e-12)
            return shares.log().float().expand(*tokens.shape, -1)

    every = Batches(data, np.arange(len(data.train)), device=CPU)
    assert task.worst(targets) == pytest.approx(evaluate(Unigram(), every, Training(**FLOAT32)), rel=1e-5)


def test_a_split_carves_a_stretch_of_text(data: CorpusData) -> None:
    task = LanguageModelling(data.task)
    kept, carved = task.split(data.train.targets, 0.2, 5)
    assert np.array_equal(np.diff(carved), np.ones(len(carved) - 1))
    assert np.array_equal(np.sort([*kept, *carved]), np.arange(len(data.train)))
    assert len(task.draw(data.train.targets, 1e-6, 0)) == 1


@pytest.mark.parametrize("size", [8, 5, 16])
def test_shorter_pieces_are_read_for_themselves(root: Path, data: CorpusData, size: int) -> None:
    network = open_teacher(root, data).module
    tokens = torch.from_numpy(np.asarray(data.train.inputs["tokens"][:3], dtype=np.int64))
    pieces = InPieces(network, size)(tokens)
    expected = torch.cat([network(part) for part in tokens.split(size, dim=1)], dim=1)
    torch.testing.assert_close(pieces, expected)


def test_a_batch_is_as_large_as_its_logits_allow(data: CorpusData) -> None:
    assert evaluation_batch(data.task, CPU) == 512
    assert evaluation_batch(language_modelling(256, 4096), CPU) == 16
    assert evaluation_batch(language_modelling(1024, 50_000), CPU) == 1


def recipe(**training: Any) -> Recipe:
    losses = (LossTerm(type="kd", weight=1.0, temperature=1.0),)
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.0,
        **FLOAT32,
    }
    return Recipe(
        training=Training(**{**settings, **training}), distillation=Distillation(task_weight=0.5, losses=losses)
    )


def distilled(root: Path, data: CorpusData, cache: TeacherCache | None) -> Trained:
    teacher = open_teacher(root, data)
    family = family_for("derived", data.task, {"teacher": teacher}, options={"importance": "l1"})
    arch = family.canonical({"depth": 2, "inner": 0.5, "heads": 0.5})
    course = Course(
        data,
        Batches(data, np.arange(64), device=CPU),
        Batches(data, np.arange(64, 96), device=CPU),
        teacher,
        0,
        CPU,
        cache,
    )
    (outcome,) = train(course, [Pupil(family.inherit(arch), recipe(), 1)])
    assert isinstance(outcome, Trained)
    return outcome


def test_students_cut_out_of_a_language_model_learn_from_it(root: Path, data: CorpusData, tmp_path: Path) -> None:
    live = distilled(root, data, None)
    kept = distilled(root, data, TeacherCache(tmp_path))
    assert live.score == kept.score
    assert live.score is not None
    assert (
        live.score
        < 150
        < evaluate(open_teacher(root, data).module, Batches(data, np.arange(9), device=CPU), Training())
    )
    few = distilled(root, data, TeacherCache(tmp_path, top_k=16))
    assert few.score == pytest.approx(live.score, rel=0.2)
    assert few.score != live.score


def test_the_width_of_a_language_model_is_cut_with_its_embeddings(root: Path, data: CorpusData) -> None:
    family = family_for("derived", data.task, {"teacher": open_teacher(root, data)}, options={"importance": "l1"})
    names = {choice.name for choice in family.space(_anything()).choices}
    assert names == {"depth", "width", "inner", "heads"}
    student = family.build(family.canonical({"width": 0.5}))
    own, cut = family.cut(family.canonical({"width": 0.5}), student) or pytest.fail("is its own kind")
    assert type(own).__name__ == "GPT2LMHeadModel"
    assert own.transformer.wte.weight.shape == (257, 16)
    assert own.lm_head.weight is own.transformer.wte.weight
    assert cut.origin.inputs == ("input_ids",)


def _anything() -> Any:
    from kdnas.core.space import SearchSpace

    return SearchSpace("derived", "derived", (), (), {})


# -- teachers that do not fit ------------------------------------------------------------------------------------------


def complaint(root: Path, data: Any, model: str) -> str:
    with pytest.raises(TeacherError) as caught:
        open_teacher(root, data, model)
    return str(caught.value)


def test_a_teacher_of_another_tokenizer_or_vocabulary(root: Path, data: CorpusData, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / "teacher", other)
    text = json.loads((other / "tokenizer.json").read_text())
    text["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(text))
    assert "its folder has another tokenizer than the one that read the data" in complaint(root, data, str(other))
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    printed = complaint(root, data, str(tmp_path / "small"))
    assert "it has embeddings for 300 tokens, and the data's tokenizer has 257" in printed
    assert "it takes 8 tokens, and the data's blocks have 16 (allowed: data.length: 8)" in printed


@pytest.mark.slow
def test_a_language_model_for_images(root: Path, digits: Any) -> None:
    assert "it continues running text, and the data digits are images" in complaint(root, digits, "teacher")
    assert "cannot be loaded" in complaint(root, data_of(root), "nowhere")


def data_of(root: Path) -> CorpusData:
    options = {"train": "train.txt", "test": "test.txt", "tokenizer": "teacher", "length": LENGTH}
    found: CorpusData = DATASETS.build("text_corpus", root, root / "cache", **options)
    return found


def test_archs_are_spelled_as_those_of_any_teacher(root: Path, data: CorpusData) -> None:
    family = family_for("derived", data.task, {"teacher": open_teacher(root, data)}, options={"importance": "l1"})
    assert isinstance(family.canonical({"depth": 1}), Arch)
    assert family.price(family.canonical({})).params == sum(
        p.numel() for p in open_teacher(root, data).module.parameters()
    )
