"""Rows of a record that no longer say what was written: which trial, what, and a way to leave it out."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3

import optuna
import pytest
import scored_study

from kdnas.cli.main import main
from kdnas.errors import RunFolderError
from kdnas.record.damage import find_damage
from kdnas.record.database import database_of, database_url
from kdnas.record.storage import load_run

RESULT = "update trial_user_attributes set value_json = '{}' where trial_id = 2 and key = 'result'"

NOTED = "insert or replace into study_user_attributes (study_id, key, value_json) values (1, '{}', '{}')"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A finished run of scored students."""
    folder, patch = tmp_path_factory.mktemp("sound"), pytest.MonkeyPatch()
    patch.setattr(
        "kdnas.controller.runner.start_executor", lambda opened, observe: scored_study.Inline(opened.workplan)
    )
    study = scored_study.write(folder)
    assert main(["search", str(study), "--out", str(folder / "run"), "--data-root", str(study)]) == 0
    patch.undo()
    return folder / "run"


@pytest.fixture
def run(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def harm(run, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(run / "study.db")) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount > 0, statement


def as_result(value) -> str:
    return RESULT.format(json.dumps(value))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (RESULT.format('{"values": '), "trial 1: its attribute 'result' is not JSON"),
        (RESULT.format("[" * 200_000), "trial 1: its attribute 'result' is not JSON"),
        (as_result([1]), "trial 1: its attributes are no student's"),
        (as_result({"values": {"accuracy": "high", "macs": 1}}), "accuracy is 'high', no number"),
        (as_result({"values": {"accuracy": 0.5}}), "trial 1: its result has no macs"),
        (as_result({"values": [0.5]}), "trial 1: its attributes are no student's"),
        (as_result({"values": {"accuracy": 0.5, "macs": -1}}), "no student's: the macs is -1, below 0"),
        (as_result({"values": {"accuracy": 1.5, "macs": 1}}), "the accuracy is 1.5, not a fraction in 0..1"),
        (as_result({"values": {"accuracy": 0.5, "macs": 1}, "train_seconds": -3}), "train_seconds is -3, below 0"),
        (as_result({"values": {"accuracy": 0.5, "macs": 1}, "measurements": {"macs": 3}}), "no student's"),
        ("delete from trial_user_attributes where trial_id = 2 and key = 'arch'", "attribute 'arch' is missing"),
        ("delete from trial_user_attributes where trial_id = 2 and key = 'fidelity'", "'fidelity' is missing"),
        ("delete from trial_user_attributes where trial_id = 2 and key = 'result'", "'result' is missing"),
        ("update trial_user_attributes set value_json = '7' where trial_id = 2 and key = 'fidelity'", "no student's"),
        ("update trial_user_attributes set value_json = '\"{}\"' where trial_id = 2 and key = 'arch'", "not an arch"),
        ("update trial_user_attributes set value_json = null where trial_id = 2 and key = 'tuned'", "is not JSON"),
        ("update trials set state = 'DONE' where trial_id = 2", "trial 1: its state is 'DONE'"),
        ("update trials set datetime_start = 'noon' where trial_id = 2", "trial 1: its time 'noon' is none"),
        ("update trial_params set distribution_json = '{' where trial_id = 2", "trial 1: its parameter 'a' cannot be"),
        ("delete from trial_values where trial_id = 2 and objective = 1", "trial 1: it has no value of"),
        ("update study_user_attributes set value_json = '[' where key like 'final:%'", "the note 'final:"),
        ("update study_user_attributes set value_json = '{\"seed\": 0}' where key like 'final:%'", "no 'fidelity'"),
        (NOTED.format("control:0:1x1", '{"score": 0.5}'), "the note 'control:0:1x1': it has no 'fidelity'"),
        (NOTED.format("control:0:1x1", "7"), "the note 'control:0:1x1': it cannot be read"),
        (NOTED.format("note:search_seconds", '"long"'), "note:search_seconds': it cannot be read: search_seconds is"),
        (NOTED.format("note:search_seconds", "-1"), "it cannot be read: search_seconds is -1, below 0"),
        (NOTED.format("note:finished", "[]"), "the note 'note:finished': it cannot be read: it is [], no text"),
        (NOTED.format("note:lengths", '{"4": null}'), "the note 'note:lengths': it cannot be read: 4 is None"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named_and_can_be_left_out(run, capsys, statement, words):
    harm(run, statement)
    for command in ("front", "report"):
        assert main([command, str(run)]) == 2
        printed = capsys.readouterr().err
        assert words in printed
        assert f"kdnas report {run} --leave-out" in printed
        assert "internal" not in printed
    names = printed.rpartition(f"{run} ")[2].split()
    assert main(["report", str(run), *names]) == 0
    printed = capsys.readouterr().out
    assert words in printed
    assert printed.count("left out") == len(names) // 2
    loaded = load_run(run)
    if "trial 1" in printed:
        assert [trial.number for trial in loaded.trials] == [0, 2]
        assert loaded.others[0].number == 1
        assert "left out as damaged" in loaded.others[0].reason
        states = [
            trial.state.name
            for trial in optuna.load_study(study_name="scored", storage=database_url(run / "study.db")).trials
        ]
        assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    elif "final:" in words:
        assert not any(trial.repeats for trial in loaded.trials)


def test_what_is_sound_is_not_left_out(run, capsys):
    harm(run, RESULT.format("]"))
    assert main(["report", str(run), "--leave-out", "0", "--leave-out", "1"]) == 2
    assert "--leave-out: 0 is not damaged (allowed: 1)" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match="trial 1"):
        load_run(run)


def test_the_search_goes_on_without_what_was_left_out(run, scored_search, tmp_path):
    scored_study.write(tmp_path)
    harm(run, RESULT.format("]"))
    assert scored_search(run)[0] == 2
    assert main(["report", str(run), "--leave-out", "1"]) == 0
    code, stdout, stderr = scored_search(run)
    assert (code, stderr) == (0, "")
    assert "trial 1: left out as damaged: its attribute 'result' is not JSON" in stdout
    assert [trial.number for trial in load_run(run).trials] == [0, 2, 3]


def test_a_sound_record_and_a_database_of_others_have_no_damage(sound, tmp_path):
    assert find_damage(database_of(sound, "scored"), ["accuracy", "macs"], ["a", "b"]) == []
    other = tmp_path / "study.db"
    with contextlib.closing(sqlite3.connect(other)) as database, database:
        database.execute("create table notes (text)")
    assert find_damage(database_of(tmp_path, "scored"), ["accuracy"]) == []
