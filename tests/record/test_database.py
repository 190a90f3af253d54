"""The database of a run lies where its folder lies, whatever the folder is called."""

from __future__ import annotations

import shlex
import sqlite3
import string

import optuna
import pytest

from kdnas.core.objective import ACCURACY
from kdnas.core.words import command_line
from kdnas.errors import RunFolderError
from kdnas.record.database import database_of, database_url
from kdnas.record.storage import Record

NAMES = ["with blank", "müller-試験", "what?", "?uri=true", "a#b", "100%", "50%20off", "a?mode=ro&x=1", "c:d", "x@y"]
NAMES += [
    "quote's",
    "{0}",
    "{SCHEMA_VERSION}",
    "[v]*",
    "file:a",
    "back\\slash",
    "a\nb",
    string.punctuation.replace("/", ""),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_written_into_its_own_folder_and_found_by_its_url(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    Record.create(database_of(folder, "s"), [ACCURACY])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["study.db"]
    assert optuna.get_all_study_names(database_url(folder / "study.db")) == ["s"]


def test_a_command_with_any_path_can_be_pasted_into_a_shell(tmp_path):
    path = tmp_path / string.punctuation.replace("/", "")
    assert shlex.split(command_line("kdnas", "audit", path)) == ["kdnas", "audit", str(path)]


@pytest.mark.parametrize(
    "program",
    [
        "create trigger t after insert on trials begin delete from trial_values; end",
        "create view v as with recursive n(x) as (select 1 union all select x + 1 from n) select x from n",
    ],
)
def test_a_file_with_programs_in_it_is_refused(program, tmp_path):
    Record.create(database_of(tmp_path, "s"), [ACCURACY])
    with sqlite3.connect(tmp_path / "study.db") as rows:
        rows.execute(program)
    with pytest.raises(RunFolderError, match=r"has a (trigger 't'|view 'v'), which kdnas has not made"):
        Record.open(database_of(tmp_path, "s"), [ACCURACY])
