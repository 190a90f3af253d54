"""Tables of a synthetic run."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from synthetic_run import complete, run_of, synthetic_run

from kdnas.core.arch import Arch
from kdnas.core.objective import MATTHEWS
from kdnas.record.front import front
from kdnas.report.page import page
from kdnas.report.summary import against_teacher
from kdnas.report.tables import (
    front_document,
    front_table,
    further_scores_table,
    short_archs,
    trials_table,
    write_csv,
)

FIRST = ["trial", "arch_id", "state", "fidelity_epochs", "accuracy", "accuracy_ci95", "macs", "params"]


def test_columns_stand_in_the_agreed_order():
    run = synthetic_run()
    trials, best = trials_table(run), front_table(run)
    assert list(trials.columns[:9]) == [*FIRST, "latency_ms"]
    assert list(best.columns[:12]) == [*FIRST, "latency_ms", "latency_ms_spread", "test_accuracy", "test_accuracy_ci95"]
    assert trials.columns[-1] == best.columns[-1] == "arch"
    assert "indistinguishable_from" in best.columns
    assert "training.learning_rate" in trials.columns


def test_trials_hold_search_scores_and_the_front_the_means_of_retraining():
    run = synthetic_run()
    trials, best = trials_table(run).set_index("trial"), front_table(run).set_index("trial")
    assert len(trials) == len(run.trials)
    for member in front(run):
        number = member.trial.number
        assert trials.loc[number, "accuracy"] == member.trial.values["accuracy"] == best.loc[number, "search_accuracy"]
        assert best.loc[number, "accuracy"] == pytest.approx(sum(r.score for r in member.trial.repeats) / 3)
        assert (trials.loc[number, "fidelity_epochs"], best.loc[number, "fidelity_epochs"]) == (3, 10)
        assert best.loc[number, "seeds"] == 3
    assert trials["accuracy_ci95"].isna().all()
    assert best["accuracy_ci95"].notna().all()


def test_front_members_name_those_that_they_cannot_be_told_apart_from(tmp_path):
    trials = [
        complete(0, 0.5, 10, repeats=[0.80, 0.81, 0.82]),
        complete(1, 0.5, 20, repeats=[0.81, 0.82, 0.83]),
        complete(2, 0.5, 30, repeats=[0.95, 0.96, 0.97]),
        complete(3, 0.5, 40, repeats=[0.99]),
    ]
    run = run_of(trials)
    ids = [trial.arch.arch_id for trial in trials]
    write_csv(front_table(run), tmp_path / "front.csv")
    column = pd.read_csv(tmp_path / "front.csv")["indistinguishable_from"]
    assert column[:3].tolist() == [ids[1], ids[0], "none"]
    assert pd.isna(column[3])
    printed = [row["indistinguishable_from"] for row in front_document(run)["front"]]
    assert printed == [[ids[1]], [ids[0]], [], None]


def test_csv_gives_back_the_same_numbers_and_archs(tmp_path):
    run = synthetic_run()
    write_csv(trials_table(run), tmp_path / "trials.csv")
    read = pd.read_csv(tmp_path / "trials.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]
    for (_, row), trial in zip(read.iterrows(), run.trials, strict=True):
        assert Arch.from_json(row["arch"]) == trial.arch
        assert Arch.from_json(row["arch"]).arch_id == row["arch_id"]
        if trial.state == "complete":
            assert (row["accuracy"], row["macs"]) == (trial.values["accuracy"], trial.values["macs"])
    text = (tmp_path / "trials.csv").read_text()
    assert ",3420320," in text  # counts are written as integers
    assert read.loc[5, "reason"] == run.trials[5].reason


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "front.csv"
    target.write_text("old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_csv(front_table(synthetic_run()), target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_tables_of_an_empty_run_keep_their_columns():
    run = synthetic_run(trials=0, retrained=False)
    assert list(trials_table(run).columns[:8]) == list(front_table(run).columns[:8]) == FIRST
    assert len(front_table(run)) == 0


def test_front_document_is_json_with_the_numbers_of_the_front():
    run = synthetic_run()
    document = json.loads(json.dumps(front_document(run), allow_nan=False))
    assert [row["arch_id"] for row in document["front"]] == [member.trial.arch.arch_id for member in front(run)]
    assert document["knee"] in {row["arch_id"] for row in document["front"]}
    assert document["retrained"] is True
    assert document["teacher"]["test_accuracy"] == run.teacher.test_score
    assert document["front"][0]["values"]["accuracy"] == front_table(run)["accuracy"][0]
    empty = front_document(synthetic_run(trials=0, retrained=False))
    assert (empty["front"], empty["knee"], empty["hypervolume"]) == ([], None, 0.0)


def test_short_archs_name_only_what_differs():
    run = synthetic_run()
    same = [trial for trial in run.trials if trial.number in (0, 1)]
    shown = short_archs(same)
    for name, value in same[0].arch.items:
        differs = same[1].arch.choices.get(name) != value
        assert (f"{name}={value}" in shown[0].split()) is differs
    assert short_archs(same[:1])[0].count("=") == len(same[0].arch.items)


def test_what_else_is_known_on_the_test_split_stands_in_a_table_of_its_own():
    run = synthetic_run()
    assert not further_scores_table(run).rows
    further = {"f1": 0.5, "matthews": -0.25}

    def with_further(trial):
        repeats = [replace(r, further={name: v + r.seed / 10 for name, v in further.items()}) for r in trial.repeats]
        return replace(trial, repeats=tuple(repeats))

    run = replace(run, trials=tuple(map(with_further, run.trials)), teacher_further={"f1": 0.75, "lambada": 0.25})
    table = further_scores_table(run)
    assert [column.heading for column in table.columns] == ["student", "macro F1", "Matthews correlation"]
    first, last = table.rows[0], table.rows[-1]
    assert [cell.text for cell in first[1:]] == ["60.00 ± 24.84 %", "-0.15 ± 0.25"]
    assert [cell.text for cell in last] == ["teacher", "75.00 %", "–"]
    assert "Further scores on the test split" in page(run)
    document = front_document(run)
    assert document["teacher"]["further"] == {"f1": 0.75, "lambada": 0.25}
    assert document["front"][0]["further"]["f1"]["mean"] == pytest.approx(0.6)


def test_a_correlation_that_is_not_above_0_is_no_share_of_the_teachers():
    run = synthetic_run()
    run = replace(run, quantities={"matthews": MATTHEWS, **dict(list(run.quantities.items())[1:])})
    teacher = replace(run.teacher, score=0.2, test_score=None)
    member = replace(front(synthetic_run())[0], values={"matthews": -0.1, "macs": 5.0}, test_score=None)
    printed = against_teacher(replace(run, teacher=teacher), member)
    assert printed.startswith("30.0 points below the teacher’s Matthews correlation (validation split)")
    better = against_teacher(replace(run, teacher=replace(teacher, score=-0.2)), member)
    assert better.startswith("10.0 points above the teacher’s")
    half = against_teacher(replace(run, teacher=teacher), replace(member, values={"matthews": 0.1, "macs": 5.0}))
    assert half.startswith("50.0 % of the teacher’s")
