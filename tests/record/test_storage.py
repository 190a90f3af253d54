"""The record: what goes in comes out, Optuna's own tools open it, and damage is named."""

from __future__ import annotations

import sqlite3

import optuna
import pytest
import sqlalchemy
from synthetic_run import run_of

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.space import Choice, SearchSpace
from kdnas.errors import RunFolderError
from kdnas.record.database import database_of
from kdnas.record.records import Repeat, Result, RunNotes
from kdnas.record.storage import Record, distributions, load_run, refreshed
from kdnas.study.tune import TuneRange

MACS = Quantity("macs", "MACs", "minimize", "cheap")
OBJECTIVES = (ACCURACY, MACS)
SPACE = SearchSpace(
    "s",
    "resnet",
    (Choice("depth", (1, 2, 3)), Choice("width", (4, 8, 24)), Choice("skip", ("identity", "none"))),
)
DOMAIN = distributions(SPACE, {"training.learning_rate": TuneRange(low=0.01, high=1.0, log=True)})


def ask(record):
    trial, params = record.ask(optuna.samplers.RandomSampler(seed=record.next_place), DOMAIN)
    arch = Arch.of("resnet", {name: params[name] for name in ("depth", "width", "skip")})
    record.describe(trial, arch, {"training.learning_rate": params["training.learning_rate"]}, Fidelity(3, 0.5))
    return trial, arch


def result(infeasible="", **values):
    latency = Measurement(1.5, 0.1, 30, "cpu, 1 thread")
    known = {"macs": 10.0, "params": 5.0, "latency_ms": 1.5, **values}
    return Result(known, {"latency_ms": latency}, train_seconds=2.5, teacher_seconds=0.5, infeasible=infeasible)


def _engine(record):
    return record._rows.beneath.engine


@pytest.fixture
def record(tmp_path):
    return Record.create(database_of(tmp_path, "study"), OBJECTIVES)


def test_even_integers_keep_their_order_and_uneven_ones_are_categories():
    assert DOMAIN["depth"] == optuna.distributions.IntDistribution(1, 3)
    assert DOMAIN["width"] == optuna.distributions.CategoricalDistribution((4, 8, 24))
    assert DOMAIN["training.learning_rate"] == optuna.distributions.FloatDistribution(0.01, 1.0, log=True)


def test_every_end_of_a_trial_is_read_back(tmp_path, record):
    done, arch = ask(record)
    record.complete(done, result(accuracy=0.9), OBJECTIVES)
    failed, _ = ask(record)
    record.close_without_result(failed, "failed", "loss became nan")
    refused, _ = ask(record)
    record.set_constraints(refused, {"latency_ms<=1": 0.5})
    record.complete(refused, result("latency_ms 1.5 breaks latency_ms<=1"), OBJECTIVES)
    dropped, _ = ask(record)
    record.close_without_result(dropped, "interrupted", "Ctrl-C")
    ask(record)
    for reader in (record, Record.open(database_of(tmp_path, "study"), OBJECTIVES)):
        trials = reader.trials()
        assert [trial.state for trial in trials] == ["complete", "failed", "infeasible", "interrupted", "running"]
        assert trials[0].arch == arch
        assert trials[0].values == {"macs": 10.0, "params": 5.0, "latency_ms": 1.5, "accuracy": 0.9}
        assert trials[0].measurements["latency_ms"].context == "cpu, 1 thread"
        assert trials[0].fidelity == Fidelity(3, 0.5)
        assert 0.01 <= trials[0].tuned["training.learning_rate"] <= 1
        assert (trials[0].train_seconds, trials[0].teacher_seconds) == (2.5, 0.5)
        assert trials[1].reason == "loss became nan"
        assert trials[2].values["latency_ms"] == 1.5
        assert reader.unfinished() == [4]


def test_what_is_written_at_once_reaches_the_disk_in_one_transaction(tmp_path, record):
    commits = []
    sqlalchemy.event.listen(_engine(record), "commit", lambda connection: commits.append(connection))

    def begin():
        asked = ask(record)
        assert (
            Record.open(database_of(tmp_path, "study"), OBJECTIVES).trials() == ()
        )  # a reader sees the trial whole or not at all
        return asked

    trial, arch = record.at_once(begin)
    assert len(commits) == 1
    (running,) = Record.open(database_of(tmp_path, "study"), OBJECTIVES).trials()
    assert (running.state, running.arch) == ("running", arch)
    record.at_once(lambda: record.complete(trial, result(accuracy=0.9), OBJECTIVES))
    assert len(commits) == 2
    assert Record.open(database_of(tmp_path, "study"), OBJECTIVES).trials()[0].values["accuracy"] == 0.9


