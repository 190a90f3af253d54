"""Lists of candidates for a query: what is read, what a teacher must be, what is learnt, and a whole study."""

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

from kdnas.cli.main import main
from kdnas.core.objective import ACCURACY, MRR
from kdnas.core.text import RankingData
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, DataError, TeacherError
from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes, Taps, mask_place
from kdnas.students import family_for
from kdnas.study.loading import load_study
from kdnas.tasks import task_of
from kdnas.tasks._texts import TextViews
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.evaluation import evaluate
from kdnas.training.loss import TrainingLoss
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training, training_for
from kdnas.training.teacher_cache import ViewsKey
from kdnas.workshop.loss_check import check_losses
from kdnas.workshop.opening import first_samples
from kdnas.workshop.teacher_check import report_teacher

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
K = 4
WORDS = "a fine day no good at all then some bad worse sun rain wind cold warm".split()  # noqa: SIM905


def lists(count: int, seed: int) -> list[dict[str, Any]]:
    """Return queries, of whose candidates the right one has their words in it, in another order."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        query = list(rng.choice(WORDS, 4, replace=False))
        label = int(rng.integers(K))
        candidates = [" ".join(rng.choice(WORDS, rng.integers(3, 8))) for _ in range(K)]
        candidates[label] = " ".join(rng.permutation(query))
        made.append({"query": " ".join(query), "candidates": candidates, "label": label})
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_root(folder: Path) -> Path:
    """Write lists, and a small BERT whose one output is fitted to tell the right candidates."""
    from kdnas.tokenizing import Tokenizer, train_tokenizer

    for name, count, seed in (("train", 60, 0), ("test", 20, 1)):
        write(folder / f"{name}.jsonl", lists(count, seed))
    train_tokenizer("bpe", WORDS, folder / "teacher", vocabulary=300, purpose="labelled")
    tokenizer = Tokenizer(folder / "teacher")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.size, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=48, num_labels=1, initializer_range=0.08,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        pairs = [(row["query"], one) for row in lists(60, 0) for one in row["candidates"]]
        found = tokenizer.encode(pairs, 48)
        ids, segments, mask = torch.zeros(3, len(found), 48, dtype=torch.int64)
        for place, one in enumerate(found):
            there = slice(0, len(one.ids))
            ids[place, there], segments[place, there] = torch.tensor(one.ids), torch.tensor(one.segments)
            mask[place, there] = 1
        pooled = network.bert(ids, mask, segments).pooler_output
        wanted = torch.tensor([float(n == row["label"]) for row in lists(60, 0) for n in range(K)])[:, None]
        read = torch.cat([pooled, torch.ones(len(pooled), 1)], 1)
        weights = torch.linalg.solve(read.T @ read + 0.05 * torch.eye(65), read.T @ wanted)
        network.classifier.weight.copy_(8 * weights[:-1].T)
        network.classifier.bias.copy_(8 * weights[-1])
    network.save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("lists"))


OPTIONS = {"train": "train.jsonl", "test": "test.jsonl", "tokenizer": "teacher", "length": 32}


@pytest.fixture(scope="module")
def data(root: Path) -> RankingData:
    found: RankingData = DATASETS.build("text_lists", root, root / "cache", **OPTIONS)
    return found


def open_teacher(root: Path, data: Any, **options: Any) -> Teacher:
    context = TeacherContext(data, root, CPU, pytest.fail)
    stated = options or {"type": "sequence_classifier", "model": "teacher"}
    teacher: Teacher = TEACHERS.build(stated.pop("type"), context, **stated)
    return teacher


def plain(data: RankingData, count: int) -> Any:
    (batch,) = Batches(data, np.arange(count), device=CPU).ordered(batch_size=count)
    return batch


# -- the data ----------------------------------------------------------------------------------------------------------


def test_each_pair_is_what_the_teachers_tokenizer_makes_and_scored_as_by_its_library(
    root: Path, data: RankingData
) -> None:
    teacher, batch = open_teacher(root, data), plain(data, 6)
    assert data.task.inputs[0].shape == (32,)
    assert data.train.inputs["tokens"].shape == (60, K, 32)
    assert (data.task.outputs, data.task.logits, data.task.samples) == (1, K, "lists")
    own = transformers.AutoModelForSequenceClassification.from_pretrained(root / "teacher").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "teacher")
    rows = lists(60, 0)[:6]
    given = tokenizer(
        [row["query"] for row in rows for _ in range(K)],
        [one for row in rows for one in row["candidates"]],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=32,
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        wanted = own(**{name: given[name] for name in names}).logits.view(6, K)
        assert torch.allclose(teacher.module(*batch.inputs), wanted, atol=1e-5)
    assert batch.targets.tolist() == [row["label"] for row in rows]


def test_columns_of_candidates_are_what_a_column_of_lists_is(root: Path, data: RankingData, tmp_path: Path) -> None:
    for name, count, seed in (("train", 60, 0), ("test", 20, 1)):
        cells = [[row["query"], *row["candidates"], str(row["label"])] for row in lists(count, seed)]
        lines = ["\t".join(row) for row in [["q", "a", "b", "c", "d", "right"], *cells]]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "teacher").symlink_to(root / "teacher")
    columns = {"query_column": "q", "candidates": ("a", "b", "c", "d"), "label_column": "right"}
    stated = {**OPTIONS, "train": "train.tsv", "test": "test.tsv", **columns}
    found = DATASETS.build("text_lists", tmp_path, tmp_path / "cache", **stated)
    assert np.array_equal(found.train.inputs["tokens"], data.train.inputs["tokens"])
    assert np.array_equal(found.train.targets, data.train.targets)


GOOD = lists(8, 0)


def changed(place: int, **cells: Any) -> list[dict[str, Any]]:
    return [{**row, **cells} if number == place else row for number, row in enumerate(GOOD)]


BAD = {
    "another length": (changed(3, candidates=["a", "b"]), "line 4: has 2 candidates, the first list 4"),
    "one candidate": ([{**row, "candidates": ["a"]} for row in GOOD], "has 1 candidate, and there is nothing to rank"),
    "empty candidate": (
        changed(2, candidates=["a", " ", "b", "c"]),
        "line 3: its candidate 1, counted from 0, is empty",
    ),
    "empty query": (changed(2, query=""), "line 3: its query is empty"),
    "label out of range": (changed(1, label=4), "line 2: its label is 4, the place of none of its candidates.*0 to 3"),
    "labels from 1": ([{**row, "label": n % 4 + 1} for n, row in enumerate(GOOD)], "seem to count from 1"),
    "a label in words": (changed(1, label="sun"), "line 2: its label is sun, the place of none"),
    "no label": (changed(1, label=None), "line 2: has no label"),
    "a candidate that is no text": (changed(5, candidates=["a", 7, "b", "c"]), "line 6: its text is int '7'"),
    "missing column": ([{"query": "a", "label": 0}] * 8, "no columns are called as a query and its candidates"),
    "no lists": ([{**row, "candidates": "a"} for row in GOOD], "has 1 candidate"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_list_is_named(case: str, tmp_path: Path) -> None:
    rows, told = BAD[case]
    write(tmp_path / "lists.jsonl", rows)
    stated = {"train": "lists.jsonl", "test_fraction": 0.25, "tokenizer": "bytes"}
    with pytest.raises(DataError, match=told):
        DATASETS.build("text_lists", tmp_path, tmp_path / "cache", **stated)


def test_query_and_candidates_are_named_together(tmp_path: Path) -> None:
    write(tmp_path / "lists.jsonl", GOOD)
    stated = {"train": "lists.jsonl", "test_fraction": 0.25, "tokenizer": "bytes", "query_column": "query"}
    with pytest.raises(ConfigError, match="both `query_column` and `candidates`"):
        DATASETS.build("text_lists", tmp_path, tmp_path / "cache", **stated)
    with pytest.raises(DataError, match="has no column 'endings'"):
        DATASETS.build("text_lists", tmp_path, tmp_path / "cache", **stated, candidates="endings")


def test_lists_that_repeat_in_the_test_split_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "test.jsonl", GOOD[:3])
    stated = {"train": "train.jsonl", "test": "test.jsonl", "tokenizer": "bytes"}
    found = DATASETS.build("text_lists", tmp_path, tmp_path / "cache", **stated)
    assert "3 of 3 test lists are training lists as well" in found.notes


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_ranks_and_equal_candidates_of_chance(data: RankingData) -> None:
    task, generator = task_of(data.task), torch.Generator().manual_seed(0)
    logits = torch.randn((200, K), generator=generator)
    targets = torch.randint(0, K, (200,), generator=generator)
    ranks = [row.argsort(descending=True).tolist().index(int(t)) + 1 for row, t in zip(logits, targets, strict=True)]
    found = task.scores(task.tally(Rows(logits, targets)))
    assert found[ACCURACY.name] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found[MRR.name] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    same = task.scores(task.tally(Rows(torch.zeros(200, K), targets)))
    assert same[ACCURACY.name] == pytest.approx(1 / K)
    assert same[MRR.name] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / K)
    assert task.worst(targets.numpy()) == pytest.approx(1 / K)
    two_level = task.scores(task.tally(Rows(torch.tensor([[1.0, 1.0, 0.0, 2.0]]), torch.tensor([0]))))
    assert two_level[MRR.name] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert np.isnan(task.score(task.tally(Rows(torch.full((1, K), torch.nan), torch.tensor([0])))))


# -- learning ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_lists_is_rocketqas_in_closed_form() -> None:
    ours, theirs = torch.randn((9, K), dtype=torch.float64), torch.randn((9, K), dtype=torch.float64)
    right, hot = torch.randint(0, K, (9,)), 2.0
    recipe = Distillation(task_weight=0.5, losses=({"type": "kd", "weight": 1.0, "temperature": hot},))
    loss = TrainingLoss(recipe, OutputShapes(K), {"teacher": OutputShapes(K)}, seed=0)
    value = loss(
        Outputs(ours.float()), OutputsByTeacher({"teacher": Outputs(theirs.float())}), Rows(ours.float(), right)
    )
    p, q = (np.exp(x.numpy() / hot) / np.exp(x.numpy() / hot).sum(1, keepdims=True) for x in (theirs, ours))
    plain_q = np.exp(ours.numpy()) / np.exp(ours.numpy()).sum(1, keepdims=True)
    wanted = hot**2 * (p * np.log(p / q)).sum(1).mean() - 0.5 * np.log(plain_q[np.arange(9), right.numpy()]).mean()
    assert float(value) == pytest.approx(wanted, abs=1e-5)


def test_every_loss_learns_of_lists_or_of_pairs_or_is_refused(root: Path, data: RankingData) -> None:
    teacher, family = open_teacher(root, data), family_for("bert", data.task, {})
    student = family.build(family.canonical({"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 1.0}))
    refused = set()
    for name in LOSSES.names():
        losses = (LossTerm(type=name),)
        recipe = Recipe(training=Training(), distillation=Distillation(task_weight=1.0, losses=losses))
        try:
            check_losses(recipe, teacher, {"a student": student}, data, device=CPU)
        except ConfigError:
            refused.add(name)
    assert {"kd", "dkd", "listwise", "hidden", "rkd", "relations", "cosine", "mse"}.isdisjoint(refused)
    assert {"srrl", "exits"} <= refused


def test_padding_counts_in_no_layer(root: Path, data: RankingData) -> None:
    teacher, batch = open_teacher(root, data), plain(data, 5)
    with (
        torch.no_grad(),
        Taps(teacher.module, teacher.stages, teacher.classifier, mask=mask_place(data.task)) as tapped,
    ):
        outputs = tapped(*batch.inputs)
    assert outputs.logits.shape == (5, K)
    assert outputs.mask is not None
    assert outputs.embedding is not None
    assert outputs.mask.shape == outputs.stages[0].shape[:2]
    assert torch.equal(outputs.mask, batch.inputs[1].flatten(0, 1))
    assert len(outputs.embedding) == 5 * K
    key = ViewsKey("t", "d", "", 0, "float32", "cpu", 5, K, outputs.embedding.shape[1], embeddings=K)
    rows, _ = key.pack([outputs])
    back = key.unpack(torch.from_numpy(rows), None)
    assert rows.shape == (5, key.width)
    assert torch.equal(back.logits, outputs.logits)
    assert back.embedding is not None
    assert torch.equal(back.embedding, outputs.embedding)


def test_hidden_tokens_are_drawn_for_each_candidate(data: RankingData) -> None:
    train = Batches(data, np.arange(16), device=CPU)
    views = TextViews(token_dropout=0.5)
    one = next(train.epoch(0, batch_size=16, views=views, seed=1))
    other = next(train.epoch(0, batch_size=4, views=views, seed=1))
    place = one.samples.tolist().index(int(other.samples[0]))
    length = min(one.inputs[1].shape[-1], other.inputs[1].shape[-1])
    assert torch.equal(one.inputs[1][place, :, :length], other.inputs[1][0, :, :length])
    hidden = [tuple(row.tolist()) for row in one.inputs[1][:, :, :6].flatten(0, 1)]
    assert len(set(hidden[:K])) > 1
    assert all(row[0] == 1 for row in hidden)


# -- teachers and students ---------------------------------------------------------------------------------------------


def test_the_teacher_is_scored_and_one_that_knows_nothing_is_refused(root: Path, data: RankingData) -> None:
    teacher, training = open_teacher(root, data), training_for("text_ranking")(precision="float32")
    report = report_teacher(teacher, data, np.arange(60), training, device=CPU)
    batch = plain(data, 60)
    with torch.no_grad():
        first = teacher.module(*batch.inputs).argmax(1) == batch.targets
    assert report.score == pytest.approx(float(first.float().mean()))
    assert report.score > 0.5
    assert evaluate(teacher.module, Batches(data, np.arange(60), device=CPU), training, batch_size=7) == report.score
    with torch.no_grad():
        teacher.module.network.classifier.weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(TeacherError, match=r"25.00 % is reached by one constant output"):
        report_teacher(teacher, data, np.arange(60), training, device=CPU)


def test_a_teacher_of_classes_is_told_what_is_wanted(root: Path, data: RankingData, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(root / "teacher", num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "teacher" / file).write_bytes((root / "teacher" / file).read_bytes())
    with pytest.raises(TeacherError, match="names one of 2 classes.*num_labels 1"):
        open_teacher(tmp_path, data)


_OWN = """
import torch
class Overlap(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(outputs))
    def forward(self, tokens, mask, segments):
        counts = torch.nn.functional.one_hot(tokens, 300) * mask[:, :, None]
        first = ((1 - segments)[:, :, None] * counts).sum(1) > 0
        second = (segments[:, :, None] * counts).sum(1) > 0
        return (first & second).sum(1, keepdim=True) * self.scale
