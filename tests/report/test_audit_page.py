"""The audit in the report: its words say what the numbers say, and a run without one says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from synthetic_run import HOSTILE, complete, run_of, synthetic_run

from kdnas.audit.result import CostBaseline, NeededFidelity, audit_result
from kdnas.core.fidelity import Fidelity
from kdnas.core.rank import Estimate
from kdnas.record.records import AuditRecord, AuditTraining
from kdnas.report.audit import (
    audit_document,
    audit_figure,
    findings,
    shown_tau,
    tables,
    trust_line,
    verdict,
    write_brief_study,
)
from kdnas.report.page import page
from kdnas.report.table import Table
from kdnas.study.losses import parse_losses

LONG = Fidelity(30, 1.0)


def audited(n=24, seeds=2, loss=""):
    """Accuracies that rise with MACs but for every fourth student."""
    trials = [complete(k, 0.5 + k / 100, 1e6 * 1.03**k, params=2e4 + 100.0 * k) for k in range(n)]
    trainings = [
        AuditTraining(k, seed, 0.7 + (k if k % 4 else n - k) / 100 + 0.001 * ((k + seed) % 3), LONG)
        for k in range(n)
        for seed in range(seeds)
    ]
    if loss:
        trainings += [AuditTraining(k, 0, 0.4 + k / 100, Fidelity(3, 0.5), loss) for k in range(n)]
    return replace(run_of(trials), audit=AuditRecord(tuple(range(n)), LONG, seeds, tuple(trainings)))


def summary_of(run):
    return " ".join(findings(run, audit_result(run)))


def estimate(value, half):
    return Estimate(value, value - half, value + half, 24, 276)


def with_beside(gain, partial):
    return replace(audit_result(audited()), baselines={"params": CostBaseline(gain, None, partial)})


@pytest.mark.parametrize(
    ("gain", "partial", "words"),
    [
        (estimate(0.2, 0.1), estimate(0.5, 0.1), "ranks better than the parameter count alone"),
        (estimate(0.1, 0.2), estimate(0.5, 0.1), "is not shown to rank better .* but it adds to that count"),
        (estimate(0.1, 0.2), estimate(0.1, 0.2), "is not shown to rank better .* adds nothing to it that 24 students"),
        (estimate(-0.2, 0.1), estimate(0.1, 0.2), "ranks worse than the parameter count alone .* adds nothing to it"),
        (estimate(-0.2, 0.1), estimate(0.5, 0.1), "ranks worse than the parameter count alone .* but it adds to that"),
        (estimate(-0.2, 0.1), None, "adds nothing to it"),
        (None, None, "is not known"),
    ],
)
def test_the_verdict_follows_the_intervals(gain, partial, words):
    assert re.search(words, verdict(with_beside(gain, partial)))


def test_taus_are_written_with_their_interval():
    assert shown_tau(estimate(0.614, 0.2)) == "0.61 [0.41, 0.81]"
    assert shown_tau(estimate(-0.2, 0.2)) == "−0.20 [−0.40, 0.00]"
    assert shown_tau(None) == "not known"


def texts(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table."""
    return [column.heading for column in table.columns], [[cell.text for cell in row] for row in table.rows]


def test_the_table_has_every_scope_and_ranker():
    headings, rows = texts(tables(audit_result(audited()), "kd")[0])
    assert headings[1:] == ["search score", "params alone", "MACs alone", "n"]
    assert [row[0] for row in rows] == ["all", "best quarter", "equal MACs"]
    assert rows[0][-1] == "24 (276)"
    assert rows[1][-1] == "6 (15)"
    assert all(re.fullmatch(r"−?\d\.\d\d \[−?\d\.\d\d, −?\d\.\d\d\]", cell) for row in rows[:1] for cell in row[1:4])


def test_the_losses_stand_beside_the_studys_own():
    result = audit_result(audited(loss="dkd"))
    headings, rows = texts(tables(result, "kd")[1])
    assert headings[2:4] == ["with the costs", "over kd"]
    assert [row[0] for row in rows] == ["kd (the study’s)", "dkd", "params alone", "MACs alone"]
    assert rows[0][2] == shown_tau(result.forecast)
    assert rows[1][2] == shown_tau(result.losses[0].forecast) != "–"
    assert rows[3][1] == shown_tau(result.scopes[0].taus["macs"])
    assert rows[0][1] == shown_tau(result.overall)
    assert len(tables(audit_result(audited()), "kd")) == 1  # where no other loss was tried


