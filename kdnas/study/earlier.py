"""Studies as earlier versions spelled them: three evaluators for what are three starts of one.

`scratch`, `finetune` and `supernet` were evaluators, of a study, a rung or the finalists. They are `distil` now, begun
from random weights or from those of the run's supernet; `supernet` trained no student: 0 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STARTS = {"scratch": "random", "finetune": "supernet", "supernet": "supernet"}


def in_present_words(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's plain data with such evaluators as starts. What has the wrong shape stays, and is refused."""
    study = dict(data)
    section = study.get("evaluator")
    named = section.get("type") if isinstance(section, dict) else section
    own: str = named if named is not None and _is_start(named, study) else ""
    if own:
        study["evaluator"] = {**section, "type": "distil"} if isinstance(section, dict) else "distil"
        study["start"] = _STARTS[own]
    rungs = study.get("rungs")
    if isinstance(rungs, list | tuple):
        study["rungs"] = [_rung(rung, own) for rung in rungs]
    if own == "supernet" and not rungs:
        study["rungs"] = [{"epochs": 0}]
    final = study.get("final")
    if isinstance(final, dict) and "evaluator" in final:
        name = final["evaluator"]
        if name is None or (name != "supernet" and _is_start(name, final)):
            start = {} if name is None else {"start": _STARTS[name]}
            study["final"] = {**{key: value for key, value in final.items() if key != "evaluator"}, **start}
    return study


def _is_start(name: Any, section: Mapping[str, Any]) -> bool:
    """Whether `name` is such an evaluator, and `section` states no other start."""
    return isinstance(name, str) and name in _STARTS and section.get("start") in (None, _STARTS[name])


def _rung(rung: Any, own: str) -> Any:
    """Return a rung; one that names no evaluator was scored by the study's `own`."""
    if not isinstance(rung, dict):
        return rung
    name = rung.get("evaluator", "") or ""
    if name and not _is_start(name, rung):
        return rung
    if name == "finetune" and rung.get("epochs") is None:
        return rung  # it always had to be stated
    lengths = {key: value for key, value in rung.items() if key != "evaluator"}
    start = {"start": _STARTS[name]} if name else {}
    as_cut = {"epochs": 0} if (name or own) == "supernet" and lengths.get("epochs") is None else {}
    return {**lengths, **start, **as_cut}
