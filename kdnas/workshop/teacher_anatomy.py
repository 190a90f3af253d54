"""What can be cut out of a study's teacher, found before any search."""

from __future__ import annotations

from dataclasses import dataclass

from kdnas.errors import Problem, TeacherError
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import Anatomy, inside, sound_part
from kdnas.nn.importance import Method, Ranking, rank
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.workshop.opening import Workshop

_EXAMPLES = 2
_CALIBRATED = 512
"""Samples that importance is measured on: more change no order (Muralidharan et al., "Minitron", NeurIPS 2024)."""
_BATCH = 64


@dataclass(frozen=True)
class TeacherAnatomy:
    """A teacher's anatomy, every part of which has been cut and compared, and what the whole and its halves cost."""

    teacher: str
    network: str
    """The class of the network that would be cut."""
    anatomy: Anatomy
    macs: int
    params: int
    least_macs: int
    """Of the network cut to the fewest units and blocks that work."""
    least_params: int
    ranking: Ranking | None = None
    """How much each unit and block matters on training samples, where that was asked for."""


def open_anatomy(workshop: Workshop, *, importance: Method | None = None) -> TeacherAnatomy:
    """Return what can be cut out of the study's teacher, and by `importance` what of it matters most.

    Raises TeacherError where nothing of the teacher can be cut, and what opening data and teacher raises.
    """
    say, train, teacher = workshop.say, workshop.train_indices, workshop.teacher
    (images,) = next(workshop.batches(train[:_EXAMPLES]).ordered(batch_size=_EXAMPLES)).inputs
    network, example = inside(teacher.module, images)
    try:
        found = read_anatomy(network, example)
    except ValueError as error:
        raise TeacherError(Problem(f"teacher {teacher.name}", str(error))) from None
    say(f"cutting {type(network).__name__} along {len(found.axes)} axes and comparing each with the masked network")
    anatomy = sound_part(found, network, example)
    if not anatomy.axes and not anatomy.depths:
        why = "; ".join(f"{part.what}: {part.why}" for part in anatomy.uncut[:3])
        raise TeacherError(Problem(f"teacher {teacher.name}", f"nothing of it can be cut ({why})"))
    fewest = anatomy.prefix({name: part.least for name, part in anatomy.by_name.items()})
    smallest = anatomy.cut(network, fewest)
    ranking = None
    if importance is not None:
        say(f"ranking what matters by {importance} on {min(_CALIBRATED, len(train))} training images")
        samples = workshop.batches(train[:_CALIBRATED])
        batches = [(inside(teacher.module, b.inputs[0])[1], b.targets) for b in samples.ordered(batch_size=_BATCH)]
        ranking = rank(network, anatomy, batches, method=importance)
    return TeacherAnatomy(
        teacher.name,
        type(network).__name__,
        anatomy,
        traced_macs(network, example[:1]),
        parameter_count(network),
        traced_macs(smallest, example[:1]),
        parameter_count(smallest),
        ranking,
    )
