"""A user's network of samples that are no images: given texts, running text or samples of an own task as they are.

Shapes: B batch, T tokens, K classes, or candidates of a list, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.core.answers import sketch
from kdnas.errors import Problem, TeacherError
from kdnas.nn.attention import attention_layers
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.origin import Entrance, Origin
from kdnas.nn.pieces import LogitsOf, by_candidate
from kdnas.teachers import Teacher, TeacherContext
from kdnas.teachers._adapting import check_finite, fingerprint, in_float32, parts_with, probed
from kdnas.teachers._class_names import Naming, class_order
from kdnas.teachers._fitted import NoLogitsError, log_of, logits_of, probability_total

_SPELLED = {"tokens": ("input_ids",), "mask": ("attention_mask",), "segments": ("token_type_ids",)}
"""What else networks call a task's inputs."""


class Answers(LogitsOf):
    """A network that is given the first `count` inputs of a task, as one that gives logits of the data's classes.

    `order`: which of its answers they are; None: all, as they are. `total`: what its probabilities sum to, whose
    logarithm is taken; None: it gives logits. `running`: it answers at every place, [B, T, V]. `listed`: inputs may be
    lists [B, K, ...], of which it scores one candidate at a time.
    """

    order: Tensor | None

    def __init__(self, network: nn.Module, count: int, classes: int, *, running: bool, listed: bool = False):
        super().__init__(network)
        self.count, self.classes, self.running, self.listed = count, classes, running, listed
        self.total: float | None = None
        self.register_buffer("order", None)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits [B, K], of running text [B, T, V], of lists [B, K]. Raises NoLogitsError."""
        return by_candidate(self._logits, inputs) if self.listed else self._logits(*inputs)

    def _logits(self, *inputs: Tensor) -> Tensor:
        answer = self.network(*inputs[: self.count])
        if self.running:
            logits = getattr(answer, "logits", answer)
            if not isinstance(logits, Tensor) or logits.ndim != 3:
                raise NoLogitsError(f"the network gives {getattr(logits, 'shape', type(logits).__name__)}")
        elif isinstance(answer, Tensor) and answer.ndim == 1:
            logits = answer[:, None]  # the one number of each sample
        else:
            logits = logits_of(answer, self.classes)
        if self.total is not None:
            logits = log_of(logits, self.total)
        return logits if self.order is None else logits[:, self.order]


def fit_own(
    name: str,
    network: nn.Module,
    context: TeacherContext,
    *,
    facts: Mapping[str, Any],
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
    naming: Naming | None = None,
    notes: Sequence[str] = (),
    origin: Origin,
) -> Teacher:
    """Return `network` as the teacher of the context's data, which are no images; arguments as of `fit_teacher`.

    Raises TeacherError: it takes other inputs, fails on the data or on tokens that their tokenizer has, gives no
    logits, or answers for other classes.
    """
    data = context.data
    task = data.task
    network, low = in_float32(network)
    taken = _taken(network, [one.name for one in task.inputs])
    classes = len(naming.spellings) if naming is not None and task.rows == 1 else task.outputs
    module = Answers(network, len(taken), classes, running=task.rows > 1, listed=task.candidates > 0)
    module.eval().requires_grad_(False)
    module.to(context.device)
    few = [part.to(context.device) for part in probed(data)]
    largest = [
        torch.full_like(part[:1], one.levels - 1) if one.kind == "tokens" else part[:1]
        for part, one in zip(few, task.inputs, strict=True)
    ]
    with exact_arithmetic(), torch.no_grad():
        try:
            module(*largest)
            answers = module(*few)
        except Exception as error:  # the network is the user's: anything may come
            raise _refusal(error, context) from error
        if task.rows == 1 and task.outputs > 1:
            module.total = probability_total(answers)
        order: tuple[int, ...] | None = None
        named: tuple[str, ...] = ()
        own = 1 if task.candidates and answers.ndim == 2 else answers.shape[-1]
        if data.class_names:
            order, named = class_order(naming, data, answers.shape[1])
        elif own != task.outputs:
            of = " for a query with one candidate" if task.candidates else ""
            what = f"it gives {own:,} numbers{of}, and {task.kind} of these data asks for {task.outputs:,}"
            raise TeacherError(Problem("teacher", what))
        module.order = None if order is None else torch.tensor(order, device=context.device)
        answers, places = module(*few), _heads(module, few, own, 3 if task.rows > 1 else 2)
    check_finite(answers, data)
    parts_with(network, stages, classifier)
    found = tuple(f"network.{one}" for one in stages) if stages is not None else None
    sketched = answers.flatten(0, 1)[:: max(1, task.rows // 4)] if task.rows > 1 else answers
    given = ", ".join(f"{one.name} as {own_name}" for one, own_name in zip(task.inputs, taken, strict=False))
    probabilities = [] if module.total is None else [f"outputs: probabilities that sum to {module.total:g}"]
    return Teacher(
        name,
        module,
        found if found is not None else tuple(layer.path for layer in attention_layers(module)),
        f"network.{classifier}" if classifier else (places[-1] if places else None),
        fingerprint(network, {**facts, "inputs": len(taken), "order": order, "total": module.total}),
        (*notes, *low, f"it is given {given}", *probabilities, *named),
        answers=sketch(sketched.cpu().numpy()),
        outputs="logits" if module.total is None else "probabilities",
        origin=dataclasses.replace(
            origin, inputs=taken, entrance=Entrance((), (), classes=order or (), total=module.total, outputs=own)
        ),
    )


def _taken(network: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return what the network calls the first of the task's inputs `names` that it takes. Raises TeacherError."""
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript and other compiled code has no signature
        return tuple(names)
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return tuple(names)
    parameters = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    must = sum(one.default is one.empty for one in parameters)
    if must > len(names) or not parameters:
        asked = ", ".join(one.name for one in parameters[: must or None]) or "nothing"
        what = f"the network's forward asks for {asked}, and the data have {', '.join(names)}"
        raise TeacherError(Problem("teacher", what, "a factory whose network takes these, or the first of them"))
    count = max(must, 1)
    while count < min(len(names), len(parameters)):
        if parameters[count].name not in (names[count], *_SPELLED.get(names[count], ())):
            break  # something else, which it can do without
        count += 1
    return tuple(one.name for one in parameters[:count])


def _heads(module: nn.Module, few: Sequence[Tensor], answers: int, ndim: int) -> list[str]:
    """Return the linear layers that give as many `answers`, from an input of `ndim` dimensions, in their order."""
    found: list[str] = []

    def watch(name: str) -> Any:
        return lambda part, inputs, output: found.append(name) if inputs[0].ndim == ndim else None

    handles = [
        part.register_forward_hook(watch(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == answers
    ]
    try:
        module(*few)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _refusal(failure: Exception, context: TeacherContext) -> TeacherError:
    task = context.data.task
    reason = (str(failure) or type(failure).__name__).splitlines()[0][:300]
    if isinstance(failure, NoLogitsError):
        wanted = "[B, T, V], one score a token at every place" if task.rows > 1 else "[B, K], one score a class"
        return TeacherError(Problem("teacher", reason, f"logits {wanted}"))
    what = f"the network fails on the data's {task.samples}: {type(failure).__name__}: {reason}"
    tokens = next((one for one in task.inputs if one.kind == "tokens"), None)
    allowed = "the factory's arguments"
    if tokens is not None:
        allowed = (
            f"one that takes {tokens.size} tokens of {tokens.levels:,} kinds, as data.tokenizer and length make them"
        )
    return TeacherError(Problem("teacher", what, allowed))
