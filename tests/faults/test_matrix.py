"""A search meets every fault at every named point: nothing finished is lost or trained twice, and it can go on.

Each cell runs a search that meets one fault, then the same command again without it. A third run, undisturbed, says
what must come of it. The searches answer their jobs themselves: one worker, so that the tables have to be equal.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import faulty_run
import pytest
import scored_study
from faulty_run import Ended

TRIALS = 4


@dataclass(frozen=True)
class Whole:
    """The study, and its run as it should be."""

    study: Path
    folder: Path
    calls: list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    parent = tmp_path_factory.mktemp("whole")
    study = scored_study.write(parent, score=faulty_run.LOGGED, budget={"trials": TRIALS}, sampler="tpe")
    ended = search(study, parent / "run")
    assert ended.code == 0, ended.stderr
    calls = faulty_run.calls(study)
    assert len(calls) == TRIALS + 2
    return Whole(study, parent / "run", calls)


def search(study: Path, folder: Path, *more: object, **options: object) -> Ended:
    return faulty_run.run("search", study, "--out", folder, "--data-root", study, *more, **options)


def own_study(whole: Whole, parent: Path) -> Path:
    study = parent / "scored"
    shutil.copytree(whole.study, study, ignore=shutil.ignore_patterns("calls.txt", "__pycache__"))
    return study


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of enough students to be audited."""
    parent = tmp_path_factory.mktemp("many")
    study = scored_study.write(parent, score=faulty_run.LOGGED, budget={"trials": 8})
    assert search(study, parent / "run").code == 0
    return Whole(study, parent / "run", faulty_run.calls(study))


@pytest.mark.parametrize(
    "fault",
    ["kill", "term", "int twice", "full", "memory", *(pytest.param(f, marks=pytest.mark.slow) for f in ("eio", "hup"))],
)
def test_an_audit_goes_on(fault: str, many: Whole, tmp_path: Path) -> None:
    study, folder = own_study(many, tmp_path), tmp_path / "run"
    shutil.copytree(many.folder, folder)
    audit = ("audit", folder, "--students", 6, "--seeds", 1, "--epochs", 4, "--data-root", study, "--trust-code")
    met = faulty_run.run(*audit, faults=f"audit:3={fault}", counts=tmp_path / "counts")
    code = {"full": 2, "eio": 1, "memory": 1}.get(fault) or STOPPED[fault][0]
    assert met.code == code, met.stderr
    assert "Traceback" not in met.stderr
    assert fault == "kill" or met.stderr.strip()
    before = faulty_run.calls(study)
    again = faulty_run.run(*audit)
    assert again.code == 0, again.stderr
    calls = faulty_run.calls(study)
    assert len(calls) == 7  # the third was made and not recorded: it alone is made again
    assert calls[: len(before)] == before
    assert len(set(calls)) == 6
    third = faulty_run.run(*audit)
    assert (third.code, faulty_run.calls(study)) == (0, calls)


LOST = {"answer", "result", "recording", "retraining"}
"""Points at which a result is there and not in the record: that training alone is made again."""
STOPPED = {
    "kill": (-9, ""),
    "term": (143, "interrupted; the same command continues"),
    "hup": (129, "interrupted; the same command continues"),
    "int": (130, "interrupted; the same command continues"),
    "int twice": (130, "interrupted; the same command continues"),
}
"""What ends a search: its exit code, and the line that says so."""
BROKEN = {
    "enospc": "No space left on device",
    "eio": "Input/output error",
    "read-only": "Read-only file system",
    "full": "",
    "no handles": "",
    "memory": "out of memory",
    "lost database": "the server closed the connection unexpectedly",
}
"""What breaks it: what the message says at least; where it is the system that speaks, there is one."""
POINTS = [
    "prepared",
    "asked:2",
    "result:2",
    "recording:2",
    "recorded:2",
    "retraining",
    "retrained",
    "replacing:2",
    "report",
]


