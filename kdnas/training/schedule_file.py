"""schedule.yaml: a recorded schedule as a plain file, for people, for `kdnas`, and for other pipelines.

    format: kdnas schedule 1
    policy: adaptive
    space: cifar_resnet
    family: resnet
    budget_macs: 123456789           # 3 x MACs for each image trained on, 1 x for each image of a measurement
    stages:
    - name: largest
      allowed: {stem_width: [32], stage1.depth: [3], ...}    # the values that subnets may have
      share: 0.3                     # of the budget, at most
      learning_rate: 1.0             # factor of the recipe's
      ...
      reason: ...                    # why this stage came next, with the numbers in `gap` and `probes`
      ended: ...                     # why it ended, after `steps` steps and the share `spent`

The fields of a stage are those of `kdnas.core.schedule.Stage` and `FinishedStage`.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from kdnas import atomic
from kdnas.core.schedule import Schedule
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.plain_yaml import dump_yaml

SCHEDULE_FILE = "schedule.yaml"
_FORMAT = "kdnas schedule 1"


def write_schedule(path: Path, schedule: Schedule) -> None:
    """Write `schedule` to `path`, whole or not at all. Raises RunFolderError."""
    plain = {"format": _FORMAT, **schedule.as_dict()}
    try:
        atomic.write_text(path, dump_yaml(plain, compact=True))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error


def read_schedule(path: Path) -> Schedule:
    """Return the schedule in the file at `path`. Raises ConfigError where there is none or it is damaged."""
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {str(error).partition(chr(10))[0]}")) from error
    if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
        raise ConfigError(Problem(str(path), "is no schedule", f"a file that begins with 'format: {_FORMAT}'"))
    try:
        return Schedule.from_dict(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(Problem(str(path), f"is damaged: {error}")) from error
