"""Students scored by the user's own function."""

from __future__ import annotations

import pytest
import yaml

from kdnas.cli.main import main
from kdnas.core.arch import Arch
from kdnas.errors import ConfigError, TrialError
from kdnas.record.storage import load_run
from kdnas.study.loading import load_study
from kdnas.workshop.evaluators import EvaluatorContext, open_evaluator
from kdnas.workshop.jobs import search_job

CODE = """
def price(choices, slope=1.0):
    return {"macs": 1000 * choices["depth"]}

def score(choices, epochs, data_fraction, seed, slope=1.0):
    if choices["depth"] == 3:
        raise RuntimeError("three is too deep")
    return {"accuracy": slope * choices["depth"] / 10, "latency_ms": 7.0 / epochs, "note": 1}

def flat(choices, **more):
    return {"macs": 1000}

def short(choices, **more):
    return {"latency_ms": 1.0}

def wild(choices, **more):
    return {"accuracy": 7.0, "latency_ms": 1.0}

def sized(choices, epochs, data_fraction, seed, resolution_fraction=1.0):
    return {"accuracy": resolution_fraction, "latency_ms": 1.0}

def surprise(choices, **more):
    return {"perplexity": 100.0 / choices["depth"], "latency_ms": 1.0}

def text(choices, **more):
    return "good"

def leaves(choices, **more):
    raise SystemExit("usage: score")
"""


def opened(folder, objectives=("accuracy", "macs", "latency_ms"), **changed):
    (folder / "mine.py").write_text(CODE)
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "tiny", "choices": {"depth": [1, 2, 3, 4]}}))
    study = {
        "name": "own",
        "evaluator": {"type": "module", "function": "mine.py:score", "price": "mine.py:price", **changed},
        "space": "space.yaml",
        "objectives": list(objectives),
        "constraints": ["latency_ms<=10"],
        "training": {"epochs": 2},
        "budget": {"trials": 4},
        "executor": {"type": "local", "workers": 1},
        "final": {"seeds": 1},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    loaded = load_study(folder / "study.yaml")
    return loaded, open_evaluator(EvaluatorContext(loaded.config, loaded.space, folder, folder, folder, "cpu"))


def scored(folder, depth=2, **changed):
    study, evaluator = opened(folder, **changed)
    return evaluator(search_job(study.config, evaluator.arch({"depth": depth}), {}))


def test_students_of_a_family_are_named_after_the_space_with_every_choice_as_it_is_stated(tmp_path):
    opened(tmp_path, price="mine.py:flat")
    choices = {"stem_width": [8, 16], "stage1.depth": [1], "stage1.width": [16], "stage1.bottleneck": ["plain"]}
    choices |= {"stage1.skip": ["identity"]}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"family": "resnet", "choices": choices}))
    loaded = load_study(tmp_path / "study.yaml")
    evaluator = open_evaluator(EvaluatorContext(loaded.config, loaded.space, tmp_path, tmp_path, tmp_path, "cpu"))
    stated = {name: values[0] for name, values in choices.items()}
    assert evaluator.arch(stated) == Arch.of(loaded.space.name, stated)


def test_the_function_gets_choices_and_fidelity(tmp_path):
    assert scored(tmp_path).values == {"macs": 2000.0, "accuracy": 0.2, "latency_ms": 3.5}
    assert scored(tmp_path, options={"slope": 2}).values["accuracy"] == 0.4


def test_a_lower_resolution_is_asked_of_the_function(tmp_path):
    study, evaluator = opened(tmp_path, function="mine.py:sized")
    training = study.config.training.model_copy(update={"resolution_fraction": 0.5})
    for config, expected in ((study.config, 1.0), (study.config.model_copy(update={"training": training}), 0.5)):
        job = search_job(config, evaluator.arch({"depth": 2}), {})
        assert evaluator(job).values["accuracy"] == expected


