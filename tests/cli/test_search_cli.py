"""`kdnas search` as a user runs it: in a process of its own, killed, interrupted, resumed, refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import tiny
import torch
from fvcore.nn import FlopCountAnalysis
from processes import descendants, still_there
from safetensors.torch import load_file

from kdnas.cli.main import main
from kdnas.record.database import database_url
from kdnas.record.storage import load_run
from kdnas.user_code import load_user_function

FORMATS = "export.formats=[safetensors, student_json, student_py, train_yaml, model_card]"
RUN_FILES = {"study.lock.yaml", "study.db", "trials.csv", "front.csv", "report.html", "front.svg"}


@pytest.fixture(scope="module")
def done(tmp_path_factory, kdnas):
    """One finished search: (study, run folder, what the command answered)."""
    study = tiny.write(tmp_path_factory.mktemp("study"))
    out = tmp_path_factory.mktemp("runs") / "a"
    return study, out, kdnas("search", study, "--out", out, "--set", FORMATS)


def test_an_export_that_no_student_has_is_refused_before_the_search(tmp_path, capsys):
    study = tiny.write(tmp_path)
    assert again(study, tmp_path / "run", "--set", "export.formats=[safetensors, timm]") == 2
    assert "export.formats: the students of this study have no timm: only students cut from" in capsys.readouterr().err
    assert not (tmp_path / "run" / "study.db").exists()


def again(study: Path, out: Path, *arguments: str) -> int:
    """Run the command in this process, whose imports are paid for; return its exit status."""
    return main(["search", str(study), "--out", str(out), *arguments])


def start(study: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdnas", "search", str(study), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: subprocess.Popen, text: str) -> None:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"the search ended without saying {text!r}:\n{''.join(lines)}")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_search_ends_with_a_front_a_report_and_an_exported_student(done):
    _, out, (code, stdout, stderr) = done
    assert (code, stderr) == (0, "")
    assert {path.name for path in out.iterdir() if path.is_file()} >= RUN_FILES
    exported = {path.name for path in (out / "export").iterdir()}
    assert exported == {
        *("student.safetensors", "student.json", "student.py", "train.yaml", "MODEL_CARD.md"),
        *("preprocessing.json", "predict.py"),
    }
    for printed in ("teacher", "macs", "[4/4]", "search over", "retraining", "Pareto front", "± 95 %", "hypervolume"):
        assert printed in stdout


def test_the_front_is_mutually_non_dominated_with_the_stated_columns(done):
    _, out, _ = done
    front = rows(out / "front.csv")
    first = ["trial", "arch_id", "state", "fidelity_epochs", "accuracy", "accuracy_ci95", "macs", "params"]
    assert list(front[0])[:8] == first
    assert list(front[0])[-1] == "arch"
    points = [(-float(row["accuracy"]), float(row["macs"])) for row in front]
    for a in points:
        assert not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)


def test_the_exported_student_runs_alone_and_has_the_macs_of_the_table(done):
    _, out, _ = done
    answer = subprocess.run(
        [sys.executable, "-I", "student.py"], cwd=out / "export", capture_output=True, text=True, check=True
    )
    assert "10" in answer.stdout
    student = load_user_function("student.py:build_student", out / "export")()
    student.load_state_dict(load_file(out / "export" / "student.safetensors"))
    described = json.loads((out / "export" / "student.json").read_text())
    counts = FlopCountAnalysis(student.eval(), torch.zeros(1, 1, 8, 8)).unsupported_ops_warnings(False).by_operator()
    row = next(row for row in rows(out / "front.csv") if row["arch_id"] == described["arch_id"])
    assert counts["conv"] + counts["linear"] == int(row["macs"])
    assert sum(parameter.numel() for parameter in student.parameters()) == int(row["params"])


def test_running_it_again_does_nothing_new_and_says_so(done, capsys):
    study, out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name[0] != "."}
    assert again(study, out, "--set", FORMATS) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    assert "nothing new" in stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_derived_and_is_lost_or_altered_is_written_anew(done, tmp_path, capsys):
    study, run, _ = done
    out = tmp_path / "h"
    shutil.copytree(run, out)
    before = {name: (out / name).read_bytes() for name in ("front.csv", "trials.csv", "front.svg")}
    weights = load_file(out / "export" / "student.safetensors")
    (out / "front.csv").unlink()
    (out / "trials.csv").write_text("mine")
    os.truncate(out / "report.html", 99)
    (out / "export" / "student.json").write_text("{}")
    (out / "export" / "student.safetensors").unlink()
    assert again(study, out, "--set", FORMATS) == 0
    printed = capsys.readouterr().out
    for name in ("front.csv", "export/student.safetensors"):
        assert f"{out / name} is missing: it is written anew" in printed
    for name in ("trials.csv", "report.html", "export/student.json"):
        assert f"{out / name} is not the file that kdnas wrote: it is written anew" in printed
    assert "front.svg is" not in printed
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "report.html").read_text().rstrip().endswith("</html>")
    mended = load_file(out / "export" / "student.safetensors")
    assert all(torch.equal(mended[name], tensor) for name, tensor in weights.items())
    assert json.loads((out / "export" / "student.json").read_text())["format"] == "kdnas-student"
    assert again(study, out, "--set", FORMATS) == 0
    assert "nothing new" in capsys.readouterr().out


def test_weights_that_are_lost_or_swapped_are_noticed_and_trained_again(done, tmp_path, capsys):
    study, run, _ = done
    out = tmp_path / "c"
    shutil.copytree(run, out)
    retrained = [trial for trial in load_run(out).trials if trial.repeats]
    one, two = (out / "checkpoints" / repeat.checkpoint for repeat in retrained[0].repeats)
    before = one.read_bytes(), two.read_bytes()
    one.write_bytes(before[1])
    two.write_bytes(before[0])
    pick = ["--pick", retrained[0].arch.arch_id, "--format", "safetensors"]
    assert main(["export", str(out), "--out", str(tmp_path / "e"), *pick]) == 2
    stderr = capsys.readouterr().err
    assert "altered or swapped" in stderr
    assert f"kdnas search {out}" in stderr
    assert not (tmp_path / "e").exists()
    two.unlink()
    assert again(study, out, "--set", FORMATS) == 0
    printed = capsys.readouterr().out
    assert f"{one} is not the file that kdnas wrote: trial {retrained[0].number} is retrained with seed 0" in printed
    assert f"{two} is missing: trial {retrained[0].number} is retrained with seed 1" in printed
    assert main(["export", str(out), "--out", str(tmp_path / "e"), *pick]) == 0
    assert {(repeat.seed, bool(repeat.sha256)) for trial in load_run(out).trials for repeat in trial.repeats} == {
        (0, True),
        (1, True),
    }


def test_optuna_opens_the_record(done):
    _, out, _ = done
    study = optuna.load_study(study_name="tiny", storage=database_url(out / "study.db"))
    assert len(study.best_trials) >= 1
    assert {trial.number for trial in study.trials} == {int(row["trial"]) for row in rows(out / "trials.csv")}


def test_json_is_one_object_a_line(done, tmp_path, capsys):
    study, _, _ = done
    assert again(study, tmp_path / "j", "--trials", "1", "--json", "--set", "final.seeds=1") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events if e["event"] in ("TrialStarted", "TrialEnded")] == [
        "TrialStarted",
        "TrialEnded",
    ]
    assert events[-1]["event"] == "result"
    assert (
        events[-1]["front"][0]["arch_id"] == next(e for e in events if e["event"] == "TrialEnded")["trial"]["arch_id"]
    )


def test_kill_9_of_the_controller_loses_only_what_ran(done, tmp_path, capsys):
    study, _, _ = done
    out = tmp_path / "k"
    process = start(study, out)
    wait_for(process, "[2/4]")
    workers = descendants(process.pid)
    assert workers
    process.kill()
    process.wait()
    assert not still_there(workers), "orphaned workers"
    kept = [trial for trial in load_run(out).trials if trial.state == "complete"]
    assert len(kept) >= 2
    assert again(study, out) == 0
    assert "resuming" in capsys.readouterr().out
    run = load_run(out)
    assert sum(trial.state == "complete" for trial in run.trials) == 4
    assert {t.number: t.values for t in run.trials if t.number in {k.number for k in kept}} == {
        trial.number: trial.values for trial in kept
    } | {t.number: t.values for t in run.trials if t.number in {k.number for k in kept} and t.repeats}


def test_kill_9_of_a_worker_costs_its_trial_only(done, tmp_path):
    study, _, _ = done
    out = tmp_path / "w"
    process = start(study, out, "--trials", "3", "--set", "training.epochs=20", "--set", "final.seeds=1")
    wait_for(process, "[1/3]")
    time.sleep(0.3)
    worker = next(pid for pid in descendants(process.pid) if os.getpgid(pid) == pid)  # which leads a group of its own
    os.kill(worker, signal.SIGKILL)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 0, rest
    states = [trial.state for trial in load_run(out).trials]
    assert states.count("failed") == 1
    assert states.count("complete") == 2
    assert "SIGKILL" in rest


def test_what_asks_to_stop_ends_it_cleanly_and_the_same_command_continues(done, tmp_path):
    study, _, _ = done
    out = tmp_path / "i"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        process = start(study, out, "--set", "final.seeds=1", "--set", "training.epochs=12")
        wait_for(process, "on 1 worker")
        workers = descendants(process.pid)
        process.send_signal(number)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == code, rest
        assert rest.count("the same command continues") == 1
        assert "Traceback" not in rest
        assert not still_there(workers), "orphaned workers"
        assert all(trial.state in ("complete", "interrupted") for trial in load_run(out).trials)
        assert not [path for path in out.rglob(".*") if path.name not in (".begun", ".controller", ".products.json")]
    assert again(study, out, "--set", "final.seeds=1", "--set", "training.epochs=12") == 0
    assert sum(trial.state == "complete" for trial in load_run(out).trials) == 4


def test_a_full_training_has_the_runs_own_teacher_whatever_its_threads_and_cache(done, tmp_path, monkeypatch, capsys):
    _, out, _ = done
    train = ["--epochs", "1", "--format", "safetensors", "--out"]
    with_cache = [str(out / "export" / "train.yaml"), "--threads", "2", *train, str(tmp_path / "file")]
    assert main(["train", *with_cache]) == 0
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "wiped"))
    for threads in ("1", "2"):
        assert main(["train", str(out), "--threads", threads, *train, str(tmp_path / threads)]) == 0
    printed = capsys.readouterr()
    assert "training the teacher" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "trainin.epochs=3"], "did you mean 'training'"),
        (["--set", "training.epochs=three"], "training.epochs"),
        (["--set", "constraints=[macs<=10]"], "nearest miss breaks macs"),
        (["--set", "space=nowhere.yaml"], "nowhere"),
        (["--set", "sampler=nsga4"], "did you mean 'nsga"),
        (["--device", "cuda"], "cuda") if not torch.cuda.is_available() else (["--device", "tpu"], "tpu"),
        (["--set", "data={type: npz, path: missing.npz}"], "missing.npz"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_left(done, tmp_path, capsys, arguments, message):
    study, _, _ = done
    code = again(study, tmp_path / "b", *arguments)
    stdout, stderr = capsys.readouterr()
    assert code == 2, stdout
    assert message in stderr
    assert "Traceback" not in stderr
    assert all(line.startswith("error:") for line in stderr.splitlines())
    assert not (tmp_path / "b").exists()


def test_a_run_of_another_study_is_refused_with_the_difference(done, capsys):
    study, out, _ = done
    code = again(study, out, "--set", "training.epochs=9", "--set", "name=other")
    stderr = capsys.readouterr().err
    assert code == 2
    assert "training.epochs: 3 -> 9" in stderr
    assert "name: tiny -> other" in stderr


def test_a_folder_that_is_no_run_is_refused(done, tmp_path, capsys):
    study, _, _ = done
    (tmp_path / "notes.txt").write_text("mine")
    code = again(study, tmp_path)
    stderr = capsys.readouterr().err
    assert code == 2
    assert "not a kdnas run" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["truncate", "foreign", "remove"])
def test_a_damaged_record_is_refused(done, tmp_path, capsys, damage):
    study, out, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    record = copy / "study.db"
    if damage == "truncate":
        record.write_bytes(record.read_bytes()[: record.stat().st_size // 3])
    elif damage == "foreign":
        record.write_text("a shopping list")
    else:
        record.unlink()
    code = again(study, copy, "--set", FORMATS)
    stdout, stderr = capsys.readouterr()
    assert code == 2, stdout
    assert "study.db" in stderr
    assert "Traceback" not in stderr
