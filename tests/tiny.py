"""A study on the real digits that ends in seconds."""

from __future__ import annotations

from pathlib import Path

STUDY = """\
name: tiny
data: {type: digits, validation_fraction: 0.25}
teacher:
  type: student
  family: resnet
  choices: {stem_width: 8, stage1.depth: 1, stage1.width: 16, stage1.bottleneck: plain, stage1.skip: identity}
  training: {epochs: 8, batch_size: 64, learning_rate: 0.1}
space: space.yaml
objectives: [accuracy, macs]
costs: {}
training: {epochs: 3, batch_size: 64, learning_rate: 0.1}
sampler: random
executor: {type: local, workers: 1, threads: 1}
budget: {trials: 4, trial_time_limit_s: 60}
final: {seeds: 2, epochs: 5, max_students: 2}
export: {formats: [safetensors, student_json]}
"""

SPACE = """\
family: resnet
choices:
  stem_width: [4, 8]
  stage1.depth: [1, 2]
  stage1.width: [4, 8, 16]
  stage1.bottleneck: [plain, 0.5]
  stage1.skip: [identity, none]
"""


def write(parent: Path) -> Path:
    """Write the study to `parent`/tiny and return that folder."""
    folder = parent / "tiny"
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY)
    (folder / "space.yaml").write_text(SPACE)
    return folder
