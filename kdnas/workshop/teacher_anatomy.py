"""What can be cut out of a study's teacher, found before any search."""

from __future__ import annotations

from dataclasses import dataclass

from kdnas.core.measurement import Price
from kdnas.nn.cutting import Anatomy
from kdnas.nn.importance import Method, Ranking
from kdnas.students import STUDENTS, FamilyContext
from kdnas.students.derived import Derived
from kdnas.workshop.opening import Workshop


@dataclass(frozen=True)
class TeacherAnatomy:
    """A teacher's anatomy, every part of which has been cut and compared, and what the whole and the least cost."""

    teacher: str
    network: str
    """The class of the network that is cut."""
    anatomy: Anatomy
    whole: Price
    least: Price
    """Of the network cut to the fewest units and blocks that work."""
    ranking: Ranking | None = None
    """How much each unit and block matters on training samples, where that was asked for."""


def open_anatomy(workshop: Workshop, *, importance: Method | None = None) -> TeacherAnatomy:
    """Return what can be cut out of the study's teacher, and by `importance` what of it matters most.

    Raises TeacherError where nothing of the teacher can be cut, and what opening data and teacher raises.
    """
    context = FamilyContext(workshop.data.task, workshop.teachers, workshop.samples)
    family: Derived = STUDENTS.build("derived", context, importance=importance or "l1")
    return anatomy_of(family, ranked=importance is not None)


def anatomy_of(family: Derived, *, ranked: bool = True) -> TeacherAnatomy:
    """Return what `family` cuts its students out of; with what matters in it where it was `ranked` by that."""
    anatomy = family.anatomy
    return TeacherAnatomy(
        family.ancestor().name,
        type(family.network).__name__,
        anatomy,
        family.price_at({}),
        family.price_at({part.name: part.least for part in anatomy.parts}),
        Ranking(dict(family.calibration.scores)) if ranked else None,
    )


_MOST_SHOWN = 6
"""Parts that are named before the rest is counted."""


def in_words(found: TeacherAnatomy) -> dict[str, list[str]]:
    """Return what students are cut along, and what stays whole and why, by topic and in plain words."""
    anatomy, whole, least = found.anatomy, found.whole, found.least
    along = [f"{axis.role} of {axis.size}" for axis in anatomy.axes]
    counts = {what: along.count(what) for what in along}
    cuts = [f"{count} x {what}" if count > 1 else what for what, count in counts.items()]
    blocks = [f"{depth.least} to {len(depth.blocks)} blocks of {depth.name}" for depth in anatomy.depths]
    share = f"{least.macs / whole.macs:.1%} of the MACs and {least.params / whole.params:.1%} of the parameters"
    topics = {
        "cut_along": [f"read as {anatomy.kind}; the least that works has {share}", *_first(blocks), *_first(cuts)]
    }
    if anatomy.uncut:
        topics["left_whole"] = _first(
            [
                f"{name}{f' and {len(more)} more' if more else ''}: {why}"
                for why, (name, *more) in anatomy.left_whole.items()
            ]
        )
    return topics


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_SHOWN
    return lines if more < 1 else [*lines[:_MOST_SHOWN], f"{more} more: `kdnas spaces show` lists them"]
