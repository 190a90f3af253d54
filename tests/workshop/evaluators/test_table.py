"""Students looked up in a table: right numbers, clear refusals, and a whole search on a published table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdnas.cli.main import main
from kdnas.errors import ConfigError, DataError, TrialError
from kdnas.record.storage import load_run
from kdnas.study.loading import load_study
from kdnas.workshop.evaluators import EvaluatorContext, Workplan, open_evaluator
from kdnas.workshop.jobs import final_job, search_job

SPACE = {"choices": {"depth": [1, 2], "width": [8, 16]}}
CSV = "d,w,top1,top1_again,top1_short,m\n1,8,50,52,30,1\n1,16,60,61,31,2\n2,8,70,69,40,3\n2,16,80,81,45,4\n"
EVALUATOR = {
    "type": "table",
    "file": "table.csv",
    "key": "{depth},{width}",
    "key_columns": ["d", "w"],
    "values": {"accuracy": {"column": ["top1", "top1_again"], "scale": 0.01}, "macs": {"column": "m", "scale": 1e6}},
    "shorter": [{"epochs": 2, "column": "top1_short", "scale": 0.01}],
    "full_epochs": 10,
}


def write(folder: Path, *, table: str = CSV, **changed) -> Path:
    (folder / "table.csv").write_text(table)
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "tiny", **SPACE}))
    study = {
        "name": "looked-up",
        "evaluator": {**EVALUATOR, **changed},
        "space": "space.yaml",
        "training": {"epochs": 10},
        "budget": {"trials": 4},
        "executor": {"type": "local", "workers": 1},
        "final": {"seeds": 5},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def opened(folder: Path, **changed):
    study = load_study(write(folder, **changed))
    context = EvaluatorContext(study.config, study.space, folder, folder, folder, "cpu")
    return study, open_evaluator(context)


def arch(evaluator, depth, width):
    return evaluator.arch({"depth": depth, "width": width})


def test_a_row_is_found_and_brought_to_kdnas_units(tmp_path):
    study, evaluator = opened(tmp_path)
    student = arch(evaluator, 2, 8)
    assert evaluator.price(student) == {"macs": 3e6}
    values = evaluator(search_job(study.config, student, {})).values
    assert values == pytest.approx({"macs": 3e6, "accuracy": 0.7})


def test_repeats_are_the_further_columns(tmp_path):
    study, evaluator = opened(tmp_path)
    student = arch(evaluator, 1, 8)
    assert evaluator.repeats == 2
    scores = [evaluator(final_job(study.config, 0, student, {}, repeat)) for repeat in range(2)]
    assert [score.values["accuracy"] for score in scores] == pytest.approx([0.50, 0.52])


def test_fewer_epochs_read_the_shorter_training_and_others_fail(tmp_path):
    study, evaluator = opened(tmp_path)

    def job(epochs):
        training = study.config.training.model_copy(update={"epochs": epochs})
        return search_job(study.config.model_copy(update={"training": training}), arch(evaluator, 2, 16), {})

    assert evaluator(job(2)).values["accuracy"] == pytest.approx(0.45)
    with pytest.raises(TrialError, match=r"no accuracy after 3 epochs \(it has: 2, 10\)"):
        evaluator(job(3))


def test_costs_are_cheap_and_the_worst_accuracy_is_worth_nothing(tmp_path):
    _, evaluator = opened(tmp_path)
    assert {name: quantity.kind for name, quantity in evaluator.quantities.items()} == {
        "accuracy": "trained",
        "macs": "cheap",
    }
    assert evaluator.facts().worst == pytest.approx(0.5)
    assert opened(tmp_path, chance=0.1)[1].facts().worst == 0.1


def test_another_table_is_another_study(tmp_path):
    first = opened(tmp_path)[1].fingerprints
    assert opened(tmp_path)[1].fingerprints == first
    assert opened(tmp_path, table=CSV.replace("80", "79"))[1].fingerprints != first
    assert opened(tmp_path, chance=0.3)[1].fingerprints != first


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"file": "none.csv"}, DataError, "there is no file"),
        ({"values": {"accuracy": {"column": "nope"}}}, ConfigError, "has no column 'nope'"),
        ({"values": {"accuracy": {"column": "top1"}}}, DataError, "not a fraction in 0..1"),
        ({"values": {"macs": {"column": "m"}}}, ConfigError, "must name the column of accuracy"),
        ({"values": {**EVALUATOR["values"], "speed": {"column": "m"}}}, ConfigError, "no quantity is called 'speed'"),
        ({"full_epochs": 11}, ConfigError, r"the table has no accuracy after \d+ epochs \(allowed: 2, 11"),
        ({"key_columns": ["q"]}, DataError, "cannot be read as a table"),
        ({"key_columns": ["d"]}, DataError, "a key that stands twice"),
        ({"values": {"accuracy": {"column": "top1", "scale": 0.01}}}, ConfigError, "does not return macs"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        opened(tmp_path, **changed)


def test_an_arch_without_a_row_is_named(tmp_path):
    _, evaluator = opened(tmp_path, table="\n".join(CSV.splitlines()[:-1]))
    with pytest.raises(DataError, match="has no row for .*its key is '2,16'"):
        evaluator.price(arch(evaluator, 2, 16))
    _, evaluator = opened(tmp_path, key="{depth},{height}")
    with pytest.raises(ConfigError, match="has no choice 'height'"):
        evaluator.price(arch(evaluator, 2, 16))


def test_a_cell_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(DataError, match="a cell that is no number"):
        opened(tmp_path, table=CSV.replace("2,16,80", "2,16,-"))


def test_compressed_csv_and_nested_json_are_read(tmp_path):
    write(tmp_path)
    with gzip.open(tmp_path / "table.csv.gz", "wt") as file:
        file.write(CSV)
    _, evaluator = opened(tmp_path, file="table.csv.gz")
    assert evaluator.price(arch(evaluator, 1, 16)) == {"macs": 2e6}
    rows = {f"{d}{w}": {"runs": [d / 10, d / 5], "cost": {"macs": d * w}} for d in (1, 2) for w in (8, 16)}
    (tmp_path / "table.json").write_text(json.dumps(rows))
    values = {"accuracy": {"column": ["runs.0", "runs.1"]}, "macs": {"column": "cost.macs"}}
    changed = {"file": "table.json", "key": "{depth}{width}", "key_columns": [], "values": values, "shorter": []}
    study, evaluator = opened(tmp_path, **changed)
    result = evaluator(search_job(study.config, arch(evaluator, 2, 16), {}))
    assert result.values == pytest.approx({"macs": 32.0, "accuracy": 0.2})


def test_a_worker_opens_its_own(tmp_path):
    _, evaluator = opened(tmp_path)
    student = arch(evaluator, 1, 8)
    worker = Workplan(evaluator.context)()
    assert worker is not evaluator
    assert worker.price(student) == evaluator.price(student)


def test_a_whole_search_runs_on_a_table_and_says_that_nothing_was_trained(tmp_path, capsys):
    study = write(tmp_path)
    assert main(["search", str(study), "--out", str(tmp_path / "run"), "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "kdnas itself trains nothing" in shown
    run = load_run(tmp_path / "run")
    assert run.teacher is None
    assert sorted(trial.values["accuracy"] for trial in run.trials) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert all(len(trial.repeats) == 2 for trial in run.trials)  # as many as the table has, not the five asked for
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "export").exists()
    assert main(["export", str(tmp_path / "run"), "--format", "safetensors", "--out", str(tmp_path / "x")]) == 2
    assert "trains no students" in capsys.readouterr().err
    assert main(["search", str(study), "--out", str(tmp_path / "run"), "--data-root", str(tmp_path)]) == 0
    assert "nothing new" in capsys.readouterr().out


def test_the_published_table_agrees_with_its_file(data_root):
    study = load_study(Path(__file__).parents[3] / "studies" / "nas_bench_macro")
    evaluator = open_evaluator(EvaluatorContext(study.config, study.space, Path(), data_root, Path(), "cpu"))
    rows = json.loads((data_root / "tabular" / "nas_bench_macro_cifar10.json").read_text())
    rng = np.random.default_rng(0)
    for _ in range(20):
        assignment = study.space.random(rng)
        row = rows["".join(str(assignment[f"layer{layer}"]) for layer in range(1, 9))]
        result = evaluator(search_job(study.config, evaluator.arch(assignment), {}))
        assert result.values["accuracy"] == pytest.approx(row["test_acc"][0] / 100)
        assert result.values["macs"] == row["flops"]