def cells() -> list[tuple[str, str]]:
    stops = [(point, fault) for point in POINTS for fault in STOPPED]
    stops += [(point, "kill") for point in ("trial:2", "answer:2", "trial:5", "answer:5", "replacing:4")]
    disks = [(point, fault) for point in ("replacing:2", "report") for fault in ("enospc", "eio", "read-only")]
    files = [(point, fault) for point in ("prepared", "recorded:2", "retrained") for fault in ("full", "no handles")]
    memory = [(point, "memory") for point in ("result:2", "recorded:2", "retraining", "report")]
    return [*stops, *disks, *files, *memory, ("asked:2", "lost database"), ("recording:2", "lost database")]


QUICK = {
    ("prepared", "kill"),
    ("trial:2", "kill"),
    ("recording:2", "kill"),
    ("retraining", "kill"),
    ("report", "kill"),
    ("recorded:2", "term"),
    ("result:2", "int"),
    ("asked:2", "lost database"),
    ("report", "enospc"),
    ("recorded:2", "full"),
    ("retraining", "memory"),
}


def marked(chosen: list[tuple[str, str]]) -> list[object]:
    return [
        pytest.param(*cell, id=f"{cell[0]}={cell[1]}", marks=() if cell in QUICK else pytest.mark.slow)
        for cell in chosen
    ]


@pytest.mark.parametrize(("point", "fault"), marked(cells()))
def test_a_search_that_meets_a_fault_goes_on(point: str, fault: str, whole: Whole, tmp_path: Path) -> None:
    study, folder = own_study(whole, tmp_path), tmp_path / "run"
    met = search(study, folder, faults=f"{point}={fault}", counts=tmp_path / "counts")
    assert "Traceback" not in met.stderr
    assert "internal error" not in met.stderr
    if fault in STOPPED:
        code, words = STOPPED[fault]
        assert met.code == code, met.stderr
        assert words in met.stderr
    else:
        assert met.code in (1, 2), met.stderr
        assert BROKEN[fault] in met.stderr
        assert met.stderr.count("error:") == 1
    faulty_run.age(folder)
    again = search(study, folder)
    assert again.code == 0, again.stderr
    unwritten = point.partition(":")[0] in LOST or (point, fault) == ("retrained", "full")  # the next one is trained
    assert_whole(whole, study, folder, extra=1 if unwritten else 0)


def assert_whole(whole: Whole, study: Path, folder: Path, extra: int = 0) -> None:
    """Assert that a run is as the undisturbed one, that no more was trained, and that nothing else lies there."""
    assert faulty_run.table(folder) == faulty_run.table(whole.folder)
    assert faulty_run.table(folder, "front.csv") == faulty_run.table(whole.folder, "front.csv")
    calls = faulty_run.calls(study)
    assert sorted({*calls}) == sorted(whole.calls)
    assert len(calls) <= len(whole.calls) + extra
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        pytest.param("recorded:2", "clock back", id="recorded:2=clock back"),
        *(
            pytest.param(point, fault, id=f"{point}={fault}", marks=pytest.mark.slow)
            for point in ("asked:2", "recorded:2", "retraining")
            for fault in ("clock forward", "clock back")
            if (point, fault) != ("recorded:2", "clock back")
        ),
    ],
)
def test_a_clock_that_jumps_changes_nothing(point: str, fault: str, whole: Whole, tmp_path: Path) -> None:
    study = own_study(whole, tmp_path)
    met = search(study, tmp_path / "run", faults=f"{point}={fault}", counts=tmp_path / "counts")
    assert met.code == 0, met.stderr
    assert_whole(whole, study, tmp_path / "run")


