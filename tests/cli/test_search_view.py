"""How a search is shown: JSON lines that any parser reads, and a live screen that says what the record says."""

from __future__ import annotations

import dataclasses
import io
import json
import math

from rich.console import Console
from synthetic_run import complete, run_of

from kdnas.cli._search_json import JsonView
from kdnas.cli._search_view import LiveView, PlainView
from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.study.config import Budget, Rung
from kdnas.study.events import Ready, RepeatEnded, SearchEnded, TrialEnded, TrialStarted
from kdnas.study.records import Repeat


def test_json_lines_are_json_whatever_is_printed_or_measured_meanwhile(capsys):
    trial = complete(0, 0.9, 50, latency_ms=math.nan)
    with JsonView() as view:
        print("loading the user's model")
        view.observe(TrialStarted(0, Arch.of("resnet", {"depth": 1}), Fidelity(2)))
        view.observe(TrialEnded(run_of([trial]), trial))
        view.close(run_of([complete(0, 0.9, 50, latency_ms=math.inf)]), [])
    out, err = capsys.readouterr()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    events = [json.loads(line, parse_constant=refuse) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["TrialStarted", "TrialEnded", "result"]
    assert events[1]["trial"]["values"] == {"accuracy": 0.9, "macs": 50, "latency_ms": None}
    assert events[2]["front"][0]["values"]["latency_ms"] is None
    assert "loading the user's model" in err
    print("and afterwards again")
    assert capsys.readouterr().out == "and afterwards again\n"


def test_the_live_screen_shows_best_front_and_failures():
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    view = LiveView(console, 3)
    trials = [complete(0, 0.9, 50), complete(1, 0.8, 20)]
    view.observe(TrialEnded(run_of(trials), trials[1]))
    console.print(view._screen())
    shown = console.file.getvalue()
    assert "best      trial    0" in shown
    assert "front     2 students" in shown
    for trial in trials:
        assert trial.arch.arch_id in shown


def test_retrainings_are_counted_with_the_time_left():
    console = Console(file=io.StringIO(), width=200)
    view = PlainView(console, 3)
    run = run_of([complete(0, 0.9, 50)])
    view.observe(SearchEnded(run, "the budget of 3 trials is spent", 1, 2))
    repeat = Repeat(0, 0.91, 0.9, Fidelity(5), 2.0, "a.safetensors")
    view.observe(RepeatEnded(0, repeat))
    view.observe(RepeatEnded(0, None, "loss became nan"))
    lines = console.file.getvalue().splitlines()
    assert lines[-2].startswith("[1/2]  0.0 s left  retrained trial 0, seed 0")
    assert lines[-1] == "[2/2]  retraining of trial 0 failed: loss became nan"


def test_a_search_with_rungs_says_how_long_a_score_was_trained_and_what_its_budget_is():
    console = Console(file=io.StringIO(), width=200)
    view = PlainView(console, None)
    trial = complete(0, 0.9, 50)
    run = run_of([trial])
    rungs, budget = (Rung(epochs=3, data_fraction=0.5), Rung(epochs=5)), Budget(full_trainings=4)
    config = run.config.model_copy(update={"rungs": rungs, "budget": budget, "data": None})
    run = dataclasses.replace(run, config=config, lock={"data": {"name": "a table"}, "device": "cpu"})
    view.observe(Ready(run, False, 2))
    view.observe(TrialEnded(run, trial))
    lines = console.file.getvalue().splitlines()
    assert "rungs of 3 epochs of 50 % of the data, 5 epochs; promotion by rank" in lines
    assert any(line.startswith("4 full trainings on 2 workers") for line in lines)
    assert lines[-1].startswith(f"[2]  trial    0  {trial.arch.arch_id}  3 epochs of 50 % of the data  accuracy")
