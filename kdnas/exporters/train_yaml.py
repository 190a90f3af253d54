"""train.yaml: the whole recipe of the student's training, for `kdnas train` and for any other pipeline."""

from __future__ import annotations

from pathlib import Path

import yaml

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._predict import write_preprocessing
from kdnas.plain_yaml import dump_yaml
from kdnas.plugins import short_name
from kdnas.trust import signature_line

FILE = "train.yaml"

_HEADER = """\
# How to train student {arch_id} of the family {family}, whole: `kdnas train {file}` follows it.
# Plain YAML; nothing here is code. For another pipeline:
#   arch          the network; student.py builds the same one and needs only torch
#   channel_*     x = (pixel - channel_mean) / channel_std, pixels 0..255, one value a channel; a student that is cut
#                 out of its teacher takes the teacher's instead: preprocessing.json has them
#   preprocessing of pictures, before that: turned upright, on this background where transparent, then the whole
#                 picture resized by Pillow to input_shape, its aspect ratio not kept
#   data          the data set, relative to the data root; validation_fraction of its training part is held out,
#                 drawn by seed, class by class; the test part is used once, at the end
#   teacher       the fixed network that is imitated, and the hash of its weights
#   training      optimiser, schedule (linear warm-up, then cosine to zero) and random views of the images
#   start         random: random weights; inherited: the teacher's own, as it is cut to the student
#   distillation  loss = task_weight * cross entropy + the sum over losses of weight * distillation loss
#   provenance    the study that found it
# A type or family spelled path/to/file.py:Name is code of the study's author, looked for beside this file.
"""


@EXPORTERS.register
def train_yaml(student: TrainedStudent, folder: Path) -> Written:
    """The whole recipe as YAML: teacher, losses, schedule, data, seeds, arch, normalisation."""
    header = _HEADER.format(arch_id=student.arch.arch_id, family=short_name(student.arch.family), file=FILE)
    recipe = dict(student.recipe)
    path = folder / FILE
    body = dump_yaml(recipe)
    path.write_text(f"{header}{signature_line(recipe)}\n{body}", encoding="utf-8")
    if yaml.safe_load(path.read_text(encoding="utf-8")) != recipe:
        raise ExportError(f"{FILE}: the recipe did not read back as written")
    return Written((FILE, write_preprocessing(student, folder)))
