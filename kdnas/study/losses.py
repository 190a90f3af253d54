"""Losses in the place of a study's own, as the command line and `tune` spell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.plugins import SPELLING, own_name, short_name
from kdnas.study.yaml_lines import parse_value
from kdnas.training.recipe import LEARNING, SOURCE_OF, Distillation, LossTerm, labels_alone

TASK_LOSS = "ce"
"""Cross entropy with the labels alone, without the teacher."""


def parse_losses(texts: Sequence[str], study: Distillation) -> dict[str, Distillation]:
    """Return the losses that `texts` spell, by what to call them; the study's own is called "".

    A text is `ce`, the name of a loss, or YAML such as `{type: dkd, weight: 0.9, temperature: 4}`. A loss without a
    weight has that which the study gives it. Else one that reads logits, as kd does, weighs what the study's losses
    weigh together, and one that reads features, whose scale is its own, what its authors gave it. The task's weight is
    the study's unless `task_weight` is stated too. Raises ConfigError with every problem.
    """
    losses: dict[str, Distillation] = {}
    problems: list[Problem] = []
    for text in texts:
        try:
            name, loss = parse_loss(text, study)
        except ConfigError as error:
            problems += [Problem(f"--loss {text}", problem.what, problem.allowed) for problem in error.problems]
            continue
        losses["" if loss == study else name] = loss
    if problems:
        raise ConfigError(problems)
    return losses


def losses_spelled(text: str, study: Distillation) -> tuple[str, Distillation]:
    """Return what the losses that `text` spells are called, and the study's distillation with them.

    They are one as for `parse_loss`, or several joined by `+`. Raises ConfigError.
    """
    parts = [text] if text.startswith("{") else text.split("+")
    found = [parse_loss(part, study) for part in parts]
    if len(found) == 1:
        return found[0]
    for part, (name, distillation) in zip(parts, found, strict=True):
        if name == TASK_LOSS or distillation.task_weight != study.task_weight:  # one weight is the whole sum's
            what = f"{part} in a sum: the labels' weight is stated for all of its losses at once"
            raise ConfigError(Problem("", what, "distillation.task_weight"))
    terms = tuple(term for _, distillation in found for term in distillation.losses)
    return "+".join(name for name, _ in found), study.model_copy(update={"losses": terms})


def loss_name(study: Distillation) -> str:
    """Return what a study's own loss is called among others: "kd", or "kd + attention"."""
    return " + ".join(term.words for term in study.losses if term.weight > 0) or TASK_LOSS


def stated_of(text: str) -> dict[str, Any]:
    """Return what `text` states of a loss, its type among it; nothing where it spells none. Raises ConfigError."""
    value = parse_value(text)
    return {"type": value} if isinstance(value, str) else dict(value) if isinstance(value, dict) else {}


def parse_loss(text: str, study: Distillation) -> tuple[str, Distillation]:
    """Return what the loss that `text` spells is called, and the study's distillation with it. Raises ConfigError."""
    plain = stated_of(text)
    kind = plain.pop("type", None)
    kind = own_name(kind) if isinstance(kind, str) else kind
    missing = LOSSES.missing(kind) if isinstance(kind, str) and kind != TASK_LOSS else None
    if not isinstance(kind, str) or missing is not None:
        what = "is no loss" if missing is None else missing.what
        raise ConfigError(Problem("", what, ", ".join((TASK_LOSS, *LOSSES.names(), SPELLING))))
    own = next((term for term in study.losses if term.type == kind and term.weight > 0), None)
    if own is not None and own.of is not None:
        plain.setdefault("of", own.of)
    name = " ".join([short_name(kind), *(f"{key}={option}" for key, option in sorted(plain.items()))])
    if kind == TASK_LOSS:
        if plain:
            raise ConfigError(Problem("", f"{TASK_LOSS} takes no options"))
        return name, labels_alone(study)
    of = plain.get("of")
    task_weight = plain.pop("task_weight", 1.0 if of in LEARNING else study.task_weight)
    if own is not None:
        plain = {**own.model_dump(exclude={"type"}), **plain}
    if LOSSES.get(kind).needs == {"logits"}:
        plain.setdefault("weight", sum(term.weight for term in study.losses) or 1.0)
    try:
        term = LossTerm(type=kind, **plain)
        kept = {name: value for name, value in study.model_dump().items() if SOURCE_OF.get(name, of) == of}
        loss = Distillation.model_validate({**kept, "task_weight": task_weight, "losses": (term,)})
    except pydantic.ValidationError as error:
        raise ConfigError(
            Problem("", f"{'.'.join(map(str, found['loc']))}: {found['msg']}") for found in error.errors()
        ) from None
    wrong = LOSSES.problems(kind, term.options)
    if wrong:
        raise ConfigError(Problem("", f"{problem.where}: {problem.what}", problem.allowed) for problem in wrong)
    return name, loss
