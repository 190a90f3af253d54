"""A data function that draws: called once a run, what it gave is kept, and nothing else passes for it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import yaml
from workshops import workshop_of

from kdnas.controller.preparation import prepare_study
from kdnas.core.data import ImageData
from kdnas.datasets._kept import kept_data
from kdnas.errors import DataError
from kdnas.study.config import DataConfig
from kdnas.study.loading import load_study
from kdnas.workshop.opening import MadeOn, load_data

LOADER = """
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

def load(root, seed=None):
    with (Path(root) / "calls").open("a") as file:
        file.write("x")
    digits = load_digits()
    images, labels = (digits.images * 15).astype("uint8")[:600], digits.target[:600]
    if seed == "global":
        order = np.random.permutation(600)
    elif seed == "torch":
        order = torch.randperm(600).numpy()
    else:
        order = np.random.default_rng(seed).permutation(600)
    return images[order[:500]], labels[order[:500]], images[order[500:]], labels[order[500:]]
"""
DRAWS = DataConfig(type="module", function="load.py:load")
SEEDED = DataConfig(type="module", function="load.py:load", options={"seed": 1})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "load.py").write_text(LOADER)
    return tmp_path


def _read(
    reader: Literal["controller", "worker", "afterwards"],
    config: DataConfig,
    root: Path,
    cache: Path,
    fingerprint: str,
    notify: Callable[[str], None] = lambda line: None,
) -> ImageData:
    made_on = MadeOn(fingerprint, reader=reader)
    return workshop_of(config, data_root=root, cache=cache, made_on=made_on, notify=notify).data


_reread = partial(_read, "controller")


def calls(root: Path) -> int:
    return (root / "calls").stat().st_size


def test_workers_open_what_the_controller_opened_without_another_call(root: Path, tiny_study: Path) -> None:
    path = tiny_study / "study.yaml"
    plain = yaml.safe_load(path.read_text())
    plain["data"] = {"type": "module", "function": "load.py:load"}
    plain["teacher"]["training"] |= {"epochs": 8, "batch_size": 16}
    path.write_text(yaml.safe_dump(plain))
    notes: list[str] = []

    def prepare():
        return prepare_study(
            load_study(tiny_study),
            root / "run",
            data_root=root,
            cache=root / "cache",
            device=torch.device("cpu"),
            observe=lambda event: notes.append(getattr(event, "text", "")),
        )

    (root / "run").mkdir()
    opened = prepare()
    assert calls(root) == 1
    for _ in range(2):
        worker = pickle.loads(pickle.dumps(opened.workplan))()
        assert worker.fingerprints == opened.evaluator.fingerprints
        np.testing.assert_array_equal(
            worker.workshop.data.test.inputs["pixels"], opened.evaluator.workshop.data.test.inputs["pixels"]
        )
    assert calls(root) == 1
    assert not any("whenever it is called" in note for note in notes)
    resumed = prepare()
    assert resumed.evaluator.fingerprints == opened.evaluator.fingerprints
    assert any("load.py:load gives other data whenever it is called" in note for note in notes)


def test_commands_on_a_run_take_its_data_from_the_cache(root: Path) -> None:
    cache = root / "cache"
    data = load_data(DRAWS, root, cache)
    printed: list[str] = []
    again = _read("afterwards", DRAWS, root, cache, data.fingerprint, notify=printed.append)
    assert (again.fingerprint, calls(root)) == (data.fingerprint, 1)
    assert "load.py:load is not called again" in printed[0]
    with pytest.raises(DataError, match="the function draws without a seed, or was changed"):
        _read("afterwards", DRAWS, root, root / "elsewhere", data.fingerprint)


def test_a_resumed_run_tells_drawn_data_from_changed_data(root: Path) -> None:
    cache, printed = root / "cache", []
    drawn = load_data(DRAWS, root, cache)
    assert _reread(DRAWS, root, cache, drawn.fingerprint, notify=printed.append).fingerprint == drawn.fingerprint
    assert len(printed) == 1
    seeded = load_data(SEEDED, root, cache)
    before = calls(root)
    assert _reread(SEEDED, root, cache, seeded.fingerprint, notify=printed.append).fingerprint == seeded.fingerprint
    assert (calls(root), len(printed)) == (before + 1, 1)
    # Another seed gives one other thing: that is what the caller gets, and refuses.
    assert _reread(SEEDED, root, cache, drawn.fingerprint, notify=printed.append).fingerprint == seeded.fingerprint
    with pytest.raises(DataError, match="which are no longer in"):
        _reread(DRAWS, root, cache, "0" * 64, notify=printed.append)


@pytest.mark.parametrize("generator", ["global", "torch"])
def test_drawing_from_a_shared_generator_shows_within_one_process(root: Path, generator: str) -> None:
    config = DataConfig(type="module", function="load.py:load", options={"seed": generator})
    cache, printed = root / "cache", []
    np.random.seed(5)
    torch.manual_seed(5)
    drawn = load_data(config, root, cache)
    np.random.seed(6)
    torch.manual_seed(6)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    again = _reread(config, root, cache, drawn.fingerprint, notify=printed.append)
    assert again.fingerprint == drawn.fingerprint
    assert "gives other data whenever it is called" in printed[0]
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_files_are_read_anew_for_a_run_and_found_by_content_for_a_worker(root: Path) -> None:
    cache, digits = root / "cache", DataConfig(type="digits")
    data = load_data(digits, root, cache)
    assert _read("afterwards", digits, root, cache, "0" * 64).fingerprint == data.fingerprint  # the caller compares
    assert _read("worker", digits, root, cache, data.fingerprint).fingerprint == data.fingerprint
    with pytest.raises(DataError, match="gives other data"):
        _read("worker", digits, root, cache, "0" * 64)
    for meta in (cache / "datasets").glob("*/meta.json"):
        meta.write_text("{")
    assert kept_data(cache, data.fingerprint) is None
