"""Rules that a user states about the labels of texts, as a teacher: it gives the classes that a text may have.

Nothing of it is learnt. A student learns of it by the loss `semantic`, a penalty on what the rules forbid, and its
answers on the test split are reported with the rules applied too, and how many of them that changes.

Shapes: B texts, T tokens, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, model_validator
from torch import Tensor, nn

from kdnas.core.ruling import Rule, allowed
from kdnas.core.text import TextData
from kdnas.errors import Problem, TeacherError
from kdnas.nn.ruling import FORBIDDEN
from kdnas.registry import Pattern, Section
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.tokenizing import Tokenizer

_LOOKED_AT = 2048
"""Training texts that show what a rule is about."""


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Labels = Annotated[tuple[str, ...], BeforeValidator(_several)]


class LabelRule(Section):
    """An implication: a text in which `when` is found has one of the labels `then`, or none of `never`."""

    when: Pattern | None = None
    """A regular expression, found whatever the case of letters; None: of every text."""
    then: Labels = ()
    never: Labels = ()

    @model_validator(mode="after")
    def _says_something(self) -> LabelRule:
        if bool(self.then) == bool(self.never):
            raise ValueError("states either `then`, labels one of which it is, or `never`, labels that it is not")
        return self


class LabelRules(nn.Module):
    """Texts as tokens to logits [B, K]: 0 of a class that they may have (`kdnas.core.ruling`), else `FORBIDDEN`."""

    def __init__(self, rules: Sequence[Rule], names: Sequence[str], tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer = tokenizer
        self._rules = tuple(rules)
        self._names = tuple(names)

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Return what the tokens int64 [B, T] stand for that are text."""
        rows = zip(tokens.cpu(), mask.cpu(), strict=True)
        return [self._tokenizer.decode(row[kept > 0].tolist()) for row, kept in rows]

    def forward(self, tokens: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return the logits of texts [B, T]."""
        rows = [allowed(text, self._rules, self._names) for text in self.texts(tokens, mask)]
        kept = torch.tensor(rows).reshape(len(tokens), len(self._names))
        return torch.where(kept, 0.0, FORBIDDEN).to(tokens.device)


@TEACHERS.register
def label_rules(context: TeacherContext, *, rules: tuple[LabelRule, ...]) -> Teacher:
    """Rules on the labels of texts, next to a teacher trained on them: `{when: PATTERN, then: [LABEL, ...]}`.

    `teachers: {teacher: ..., rules: {type: label_rules, rules: [...]}}`; a loss `{type: semantic, of: rules}` trains
    students to keep them (Xu et al., ICML 2018). Their effect on the training texts is reported. Raises TeacherError.

    Args:
        context: What the study hands over.
        rules: Each has `when`, a regular expression that is found in the texts that it is about, all where it is left
            out, and either `then`, the labels that those may have, or `never`, the labels that they cannot have.
    """
    data = context.data
    if not isinstance(data, TextData) or data.predicts_values:
        what = f"rules are about the classes of texts, and the data {data.name} are {data.task.samples}"
        raise TeacherError(Problem("teacher", what, "data: {type: text_table, ...} with classes"))
    names = tuple(data.class_names)
    problems = [
        Problem(f"rules.{index}", f"the data have no label {label!r}", ", ".join(names))
        for index, rule in enumerate(rules)
        for label in (*rule.then, *rule.never)
        if label not in names
    ]
    if not rules:
        problems.append(Problem("rules", "there are none"))
    if problems:
        raise TeacherError(problems)
    tokenizer, plain = Tokenizer(data.tokenizer), stated_rules({"rules": rules})
    module = LabelRules(plain, names, tokenizer).eval()
    told = json.dumps([[rule.model_dump() for rule in rules], names, tokenizer.fingerprint])
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
    return Teacher("rules", module, (), None, fingerprint, notes=_what_they_say(module, plain, data), outputs="rules")


def stated_rules(options: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Return the rules that the `options` of a teacher state, plain or validated."""
    sections = (LabelRule.model_validate(rule) for rule in options.get("rules", ()))
    return tuple(Rule(rule.when, rule.then, rule.never) for rule in sections)


def _what_they_say(module: LabelRules, rules: Sequence[Rule], data: TextData) -> tuple[str, ...]:
    """Return of each rule how many texts it is about, and how many labels of those it allows."""
    places = np.linspace(0, len(data.train) - 1, min(_LOOKED_AT, len(data.train))).astype(np.int64)
    tokens, mask = (torch.from_numpy(np.asarray(data.train.inputs[name][places])) for name in ("tokens", "mask"))
    labels = [data.class_names[label] for label in data.train.targets[places]]
    labelled = list(zip(module.texts(tokens, mask), labels, strict=True))
    told = []
    for number, rule in enumerate(rules):
        kept = [rule.allows(label) for text, label in labelled if rule.is_about(text)]
        share = f"rule {number} is about {100 * len(kept) / len(labelled):.1f} % of the training texts"
        told.append(f"{share} and allows {100 * sum(kept) / len(kept):.1f} % of their labels" if kept else share)
    return tuple(told)
