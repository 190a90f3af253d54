"""A study with sections of its own, written beside what chose them: for `kdnas search`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdnas.core.space import SearchSpace
from kdnas.record.lock import space_record
from kdnas.record.run_folder import write_text
from kdnas.study.config import StudyConfig
from kdnas.study.spaces import space_names

_SPELLED_ANEW = ("teacher", "teacher_name", "further_teachers", "space")


def write_study(
    out: Path, config: StudyConfig, space: SearchSpace, sections: Mapping[str, object], words: str
) -> list[Path]:
    """Write `config` with other `sections`, and its space where that has a file of its own, into `out`.

    Returns what was written; `words` say at its top who wrote it and why.
    """
    plain = config.model_dump(mode="json", exclude_unset=True)
    study: dict[str, Any] = {key: value for key, value in plain.items() if key not in _SPELLED_ANEW}
    if config.teachers:
        study["teachers"] = {config.teacher_name: plain["teacher"], **plain.get("further_teachers", {})}
    study["space"], written = plain["space"], [out / "study.yaml"]
    if isinstance(config.space, str) and config.space not in space_names():
        study["space"] = "space.yaml"
        record = {key: value for key, value in space_record(space).items() if value}
        fixed = record.pop("fixed", {})
        record["choices"] = {**record["choices"], **{key: [value] for key, value in fixed.items()}}
        write_text(out / "space.yaml", yaml.safe_dump(record, sort_keys=False, width=120))
        written.append(out / "space.yaml")
    study |= sections
    write_text(out / "study.yaml", f"# Written by {words}.\n" + yaml.safe_dump(study, sort_keys=False, width=120))
    return written
