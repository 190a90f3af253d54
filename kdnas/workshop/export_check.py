"""The export formats of a study, tried on its students before the first of them is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdnas.errors import ConfigError, Problem
from kdnas.exporters import lacking_formats, may_lack
from kdnas.plugins import short_name
from kdnas.study.spaces import arch_of
from kdnas.workshop.opening import Workshop

_CHOICES_TRIED = 8
"""Choices that are cut alone to see which exports such a student has."""


def check_exports(formats: Sequence[str], workshop: Workshop) -> None:
    """Raise ConfigError for wanted formats that no student of the workshop's space has; report who lacks one.

    Tried are the smallest and the largest, and the largest with one choice cut: a format may express some sizes only
    where others go with them.
    """
    lacking: dict[str, dict[str, str]] = {name: {} for name in formats if may_lack(name)}
    if not lacking:
        return
    space, family = workshop.space, workshop.family
    smallest, largest = space.corners
    one_cut = [choice.name for choice in space.choices if smallest[choice.name] != largest[choice.name]]
    tried = {"the smallest student": smallest, "the largest student": largest} | {
        f"a student with {name} {smallest[name]} and all else whole": {**largest, name: smallest[name]}
        for name in one_cut[:_CHOICES_TRIED]
    }
    for name, assignment in tried.items():
        arch = arch_of(space, assignment, family)
        with torch.random.fork_rng(devices=[]):
            network = workshop.build(arch)
        own, cut = family.cut(arch, network) or (network, None)
        for export, why in lacking_formats([*lacking], cut, own).items():
            lacking[export][name] = why
    never = {export: whose for export, whose in lacking.items() if len(whose) == len(tried)}
    if never:
        what = "the students of this study have no"
        raise ConfigError(
            [
                Problem("export.formats", f"{what} {short_name(export)}: {next(iter(whose.values()))}")
                for export, whose in never.items()
            ]
        )
    for export, whose in lacking.items():
        reasons: dict[str, list[str]] = {}
        for name, why in whose.items():
            reasons.setdefault(why, []).append(name)
        for why, lacked in reasons.items():
            workshop.notify(f"export {short_name(export)}: not for {', '.join(lacked)}: {why}")
