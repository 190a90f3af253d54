"""train.yaml: the whole recipe of the student's training, for `kdnas train` and for any other pipeline."""

from __future__ import annotations

from pathlib import Path

import yaml

from kdnas.core.preprocessing import Preprocessing, TextPreprocessing
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._predict import write_preprocessing
from kdnas.plain_yaml import dump_yaml
from kdnas.plugins import short_name
from kdnas.tasks import task_of
from kdnas.trust import signature_line

FILE = "train.yaml"

_HEADER = """\
# How to train student {arch_id} of the family {family}, whole: `kdnas train {file}` follows it.
# Plain YAML; nothing here is code. For another pipeline:
#   arch          the network; student.py builds the same one and needs only torch
{samples}
#   data          the data set, relative to the data root; where it has no validation split of its own,
#                 validation_fraction of its training {several}, {split} by seed, are held out;
#                 the test part is used once, at the end
#   teacher       the fixed network that is imitated, and the hash of its weights
#   training      optimiser, schedule (linear warm-up, then cosine to zero){views}
#   start         random: random weights; inherited: the teacher's own, as it is cut to the student
#   distillation  loss = task_weight * cross entropy + the sum over losses of weight * distillation loss
#   provenance    the study that found it
# A type or family spelled path/to/file.py:Name is code of the study's author, looked for next to this file.
"""

_PICTURES = """\
#   statistics    x = (pixel - channel_mean) / channel_std, pixels 0..255, one value a channel; a student that is cut
#                 out of its teacher takes the teacher's instead: preprocessing.json has them
#   preprocessing of pictures, before that: turned upright, on this background where transparent, then the whole
#                 picture resized by Pillow to the shape of the task's input, its aspect ratio not kept"""

_TEXTS = """\
#   task          what a network is given: tokens of the tokenizer that preprocessing.json names, {what}"""

_OWN = """\
#   task          what a network is given, behind the entrance of the task"""


@EXPORTERS.register
def train_yaml(student: TrainedStudent, folder: Path) -> Written:
    """The whole recipe as YAML: teacher, losses, schedule, data, seeds, arch, normalisation."""
    header = _header(student)
    recipe = dict(student.recipe)
    path = folder / FILE
    body = dump_yaml(recipe)
    path.write_text(f"{header}{signature_line(recipe)}\n{body}", encoding="utf-8")
    if yaml.safe_load(path.read_text(encoding="utf-8")) != recipe:
        raise ExportError(f"{FILE}: the recipe did not read back as written")
    return Written((FILE, write_preprocessing(student, folder)))


def _header(student: TrainedStudent) -> str:
    """Return the comments that explain the file, in the words of the task's own samples."""
    task, given = task_of(student.spec), student.preprocessing
    cut = f"in blocks of {student.spec.size}" if student.spec.rows > 1 else f"of which {student.spec.size} at most"
    if isinstance(given, Preprocessing):
        samples = _PICTURES
    else:
        samples = _TEXTS.format(what=cut) if isinstance(given, TextPreprocessing) else _OWN
    return _HEADER.format(
        arch_id=student.arch.arch_id,
        family=short_name(student.arch.family),
        file=FILE,
        samples=samples,
        several=student.spec.samples,
        split=task.split_in_words,
        views=f" and {task.views_in_words}" if task.views_in_words else "",
    )