def test_what_price_tells_is_cheap_and_the_rest_is_not(tmp_path):
    _, evaluator = opened(tmp_path)
    kinds = {name: quantity.kind for name, quantity in evaluator.quantities.items()}
    assert kinds == {"accuracy": "trained", "latency_ms": "trained", "macs": "cheap"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mine.py:short", "did not return accuracy"),
        ("mine.py:wild", "the accuracy is 7, not a fraction"),
        ("mine.py:text", "returned str, not a mapping"),
        ("mine.py:leaves", r"'mine.py:leaves' fails: SystemExit: usage: score.*\(mine.py, line 29, in leaves\)"),
    ],
)
def test_a_function_that_does_not_answer_fails_the_trial(tmp_path, function, message):
    with pytest.raises(TrialError, match=message):
        scored(tmp_path, function=function)


def test_a_price_that_fails_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluator.price: 'mine.py:leaves' fails: SystemExit"):
        opened(tmp_path, price="mine.py:leaves")


def test_a_function_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the module has no 'nothing'"):
        opened(tmp_path, function="mine.py:nothing")


def test_a_whole_search_runs_and_records_what_the_function_raised(tmp_path, capsys):
    opened(tmp_path)
    assert main(["search", str(tmp_path), "--out", str(tmp_path / "run"), "--data-root", str(tmp_path)]) == 0
    run = load_run(tmp_path / "run")
    failed = [trial for trial in run.trials if trial.state == "failed"]
    assert [trial.arch.choices["depth"] for trial in failed] == [3]
    assert "three is too deep" in failed[0].reason
    assert len([trial for trial in run.trials if trial.state == "complete"]) == 3


def test_data_that_the_function_reads_itself_may_be_named(tmp_path, capsys):
    opened(tmp_path)
    study = yaml.safe_load((tmp_path / "study.yaml").read_text())
    study |= {"data": "digits", "teacher": {"type": "timm", "model": "resnet18", "weights": "none.safetensors"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    root = ["--data-root", str(tmp_path)]
    assert main(["validate", str(tmp_path), "--open", *root]) == 0
    assert main(["search", str(tmp_path), "--out", str(tmp_path / "run"), *root]) == 0
    assert "kdnas itself trains nothing" in capsys.readouterr().out
    assert len([trial for trial in load_run(tmp_path / "run").trials if trial.state == "complete"]) == 3
    assert not (tmp_path / "run" / "export").exists()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *root]) == 2
    assert "trains no students here: there are no weights" in capsys.readouterr().err


def test_an_evaluator_that_trains_asks_for_its_sections(tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "tiny", "choices": {"depth": [1, 2]}}))
    (tmp_path / "study.yaml").write_text("name: x\nspace: space.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")
    assert {problem.where.rpartition(" ")[2] for problem in caught.value.problems} >= {"data", "teacher"} or all(
        word in str(caught.value) for word in ("data: is required", "teacher: is required")
    )
    (tmp_path / "study.yaml").write_text("name: x\nspace: space.yaml\ndata: digits\nteacher: {type: timm, model: x}\n")
    with pytest.raises(ConfigError, match="names no student family"):
        load_study(tmp_path / "study.yaml")


def test_a_score_without_an_upper_end_needs_its_worst_value(tmp_path):
    names = ("latency_ms", "perplexity", "macs")
    with pytest.raises(ConfigError, match="must state the perplexity that is worth nothing"):
        opened(tmp_path, names, function="mine.py:surprise")
    loaded, evaluator = opened(tmp_path, names, function="mine.py:surprise", chance=500.0)
    assert loaded.config.score.name == "perplexity"
    assert next(iter(evaluator.quantities)) == "perplexity"
    assert evaluator.facts().worst == 500.0
    result = evaluator(search_job(loaded.config, evaluator.arch({"depth": 2}), {}))
    assert result.values == {"perplexity": 50.0, "latency_ms": 1.0, "macs": 2000.0}
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        opened(tmp_path, chance=1.5)
