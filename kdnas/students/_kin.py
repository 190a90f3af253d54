"""Families whose students can begin with what a teacher of the same family has for them."""

from __future__ import annotations

from torch import Tensor

from kdnas.core.arch import Arch
from kdnas.errors import ConfigError, Problem
from kdnas.nn.normalise import Normalised
from kdnas.nn.teacher import Teacher
from kdnas.students import StudentFamily

_INHERITED_BY = 512
"""Training samples by which importance in the teacher is measured."""


class KinFamily(StudentFamily):
    """A family that may have a teacher of its own kind."""

    def ancestor(self) -> Teacher | None:
        """Return the teacher of this family that is given what students are; None where there is none."""
        teachers = [each for each in self.context.teachers.values() if each.data is None]
        return next((each for each in teachers if each.arch is not None and each.arch.family == self.name), None)

    def _known_ancestor(self) -> tuple[Normalised, Arch]:
        """Return the network of the ancestor behind its normalisation, and its arch. Raises ConfigError."""
        teacher = self._ancestor()
        assert teacher.arch is not None
        return next(part for part in teacher.module.modules() if isinstance(part, Normalised)), teacher.arch

    def _ancestor(self) -> Teacher:
        """Return the ancestor. Raises ConfigError where there is none."""
        teacher = self.ancestor()
        if teacher is None:
            seen = {each.name: " of other samples" if each.data else "" for each in self.context.teachers.values()}
            of = ", ".join(name + other for name, other in seen.items()) or "none is open"
            what = f"no teacher is a {self.name} of kdnas ({of}): no weights can be inherited"
            raise ConfigError(Problem("start", what, f"random, or a teacher `type: student, family: {self.name}`"))
        return teacher

    def _samples(self, count: int) -> tuple[Tensor, ...]:
        """Return the inputs of so many training samples, raw. Raises ConfigError where none are open."""
        if self.context.samples is None:
            raise ConfigError(Problem("start", "no samples are open, by which a teacher's weights are chosen"))
        inputs, _ = self.context.samples(count)
        return inputs

    def _normalised_samples(self, teacher: Normalised) -> Tensor:
        (images,) = self._samples(_INHERITED_BY)
        return (images - teacher.mean) / teacher.std
