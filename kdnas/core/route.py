"""The routes to a trained student, and the rule that picks one from numbers which a run has anyway.

- `direct`: distillation from the teacher.
- `shrink`: progressive shrinking through a supernet whose smallest subnet is the student, then fine-tuning.
- `grow`: progressive growing (Karras et al., ICLR 2018, of generators) in the student's own weights: a supernet whose
  largest subnet is the student trains small ones first, ever larger ones then, and the student at last.
- `assistants`: a chain of teacher assistants, each distilled from the one before it (Mirzadeh et al., "Improved
  knowledge distillation via teacher assistant", AAAI 2020).
- `born_again`: generations of the student itself, each begun anew and distilled from the one before it (Furlanello et
  al., "Born-again neural networks", ICML 2018).

All routes spend one budget: 3 x MACs for each sample that a network is trained on. Here it is counted in epochs of the
student; a larger network gets fewer epochs for it. Teachers' forward passes are not counted. Scores are on the
validation split, in the unit of the task's score.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from kdnas.core.arch import Scalar
from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.shrinking import Ladders
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.words import counted
from kdnas.errors import ConfigError, Problem

Route = Literal["direct", "shrink", "grow", "assistants", "born_again"]
ROUTES: tuple[Route, ...] = get_args(Route)
Chained = Literal["assistants", "born_again"]
"""The routes on which networks are trained before the student, each of which teaches the next."""
Progressive = Literal["shrink", "grow"]
"""The routes on which the student changes its size while it learns: it is cut out of a supernet of its own."""
PROGRESSIVE: tuple[Progressive, ...] = get_args(Progressive)
Corner = Literal["smallest", "largest"]
"""Of a supernet's networks."""
CUT: Mapping[Progressive, Corner] = {"shrink": "smallest", "grow": "largest"}
"""The network that is cut out of the supernet: the student."""

TUNING_SHARE = 0.4
"""shrink, grow: the share of the budget for training the student once it is cut out."""
STUDENT_SHARE = 0.5
"""assistants: the least share of the budget that is left to the student itself."""
LARGEST_STEP = 8.0
"""assistants: a network can learn from one of up to so many times its MACs; more call for an assistant between."""
MOST_ASSISTANTS = 2
GENERATIONS = 2
"""born_again: how many share the budget evenly, the last of them the student."""
NARROW_GAP = 0.03
"""auto: a student whose score is so close to the teacher's is trained directly: a difference of fractions, of other
scores that of the logarithms (`Quantity.lead`)."""
ENOUGH_EPOCHS = 30
"""auto: a supernet's largest subnet, or an assistant, must be worth so many epochs of the budget: what is trained for
less teaches worse than the teacher does."""


@dataclass(frozen=True)
class Scored:
    """A network of the run: its validation score and its MACs."""

    arch_id: str
    score: float
    macs: int


@dataclass(frozen=True)
class RouteInputs:
    """What the rule reads. `epochs` is the budget in epochs of the student, `front` the networks to pick from."""

    epochs: int
    student: Scored
    teacher_score: float
    teacher_macs: float | None
    """None where it is not known."""
    largest_macs: int | None
    """Of the largest subnet of the supernet to shrink; None where the student is no subnet of a larger network."""
    front: tuple[Scored, ...] = ()
    shared_weights: bool = False
    """Whether the run has a trained supernet, from which shrinking begins at no cost."""
    score: Quantity = ACCURACY
    """What scores are, and which way they are good."""

    def lead(self, network: Scored) -> float:
        """Return how far the teacher is ahead of `network`, on the scale of `Quantity.lead`."""
        return self.score.lead(self.teacher_score, network.score)


@dataclass(frozen=True)
class Assistant:
    """A network between teacher and student, and the epochs that it is trained for."""

    network: Scored
    epochs: int


def tuning_epochs(epochs: int) -> int:
    """Return how many of the budget's `epochs` a cut-out student is fine-tuned for; the supernet gets the rest."""
    return max(1, round(TUNING_SHARE * epochs))


