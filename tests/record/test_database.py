"""The database of a run lies where its folder lies, whatever the folder is called."""

from __future__ import annotations

import shlex
import sqlite3
import string

import optuna
import pytest
import sqlalchemy.orm

from kdnas.core.objective import ACCURACY
from kdnas.core.words import command_line
from kdnas.errors import RunFolderError
from kdnas.record.database import database_of, database_url, queueing, showing
from kdnas.record.storage import Record
from kdnas.record.trials import FIXED_PARAMS

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


def test_the_names_that_optuna_promises_to_nobody_are_there(tmp_path):
    """Listed in kdnas.record.database, which was checked with this version."""
    assert optuna.__version__.startswith("5.0.")
    Record.create(database_of(tmp_path, "s"), [ACCURACY])
    storage = optuna.storages.RDBStorage(database_of(tmp_path, "s").url)
    assert isinstance(storage.scoped_session, sqlalchemy.orm.scoped_session)
    assert storage.scoped_session().get_bind() is storage.engine
    with_cache = optuna.storages.get_storage(storage)
    assert isinstance(with_cache, optuna.storages.BaseStorage)
    assert with_cache is not storage
    study = optuna.Study("s", with_cache)
    assert study._storage is with_cache
    study.enqueue_trial({"depth": 2})
    assert study.trials[0].system_attrs[FIXED_PARAMS] == {"depth": 2}


def test_a_view_shows_what_it_is_given_and_writes_through():
    study = optuna.create_study()
    for value in (3.0, 1.0, 2.0):
        study.add_trial(optuna.trial.create_trial(value=value))
    view = showing(study, [study.trials[0]])
    assert [trial.value for trial in view.trials] == [3.0]
    assert view.best_value == 3.0
    assert view.get_trials(states=(optuna.trial.TrialState.FAIL,)) == []
    asked = view.ask()
    asked.set_user_attr("seen", True)
    assert asked.number == 3
    assert study.trials[3].user_attrs == {"seen": True}


def test_the_queue_gives_who_is_asked_for_and_otherwise_nobody():
    study, sampler = optuna.create_study(study_name="s"), optuna.samplers.RandomSampler(seed=0)
    for depth in (1, 2, 3):
        study.enqueue_trial({"depth": depth})
    domain = {"depth": optuna.distributions.IntDistribution(1, 9)}
    second = queueing("s", study._storage, 1, sampler).ask(domain)
    assert (second.number, second.params) == (1, {"depth": 2})
    assert queueing("s", study._storage, None, sampler).ask(domain).number == 3
    assert [trial.state.name for trial in study.trials] == ["WAITING", "RUNNING", "WAITING", "RUNNING"]


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