@pytest.mark.parametrize(
    "point",
    ["trial:2", *(pytest.param(point, marks=pytest.mark.slow) for point in ("asked:2", "recorded:2", "retrained"))],
)
def test_a_second_controller_is_refused_while_one_stands_still(point: str, whole: Whole, tmp_path: Path) -> None:
    study, folder = own_study(whole, tmp_path), tmp_path / "run"
    options = {"faults": f"{point}=stop", "counts": tmp_path / "counts"}
    first = faulty_run.begin("search", study, "--out", folder, "--data-root", study, **options)
    first.wait_until_stopped()
    second = search(study, folder)
    assert second.code == 2
    assert "is in use by another kdnas search" in second.stderr
    first.go_on()
    assert first.end().code == 0
    assert_whole(whole, study, folder)


def test_memory_that_is_short_in_a_trial_costs_that_trial(whole: Whole, tmp_path: Path) -> None:
    study, folder = own_study(whole, tmp_path), tmp_path / "run"
    met = search(study, folder, faults="trial:2=memory", counts=tmp_path / "counts")
    assert met.code == 0, met.stderr
    states = [row[1] for row in faulty_run.table(folder)]
    assert states == ["complete", "failed", "complete", "complete"]
    assert "out of memory" in (folder / "trials.csv").read_text()


SAMPLERS = ["random", "tpe", "nsga2", "gp", "hvi"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_follow_from_what_was_finished(sampler: str, tmp_path: Path) -> None:
    """Killed inside a trial, a search proposes from there on what it would have."""
    more = ("--set", f"sampler={sampler}", "--trials", "14")
    study = scored_study.write(tmp_path, score=faulty_run.LOGGED)
    assert search(study, tmp_path / "whole", *more).code == 0
    met = search(study, tmp_path / "run", *more, faults="trial:5=kill,trial:9=kill", counts=tmp_path / "counts")
    assert met.code == -9
    assert search(study, tmp_path / "run", *more, faults="trial:9=kill", counts=tmp_path / "counts").code == -9
    assert search(study, tmp_path / "run", *more).code == 0
    assert faulty_run.table(tmp_path / "run") == faulty_run.table(tmp_path / "whole")


# -- what is damaged or gone between two calls -------------------------------------------------------------------------


def killed(whole: Whole, tmp_path: Path, point: str = "recorded:3") -> tuple[Path, Path]:
    study, folder = own_study(whole, tmp_path), tmp_path / "run"
    assert search(study, folder, faults=f"{point}=kill", counts=tmp_path / "counts").code == -9
    return study, folder


def test_a_record_that_is_gone_is_no_new_beginning(whole: Whole, tmp_path: Path) -> None:
    study, folder = killed(whole, tmp_path)
    (folder / "study.db").unlink()
    again = search(study, folder)
    assert again.code == 2
    assert "has lost its record" in again.stderr
    assert not (folder / "study.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("study.db", b"", "not an SQLite database"),
        ("study.db", b"SQLite format 3\x00" + bytes(4000), "cannot be used"),
        ("study.lock.yaml", b"", "not a lock file"),
        ("study.lock.yaml", b"{" * 5000, "nested too deeply"),
        ("study.lock.yaml", b"config: 3\n", "damaged"),
        ("study.lock.yaml", b"\xff\xfe", "cannot be read"),
    ],
)
def test_damaged_files_of_a_run_are_named(name: str, content: bytes, words: str, whole: Whole, tmp_path: Path) -> None:
    study, folder = killed(whole, tmp_path)
    (folder / name).write_bytes(content)
    for arguments in (("search", study, "--out", folder, "--data-root", study), ("report", folder), ("front", folder)):
        ended = faulty_run.run(*arguments)
        assert ended.code == 2, ended.stderr
        assert words in ended.stderr
        assert "internal error" not in ended.stderr
    assert (folder / name).read_bytes() == content


@pytest.mark.slow
def test_scratch_files_of_a_killed_run_are_swept(whole: Whole, tmp_path: Path) -> None:
    study, folder = killed(whole, tmp_path, "replacing:4")
    assert [path for path in folder.iterdir() if path.name.endswith(tuple("0123456789"))]
    faulty_run.age(folder)
    assert search(study, folder).code == 0
    assert_whole(whole, study, folder)