def supernet_epochs(inputs: RouteInputs) -> float:
    """Return what the supernet's part of the budget is in epochs of its largest subnet; 0 where there is none."""
    if inputs.largest_macs is None or inputs.epochs < 2:
        return 0.0
    return (inputs.epochs - tuning_epochs(inputs.epochs)) * inputs.student.macs / inputs.largest_macs


def choose_assistants(inputs: RouteInputs) -> tuple[Assistant, ...]:
    """Return the chain of assistants from the teacher's side down, empty where none is called for or affordable.

    Where a network is on the way is the mean of two positions, 0 at the student and 1 at the teacher: of its score,
    and of the logarithm of its MACs. As many assistants as keep every step's MACs ratio within `LARGEST_STEP`, one
    at least and `MOST_ASSISTANTS` at most, stand nearest to equal steps, none more than half a step away. What
    `STUDENT_SHARE` leaves is shared equally; where that is less than one epoch for one of them, there are fewer.
    """
    ratio = inputs.teacher_macs / inputs.student.macs if inputs.teacher_macs else 1.0
    wanted = min(max(math.ceil(math.log(max(ratio, 1.0), LARGEST_STEP)) - 1, 1), MOST_ASSISTANTS)
    for count in range(wanted, 0, -1):
        networks = _at_equal_steps(inputs, count)
        share = (1.0 - STUDENT_SHARE) * inputs.epochs / max(len(networks), 1)
        chain = tuple(Assistant(network, int(share * inputs.student.macs / network.macs)) for network in networks)
        if chain and all(assistant.epochs >= 1 for assistant in chain):
            return chain
    return ()


def chain_before(route: Chained, inputs: RouteInputs) -> tuple[tuple[Assistant, ...], int]:
    """Return who is trained before the student, each taught by the one before it, and the epochs left to the student.

    Raises ConfigError, with the reason, where the budget or the front has no such chain.
    """
    if route == "assistants":
        if chain := choose_assistants(inputs):
            return chain, student_epochs(inputs, chain)
        what = "the front has no student between this one and the teacher that the budget could train for an epoch"
        raise ConfigError(Problem("route assistants", what))
    if inputs.epochs < GENERATIONS:
        what = f"the budget is {counted(inputs.epochs, 'epoch')}, and each of {GENERATIONS} generations takes one"
        raise ConfigError(Problem("route born_again", what, f"{GENERATIONS} epochs or more"))
    each = inputs.epochs // GENERATIONS
    return (Assistant(inputs.student, each),) * (GENERATIONS - 1), inputs.epochs - each * (GENERATIONS - 1)


def student_epochs(inputs: RouteInputs, chain: tuple[Assistant, ...]) -> int:
    """Return the whole epochs of the student that are left once `chain` is paid for."""
    paid = sum(assistant.epochs * assistant.network.macs for assistant in chain)
    return (inputs.epochs * inputs.student.macs - paid) // inputs.student.macs


def choose_route(inputs: RouteInputs) -> tuple[Route, str]:
    """Return the route that the numbers speak for, and why in one sentence.

    `direct`, unless the student is far from the teacher (`NARROW_GAP`). Then `shrink` where the run has a supernet with
    weights to begin from; and where the budget is large: `shrink` if its supernet's largest subnet gets
    `ENOUGH_EPOCHS`, else `assistants` if each of them does and the teacher has more than `LARGEST_STEP` times the
    student's MACs. The constants are set so that small budgets are trained directly, which has been hard to beat there.
    """
    gap, score = inputs.lead(inputs.student), inputs.score
    points = score.shown_points(score.gain(inputs.teacher_score, inputs.student.score))
    teachers = f"the teacher's {score.shown(inputs.teacher_score)}"
    if gap <= 0:
        return "direct", f"the student's {score.name} is no worse than {teachers}: there is nothing to win on a detour"
    apart = f"the student's {score.name} is {points} worse than {teachers}"
    if gap < NARROW_GAP:
        narrow = f"{100 * NARROW_GAP:g} {'points' if score.is_fraction else '%'}"
        return "direct", f"{apart}, less than {narrow}: there is little to win on a detour"
    if inputs.shared_weights:
        return "shrink", f"{apart}, and the run's supernet has weights for it to begin with, which the search paid for"
    worth = supernet_epochs(inputs)
    supernet = f"a supernet gets {worth:.1f} epochs of its largest subnet"
    if worth >= ENOUGH_EPOCHS:
        return "shrink", f"{apart}, and {supernet}, at least {ENOUGH_EPOCHS}"
    chain = choose_assistants(inputs)
    fewest = min((assistant.epochs for assistant in chain), default=0)
    ratio = inputs.teacher_macs / inputs.student.macs if inputs.teacher_macs else 0.0
    if fewest >= ENOUGH_EPOCHS and ratio > LARGEST_STEP:
        times = f"the teacher has {ratio:.1f} times its MACs, more than {LARGEST_STEP:g}"
        return "assistants", f"{apart}, {times}, and every assistant gets {fewest} epochs, at least {ENOUGH_EPOCHS}"
    between = f"an assistant {fewest} epochs" if chain else "no front member stands between as an assistant"
    return "direct", f"{apart}, but the budget is small for a detour: {supernet}, {between} (asked: {ENOUGH_EPOCHS})"


