"""`kdnas audit` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import audited_run
import pytest
import tiny
from audited_run import InProcess

from kdnas.cli.main import main
from kdnas.record.storage import load_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return audited_run.write_run(tmp_path_factory.mktemp("audit-cli"))


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    monkeypatch.setattr("kdnas.audit.auditing.start_executor", lambda opened, observe: InProcess(opened.workplan))
    monkeypatch.setenv("COLUMNS", "80")
    return audited_run.copy_run(written, tmp_path)


def command(run, *options):
    return main(["audit", str(run.folder), "--data-root", str(run.folder.parent), *options])


def test_a_dry_run_says_what_it_would_cost_and_trains_nothing(run, capsys):
    before = (run.folder / "study.db").read_bytes()
    assert command(run, "--students", "12", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "audit of 12 students: 30 epochs with 2 seeds each; the search’s scores are of 3 epochs" in out
    assert "24 trainings to do, about 40 min 0 s of training on 1 worker" in out
    assert (run.folder / "study.db").read_bytes() == before
    assert command(run, "--students", "12", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["trainings"]) == 24
    whole = {"data_fraction": 1.0, "start": "random", "resolution_fraction": 1.0}
    assert plan["longer"] == {"epochs": 30, **whole}


def test_an_audit_prints_its_table_once_trained_and_again_for_nothing(run, capsys):
    assert command(run, "--students", "24") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "[48/48]" in out
    assert "24 (276)" in out
    assert "the parameter count alone" in out.replace("\n", " ")
    assert "No audit was made" not in (run.folder / "report.html").read_text()
    table = out[out.index("Kendall tau") :]
    assert max(map(len, table.split("\n\n")[0].splitlines())) <= 80
    assert command(run, "--students", "24") == 0
    again, _ = capsys.readouterr()
    assert "all 48 trainings are there already; nothing is trained" in again
    assert table in again
    assert main(["front", str(run.folder)]) == 0
    assert "Audit of 24 students" in capsys.readouterr().out


def test_json_is_one_object(run, capsys):
    assert command(run, "--students", "12", "--seeds", "1", "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "[12/12]" in err
    assert document["trainings"] == len(document["students"]) == 12
    assert document["ceiling"] is None
    assert main(["front", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"] == document


def test_an_audit_in_which_everything_fails_is_a_failure(run, capsys, monkeypatch):
    class Broken(InProcess):
        def submit(self, key, job, *, time_limit_s=None):
            self._broken = [key]
            super().submit(key, job)

    monkeypatch.setattr("kdnas.audit.auditing.start_executor", lambda opened, observe: Broken(opened.workplan))
    assert command(run, "--students", "6", "--seeds", "1") == 1
    out, err = capsys.readouterr()
    assert "failed: broke" in out
    assert "every training of the audit failed, all for this reason" in err


def test_an_interrupted_audit_says_how_to_go_on(run, capsys, monkeypatch):
    stopping = lambda opened, observe: InProcess(opened.workplan, stop_after=9)  # noqa: E731
    monkeypatch.setattr("kdnas.audit.auditing.start_executor", stopping)
    assert command(run, "--students", "12") == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    assert len(load_run(run.folder).audit.trainings) == 9
    assert "not finished: 9 of 24" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--students", "3"], "--students"),
        (["--seeds", "0"], "--seeds"),
        (["--epochs", "0"], "--epochs"),
        (["--data-fraction", "1.5"], "--data-fraction"),
        (["--epochs", "2"], "the search already did for 3 epochs"),
        (["--loss", "kdd"], "no loss is called 'kdd'"),
        (["--loss", "ce"], "the evaluator table trains no students here"),
        (["--data-root", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_options_are_told(run, capsys, options, expected):
    assert command(run, *options) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert "Traceback" not in out + err
    assert load_run(run.folder).audit is None


def test_what_is_no_run_is_told(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert main(["audit", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_run_that_is_being_searched_is_not_audited(run, capsys):
    from kdnas.record.run_folder import controller_lock

    with controller_lock(run.folder):
        assert command(run, "--students", "6") == 2
    assert "in use by another" in capsys.readouterr().err


@pytest.mark.slow
def test_real_trainings_under_another_loss_interrupted_and_resumed(kdnas, tmp_path):
    study = tiny.write(tmp_path)
    run = tmp_path / "run"
    assert kdnas("search", study, "--out", run, "--trials", "6", timeout=300).code == 0
    arguments = ["audit", str(run), "--students", "6", "--epochs", "6", "--seeds", "1", "--loss", "ce"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdnas", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("[2/12]"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    before = load_run(run).audit.trainings
    assert 2 <= len(before) < 12
    code, out, err = kdnas(*arguments, timeout=300)
    assert (code, err) == (0, "")
    assert f"{12 - len(before)} trainings to do ({len(before)} of 12 are there already)" in out
    after = load_run(run).audit.trainings
    assert set(before) <= set(after)
    assert sorted(t.loss for t in after) == [""] * 6 + ["ce"] * 6
    assert all([epoch for epoch, _ in t.curve][-1] == 6 for t in after if not t.loss)
    assert "ce" in out
    assert "learning curves of 6 students" in out.replace("\n", " ")
