"""What travels with an exported network of texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdnas.core.arch import Arch
from kdnas.core.preprocessing import TextPreprocessing
from kdnas.core.text import language_modelling, text_classification
from kdnas.exporters import TrainedStudent
from kdnas.exporters._predict_text import write_text_predict
from kdnas.exporters.train_yaml import train_yaml

FILES = ("tokenizer.json", "tokenizer_config.json")


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