def space_down_to(space: SearchSpace, ladders: Ladders, student: Mapping[str, Scalar]) -> SearchSpace:
    """Return the part of `space` between its largest network and the one that the assignment `student` stands for.

    Of every choice that is active in the student, the values with more MACs than the student's and its own are kept, so
    that the student is the smallest subnet; of the others the largest value alone.
    """
    return _part_of(space, ladders, student, operator.gt)


def space_up_to(space: SearchSpace, ladders: Ladders, student: Mapping[str, Scalar]) -> SearchSpace:
    """Return the part of `space` between its smallest network and the one that the assignment `student` stands for.

    Of every choice that is active in the student, its own value and those with fewer MACs are kept, so that the student
    is the largest subnet; of the others the largest value alone.
    """
    return _part_of(space, ladders, student, operator.lt)


def _part_of(
    space: SearchSpace, ladders: Ladders, student: Mapping[str, Scalar], lies_beyond: Callable[[int, int], bool]
) -> SearchSpace:
    """Return `space` with the student's values and those whose MACs lie beyond theirs, in the order of the ladders."""
    active, choices = space.active(student), []
    for choice in space.choices:
        values, macs = ladders.values[choice.name], ladders.macs[choice.name]
        kept = values[:1]
        if choice.name in active:
            own = values.index(active[choice.name])
            kept = tuple(
                value
                for place, (value, price) in enumerate(zip(values, macs, strict=True))
                if place == own or lies_beyond(price, macs[own])
            )
        choices.append(Choice(choice.name, kept))
    return replace(space, choices=tuple(choices))


def _at_equal_steps(inputs: RouteInputs, count: int) -> list[Scored]:
    """Return `count` networks or fewer from the teacher's side down, each nearest to one of as many equal steps."""
    places = {network: place for network in inputs.front if 0 < (place := _place(inputs, network)) < 1}
    chosen: list[Scored] = []
    for step in range(count, 0, -1):
        ideal, reach = step / (count + 1), 0.5 / (count + 1)
        near = [
            network
            for network, place in places.items()
            if abs(place - ideal) <= reach and all(network.macs < above.macs for above in chosen)
        ]
        if near:
            chosen.append(min(near, key=lambda network: (abs(places[network] - ideal), network.macs)))
    return chosen


def _place(inputs: RouteInputs, network: Scored) -> float:
    """Return where `network` is between the student, 0, and the teacher, 1; -1 where it is not between in both ways."""
    student, score = inputs.student, inputs.score
    ahead = score.lead(network.score, student.score)
    if network.macs <= student.macs or ahead <= 0 or inputs.lead(network) <= 0:
        return -1.0
    place = ahead / inputs.lead(student)
    if inputs.teacher_macs is None:
        return place
    if network.macs >= inputs.teacher_macs:
        return -1.0
    macs = math.log(network.macs / student.macs) / math.log(inputs.teacher_macs / student.macs)
    return 0.5 * (place + macs)