def test_nothing_is_kept_of_what_ends_with_an_error_within(tmp_path, record):
    def stopped():
        ask(record)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.at_once(stopped)
    assert Record.open(database_of(tmp_path, "study"), OBJECTIVES).next_place == 0
    ask(record)  # and what follows is written as ever
    assert [trial.number for trial in Record.open(database_of(tmp_path, "study"), OBJECTIVES).trials()] == [0]


def test_a_transaction_that_the_disk_refuses_is_one_message(record):
    def refuse(connection):
        cause = sqlite3.OperationalError("disk I/O error")
        raise sqlalchemy.exc.OperationalError("COMMIT", None, cause) from cause

    sqlalchemy.event.listen(_engine(record), "commit", refuse)
    with pytest.raises(RunFolderError, match=r"study.db cannot be used: disk I/O error"):
        record.at_once(lambda: ask(record))


def test_optuna_opens_the_record_with_the_same_numbers(tmp_path, record):
    trial, arch = ask(record)
    record.complete(trial, result(accuracy=0.9), OBJECTIVES)
    study = optuna.load_study(study_name="study", storage=database_of(tmp_path, "study").url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.trials[0].values == [0.9, 10.0]
    assert study.trials[0].user_attrs["arch_id"] == arch.arch_id
    assert set(study.trials[0].params) == set(DOMAIN)


def test_optunas_own_tools_know_the_names_of_the_objectives(tmp_path, record):
    study = optuna.load_study(study_name="study", storage=database_of(tmp_path, "study").url)
    assert study.metric_names == [objective.name for objective in OBJECTIVES]
    record._rows.set_study_system_attr(record.study._study_id, "study:metric_names", None)
    old = Record.open(
        database_of(tmp_path, "study"), OBJECTIVES
    )  # a record of before there were names opens, and gets them
    assert old.study.metric_names is None
    old.name_axes(OBJECTIVES)
    assert old.study.metric_names == [objective.name for objective in OBJECTIVES]


def test_what_was_proposed_is_read_back_with_what_is_not_active(record):
    trial, arch = ask(record)
    record.describe(trial, Arch.of("resnet", {"depth": 1}), {}, Fidelity(1))
    (read,) = record.trials()
    assert read.arch.choices == {"depth": 1}
    assert {name: value for name, value in read.proposed.items() if "." not in name} == arch.choices


def test_repeats_and_final_measurements_join_their_trial(record):
    trial, _ = ask(record)
    record.complete(trial, result(accuracy=0.9), OBJECTIVES)
    second = Repeat(1, 0.91, 0.89, Fidelity(9), 5.0, "b.safetensors")
    first = Repeat(0, 0.92, 0.88, Fidelity(9), 5.0, "a.safetensors")
    record.add_repeat(0, second)
    record.add_repeat(0, first)
    assert not record.has_final_measurements(0)
    record.add_final_measurements(0, {"latency_ms": Measurement(1.2, 0.05, 60, "quiet")})
    assert record.has_final_measurements(0)
    (read,) = record.trials()
    assert read.repeats == (first, second)
    assert read.measurements["latency_ms"] == Measurement(1.2, 0.05, 60, "quiet")
    assert read.values["latency_ms"] == 1.2


def test_a_withdrawn_proposal_is_no_trial(record):
    trial, _ = record.ask(optuna.samplers.RandomSampler(seed=0), DOMAIN)
    record.close_without_result(trial, "interrupted", "no further student")
    assert record.trials() == ()
    assert record.unfinished() == []


def test_notes_are_kept_apart_from_repeats(record):
    record.set_note("finished", "spent")
    assert record.notes() == RunNotes(finished="spent")


def test_a_half_made_record_never_takes_the_name(tmp_path):
    (tmp_path / ".study.db.new").write_bytes(b"torn")
    Record.create(database_of(tmp_path, "study"), OBJECTIVES)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an SQLite database"),
        (b"hello, this is a text file", "not an SQLite database"),
        (b"SQLite format 3\x00" + b"\x00" * 100, "cannot be used"),
        (None, "has no study.db"),
    ],
)
def test_a_damaged_or_missing_record_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        Record.open(database_of(tmp_path, "study"), OBJECTIVES)


