"""The verbs after a search meet faults: nothing half is left, and the same command gives what it would have given."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import faulty_run
import pytest
import safetensors.torch
from faulty_run import Ended
from trained_run import member_of, study_config, trained_run

from kdnas.record.records import RunRecord
from kdnas.workshop.opening import load_data

STOPS = {"kill": -9, "term": 143, "int twice": 130}
BROKEN = {
    "full": "File too large",  # what the system says where no file may grow
    "enospc": "No space left on device",
    "eio": "Input/output error",
    "read-only": "Read-only file system",
    "memory": "memory",
}
POINTS = {
    "train": ("epoch:2", "replacing:4", "replacing:11", "export:2"),
    "export": ("export:1", "export:4"),
}
"""Of train: an epoch is done; its checkpoint and the result are put in their place; a student is written. Of export:
a format is written; files are moved to where they go."""
COUNTED = "epoch:99=kill"
"""Never reached; the epochs are counted all the same."""
EPOCHS, TEACHERS_EPOCHS = 4, 6
QUICK = {
    ("train", "replacing:4", "kill"),
    ("train", "epoch:2", "int twice"),
    ("train", "replacing:4", "enospc"),
    ("train", "epoch:2", "full"),
    ("export", "export:1", "term"),
    ("export", "export:4", "kill"),
    ("export", "export:1", "full"),
    ("export", "export:4", "read-only"),
}


@dataclass(frozen=True)
class Bench:
    """A hand-written run that the commands find under its folder, and what they are to make of it."""

    run: RunRecord
    counts: Path

    def ask(self, verb: str, out: Path, faults: str = "") -> Ended:
        """Run the verb, which writes to `out`."""
        more = ("--epochs", EPOCHS, "--pick", "knee") if verb == "train" else ()
        formats = ("--format", "safetensors", "--format", "train_yaml")
        return faulty_run.run(
            verb, self.run.folder, *more, *formats, "--out", out, faults=faults, counts=self.counts / out.name
        )


@pytest.fixture(scope="module")
def bench(kdnas_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("verbs")
    record = trained_run(folder / "run", load_data(study_config().data, folder, kdnas_cache))
    (folder / "counts").mkdir()
    bench = Bench(record, folder / "counts")
    with pytest.MonkeyPatch.context() as patch:
        find_it(bench, patch)
        for verb in POINTS:
            ended = bench.ask(verb, folder / verb)
            assert ended.code == 0, ended.stderr
    return bench


def find_it(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kdnas.record.storage.load_run", lambda folder: bench.run)
    patch.setattr("kdnas.record.front.pick", lambda run, text: member_of(bench.run))


def content(out: Path) -> dict[str, str]:
    """What lies in a folder, without the times that a training took."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if path.name == "history.csv":
            rows = csv.reader(path.read_text().splitlines())
            found[path.name] = "\n".join(",".join(row[:2]) for row in rows)
        elif path.name == "result.json":
            plain = json.loads(path.read_text())
            found[path.name] = str(
                {key: value for key, value in plain.items() if key in ("epochs", "score", "test_score")}
            )
        elif path.suffix == ".safetensors":  # what is told beside the tensors comes in any order
            tensors = safetensors.torch.load_file(path)
            found[path.name] = str({name: tensor.tolist() for name, tensor in sorted(tensors.items())})
        else:
            found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def cells() -> list[object]:
    chosen = [(verb, point, fault) for verb, points in POINTS.items() for point in points for fault in STOPS]
    written = [(verb, point) for verb, points in POINTS.items() for point in points if not point.startswith("epoch")]
    chosen += [(verb, point, fault) for verb, point in written for fault in ("enospc", "eio", "read-only")]
    chosen += [("train", "epoch:2", "full"), ("export", "export:1", "full"), ("train", "epoch:2", "memory")]
    return [
        pytest.param(*cell, id=f"{cell[0]}-{cell[1]}={cell[2]}", marks=() if cell in QUICK else pytest.mark.slow)
        for cell in chosen
    ]


@pytest.mark.parametrize(("verb", "point", "fault"), cells())
def test_a_verb_that_meets_a_fault_ends_as_undisturbed(
    verb: str, point: str, fault: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_it(bench, monkeypatch)
    out = tmp_path / f"{verb}-{fault}-{point.replace(':', '-')}"
    met = bench.ask(verb, out, f"{point}={fault},{COUNTED}")
    assert "Traceback" not in met.stderr
    assert "internal error" not in met.stderr
    if fault in STOPS:
        assert met.code == STOPS[fault], met.stderr
        assert fault == "kill" or "interrupted" in met.stderr
    else:
        assert met.code in (1, 2), met.stderr
        assert BROKEN[fault] in met.stderr
        assert met.stderr.splitlines()[-1].startswith("error: ")
    if verb == "export" and point != "export:4":
        assert not out.exists()
    faulty_run.age(tmp_path)
    again = bench.ask(verb, out, COUNTED)
    assert again.code == 0, again.stderr
    if verb == "train":  # an epoch that is kept is not trained again
        assert (bench.counts / out.name / "epoch").stat().st_size == EPOCHS
    assert content(out) == content(bench.counts.parent / verb)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def half_trained(bench: Bench, out: Path) -> None:
    assert bench.ask("train", out, "epoch:2=kill").code == -9


@pytest.mark.parametrize("kept", ["checkpoint.safetensors", "history.csv", "training.lock.yaml"])
@pytest.mark.parametrize(
    "damage", [b"", pytest.param(b"\xff\xfe{[", marks=pytest.mark.slow), pytest.param(b"[" * 9999, id="deep")]
)
def test_a_damaged_file_of_a_training_is_named_or_made_anew(
    kept: str, damage: bytes, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_it(bench, monkeypatch)
    out = tmp_path / f"train-{kept}-{len(damage)}"
    half_trained(bench, out)
    sound = (out / kept).read_bytes()
    (out / kept).write_bytes(damage)
    again = bench.ask("train", out)
    if again.code == 2:
        assert str(out / kept) in again.stderr
        assert "internal error" not in again.stderr
        assert (out / kept).read_bytes() == damage
        (out / kept).write_bytes(sound)
        again = bench.ask("train", out)
    assert again.code == 0, again.stderr
    assert content(out) == content(bench.counts.parent / "train")


def test_a_training_whose_cache_is_wiped_goes_on(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_it(bench, monkeypatch)
    out = tmp_path / "train-wiped"
    half_trained(bench, out)
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache"))
    again = bench.ask("train", out, COUNTED)
    assert again.code == 0, again.stderr
    assert (bench.counts / out.name / "epoch").stat().st_size == EPOCHS + TEACHERS_EPOCHS
    assert content(out) == content(bench.counts.parent / "train")
