"""Machines that share no disk but a store: what one has made the others have, whatever became of it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import sharing
import tiny

from kdnas.errors import RunFolderError
from kdnas.plugins import load_plugin, own_name, resolved_name
from kdnas.record.records import Result
from kdnas.record.run_folder import LOCK_FILE
from kdnas.store import SharedStore
from kdnas.study.loading import load_study
from kdnas.workshop.jobs import final_job, search_job
from kdnas.workshop.travelling_code import TravellingCode, send_code

_SPAWN = multiprocessing.get_context("spawn")
_SMALL = ("training.epochs=2", "final.epochs=1", "training.precision=float32")


def _host(folder: Path, plan: bytes, jobs: list[Any], faults: str, answer: Connection) -> None:
    """Answer `jobs` as a worker of another machine; say the results and what it computed of the teacher's outputs."""
    os.chdir(folder)
    os.environ |= {"KDNAS_CACHE": str(folder / "own"), "KDNAS_DATA": str(folder), "KDNAS_FAULTS_FOLDER": str(folder)}
    os.environ["KDNAS_FAULTS"] = faults
    evaluator = pickle.loads(plan)()
    shared: list[str] = []
    share = evaluator.teacher_cache.share

    def counting(key: Any, part: str, *rows: Any) -> None:
        shared.append(part)
        share(key, part, *rows)

    evaluator.teacher_cache.share = counting
    answer.send(([evaluator(job) for job in jobs], len(shared)))


def _on_host(folder: Path, plan: bytes, jobs: list[Any], faults: str = "") -> tuple[list[Result], int] | int:
    """Return what a host with the empty folder `folder` said, or its exit code where it said nothing."""
    folder.mkdir()
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_host, args=(folder, plan, jobs, faults, theirs))
    process.start()
    theirs.close()
    try:
        said: tuple[list[Result], int] = ours.recv()
    except EOFError:
        process.join()
        return int(process.exitcode or 0)
    process.join()
    return said


@pytest.mark.slow
def test_a_host_goes_on_from_what_a_killed_one_has_made(tmp_path: Path) -> None:
    study = load_study(tiny.write(tmp_path), [*_SMALL, f"store=file://{tmp_path}/shared"])
    opened = sharing.prepared(study, tmp_path / "run")
    context = opened.workplan.context
    store = SharedStore(context.store.url, lease_s=1.0)  # type: ignore[attr-defined]
    plan = pickle.dumps(dataclasses.replace(opened.workplan, context=dataclasses.replace(context, store=store)))
    arch = opened.evaluator.arch(opened.space.corners[0])
    jobs = [search_job(opened.config, arch, {}), final_job(opened.config, 0, arch, {}, 0)]

    assert _on_host(tmp_path / "a", plan, jobs, "cache:2=kill") == -signal.SIGKILL
    assert store.names("teacher_outputs")
    assert not list((tmp_path / "a" / "own" / "teachers").glob("*.checkpoint"))
    said = _on_host(tmp_path / "b", plan, jobs)
    assert isinstance(said, tuple)
    (score, final), computed = said
    there = len(store.names("teacher_outputs"))
    assert 0 < computed < there  # the killed host's parts are not computed again

    third, again = _on_host(tmp_path / "c", plan, jobs)  # type: ignore[misc]
    assert again == 0
    assert [one.values for one in third] == [score.values, final.values]
    here = [opened.evaluator(job) for job in jobs]
    assert [one.values for one in here] == [score.values, final.values]
    for host in "bc":
        assert not (tmp_path / host / "own" / "teachers").exists() or not any(
            (tmp_path / host / "own" / "teachers").glob("*.checkpoint")
        )
        assert [path.name for path in (tmp_path / host / "own" / "datasets").iterdir() if path.is_dir()] == [
            context.made_on.data[:20]
        ]
    (tmp_path / "run" / final.checkpoint).unlink(missing_ok=True)
    assert opened.files.have(final.checkpoint).is_file()
    assert "hush" not in (tmp_path / "run" / LOCK_FILE).read_text()


PLUGIN = """\
import helper


class Answer:
    value = helper.VALUE
"""


def _elsewhere(code: TravellingCode, url: str, spec: str, cache: Path, answer: Connection) -> None:
    try:
        code.arrive(SharedStore(url), cache)
        answer.send(load_plugin(spec).value.value)
    except Exception as error:
        answer.send(error)


def _arrived(*arguments: Any) -> Any:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_elsewhere, args=(*arguments, theirs))
    process.start()
    answer = ours.recv()
    process.join()
    return answer


def test_the_users_code_travels_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text(PLUGIN)
    (home / "helper.py").write_text("VALUE = 42\n")
    monkeypatch.chdir(home)
    spec = own_name("mine.py:Answer")
    assert spec == resolved_name("mine.py:Answer", home)
    study = load_study(tiny.write(tmp_path))
    config = study.config.model_copy(update={"sampler": study.config.sampler.model_copy(update={"type": spec})})
    url = f"file://{tmp_path}/shared"
    code = send_code(config, "resnet", tmp_path, SharedStore(url))
    assert code.specs == (spec,)
    assert code.name
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDNAS_PLUGINS")
    shutil.move(home, tmp_path / "gone")
    assert _arrived(code, url, spec, tmp_path / "cache") == 42
    assert sorted(path.name for path in (tmp_path / "cache" / "code" / code.name).rglob("*.py")) == [
        "helper.py",
        "mine.py",
    ]
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "mine.py").write_text("class Answer:\n    value = 'evil'\n")
    SharedStore(url).put(f"code/{code.name}", evil)
    refused = _arrived(code, url, spec, tmp_path / "other cache")
    assert isinstance(refused, RunFolderError)
    assert "other code" in str(refused)
