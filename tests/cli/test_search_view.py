"""How a search is shown: JSON lines that any parser reads, and a live screen that says what the record says."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import time

from rich.console import Console
from synthetic_run import as_perplexity, complete, run_of

from kdnas.cli._search_view import JsonView, LiveView, PlainView, Progress, ready_lines
from kdnas.cli._terminal import console, redraws
from kdnas.cli._training_view import _Bar, training_view
from kdnas.controller.events import (
    Advanced,
    Note,
    Ready,
    RepeatEnded,
    RepeatStarted,
    SearchEnded,
    TrialEnded,
    TrialStarted,
)
from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY
from kdnas.plan.training import Progress as TrainingProgress
from kdnas.record.lock import DataDescription
from kdnas.record.records import Repeat
from kdnas.report.summary import trust
from kdnas.study.config import Budget, Rung


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


def test_a_perplexity_is_shown_as_a_number_and_the_smallest_is_best():
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    view = LiveView(console, 3)
    run = as_perplexity(run_of([complete(0, 0.9, 50), complete(1, 0.8, 20)]))
    view.observe(TrialEnded(run, run.trials[1]))
    console.print(view._screen())
    view.close(run, [])
    shown = console.file.getvalue()
    assert f"best      trial    0  {run.trials[0].arch.arch_id}  perplexity 17.9" in shown
    assert "Pareto front: 2 students; perplexity" in shown
    assert "%" not in shown.replace("± 95 %", "")
    assert "ccurac" not in shown


def test_retrainings_are_counted_with_the_time_left():
    console = Console(file=io.StringIO(), width=200)
    view = PlainView(console, 3)
    run = run_of([complete(0, 0.9, 50)])
    view.observe(SearchEnded(run, "the budget of 3 trials is spent", 1, 2))
    repeat = Repeat(0, 0.91, 0.9, Fidelity(5), 2.0, "a.safetensors")
    view.observe(RepeatEnded(0, repeat))
    view.observe(RepeatEnded(0, None, "loss became nan"))
    lines = console.file.getvalue().splitlines()
    assert re.match(r"\[1/2\]  \d+\.\d s left  retrained trial 0, seed 0", lines[-2])
    assert lines[-1] == "[2/2]  retraining of trial 0 failed: loss became nan"


def test_a_search_with_rungs_says_how_long_a_score_was_trained_and_what_its_budget_is():
    console = Console(file=io.StringIO(), width=200)
    view = PlainView(console, None)
    trial = complete(0, 0.9, 50)
    run = run_of([trial])
    rungs, budget = (Rung(epochs=3, data_fraction=0.5), Rung(epochs=5)), Budget(full_trainings=4)
    config = run.config.model_copy(update={"rungs": rungs, "budget": budget, "data": None})
    lock = dataclasses.replace(run.lock, data=DataDescription("a table"), device="cpu")
    run = dataclasses.replace(run, config=config, lock=lock)
    view.observe(Ready(run, False, 2))
    view.observe(TrialEnded(run, trial))
    lines = console.file.getvalue().splitlines()
    assert "rungs of 3 epochs of 50 % of the data, 5 epochs; promotion by model" in lines
    assert any(line.startswith("4 full trainings on 2 workers") for line in lines)
    assert lines[-1].startswith(f"[2]  trial    0  {trial.arch.arch_id}  3 epochs of 50 % of the data  accuracy")


def test_validation_samples_that_the_data_name_are_not_said_to_be_drawn():
    run = run_of([complete(0, 0.9, 50)])
    drawn = next(line for line in ready_lines(Ready(run, False, 1)) if line.startswith("data "))
    assert "(drawn class by class, seed 0)" in drawn
    assert "carved from the training data (20 % of it, drawn class by class)" in trust(run)[0]
    stated = dataclasses.replace(run.lock, data=dataclasses.replace(run.lock.data, validation_stated=True))
    run = dataclasses.replace(run, lock=stated)
    named = next(line for line in ready_lines(Ready(run, False, 1)) if line.startswith("data "))
    assert named == drawn.replace("drawn class by class, seed 0", "as stated")
    assert "287 images of the data’s own validation split" in trust(run)[0]
    assert "carved" not in trust(run)[0]


ARCH = Arch.of("resnet", {"depth": 1})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_there_is_an_estimate_before_the_first_training_has_ended():
    clock = Clock()
    progress = Progress(4, clock)
    run = run_of([])
    progress.take(Ready(run, False, 2))
    progress.take(TrialStarted(0, ARCH, Fidelity(10)))
    progress.take(TrialStarted(1, ARCH, Fidelity(10)))
    clock.now = 60.0
    assert (progress.counted, progress.left) == ("0/4", "")
    assert progress.running == [f"trial {n} ({ARCH.arch_id}) for 1 min 0 s" for n in (0, 1)]
    progress.take(Advanced("0", 0.5))
    progress.take(Advanced("1", 0.5))
    progress.take(Advanced("7", 0.5))  # of a trial that is closed
    assert progress.left == "3 min 0 s left"  # one of four trainings' work in a minute
    assert progress.running[0] == f"trial 0 ({ARCH.arch_id}) 50%, for 1 min 0 s"
    progress.take(SearchEnded(run, "over", 1, 2))
    progress.take(RepeatStarted(0, 1, ARCH, Fidelity(5)))
    clock.now = 70.0
    progress.take(Advanced("0:1", 0.25))
    assert progress.running == [f"trial 0 ({ARCH.arch_id}), seed 1 25%, for 10 s"]
    progress.take(RepeatEnded(0, None, "broke", 1, again=True))
    assert (progress.counted, progress.running) == ("0/2", [])
    progress.take(RepeatStarted(0, 1, ARCH, Fidelity(5)))
    progress.take(RepeatEnded(0, None, "broke", 1))
    assert (progress.counted, progress.running) == ("1/2", [])
    progress.take(Note("measuring the teacher"))
    clock.now = 75.0
    assert (progress.note.text, progress.lasting) == ("measuring the teacher", "for 15 s")


def test_a_trained_student_that_is_being_scored_has_no_time_left():
    clock = Clock()
    progress = Progress(1, clock)
    progress.take(Ready(run_of([]), False, 1))
    progress.take(TrialStarted(0, ARCH, Fidelity(10)))
    clock.now = 10.0
    progress.take(Advanced("0", 1.0))
    assert progress.left == ""
    assert progress.running == [f"trial 0 ({ARCH.arch_id}) trained, being scored, for 10 s"]


def test_what_cannot_redraw_is_told_at_intervals():
    text = io.StringIO()
    with PlainView(Console(file=text, width=200), 4, interval_s=0.05) as view:
        view.observe(TrialStarted(3, ARCH, Fidelity(2)))
        view.observe(Advanced("3", 0.5))
        deadline = time.monotonic() + 10
        while "50%" not in text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert re.search(rf"trial 3 \({ARCH.arch_id}\) 50%, for [\d.]+ s\n", text.getvalue())


def test_a_dumb_terminal_is_not_drawn_anew(monkeypatch):
    for term, expected in (("dumb", False), ("unknown", False), ("xterm-256color", True)):
        monkeypatch.setenv("TERM", term)
        terminal = Console(file=io.StringIO(), force_terminal=True)
        assert redraws(terminal) is expected, term
    assert not redraws(Console(file=io.StringIO()))


def test_nothing_of_the_live_screen_is_cut_at_eighty_columns():
    text = io.StringIO()
    view = LiveView(Console(file=text, width=80, height=24), 3)
    trial = complete(0, 0.9, 50, params=1234, latency_ms=1.5)
    run = run_of([trial])
    rungs = (Rung(epochs=3, data_fraction=0.5), Rung(epochs=5))
    run = dataclasses.replace(run, config=run.config.model_copy(update={"rungs": rungs}))
    view.observe(TrialEnded(run, trial))
    for number in (1, 2, 3):
        view.observe(TrialStarted(number, ARCH, Fidelity(10)))
    view._console.print(view._screen())
    shown = text.getvalue()
    assert "…" not in shown
    for part in ("accuracy 90.00 %", "macs 50", "params 1.234 k", "latency_ms 1.5 ms", "(10.0 s)", "trial 3 ("):
        assert part in " ".join(shown.split()), part
    assert len(shown.splitlines()) <= 24


def test_a_terminal_without_the_symbols_gets_a_table_in_line():
    class Ascii(io.StringIO):
        encoding = "ascii"

    terminal = console()
    terminal.file = Ascii()
    run = run_of([complete(0, 0.5, 50, repeats=[0.5, 0.51]), complete(1, 0.3, 20, repeats=[0.3, 0.31])])
    view = PlainView(terminal, 3)
    view.close(run, [])
    table = [line for line in terminal.file.getvalue().splitlines() if line.count("+-") == 2]
    assert terminal.file.getvalue().isascii()
    assert len(table) == 2
    assert len({line.index("+-") for line in table}) == 1


def test_a_training_says_what_its_times_are_and_lines_stand_above_the_bar():
    text = io.StringIO()
    bar = _Bar(Console(file=text, width=80, force_terminal=False))
    clock = Clock()
    bar._clock._read, bar._clock._opened = clock, 0.0
    assert "preparing, 0.0 s elapsed" in rendered(bar)
    clock.now = 100.0
    bar(TrainingProgress(1, 1, "student", "epoch 1/10", 0.1, 0.5, None, ACCURACY))
    clock.now = 110.0
    bar(TrainingProgress(1, 1, "student", "epoch 2/10", 0.2, 0.4, 0.91, ACCURACY))
    shown = rendered(bar)
    assert "epoch 2/10  loss 0.4000  accuracy 91.00 %" in shown
    assert "20% 1 min 50 s elapsed, 1 min 20 s left" in shown
    bar.notify("the teacher is measured")
    assert text.getvalue() == "the teacher is measured\n"


def test_a_quiet_training_keeps_standard_output_to_itself(capsys):
    with training_view(quiet=True) as view:
        view(TrainingProgress(1, 1, "student", "epoch 1/10", 0.1, 0.5, None, ACCURACY))
        view.notify("a line")
    assert capsys.readouterr() == ("", "a line\n")


def rendered(bar):
    out = Console(file=io.StringIO(), width=80)
    out.print(bar.screen())
    return out.file.getvalue()


def test_workers_that_the_executor_counts_are_as_many_as_there_is_room_for():
    run = run_of([complete(0, 0.9, 50)])
    assert " on as many workers as there is room for, device" in ready_lines(Ready(run, False, None))[-1]
    assert " on 1 worker, device" in ready_lines(Ready(run, False, 1))[-1]