def test_the_brief_loss_that_ranks_best_is_named_with_its_cost_and_written_as_a_study(tmp_path):
    run = replace(audited(loss="dkd"), folder=tmp_path)
    trainings = tuple(
        replace(training, score=0.4 + training.number / 100, train_seconds=30.0 if training.loss else 60.0)
        for training in run.audit.trainings
    )
    scrambled = tuple(
        replace(trial, values={**trial.values, "accuracy": 0.5 + (7 * trial.number % 24) / 100}) for trial in run.trials
    )
    better = replace(run, trials=scrambled, audit=replace(run.audit, trainings=trainings))
    text = summary_of(better)
    assert re.search(
        r"Of 2 brief losses dkd ranks best, its tau larger by .* than the study’s kd’s: beyond noise", text
    )
    assert "24 brief trainings (12 min 0 s) beside 48 longer ones of the audit’s (48 min 0 s)" in text
    dkd = parse_losses(["dkd"], run.config.distillation)
    study, *_ = write_brief_study(better, audit_result(better), dkd)
    written = yaml.safe_load(study.read_text())
    assert [term["type"] for term in written["distillation"]["losses"]] == ["dkd"]
    assert [term["type"] for term in written["final"]["distillation"]["losses"]] == ["kd"]

    turned = tuple(replace(one, score=1 - one.score) if one.loss else one for one in trainings)
    worse = replace(run, audit=replace(run.audit, trainings=turned))
    assert "No brief loss of 2 ranks better than the study’s, kd." in summary_of(worse)
    assert write_brief_study(worse, audit_result(worse), dkd) == []


def test_words_state_what_was_done_and_what_is_not_known():
    text = summary_of(audited())
    assert "24 students of the search" in text
    assert "trained for 30 epochs with 2 seeds; the search’s scores are of 3 epochs of 50 % of the data" in text
    assert "differ by at most 10 %" in text
    assert "a second training of 30 epochs ranks as the first with tau" in text
    assert "is not known: scores on the way were not looked at" in text
    assert "The noise ceiling is not known" in summary_of(audited(seeds=1))


def needed(**changed):
    curve = ((1, estimate(0.3, 0.1)), (15, estimate(0.9, 0.05)))
    return NeededFidelity(
        **{"epochs": 15, "low": 8.0, "high": float("inf"), "crossed": True, "curve": curve, **changed}
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (needed(), r"about 15 epochs, 95 % 8 to more than 30 \(learning curves of 24 students: .* with other seeds"),
        (needed(high=21.0, crossed=False), r"95 % 8 to 21 .* the same training, which flatters"),
        (
            needed(epochs=None, low=float("inf")),
            r"no epoch within 30 suffices for good; the best is epoch 15 with 0\.90",
        ),
    ],
)
def test_the_needed_fidelity_in_words(found, words):
    run = audited()
    sentences = findings(run, replace(audit_result(run), needed=found))
    assert re.search(words, sentences[-1])


def test_an_unfinished_audit_says_how_far_it_is():
    run = audited()
    part = replace(run, audit=replace(run.audit, trainings=run.audit.trainings[:30]))
    assert "not finished: 30 of 48 longer trainings are made, 15 of 24 students have one" in summary_of(part)
    hardly = replace(run, audit=replace(run.audit, trainings=run.audit.trainings[:4]))
    assert "too few to measure how well" in summary_of(hardly)
    assert "not finished" in trust_line(hardly)
    assert "too few to measure" in page(hardly)


def test_one_line_says_how_far_to_trust_the_scores():
    run = audited()
    line = trust_line(run)
    assert shown_tau(audit_result(run).overall) in line
    assert "the parameter count alone with" in line
    assert "No audit was made" in trust_line(replace(run, audit=None))


def test_the_page_shows_the_audit():
    run = audited(loss=HOSTILE)
    document = page(run)
    result = audit_result(run)
    assert "How well the search’s scores rank" in document
    assert HOSTILE not in document
    assert shown_tau(result.overall) in document
    data = dict(re.findall(r'<script type="application/json" id="data-([^"]+)">(.*?)</script>', document, re.S))
    (trace,) = json.loads(data["audit"])["data"]
    assert len(trace["text"]) == 24
    assert document.count('id="audit"') == 1


def test_the_page_says_when_no_audit_was_made():
    assert "No audit was made, so how well the search’s scores rank is not known" in page(synthetic_run())
    assert "No audit was made" not in page(synthetic_run(trials=0, retrained=False))


def test_the_figure_draws_every_student_with_its_interval():
    result = audit_result(audited())
    drawing = audit_figure(audited(), result).drawing
    (trace,) = drawing.data
    assert list(trace.x) == [student.score for student in result.students]
    assert list(trace.y) == [student.mean for student in result.students]
    assert len(set(trace.error_y.array)) == 1  # pooled, and every student has as many seeds
    assert trace.error_y.array[0] > 0
    assert shown_tau(result.overall) in drawing.layout.annotations[0].text
    single = audit_figure(audited(seeds=1), audit_result(audited(seeds=1)))
    assert "interval" not in single.caption
    bare = audited()
    trials = tuple(replace(t, values={"accuracy": t.values["accuracy"], "macs": 0.0}) for t in bare.trials)
    bare = replace(bare, trials=trials)
    assert "coloured by MACs" not in audit_figure(bare, audit_result(bare)).caption


def test_the_document_is_json():
    run = audited(loss="ce")
    document = json.loads(json.dumps(audit_document(run), allow_nan=False))
    assert document["tau"]["all"]["accuracy"]["items"] == 24
    assert document["losses"][0]["loss"] == "ce"
    assert len(document["students"]) == 24
    assert document["needed"] is None
    assert audit_document(replace(run, audit=None)) is None
