"""What members of every family keep: a contract that is met, a summary, options that are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from kdnas.errors import ConfigError
from kdnas.registry import Registry


class MemberConformance:
    """The suite of any family. Derive from the suite of yours, and state `member`."""

    registry: ClassVar[Registry[Any]]
    """The family's; stated by its suite."""
    member: ClassVar[Any]
    """The class or function, or the name of a registered member."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options with which it can be built."""

    def build(self, *objects: Any, **options: Any) -> Any:
        """Return the member built as a study has it built: from run-time objects and checked options."""
        return self.registry.build(self._member, *objects, **{**self.options, **options})

    @property
    def _member(self) -> Any:
        """The member as it was stated: a function that stands in a class is no method here."""
        return next(vars(each)["member"] for each in type(self).__mro__ if "member" in vars(each))

    def test_it_is_a_member_of_its_family(self) -> None:
        member = self.registry.get(self._member)
        assert self.registry.contract_problems(member) == []
        problems = self.registry.problems(self._member, self.options)
        assert [problem for problem in problems if problem.what != "is required"] == []

    def test_it_says_in_a_line_what_it_is(self) -> None:
        assert len(self.registry.summary(self._member)) > 5, "the first line of the docstring stands in `kdnas list`"

    def test_options_that_it_has_not_are_refused(self) -> None:
        problems = self.registry.problems(self._member, {**self.options, "wings_": 2})
        assert "wings_" in {problem.where for problem in problems}
        with pytest.raises(ConfigError, match="wings_: unknown key"):
            self.registry.build(self._member, **{**self.options, "wings_": 2})


def suites(
    conformance: type[MemberConformance], *without: str, **attributes: Mapping[str, Any]
) -> dict[str, type[MemberConformance]]:
    """Return a suite for every registered member of a family but `without`, by name: `globals().update(suites(...))`.

    `attributes` are what the suite needs to know of single members, as `hint={"zero_when_equal": False}`.
    """
    made = {}
    for name in conformance.registry.names():
        if name not in without:
            title = f"Test{''.join(part.title() for part in name.split('_'))}"
            made[title] = type(title, (conformance,), {"member": name, **attributes.get(name, {})})
    return made
