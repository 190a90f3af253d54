"""What travels with an exported network of texts."""

from __future__ import annotations

import dataclasses
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from kdnas.core.arch import Arch
from kdnas.core.preprocessing import TextPreprocessing
from kdnas.core.ruling import Rule, allowed
from kdnas.core.task import TaskSpec
from kdnas.core.text import language_modelling, text_classification, text_ranking
from kdnas.exporters import TrainedStudent
from kdnas.exporters._predict_text import write_text_predict
from kdnas.exporters.train_yaml import train_yaml
from kdnas.tokenizing import Tokenizer, train_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
LABELS = ("number", "person", "place")


@pytest.mark.parametrize("labels", [True, False])
def test_every_file_that_preprocessing_names_is_beside_the_network(tmp_path: Path, labels: bool) -> None:
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "out"
    for folder in (tokenizer, out):
        folder.mkdir()
    for name in FILES:
        (tokenizer / name).write_text(name)
    (out / "student.py").write_text("")
    student: Any = SimpleNamespace(
        spec=text_classification(8, 50, 2) if labels else language_modelling(8, 50),
        preprocessing=dataclasses.replace(TextPreprocessing(8), tokenizer=FILES),
        tokenizer=tokenizer,
    )
    names = write_text_predict(cast(TrainedStudent, student), out)
    assert names == ((*FILES, "predict.py") if labels else FILES)
    assert sorted(path.name for path in out.iterdir()) == sorted({*names, "student.py"})
    assert [(out / name).read_text() for name in FILES] == list(FILES)


@pytest.mark.parametrize(
    ("spec", "printed"),
    [
        (
            text_classification(8, 50, 2),
            ["training texts, drawn class by class by seed", "and tokens hidden at random", "of which 8 at most"],
        ),
        (
            language_modelling(8, 50),
            ["blocks, drawn as one stretch by seed", "cosine to zero)\n", "blocks of 8"],
        ),
    ],
)
def test_the_head_of_train_yaml_speaks_of_texts(tmp_path: Path, spec: Any, printed: list[str]) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    student: Any = SimpleNamespace(
        spec=spec, arch=Arch("gpt", {}), recipe={"seed": 0}, preprocessing=TextPreprocessing(8), tokenizer=tokenizer
    )
    train_yaml(cast(TrainedStudent, student), tmp_path)
    head = (tmp_path / "train.yaml").read_text().partition("seed: 0")[0]
    assert all(part in head for part in printed)
    assert not [word for word in ("pixel", "picture", "image", "channel") if word in head]


BYTES = 260


def written(
    folder: Path, spec: TaskSpec, labels: tuple[str, ...], rules: tuple[Rule, ...] = ()
) -> tuple[dict[str, Any], Tokenizer]:
    """Return what predict.py of a student of texts defines, written into `folder`, and its tokenizer of bytes."""
    tokenizer = train_tokenizer("bytes", (), folder / "tokenizer", vocabulary=BYTES, purpose="labelled")
    assert tokenizer.size == spec.inputs[0].levels
    stated = TextPreprocessing(32, labels, ("tokenizer.json",), rules)
    (folder / "student.py").write_text("")
    (folder / "preprocessing.json").write_text(json.dumps(stated.as_dict()))
    student: Any = SimpleNamespace(spec=spec, preprocessing=stated, tokenizer=folder / "tokenizer")
    write_text_predict(cast(TrainedStudent, student), folder)
    return runpy.run_path(str(folder / "predict.py")), tokenizer


def test_predict_keeps_to_the_rules_as_the_study_does(tmp_path: Path) -> None:
    rules = (Rule("^HOW many", then=("number",)), Rule("who", never=("number", "place")), Rule("x", never=LABELS))
    script, _ = written(tmp_path, text_classification(32, BYTES, 3), LABELS, rules)
    opened, logits = script["open_tokenizer"](), np.array([1.0, 2.0, 3.0])
    for text in ("how many are there?", "who is it?", "where is it?", "who is x?"):
        tokens = script["read"](opened, text)["tokens"]
        kept = np.isfinite(script["within_rules"](opened, tokens[0].tolist(), logits))
        assert kept.tolist() == allowed(text, rules, LABELS)
    assert allowed("how many are there?", rules, LABELS) == [True, False, False]
    assert allowed("who is x?", rules, LABELS) == [True, True, True]
    assert "rules" not in TextPreprocessing(32, LABELS).as_dict()


@pytest.mark.parametrize("pairs", [False, True])
def test_predict_reads_texts_as_the_study_does_and_no_half_pairs(
    tmp_path: Path, pairs: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, tokenizer = written(tmp_path, text_classification(32, BYTES, 3, pairs=pairs), LABELS)
    assert ("two texts" in script["__doc__"]) is pairs
    wanted = tokenizer.encode([("one", "and two")] if pairs else ["one"], 32)[0]
    text = " one \t\ufeffand two\r" if pairs else "\ufeffone \r"
    assert script["read"](script["open_tokenizer"](), text)["tokens"].tolist() == [list(wanted.ids)]
    monkeypatch.setitem(script["NETWORKS"], "student.py", lambda: lambda inputs: np.zeros((1, 3)))
    for wrong, told in (
        (("one", "put a tab between them"), ("one\t ", "lacks one")) if pairs else ((" ", "has no text"),)
    ):
        monkeypatch.setattr("sys.argv", ["predict.py", wrong])
        with pytest.raises(SystemExit) as ended:
            script["main"]()
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert told in printed.err
        assert not printed.out


def test_predict_ranks_the_candidates_of_a_query(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, tokenizer = written(tmp_path, text_ranking(32, BYTES, 4), ())
    assert script["__doc__"].startswith("Ranks candidates for a query with the network next to this script")
    seen: list[list[int]] = []

    def longest(inputs: Any) -> Any:
        seen.append(inputs["tokens"].tolist()[0])
        return inputs["mask"].sum(axis=1, keepdims=True).astype(float)

    monkeypatch.setitem(script["NETWORKS"], "student.py", lambda: longest)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        script["main"]()
        return capsys.readouterr().out

    printed = run("q", "ab", "abcd", "a")
    assert [line.split()[-1] for line in printed.splitlines()] == ["q", "abcd", "ab", "a"]
    assert seen[0] == list(tokenizer.encode([("q", "ab")], 32)[0].ids)
    found = json.loads(run("--json", "--top", "2", "q", "ab", "abcd", "a"))
    assert [one["candidate"] for one in found["candidates"]] == ["abcd", "ab"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("q\ta\tabc\n"))
    assert [line.split()[-1] for line in run().splitlines()] == ["q", "abc", "a"]
    for wrong in (("q",), ("q", " ")):
        with pytest.raises(SystemExit):
            run(*wrong)
        assert "none of them empty" in capsys.readouterr().err
