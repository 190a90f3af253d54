"""A synthetic run for tests of fronts and reports: invented numbers of a realistic shape, made by no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.objective import ACCURACY, PERPLEXITY, Quantity, parse_constraint
from kdnas.core.space import SearchSpace
from kdnas.core.task import image_classification
from kdnas.record.lock import DataDescription, Lock, TeacherReport
from kdnas.record.records import Repeat, RunRecord, TrialRecord
from kdnas.study.config import Final, StudyConfig

MACS = Quantity("macs", "MACs", "minimize", "cheap")
PARAMS = Quantity("params", "parameters", "minimize", "cheap")
LATENCY = Quantity("latency_ms", "ms", "minimize", "measured")
BEGUN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
_FINAL_EPOCHS = 10
HOSTILE = "</script><img src=x onerror=alert(1)>"


def complete(
    number: int, accuracy: float, macs: float, *, repeats: Sequence[float] = (), **values: float
) -> TrialRecord:
    """A complete trial with hand-chosen values; `repeats` are validation accuracies, the test ones 0.01 lower."""
    return TrialRecord(
        number=number,
        arch=Arch.of("resnet", {"depth1": number, "width1": 8}),
        state="complete",
        fidelity=Fidelity(3, 0.5),
        values={"accuracy": accuracy, "macs": macs, **values},
        train_seconds=10.0,
        teacher_seconds=4.0,
        started=BEGUN + timedelta(seconds=10 * number),
        ended=BEGUN + timedelta(seconds=10 * number + 10),
        repeats=tuple(
            Repeat(seed, value, value - 0.01, Fidelity(5, 1.0), 20.0, f"x-seed{seed}.safetensors")
            for seed, value in enumerate(repeats)
        ),
    )


def run_of(
    trials: Sequence[TrialRecord], *, constraints: Sequence[str] = (), folder: Path = Path("runs/synthetic")
) -> RunRecord:
    """A run over accuracy and MACs with exactly these trials."""
    config = StudyConfig.model_validate(
        {
            "name": "synthetic",
            "data": "digits",
            "teacher": "resnet",
            "space": "digits_resnet",
            "constraints": constraints,
        }
    )
    lock = Lock(
        config=config,
        space=SearchSpace("digits_resnet", "resnet", ()),
        fingerprints={},
        quantities=(ACCURACY, MACS, PARAMS, LATENCY),
        reference_point={"accuracy": 0.0, "macs": 100.0},
        teacher=None,
        data=DataDescription("digits", ("a", "b"), image_classification((1, 8, 8), 2), 1150, 287, 360),
    )
    return RunRecord(
        folder=folder,
        config=config,
        lock=lock,
        objectives=(ACCURACY, MACS),
        constraints=tuple(parse_constraint(text, ACCURACY) for text in constraints),
        quantities={quantity.name: quantity for quantity in lock.quantities},
        trials=tuple(trials),
        teacher=None,
        reference_point=lock.reference_point,
        class_names=lock.data.class_names,
    )


def perplexity_of(accuracy: float) -> float:
    """A perplexity that is the smaller the larger `accuracy` is."""
    return 12 * math.exp(4 * (1 - accuracy))


def as_perplexity(run: RunRecord, goals: Sequence[str] = ()) -> RunRecord:
    """The same run scored by a perplexity, which is to be small; `goals` are constraints on it."""

    def of(values: Mapping[str, float]) -> dict[str, float]:
        return {
            "perplexity" if name == "accuracy" else name: perplexity_of(value) if name == "accuracy" else value
            for name, value in values.items()
        }

    def repeat(one: Repeat) -> Repeat:
        tested = None if one.test_score is None else perplexity_of(one.test_score)
        return replace(one, score=perplexity_of(one.score), test_score=tested)

    teacher = run.teacher
    if teacher is not None:
        tested = None if teacher.test_score is None else perplexity_of(teacher.test_score)
        teacher = replace(teacher, score=perplexity_of(teacher.score), test_score=tested)
    stated = [*run.config.constraints, *goals]
    objectives = tuple(PERPLEXITY if objective == ACCURACY else objective for objective in run.objectives)
    audit = run.audit
    if audit is not None:
        made = [
            replace(
                training,
                score=perplexity_of(training.score),
                curve=tuple((epoch, perplexity_of(value)) for epoch, value in training.curve),
            )
            for training in audit.trainings
        ]
        audit = replace(audit, trainings=tuple(made))
    return replace(
        run,
        audit=audit,
        config=run.config.model_copy(
            update={"objectives": tuple(o.name for o in objectives), "constraints": tuple(stated)}
        ),
        objectives=objectives,
        quantities={PERPLEXITY.name: PERPLEXITY, **{k: v for k, v in run.quantities.items() if v != ACCURACY}},
        constraints=tuple(parse_constraint(text, PERPLEXITY) for text in stated),
        reference_point=of(run.reference_point),
        teacher=teacher,
        trials=tuple(
            replace(trial, values=of(trial.values), repeats=tuple(map(repeat, trial.repeats))) for trial in run.trials
        ),
        controls=tuple(
            replace(
                control,
                score=None if control.score is None else perplexity_of(control.score),
                test_score=None if control.test_score is None else perplexity_of(control.test_score),
            )
            for control in run.controls
        ),
    )


def synthetic_run(folder: Path = Path("runs/synthetic"), *, trials: int = 40, retrained: bool = True) -> RunRecord:
    """A run with complete, failed, infeasible, interrupted and running trials, finalists and hostile strings."""
    rng = np.random.default_rng(7)
    records = [_synthetic_trial(number, rng) for number in range(trials)]
    if trials > 12:
        records[3] = replace(
            records[3], state="failed", values={}, measurements={}, reason="loss became NaN in epoch 1"
        )
        records[9] = replace(
            records[9], state="failed", values={}, measurements={}, reason="loss became NaN in epoch 1"
        )
        records[5] = replace(records[5], state="failed", values={}, measurements={}, reason=f"crashed: {HOSTILE}")
        for number in (7, 11):
            cheap = {"macs": 6.1e6 + number * 1e4, "params": 91_000.0}
            records[number] = replace(
                records[number],
                state="infeasible",
                values=cheap,
                measurements={},
                train_seconds=0.0,
                reason="breaks macs<=6e6",
            )
        records[-2] = replace(
            records[-2], state="interrupted", values={}, measurements={}, reason="the search was stopped"
        )
        records[-1] = replace(records[-1], state="running", values={}, measurements={}, ended=None, train_seconds=0.0)
    base = run_of(records, constraints=("macs<=6e6",), folder=folder)
    run = replace(
        base,
        config=base.config.model_copy(update={"final": Final(epochs=_FINAL_EPOCHS)}),
        objectives=(ACCURACY, MACS, LATENCY),
        reference_point={"accuracy": 0.1, "macs": 6e6, "latency_ms": 4.0},
        teacher=TeacherReport(
            "resnet",
            0.9861,
            0.9806,
            {"macs": 24.6e6, "params": 412_000.0, "latency_ms": 3.1},
            (f"its notes {HOSTILE}",),
        ),
        finished="all 40 trials are done" if retrained else "",
    )
    return _retrain(run, rng) if retrained else run


def _synthetic_trial(number: int, rng: np.random.Generator) -> TrialRecord:
    depths = [int(rng.integers(0, 4)) for _ in range(3)]
    stem = int(rng.choice([8, 12, 16, 24]))
    choices: dict[str, bool | int | float | str] = {
        "stem_width": stem,
        "skip": str(rng.choice(["identity", "projection", "none"])),
    }
    for stage, depth in enumerate(depths, start=1):
        choices[f"depth{stage}"] = depth
        if depth:
            choices[f"width{stage}"] = int(rng.choice([8, 16, 32]))
    size = sum(depth * float(choices.get(f"width{stage}", 8)) ** 2 for stage, depth in enumerate(depths, start=1))
    macs, params = float(int(40_000 + 640 * size + 900 * stem)), float(int(500 + 18 * size + 30 * stem))
    latency = 0.2 + 0.12 * sum(depths) + macs / 8e6 + float(rng.normal(0, 0.03))
    accuracy = float(np.clip(0.975 - 0.35 / (1 + macs / 2e5) + rng.normal(0, 0.008), 0.1, 0.99))
    begun = BEGUN + timedelta(seconds=6 * number)
    return TrialRecord(
        number=number,
        arch=Arch.of("resnet", choices),
        state="complete",
        fidelity=Fidelity(3, 0.5),
        tuned={"training.learning_rate": float(10 ** rng.uniform(-2, -0.5))},
        values={"accuracy": round(accuracy, 4), "macs": macs, "params": params, "latency_ms": latency},
        measurements={"latency_ms": Measurement(latency, 0.02, 30, "1 thread, batch 1, cpu")},
        train_seconds=4.0 + macs / 1e6,
        teacher_seconds=1.5,
        started=begun,
        ended=begun + timedelta(seconds=6),
    )


def _retrain(run: RunRecord, rng: np.random.Generator) -> RunRecord:
    from kdnas.record.front import front

    finalists = {member.trial.number for member in front(run)}
    trials = []
    for trial in run.trials:
        if trial.number in finalists:
            scores = [min(trial.values["accuracy"] + 0.01 + float(rng.normal(0, 0.003)), 0.99) for _ in range(3)]
            fidelity, arch_id = Fidelity(_FINAL_EPOCHS, 1.0), trial.arch.arch_id
            repeats = tuple(
                Repeat(seed, score, score - 0.008, fidelity, 21.0, f"{arch_id}-seed{seed}.safetensors")
                for seed, score in enumerate(scores)
            )
            trial = replace(trial, repeats=repeats)
        trials.append(trial)
    return replace(run, trials=tuple(trials))
