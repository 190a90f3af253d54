"""Searches with rungs: who is promoted, what each sampler sees, what is resumed, and which scores are compared.

On a table, so that a whole search takes a second; the last test trains students on the real digits.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections import Counter, deque
from pathlib import Path
from unittest import mock

import optuna
import pytest
import tiny
import torch
import yaml
from synthetic_run import perplexity_of

from kdnas.controller.events import SearchEnded, StudyEnded, TrialStarted
from kdnas.controller.preparation import prepare_study
from kdnas.controller.promotion import next_promotion, student_key
from kdnas.controller.proposals import at_one_fidelity
from kdnas.controller.retraining import finalists
from kdnas.controller.runner import Search
from kdnas.controller.stopping import full_trainings
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError, RunFolderError
from kdnas.executors import Executor, Finished
from kdnas.record.database import database_url
from kdnas.record.front import front, hypervolume_over_time, pick
from kdnas.record.records import Result
from kdnas.record.run_folder import controller_lock
from kdnas.record.storage import load_run
from kdnas.report.tables import trials_table
from kdnas.study.loading import load_study
from kdnas.workshop.jobs import RUNG_FOLDER, Job, search_job

RUNGS = [{"epochs": 2}, {"epochs": 6}, {"epochs": 18}]
TWO_RUNGS = [{"epochs": 2}, {"epochs": 18}]
CHOICES = {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5], "c": ["x", "y", "z"]}


class InProcess(Executor[Job, Result]):
    """Runs jobs here, one after the other, up to `workers` waiting; fails those whose (arch, epochs) `fails` names."""

    def __init__(self, make_evaluate, workers=1, fails=lambda job: False):
        super().__init__(make_evaluate)
        self._evaluate = make_evaluate()
        self._workers, self._fails = workers, fails
        self._jobs: deque = deque()
        self.answered: list[Job] = []

    @property
    def free(self):
        return self._workers - len(self._jobs)

    @property
    def running(self):
        return len(self._jobs)

    def submit(self, key, job, *, time_limit_s=None):
        self._jobs.append((key, job))

    def wait(self, timeout_s):
        key, job = self._jobs.popleft()
        self.answered.append(job)
        if self._fails(job):
            return [Finished(key, failure="broken")]
        return [Finished(key, result=self._evaluate(job))]

    def close(self):
        self._jobs.clear()


def table_study(folder: Path, shown=lambda accuracy: accuracy, score: str = "accuracy", **changed) -> Path:
    """Write a table of 75 students, whose ranks at 2, 6 and 18 epochs agree roughly, and a study that searches it.

    Its `score` is what `shown` makes of an accuracy.
    """
    lines = ["a,b,c,e2,e6,e18,m"]
    for number, (a, b, c) in enumerate(itertools.product(*CHOICES.values())):
        cost = a * b + "xyz".index(c)
        full = 1 - 1 / (1 + 0.4 * a + 0.3 * b) - 0.05 * "xyz".index(c)
        wobble = ((number * 37) % 11 - 5) / 100
        scores = (0.5 * full + wobble, 0.8 * full + wobble / 3, full)
        lines.append(f"{a},{b},{c},{','.join(f'{shown(value):.5f}' for value in scores)},{cost}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "grid", "choices": CHOICES}))
    study = {
        "name": "rungs",
        "evaluator": {
            "type": "table",
            "file": str(folder / "table.csv"),
            "key": "{a},{b},{c}",
            "key_columns": ["a", "b", "c"],
            "values": {score: {"column": "e18"}, "macs": {"column": "m"}},
            "shorter": [{"epochs": 2, "column": "e2"}, {"epochs": 6, "column": "e6"}],
            "full_epochs": 18,
            "chance": shown(0.01),
        },
        "objectives": [score, "macs"],
        "space": "space.yaml",
        "rungs": RUNGS,
        "sampler": "random",
        "budget": {"trials": 40},
        "final": {"seeds": 1},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump({**study, **changed}, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return table_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def climbed(study, tmp_path_factory):
    """One whole search of 40 trials."""
    return search(study, tmp_path_factory.mktemp("runs") / "whole")


def search(study, folder, *overrides, observe=lambda event: None, workers=1, fails=lambda job: False, data_root="none"):
    with controller_lock(folder):
        opened = prepare_study(
            load_study(study, overrides),
            folder,
            data_root=Path(data_root),
            cache=Path(os.environ["KDNAS_CACHE"]),
            device=torch.device("cpu"),
            observe=observe,
        )
        searching = Search(opened, observe)
        executors = []

        def start(opened, observe):
            executors.append(InProcess(opened.workplan, workers, fails))
            return executors[-1]

        with mock.patch("kdnas.controller.runner.start_executor", start):
            run = searching.run()
        search.answered = [job for executor in executors for job in executor.answered]
        return run


def rows(run):
    return [(t.arch.arch_id, t.fidelity.epochs, t.state, dict(t.values)) for t in run.trials]


def places(run):
    return [(student_key(t.arch, t.tuned), t.fidelity) for t in run.trials if t.state != "interrupted"]


def test_a_score_that_is_to_be_small_is_searched_as_the_one_it_stands_for(study, tmp_path):
    small = table_study(
        tmp_path, perplexity_of, "perplexity", constraints=[f"perplexity<={perplexity_of(0.6):.3f}"],
    )  # fmt: skip
    overrides = ("promotion.rule=halving", "export.pick=best")
    large, run = search(study, tmp_path / "large", *overrides), search(small, tmp_path / "small", *overrides)
    assert run.score.name == "perplexity"
    assert places(run) == places(large)  # proposed, promoted and finished alike
    assert len({fidelity for _, fidelity in places(run)}) == 3
    best = min((t for t in run.trials if t.repeats), key=lambda trial: trial.repeats[0].score)
    assert pick(run, "best").trial.arch == best.arch == pick(large, "best").trial.arch
    assert [goal.name for goal in run.goals] == ["perplexity"]
    assert run.limits == ()
    assert all(member.values["perplexity"] <= perplexity_of(0.6) for member in front(run))
    again = load_run(tmp_path / "small")
    assert (again.score, again.worst) == (run.score, pytest.approx(perplexity_of(0.01)))
    volumes = [volume for _, _, volume in hypervolume_over_time(again)]
    assert volumes[0] > 0
    assert volumes == sorted(volumes)
    assert list(trials_table(again).columns[4:6]) == ["perplexity", "perplexity_ci95"]


@pytest.mark.parametrize("rule", ["rank", "moasha"])
def test_every_promotion_rule_reads_a_perplexity_downwards(tmp_path, rule):
    run = search(table_study(tmp_path, perplexity_of, "perplexity"), tmp_path / "run", f"promotion.rule={rule}")
    lowest, next_rung = run.config.fidelities[:2]
    brief = {t.arch: t.values["perplexity"] for t in run.trials if t.fidelity == lowest}
    promoted = {t.arch for t in run.trials if t.fidelity == next_rung}
    assert len(promoted) >= 3
    chosen, left = ([brief[arch] for arch in brief if (arch in promoted) is kept] for kept in (True, False))
    assert sum(chosen) / len(chosen) < sum(left) / len(left)


def test_the_promising_students_climb_and_each_place_is_scored_once(climbed):
    run = climbed
    counts = Counter(trial.fidelity.epochs for trial in run.trials)
    assert sum(counts.values()) == 40
    assert counts[2] > counts[6] > counts[18] > 0
    assert counts[6] <= counts[2] / 3 + 1 + 4  # a tenth of the budget is kept for promotions
    assert len(set(places(run))) == 40
    for trial in run.trials:  # who is scored at a rung was scored at the one below before
        below = [t for t in run.trials[: trial.number] if t.arch == trial.arch]
        assert [t.fidelity.epochs for t in below] == [2, 6, 18][: [2, 6, 18].index(trial.fidelity.epochs)]
    assert run.finished == "the budget of 40 trials is spent"


@pytest.mark.parametrize(("rule", "workers"), [("rank", 3), ("moasha", 1), ("halving", 3)])
def test_every_rule_fills_the_rungs(study, tmp_path, rule, workers):
    run = search(study, tmp_path / "r", f"promotion.rule={rule}", "budget.trials=25", workers=workers)
    counts = Counter(trial.fidelity.epochs for trial in run.trials)
    assert counts[18] >= 1
    assert len(set(places(run))) == sum(counts.values()) == 25


def _beats(one, other) -> bool:
    accuracy, macs = ([trial.values[name] for trial in (one, other)] for name in ("accuracy", "macs"))
    return accuracy[0] >= accuracy[1] and macs[0] <= macs[1] and (accuracy[0], macs[0]) != (accuracy[1], macs[1])


def test_only_scores_of_the_highest_rung_are_compared(climbed):
    run = climbed
    top = {trial.number for trial in run.trials if trial.fidelity.epochs == 18}
    known = [trial for trial in run.trials if trial.number in top]
    chosen = {trial.number for trial in finalists(run)}
    assert {trial.number for trial in known if not any(_beats(other, trial) for other in known)} <= chosen
    assert [number for number, _, _ in hypervolume_over_time(run)] == sorted(top)
    assert pick(run, known[0].arch.arch_id).trial.fidelity == Fidelity(18)
    table = trials_table(run)
    assert table.columns[3] == "fidelity_epochs"
    assert sorted(set(table["fidelity_epochs"])) == [2, 6, 18]


def test_without_a_full_score_the_highest_rung_that_has_any_counts(study, tmp_path):
    run = search(study, tmp_path / "r", "budget.trials=2")
    highest = max(trial.fidelity.epochs for trial in run.trials)
    assert highest < 18
    assert {trial.fidelity.epochs for trial in finalists(run)} == {highest}


@pytest.mark.parametrize("stop", range(3, 12, 4))
def test_a_controller_that_dies_anywhere_is_continued_to_the_same_end(study, climbed, tmp_path, stop):

    class Died(Exception):
        pass

    def die(event):
        if isinstance(event, TrialStarted) and event.number == stop:
            raise Died

    drop, Search._drop = Search._drop, lambda self, reason: None  # a killed process closes nothing
    try:
        with pytest.raises(Died):
            search(study, tmp_path / "r", "budget.trials=16", observe=die)
    finally:
        Search._drop = drop
    assert [trial.state for trial in load_run(tmp_path / "r").trials][-1] == "running"
    continued = search(study, tmp_path / "r", "budget.trials=16")
    assert Counter(places(continued)).most_common(1)[0][1] == 1
    closed = [row for row in rows(continued) if row[2] != "interrupted"]
    assert len(closed) == 16
    assert closed[: stop + 1] == rows(climbed)[: stop + 1]  # what was running is run again, at its rung


def test_running_it_again_does_nothing_and_a_larger_budget_goes_on(study, climbed, tmp_path):
    short = search(study, tmp_path / "r", "budget.trials=10")
    events = []
    again = search(study, tmp_path / "r", "budget.trials=10", observe=events.append)
    assert rows(again) == rows(short)
    assert not any(isinstance(event, TrialStarted) for event in events)
    longer = rows(search(study, tmp_path / "r", "budget.trials=16"))
    assert longer[:10] == rows(short)
    assert rows(short)[:8] == rows(climbed)[:8]  # the last two of ten are kept for promotions
    assert len(longer) == 16


def test_who_fails_at_a_rung_is_not_promoted_again(study, tmp_path):
    broken = lambda job: job.fidelity.epochs == 6 and job.repeat is None  # noqa: E731
    run = search(study, tmp_path / "r", "budget.trials=20", fails=broken)
    states = Counter((trial.fidelity.epochs, trial.state) for trial in run.trials)
    assert states[(6, "failed")] > 1
    assert (18, "complete") not in states
    assert len(set(places(run))) == 20


def test_an_exhausted_space_still_promotes(tmp_path):
    study = table_study(tmp_path, constraints=["macs<=4"])
    run = search(study, tmp_path / "r", "budget.trials=1000")
    counts = Counter(trial.fidelity.epochs for trial in run.trials if trial.state == "complete")
    rows_of_table = [line.split(",") for line in (study / "table.csv").read_text().splitlines()[1:]]
    assert counts[2] == sum(float(row[-1]) <= 4 for row in rows_of_table) > 10
    assert counts[18] == counts[6] == counts[2]  # the budget lasts for everybody
    assert "every student of the space" in run.finished
    assert next_promotion(run, "all") is None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "hvi"])
def test_every_sampler_searches_with_rungs(study, tmp_path, sampler):
    run = search(study, tmp_path / "r", f"sampler={sampler}", "budget.trials=18")
    assert Counter(trial.state for trial in run.trials) == {"complete": 18}
    assert len(set(places(run))) == 18
    loaded = optuna.load_study(study_name="rungs", storage=database_url(tmp_path / "r" / "study.db"))
    assert [trial.user_attrs["fidelity"]["epochs"] for trial in loaded.trials] == [r[1] for r in rows(run)]


@pytest.mark.parametrize(("workers", "budget"), [(1, "{trials: 18}"), (3, "{full_trainings: 7}")])
def test_a_sampler_that_chooses_steps_searches_with_rungs(study, tmp_path, workers, budget):
    run = search(
        study, tmp_path / "r", "sampler=hvi", "promotion.rule=model", f"rungs={TWO_RUNGS}", f"budget={budget}",
        workers=workers,
    )  # fmt: skip
    assert {trial.state for trial in run.trials} == {"complete"}
    assert len(set(places(run))) == len(run.trials)
    assert {trial.fidelity.epochs for trial in run.trials} == {2, 18}
    assert all("macs" in trial.values for trial in run.trials)


def test_a_search_by_chosen_steps_that_stopped_goes_on_alike(study, tmp_path):
    settings = ("sampler=hvi", "promotion.rule=model", f"rungs={TWO_RUNGS}")
    whole = search(study, tmp_path / "whole", *settings, "budget.trials=14")
    search(study, tmp_path / "r", *settings, "budget.trials=9")
    assert rows(search(study, tmp_path / "r", *settings, "budget.trials=14"))[:8] == rows(whole)[:8]


def test_a_sampler_that_knows_no_rungs_sees_each_student_once_at_comparable_scores(climbed):
    run = climbed
    loaded = optuna.load_study(study_name="rungs", storage=database_url(run.folder / "study.db"))
    trials = loaded.get_trials(deepcopy=False)
    fidelities = tuple(Fidelity(epochs) for epochs in (2, 6, 18))
    seen = at_one_fidelity(trials, fidelities)
    assert [trial.number for trial in seen] == list(range(40))
    complete = [trial for trial in seen if trial.state == optuna.trial.TrialState.COMPLETE]
    assert {trial.number for trial in complete} == {t.number for t in run.trials if t.fidelity.epochs == 2}
    assert all(not trial.params for trial in seen if trial not in complete)
    best = {}
    for trial in run.trials:
        best[trial.arch.arch_id] = trial
    for trial in complete:
        reached = best[trial.user_attrs["arch_id"]]
        if reached.fidelity.epochs == 18:
            assert trial.values == [reached.values["accuracy"], reached.values["macs"]]
        else:  # lifted: everybody gains by a longer training in this table
            assert trial.values[0] > reached.values["accuracy"]
            assert trial.values[1] == reached.values["macs"]
    assert [trial.values for trial in trials] == [
        trial.values for trial in loaded.trials
    ]  # nothing was changed in place


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_a_budget_of_full_trainings_is_never_exceeded(study, tmp_path):
    run = search(study, tmp_path / "r", "budget={full_trainings: 2}", workers=2)
    used = sum(trial.fidelity.epochs for trial in run.trials) / 18
    assert 1 < used <= 2
    assert run.finished.startswith("the budget of 2 full trainings is spent: ")
    larger = search(study, tmp_path / "r", "budget={full_trainings: 3.5}")
    assert rows(larger)[: len(run.trials)] == rows(run)
    assert 2.5 < sum(trial.fidelity.epochs for trial in larger.trials) / 18 <= 3.5


def test_units_are_final_trainings_and_who_goes_on_pays_for_the_further_epochs_only(study):
    config = load_study(study, ["final.epochs=36"]).config
    costs = [full_trainings(config, fidelity, goes_on=False) for fidelity in config.fidelities]
    assert costs == pytest.approx([2 / 36, 6 / 36, 18 / 36])
    costs = [full_trainings(config, fidelity, goes_on=True) for fidelity in config.fidelities]
    assert costs == pytest.approx([2 / 36, 4 / 36, 12 / 36])
    shares = load_study(study, ["rungs=[{epochs: 2, data_fraction: 0.5}, {epochs: 18}]"]).config
    assert [full_trainings(shares, f, goes_on=True) for f in shares.fidelities] == pytest.approx([1 / 18, 1])


def test_a_budget_of_time_counts_every_call(study, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("kdnas.controller.runner.time.monotonic", lambda: now[0])

    def observe(event):
        if isinstance(event, TrialStarted):
            now[0] += 10
        if isinstance(event, SearchEnded):
            now[0] += 1e6  # retraining is no searching

    class Interrupt(Exception):
        pass

    def interrupt(event):
        observe(event)
        if isinstance(event, TrialStarted) and event.number == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        search(study, tmp_path / "r", "budget={wall_clock_s: 65}", observe=interrupt)
    assert load_run(tmp_path / "r").finished == ""
    now[0] = 0.0
    run = search(study, tmp_path / "r", "budget={wall_clock_s: 65}", observe=observe)
    assert len(run.trials) == 7  # 40 s in the first call, 30 s in the second
    assert run.finished == "the budget of 65 s of searching is spent"


def test_the_first_limit_that_is_reached_ends_the_search(study, tmp_path):
    run = search(study, tmp_path / "r", "budget={full_trainings: 50, trials: 7}")
    assert len(run.trials) == 7
    assert run.finished == "the budget of 7 trials is spent"


def test_a_search_that_gains_nothing_any_more_stops_and_says_so(study, tmp_path):
    asked = "budget={trials: 1000, stagnation: {trials: 4, gain: 0.02}}"
    events = []
    run = search(study, tmp_path / "r", asked, "rungs=[]", "training.epochs=18", observe=events.append)
    assert len(run.trials) < 75
    assert run.finished.startswith("the hypervolume stagnates: the last 4 scores after 18 epochs made it grow ")
    assert next(event for event in events if isinstance(event, SearchEnded)).reason == run.finished
    volumes = [0.0, *(volume for _, _, volume in hypervolume_over_time(run))]
    assert volumes[-1] <= volumes[-5] * 1.02
    assert all(volumes[end] > volumes[end - 4] * 1.02 for end in range(4, len(volumes) - 1))
    events.clear()
    again = search(study, tmp_path / "r", asked, "rungs=[]", "training.epochs=18", observe=events.append)
    assert rows(again) == rows(run)
    more = len(run.trials) + 3
    on = search(study, tmp_path / "r", f"budget={{trials: {more}}}", "rungs=[]", "training.epochs=18")
    assert len(on.trials) == more


def test_a_retraining_that_always_fails_is_given_up_until_it_is_asked_for(study, tmp_path):
    tried = []

    def fails(job):
        tried.append((job.arch, job.repeat))
        return job.repeat is not None

    run = search(study, tmp_path / "r", "budget.trials=14", fails=fails)
    attempts = Counter(entry for entry in tried if entry[1] is not None)
    assert set(attempts.values()) == {2}
    assert len(attempts) == len(finalists(run))
    tried.clear()
    events = []
    search(study, tmp_path / "r", "budget.trials=14", fails=fails, observe=events.append)
    assert tried == []
    assert isinstance(events[-1], StudyEnded)
    run = search(study, tmp_path / "r", "budget.trials=14", "final.attempts=3")
    assert all(trial.repeats for trial in finalists(run))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rungs=[{epochs: 6}, {epochs: 2}]", "each needs more epochs x data_fraction x resolution_fraction^2 than"),
        (
            "rungs=[{epochs: 9, resolution_fraction: 1}, {epochs: 18, resolution_fraction: 0.7}]",
            "18 epochs at 70 % of the resolution after 9 epochs: each needs more",
        ),
        ("training.resolution_fraction=2", "training.resolution_fraction"),
        ("rungs=[{epochs: 2, resolution_fraction: 0}, {epochs: 18}]", "rungs.0.resolution_fraction"),
        ("rungs=[{epochs: 2}, {epochs: 2}]", "each needs more epochs"),
        ("rungs=[{epochs: 0}]", "rungs.0.epochs"),
        ("rungs=[{epochs: 2, width: 3}]", "width"),
        ("rungs=[{epochs: 2, data_fraction: 1.5}]", "data_fraction"),
        ("training.epochs=5", "the last one is the search's full score (18 epochs), but training states 5 epochs"),
        ("promotion.rule=best", "promotion.rule"),
        ("promotion.rule=model", "the sampler random has no model of what short scores tell"),
        ("promotion.eta=1", "promotion.eta"),
        ("budget.full_trainings=0", "budget.full_trainings"),
        ("budget.wall_clock_s=-1", "budget.wall_clock_s"),
        ("budget.stagnation.trials=1", "budget.stagnation.trials"),
    ],
)
def test_what_makes_no_ladder_is_refused(study, override, message):
    with pytest.raises(ConfigError) as caught:
        load_study(study, [override])
    assert message in str(caught.value)


def test_epochs_that_the_table_does_not_have_are_refused_before_anything_is_written(study, tmp_path):
    with pytest.raises(ConfigError, match="no accuracy after 3 epochs"):
        search(study, tmp_path / "r", "rungs=[{epochs: 3}, {epochs: 18}]")
    assert not (tmp_path / "r").exists()


def test_a_run_is_not_resumed_with_other_rungs(study, climbed):
    with pytest.raises(RunFolderError, match="rungs"):
        search(study, climbed.folder, "rungs=[{epochs: 2}, {epochs: 18}]")


def test_the_last_rung_is_the_training(study):
    config = load_study(study).config
    assert config.training.epochs == 18
    assert [fidelity.epochs for fidelity in config.fidelities] == [2, 6, 18]
    plain = load_study(study, ["rungs=[{epochs: 2, data_fraction: 0.5}, {epochs: 18}]"]).config
    assert plain.fidelities == (Fidelity(2, 0.5), Fidelity(18))


# -- weights ----------------------------------------------------------------------------------------------------------


def test_legs_are_the_further_epochs_and_other_data_or_resolution_begins_anew(study):
    config = load_study(study).config
    study_space = load_study(study).space
    from kdnas.study.spaces import arch_of

    arch = arch_of(study_space, {"a": 1, "b": 1, "c": "x"}, None)
    job = search_job(config, arch, {})
    assert [leg.epochs for leg in job.legs] == [2, 4, 12]
    assert job.fidelity == Fidelity(18)
    assert pickle.loads(pickle.dumps(job)) == job
    assert [leg.epochs for leg in search_job(config, arch, {}, 0).legs] == [2]
    shares = load_study(study, ["rungs=[{epochs: 2, data_fraction: 0.5}, {epochs: 6}, {epochs: 18}]"]).config
    assert [leg.epochs for leg in search_job(shares, arch, {}).legs] == [6, 12]
    tunings = ({}, {"training.learning_rate": 0.1}, {"training.learning_rate": 0.2})
    sides = load_study(study, ["rungs=[{epochs: 2, resolution_fraction: 0.5}, {epochs: 6}, {epochs: 18}]"]).config
    assert [leg.epochs for leg in search_job(sides, arch, {}).legs] == [6, 12]
    assert [search_job(sides, arch, {}, rung).recipe.training.resolution_fraction for rung in range(3)] == [0.5, 1, 1]
    names = {leg.checkpoint for tuned in tunings for leg in search_job(config, arch, tuned).legs}
    assert len(names) == 9


def test_promoted_students_continue_on_the_digits_and_score_the_same_without_their_weights(tmp_path):
    (tmp_path / "a").mkdir()
    study = tiny.write(tmp_path / "a")
    asked = (
        "rungs=[{epochs: 1}, {epochs: 3}]",
        "budget.trials=5",
        "promotion.eta=2",
        "final.seeds=1",
        "final.epochs=1",
    )
    left = []

    def observe(event):
        if isinstance(event, TrialStarted):
            left.append(sorted(path.name for path in (tmp_path / "r" / RUNG_FOLDER).glob("*")))

    run = search(study, tmp_path / "r", *asked, observe=observe, data_root="nowhere")
    promoted = [trial for trial in run.trials if trial.fidelity.epochs == 3]
    assert promoted
    assert left[0] == []
    assert [name.endswith("-rung0.safetensors") for name in left[1]] == [True]
    assert not (tmp_path / "r" / RUNG_FOLDER).exists()
    legs = [job.legs for job in search.answered if job.repeat is None]
    assert [[leg.epochs for leg in job] for job in legs if len(job) == 2] == [[1, 2]] * len(promoted)

    def forget(event):
        if isinstance(event, TrialStarted):
            for path in (tmp_path / "s" / RUNG_FOLDER).glob("*"):
                path.unlink()

    forgetful = search(study, tmp_path / "s", *asked, observe=forget, data_root="nowhere")
    assert rows(forgetful) == rows(run)
    # Two legs take longer than one: the weights were really gone.
    longer = {t.number: t.train_seconds for t in forgetful.trials}
    assert sum(longer[t.number] for t in promoted) > 0


def test_students_of_a_low_resolution_are_trained_anew_at_the_full_one(tmp_path):
    study = tiny.write(tmp_path)
    asked = (
        "rungs=[{epochs: 1, resolution_fraction: 0.5}, {epochs: 3}]",
        "budget.trials=5",
        "promotion.eta=2",
        "final.seeds=1",
        "final.epochs=1",
    )
    run = search(study, tmp_path / "r", *asked, data_root="nowhere")
    low, high = Fidelity(1, resolution_fraction=0.5), Fidelity(3)
    assert run.config.fidelities == (low, high)
    assert {trial.fidelity for trial in run.trials if trial.state == "complete"} == {low, high}
    jobs = [job for job in search.answered if job.repeat is None]
    assert [[leg.epochs for leg in job.legs] for job in jobs] == [[job.fidelity.epochs] for job in jobs]
    assert {repeat.fidelity for trial in finalists(run) for repeat in trial.repeats} == {Fidelity(1)}
    assert {member.trial.fidelity for member in front(run)} == {high}
    shown = trials_table(run)
    assert dict(zip(shown["fidelity_resolution_fraction"], shown["fidelity_epochs"], strict=True)) == {0.5: 1, 1.0: 3}
    macs = {trial.arch.arch_id: set() for trial in run.trials}
    for trial in run.trials:
        macs[trial.arch.arch_id].add(trial.values["macs"])
    assert all(len(counts) == 1 for counts in macs.values())
    # In units of a final training of one epoch: the longer training is a whole one, it goes on from nothing.
    assert [full_trainings(run.config, fidelity, True) for fidelity in (low, high)] == [0.25, 3.0]


@pytest.mark.parametrize(("rule", "workers"), [("rank", 1), ("rank", 3), ("moasha", 1), ("halving", 3)])
def test_the_best_score_of_a_rung_is_promoted_though_it_came_last(study, tmp_path, rule, workers):
    run = search(
        study, tmp_path / "r", f"promotion.rule={rule}", "budget.trials=12", f"rungs={TWO_RUNGS}", workers=workers
    )
    low = [trial for trial in run.trials if trial.fidelity.epochs == 2]
    best = max(low, key=lambda trial: trial.values["accuracy"])
    assert any(trial.arch == best.arch for trial in run.trials if trial.fidelity.epochs == 18)
    assert len(run.trials) == 12


def test_a_budget_of_full_trainings_keeps_a_students_way_up(study, tmp_path):
    run = search(study, tmp_path / "r", "budget={full_trainings: 8}", f"rungs={TWO_RUNGS}")
    assert run.trials[-1].fidelity.epochs == 18


def test_finals_are_filled_with_who_may_belong_to_the_front(study, tmp_path):
    run = search(study, tmp_path / "r", "budget.trials=20", "final.max_students=6")
    top = [trial for trial in run.trials if trial.fidelity.epochs == 18]
    chosen = finalists(run)
    filled = [trial for trial in chosen if trial.fidelity.epochs < 18]
    assert 0 < len(filled) <= 6 - sum(trial in top for trial in chosen)
    assert len({trial.arch for trial in chosen}) == len(chosen)
    assert {trial.number for trial in run.trials if trial.repeats} == {trial.number for trial in chosen}
