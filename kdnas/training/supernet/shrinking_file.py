"""shrinking.yaml: what a supernet unlocked when and why, as a plain file for people, kdnas, and other pipelines.

    format: kdnas shrinking 1
    policy: adaptive
    space: cifar_resnet
    family: resnet
    budget_macs: 123456789           # 3 x MACs for each sample trained on, 1 x for each sample of a measurement
    stages:
    - name: largest
      allowed: {stem_width: [32], stage1.depth: [3], ...}    # the values that subnets may have
      share: 0.3                     # of the budget, at most
      learning_rate: 1.0             # factor of the recipe's
      ...
      reason: ...                    # why this stage came next, with the numbers in `gap` and `probes`
      ended: ...                     # why it ended, after `steps` steps and the share `spent`

The fields of a stage are those of `kdnas.core.shrinking.Stage` and `FinishedStage`. Earlier versions called the file
schedule.yaml and its format `kdnas schedule 1`; both are still read.
"""

from __future__ import annotations

from pathlib import Path

from kdnas import atomic
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.plain_yaml import dump_yaml, read_plain

SHRINKING_FILE = "shrinking.yaml"
_EARLIER_FILE = "schedule.yaml"
_FORMAT, _EARLIER_FORMAT = "kdnas shrinking 1", "kdnas schedule 1"


def write_shrinking(path: Path, record: ShrinkingRecord) -> None:
    """Write `record` to `path`, whole or not at all. Raises RunFolderError."""
    try:
        atomic.write_text(path, dump_yaml({"format": _FORMAT, **record.as_dict()}, compact=True))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error


def find_shrinking(folder: Path) -> Path:
    """Return the path of the shrinking.yaml in `folder`, under its earlier name where only that is there."""
    path, earlier = folder / SHRINKING_FILE, folder / _EARLIER_FILE
    return earlier if earlier.is_file() and not path.is_file() else path


def read_shrinking(path: Path) -> ShrinkingRecord:
    """Return the record at `path`, a file or the folder of one. Raises ConfigError where none is there or is sound."""
    path = find_shrinking(path) if path.is_dir() else path
    try:
        plain = read_plain(path)
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {str(error).partition(chr(10))[0]}")) from error
    if not isinstance(plain, dict) or plain.pop("format", None) not in (_FORMAT, _EARLIER_FORMAT):
        what = "is no record of a supernet's shrinking"
        raise ConfigError(Problem(str(path), what, f"a file that begins with 'format: {_FORMAT}'"))
    try:
        return ShrinkingRecord.from_dict(plain)
    except ValueError as error:
        raise ConfigError(Problem(str(path), str(error))) from error
