"""A causal language model of Hugging Face transformers, from a local folder or the hub."""

from __future__ import annotations

import numpy as np
import torch

from kdnas.core.answers import sketch
from kdnas.core.text import CorpusData
from kdnas.errors import Problem, TeacherError
from kdnas.nn.attention import attention_layers
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.pieces import LogitsOf
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import check_finite, fingerprint, spread
from kdnas.teachers._transformers import check_tokens, load_transformer

_MAYBE_SEEN = "its perplexity on the validation split is optimistic if it was trained on this text"
_PLACES = 4
"""Of a probe, whose answers are sketched."""


@TEACHERS.register
def causal_lm(context: TeacherContext, *, model: str, revision: str = "main") -> Teacher:
    """A transformers causal language model: a folder under the data root, or a hub id. Weights are safetensors only.

    The data must have been read by its own tokenizer, `data: {tokenizer: FOLDER}`. No code of the model's repository
    runs. Raises TeacherError.

    Args:
        context: What the study hands over.
        model: A folder under the data root, or a hub id.
        revision: Branch, tag or commit of a hub id.
    """
    data = context.data
    if not isinstance(data, CorpusData):
        what = f"it continues running text, and the data {data.name} are {data.task.samples}"
        raise TeacherError(Problem("teacher", what, "data: {type: text_corpus, ...}"))
    loaded = load_transformer("AutoModelForCausalLM", model, context.data_root, revision)
    network = loaded.network
    check_tokens(loaded, data)
    module = LogitsOf(network, use_cache=False).eval().requires_grad_(False).to(context.device)
    tokens = torch.from_numpy(np.asarray(data.train.inputs["tokens"][spread(len(data.train))], dtype=np.int64))
    with exact_arithmetic(), torch.no_grad():
        answers = module(tokens.to(context.device))[:, :: max(1, data.length // _PLACES)]
    check_finite(answers, data)
    head = network.get_output_embeddings()  # type: ignore[operator]
    classifier = next((name for name, part in module.named_modules() if part is head), None)
    return Teacher(
        model,
        module,
        tuple(layer.path for layer in attention_layers(module)),
        classifier,
        fingerprint(network, {"causal_lm": type(network).__name__}),
        (_MAYBE_SEEN,),
        answers=sketch(answers.flatten(0, 1).cpu().numpy()),
        origin=loaded.origin(("input_ids",)),
    )
