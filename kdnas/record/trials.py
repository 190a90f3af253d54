"""Optuna's trials as kdnas's records. What stands in their attributes is listed in `kdnas.record.storage`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.words import printable
from kdnas.record.lock import scored
from kdnas.record.records import AuditTraining, Control, Repeat, Result, TrialRecord, TrialState

FIXED_PARAMS = "fixed_params"
_STATES: dict[OptunaState, TrialState] = {
    OptunaState.COMPLETE: "complete",
    OptunaState.FAIL: "failed",
    OptunaState.PRUNED: "infeasible",
    OptunaState.RUNNING: "running",
    OptunaState.WAITING: "running",
}


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """Return a trial's own attributes. Raises KeyError where it was never described."""
    attributes = trial.user_attrs
    result = Result.from_dict(attributes.get("result", {}))
    return TrialRecord(
        number=trial.number,
        arch=Arch.from_json(attributes["arch"]),
        state="interrupted" if attributes.get("interrupted") else _STATES[trial.state],
        fidelity=Fidelity.from_dict(attributes["fidelity"]),
        tuned=attributes.get("tuned", {}),
        proposed=trial.params,
        values=result.values,
        measurements=result.measurements,
        reason=printable(attributes.get("reason", "")),
        train_seconds=result.train_seconds,
        teacher_seconds=result.teacher_seconds,
        profile=result.profile,
        notes=result.notes,
        enqueued=FIXED_PARAMS in trial.system_attrs,
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )


def what_else(trial: FrozenTrial) -> str:
    """Return what a trial is that was never described; empty where it is a proposal that kdnas withdrew itself."""
    attributes = trial.user_attrs
    if "set_aside" in attributes:
        return printable(str(attributes["set_aside"]))
    if trial.state == OptunaState.WAITING:
        return "it waits: the next search within its budget takes it"
    if "reason" in attributes or trial.state == OptunaState.RUNNING:
        return ""
    return "another tool added it: how its student was trained is not recorded, so its values are not comparable"


def with_retraining(trial: TrialRecord, repeats: Sequence[Repeat], measured: Mapping[str, Measurement]) -> TrialRecord:
    """Return `trial` with the retrainings of a finalist, and with what was measured of it after the search."""
    if not repeats and not measured:
        return trial
    return dataclasses.replace(
        trial,
        values={**trial.values, **{name: taken.value for name, taken in measured.items()}},
        measurements={**trial.measurements, **measured},
        repeats=tuple(sorted(repeats, key=lambda repeat: repeat.seed)),
    )


def measurements_of(plain: Mapping[str, Any]) -> dict[str, Measurement]:
    """Return the measurements that a plain record holds."""
    return {name: Measurement(**value) for name, value in plain.items()}


def repeat_of(plain: Mapping[str, Any]) -> Repeat:
    """Return the retraining that a study attribute holds."""
    return Repeat(**{**scored(plain), "fidelity": Fidelity.from_dict(plain["fidelity"])})


def control_of(plain: Mapping[str, Any]) -> Control:
    """Return the training without a teacher that a study attribute holds."""
    return Control(**{**scored(plain), "fidelity": Fidelity.from_dict(plain["fidelity"])})


def audit_training(plain: Mapping[str, Any]) -> AuditTraining:
    """Return the training of an audit that a study attribute holds."""
    curve = tuple((int(epoch), float(score)) for epoch, score in plain["curve"])
    return AuditTraining(**{**scored(plain), "fidelity": Fidelity.from_dict(plain["fidelity"]), "curve": curve})
