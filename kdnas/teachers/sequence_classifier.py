"""A text classifier of Hugging Face transformers, or what predicts one number, from a folder or the hub."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.answers import sketch
from kdnas.core.text import RankingData, TextData
from kdnas.errors import Problem, TeacherError
from kdnas.nn.attention import attention_layers
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.origin import Entrance
from kdnas.nn.pieces import ClassLogitsOf
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import check_finite, fingerprint, spread
from kdnas.teachers._class_names import ClassNames, class_order, naming_of
from kdnas.teachers._loading import MAYBE_SEEN
from kdnas.teachers._transformers import check_tokens, load_transformer
from kdnas.tokenizing import Tokenizer

_CALLED = {"tokens": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
"""What transformers calls the task's inputs."""
_MAYBE_SEEN = "its correlation on the validation split is optimistic if it was trained on that split"


@TEACHERS.register
def sequence_classifier(
    context: TeacherContext, *, model: str, revision: str = "main", class_names: ClassNames = None
) -> Teacher:
    """A transformers text classifier: a folder under the data root, or a hub id. Weights are safetensors only.

    The data must have been read by its own tokenizer, `data: {tokenizer: FOLDER}`. Logits are put in the data's class
    order where the model names its classes. Of data whose labels are numbers it answers with one (`num_labels: 1`), in
    the labels' own unit; of lists with the score of a query and one candidate (a cross-encoder). No code of the model's
    repository runs. Raises TeacherError.

    Args:
        context: What the study hands over.
        model: A folder under the data root, or a hub id.
        revision: Branch, tag or commit of a hub id.
        class_names: The names of the network's classes, in its own order, where its config has none.
    """
    data = context.data
    if not isinstance(data, TextData):
        what = f"it classifies texts, and the data {data.name} are {data.task.samples}"
        raise TeacherError(Problem("teacher", what, "data: {type: text_table, ...}"))
    loaded = load_transformer("AutoModelForSequenceClassification", model, context.data_root, revision)
    network: Any = loaded.network
    check_tokens(loaded, data)
    labels = network.config.id2label
    if (len(labels) < 2) != (data.task.outputs == 1):
        raise TeacherError(_other_answers(len(labels), data))
    known = tuple(str(labels[index]) for index in range(len(labels)))
    order: tuple[int, ...] | None = None
    named: tuple[str, ...] = ()
    if data.class_names:
        order, named = class_order(naming_of(class_names, (known, "its config's id2label")), data, len(labels))
    names = _inputs(network, [taken.name for taken in data.task.inputs])
    to_the_end = _reads_to_the_end(network)
    if to_the_end:
        _check_ends(network, data)
    settings = {"use_cache": False} if to_the_end else {}
    by_name = tuple(inspect.signature(network.forward).parameters)[: len(names)] != names
    module = ClassLogitsOf(network, names, order, by_name=by_name, **settings).eval().requires_grad_(False)
    module.to(context.device)
    probe = [np.asarray(data.train.inputs[taken.name][spread(len(data.train))]) for taken in data.task.inputs]
    with exact_arithmetic(), torch.no_grad():
        answers = module(*(torch.from_numpy(one.astype(np.int64)).to(context.device) for one in probe))
    check_finite(answers, data)
    linear = [name for name, part in module.named_modules() if _answers(part, len(labels))]
    return Teacher(
        model,
        module,
        tuple(layer.path for layer in attention_layers(module)),
        linear[-1] if linear and not to_the_end else None,  # which would answer at every token
        fingerprint(network, {"sequence_classifier": type(network).__name__, "order": order}),
        (_MAYBE_SEEN if data.predicts_values else MAYBE_SEEN, *named),
        answers=sketch(answers.cpu().numpy()),
        origin=dataclasses.replace(
            loaded.origin(names),
            entrance=None if order is None else Entrance((), (), classes=tuple(order), outputs=len(labels)),
        ),
    )


def _inputs(network: nn.Module, given: list[str]) -> tuple[str, ...]:
    """Return what the network calls the inputs that it takes: those of the task, without segments that it lacks.

    DistilBERT takes none; RoBERTa takes them and has one kind alone, for which two texts in a row are all the same.
    """
    takes = inspect.signature(network.forward).parameters
    wanted = [_CALLED[name] for name in given]
    kinds = getattr(network.config, "type_vocab_size", 1 if _reads_to_the_end(network) else 2)
    names = wanted if set(wanted) <= set(takes) and kinds > 1 else wanted[:2]
    if missing := [name for name in names if name not in takes]:
        what = f"a {type(network).__name__} takes {', '.join(list(takes)[:3])}, and no {' and no '.join(missing)}"
        raise TeacherError(Problem("teacher", what, "a classifier of texts"))
    return tuple(names)


def _reads_to_the_end(network: Any) -> bool:
    """Return whether the answer is that of a text's last token, as a language model with a classifier gives it."""
    return "use_cache" in inspect.signature(network.forward).parameters


def _check_ends(network: Any, data: TextData) -> None:
    """Raise TeacherError where a network that answers at a text's last token takes padding for it."""
    known, fill = network.config.pad_token_id, Tokenizer(data.tokenizer).pad or 0
    if known != fill:
        name = type(network).__name__
        what = f"a {name} answers at the last token that is not its config's pad_token_id, {known}"
        raise TeacherError(Problem("teacher", f"{what}, and texts are filled up with {fill}", f"pad_token_id: {fill}"))


def _other_answers(outputs: int, data: TextData) -> Problem:
    """Return the problem of a teacher that predicts one number for texts with classes, or the reverse."""
    if isinstance(data, RankingData):
        what = f"it names one of {outputs} classes, and the candidates of {data.name} are ranked by one score each"
        return Problem("teacher", what, "a cross-encoder: a model with num_labels 1")
    if data.predicts_values:
        what = f"it names one of {outputs} classes, and the labels of {data.name} are numbers to be predicted"
        return Problem("teacher", what, "a model with num_labels 1; data: {labels: classes} where they are classes")
    what = f"it answers with one number, as a regression does, and the labels of {data.name} are classes"
    return Problem("teacher", what, "a classifier; data: {labels: values} where the labels are numbers to be predicted")


def _answers(part: nn.Module, classes: int) -> bool:
    return isinstance(part, nn.Linear) and part.out_features == classes
