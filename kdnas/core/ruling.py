"""Rules on the labels of texts, as a user states them: what a text may be called.

The text is what a tokenizer makes of its tokens again, without special ones: what a network was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Rule:
    """An implication: a text in which `when` is found has one of the labels `then`, or none of `never`."""

    when: str | None = None
    """A regular expression, found whatever the case of letters; None: of every text."""
    then: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.when or "", re.IGNORECASE)

    def is_about(self, text: str) -> bool:
        """Return whether it applies to `text`."""
        return self._pattern.search(text) is not None

    def allows(self, label: str) -> bool:
        """Return whether a text that it is about may have this label."""
        return label in self.then if self.then else label not in self.never


def allowed(text: str, rules: Sequence[Rule], labels: Sequence[str]) -> list[bool]:
    """Return of each label whether all `rules` allow it; all of them where they contradict each other."""
    about = [rule for rule in rules if rule.is_about(text)]
    kept = [all(rule.allows(label) for rule in about) for label in labels]
    return kept if any(kept) else [True] * len(labels)