def test_a_truncated_record_is_named(tmp_path, record):
    for _ in range(5):
        trial, _ = ask(record)
        record.complete(trial, result(accuracy=0.9), OBJECTIVES)
    whole = (tmp_path / "study.db").read_bytes()
    (tmp_path / "study.db").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(RunFolderError, match="study.db cannot be used"):
        Record.open(database_of(tmp_path, "study"), OBJECTIVES).trials()


def test_a_database_without_optuna_is_foreign(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("create table shopping (item text)")
    with pytest.raises(RunFolderError, match=r"holds no study|cannot be used"):
        Record.open(database_of(tmp_path, "study"), OBJECTIVES)


def test_another_study_or_other_directions_are_refused(tmp_path, record):
    with pytest.raises(RunFolderError, match="holds no study 'other'"):
        Record.open(database_of(tmp_path, "other"), OBJECTIVES)
    with pytest.raises(RunFolderError, match="records objectives"):
        Record.open(database_of(tmp_path, "study"), (MACS, ACCURACY))


def test_load_run_says_what_is_not_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="is not a kdnas run"):
        load_run(tmp_path)


def test_a_trial_whose_description_was_cut_short_is_closed_and_no_student(record):
    trial, _ = record.ask(optuna.samplers.RandomSampler(seed=0), DOMAIN)
    record._asked[trial].set_user_attr("arch_id", "0" * 12)
    record._asked[trial].set_user_attr(
        "arch", Arch.of("resnet", {"depth": 1}).canonical_json
    )  # killed here, before its fidelity
    assert record.trials() == ()
    assert record.unfinished() == [0]
    record.close_without_result(0, "interrupted", "the controller stopped while it ran")
    assert record.trials() == ()
    assert record.unfinished() == []


def test_a_locked_database_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnas.record.database._LOCK_TIMEOUT_S", 0.1)
    record = Record.create(database_of(tmp_path, "study"), OBJECTIVES)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunFolderError, match=r"study\.db cannot be used: database is locked"):
        record.set_note("finished", "spent")
    with pytest.raises(RunFolderError, match="database is locked"):
        record.next_place  # noqa: B018
    other.rollback()
    other.close()
    record.set_note("finished", "spent")
    assert record.notes() == RunNotes(finished="spent")


def test_a_full_disk_is_one_message(record):
    engine = _engine(record)

    def fill(connection, _):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite then answers as it does on a full disk

    sqlalchemy.event.listen(engine, "connect", fill)
    engine.dispose()
    with pytest.raises(RunFolderError, match=r"study\.db cannot be used: database or disk is full"):
        for number in range(50):
            record.set_note(f"note {number}", "x" * 2000)


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "study.db") as foreign:
        foreign.execute("CREATE TABLE thesis (chapter TEXT)")
    foreign.close()
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(RunFolderError, match="cannot be used"):
        Record.open(database_of(tmp_path, "study"), OBJECTIVES)
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_record_cut_short_is_refused(tmp_path, record):
    for _ in range(30):
        trial, _ = ask(record)
        record.complete(trial, result(accuracy=0.9), OBJECTIVES)
    path = tmp_path / "study.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunFolderError, match=r"study\.db cannot be used"):
        Record.open(database_of(tmp_path, "study"), OBJECTIVES)


def test_retrainings_of_another_fidelity_do_not_count(record):
    trial, _ = ask(record)
    record.complete(trial, result(accuracy=0.9), OBJECTIVES)
    run = run_of([])
    wanted = run.config.final_fidelity
    kept = Repeat(1, 0.91, 0.89, wanted, 5.0, "b.safetensors")
    record.add_repeat(0, Repeat(0, 0.5, 0.5, Fidelity(wanted.epochs - 1), 5.0, "a.safetensors"))
    record.add_repeat(0, kept)
    assert refreshed(run, record).trials[0].repeats == (kept,)


def test_what_was_read_inside_a_transaction_that_failed_is_forgotten(record):
    number, _ = ask(record)

    def write():
        record.complete(number, result(accuracy=0.5), OBJECTIVES)
        assert record.trials()[-1].state == "complete"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.at_once(write)
    assert record.trials()[-1].state == "running"