def build(outputs=1):
    return Overlap(outputs)
"""


def test_a_module_of_ones_own_scores_pairs(root: Path, data: RankingData, tmp_path: Path) -> None:
    (tmp_path / "own_overlap.py").write_text(_OWN)
    torch.save({"scale": torch.ones(1)}, tmp_path / "one.pt")
    torch.save({"scale": torch.ones(2)}, tmp_path / "two.pt")
    teacher = open_teacher(tmp_path, data, type="module", factory="own_overlap.py:build", weights="one.pt")
    batch = plain(data, 60)
    assert teacher.module(*batch.inputs).shape == (60, K)
    assert float((teacher.module(*batch.inputs).argmax(1) == batch.targets).float().mean()) > 0.5
    with pytest.raises(TeacherError, match="it gives 2 numbers for a query with one candidate"):
        open_teacher(
            tmp_path, data, type="module", factory="own_overlap.py:build", arguments={"outputs": 2}, weights="two.pt"
        )


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_students_are_cut_out_of_it_and_the_whole_one_is_the_teacher(
    importance: str, root: Path, data: RankingData
) -> None:
    teacher, train = open_teacher(root, data), Batches(data, np.arange(60), device=CPU)
    family = family_for(
        "derived", data.task, {"teacher": teacher}, lambda count: first_samples(train, count),
        options={"importance": importance},
    )  # fmt: skip
    batch = plain(data, 9)
    whole, half = (family.inherit(family.canonical(one)) for one in ({}, {"depth": 2, "inner": 0.5}))
    with torch.no_grad():
        assert torch.allclose(whole(*batch.inputs), teacher.module(*batch.inputs), atol=1e-5)
        assert half(*batch.inputs).shape == (9, K)


# -- a whole study -----------------------------------------------------------------------------------------------------


def search(root: Path, folder: Path, formats: list[str]) -> Path:
    """Search with losses of lists and of layers, and return the run folder."""
    study = {
        "name": "lists",
        "data": {"type": "text_lists", **OPTIONS, "validation_fraction": 0.3},
        "teacher": {"type": "sequence_classifier", "model": "teacher"},
        "space": {"derive": "teacher", "depth": [1, 2], "width": [1.0], "heads": [1.0], "inner": [1.0]},
        "objectives": ["mrr", "macs"],
        "costs": {},
        "distillation": {"task_weight": 0.3, "losses": [{"type": "kd", "temperature": 1}, {"type": "hidden"}]},
        "training": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.001},
        "budget": {"trials": 1},
        "final": {"seeds": 1, "max_students": 1, "control": False},
        "export": {"formats": formats},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    run = folder / "run"
    assert main(["search", str(folder), "--data-root", str(root), "--out", str(run), "--workers", "1"]) == 0
    return run


def test_a_search_from_the_command_line_scores_lists(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = search(root, tmp_path, [])
    capsys.readouterr()
    assert main(["front", str(run), "--json"]) == 0
    (member,) = json.loads(capsys.readouterr().out)["front"]
    assert (1 + 1 / 2 + 1 / 3 + 1 / 4) / K < member["values"]["mrr"] <= 1
    report = (run / "report.html").read_text()
    assert "lists of 4 candidates" in report
    assert "Costs are those of scoring one candidate of a list." in report
    assert "At 90 %, mean reciprocal rank on so many lists has a sampling error of at most" in report
    assert "moves in steps" not in report  # as shares of right answers do


@pytest.mark.slow
def test_a_search_ends_in_folders_that_rank(root: Path, tmp_path: Path) -> None:
    run = search(root, tmp_path, ["huggingface", "onnx", "student_py", "safetensors", "train_yaml", "model_card"])
    card = (run / "export" / "MODEL_CARD.md").read_text()
    assert "a query with one candidate, 32 tokens, in, the score of the candidate out" in card
    assert not [word for word in ("classes", "image", "picture") if word in card]
    printed = {}
    for folder in (run / "export", run / "export" / "huggingface"):
        asked = ["a fine day", "sun rain", "day a fine", "cold"]
        command = [sys.executable, str(folder / "predict.py"), *asked]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        lines = [line.split(None, 1) for line in done.stdout.splitlines() if line != asked[0]]
        printed[folder] = [(float(score), candidate) for score, candidate in lines]
        assert sorted(candidate for _, candidate in printed[folder]) == sorted(asked[1:])
        assert printed[folder] == sorted(printed[folder], reverse=True)
    one, other = printed.values()
    assert [candidate for _, candidate in one] == [candidate for _, candidate in other]
    assert [score for score, _ in one] == pytest.approx([score for score, _ in other], rel=2e-3, abs=1e-3)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(run / "export" / "huggingface")
    assert opened.config.num_labels == 1
    wrong = subprocess.run(
        [sys.executable, str(run / "export" / "predict.py"), "a", " "], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "none of them empty" in wrong.stderr


def test_bad_lists_end_a_command_with_code_2(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train.jsonl", changed(1, label=4))
    data = {"type": "text_lists", "train": "train.jsonl", "test_fraction": 0.25, "tokenizer": "bytes"}
    training = {"epochs": 1, "batch_size": 4}
    teacher = {
        "type": "student",
        "family": "bert",
        "choices": {"width": 16, "depth": 1, "heads": 1},
        "training": training,
    }
    study = {"name": "bad", "data": data, "teacher": teacher, "space": "texts_bert"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["validate", str(tmp_path), "--open", "--data-root", str(tmp_path)]) == 2
    assert "line 2: its label is 4, the place of none of its candidates" in capsys.readouterr().err
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "objectives": ["f1", "macs"]}))
    assert main(["validate", str(tmp_path), "--data-root", str(tmp_path)]) == 2
    assert "not scored by f1 (allowed: accuracy, mrr)" in capsys.readouterr().err


def test_a_new_study_of_a_file_of_lists_is_one_of_ranking(root: Path, tmp_path: Path) -> None:
    options = ["--data", "train.jsonl", "--teacher", "teacher", "--from-teacher", "--data-root", str(root)]
    assert main(["init", str(tmp_path / "s"), *options]) == 0
    config = load_study(tmp_path / "s").config
    assert (config.data.type, config.teacher and config.teacher.type) == ("text_lists", "sequence_classifier")
    assert config.objectives[0] == "accuracy"
