"""A folder that Hugging Face transformers opens, as a student to be measured: what it reads and what it costs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.measurement import Price
from kdnas.core.task import TaskSpec
from kdnas.core.text import language_modelling, text_classification, text_regression
from kdnas.errors import ConfigError, Problem
from kdnas.nn.pieces import ClassLogitsOf, LogitsOf
from kdnas.nn.taps import example_inputs
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.teachers._transformers import load_transformer
from kdnas.tokenizing import Tokenizer, read_object

CONFIG, HUGGINGFACE = "config.json", "huggingface"
"""The file that marks such a folder, and its name in an export."""
_PREPROCESSING = "preprocessing.json"
_USUAL_LENGTH = 512
_AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}
"""By what the name of an architecture ends with: what opens it."""


class StockFolder:
    """A text classifier or a language model in a Hugging Face folder, with its tokenizer.

    Its `task` is the one stated; None: texts as long as the folder's preprocessing.json states, else as its tokenizer
    and its model take, at most 512. Raises ConfigError where it is neither, TeacherError where it cannot be opened.
    """

    def __init__(self, folder: Path, task: TaskSpec | None = None):
        self.folder, self._stated = folder, task
        self._name = str((read_object(folder / CONFIG).get("architectures") or [""])[0])
        if not self._name.endswith(tuple(_AUTO)):
            what = f"holds a {self._name or 'network without a name'}"
            allowed = "a text classifier or a language model of transformers; else its run folder"
            raise ConfigError(Problem(str(folder), what, allowed))
        self.arch = Arch(self._name, ())

    @cached_property
    def task(self) -> TaskSpec:
        """What its network is given, and what it answers."""
        if self._stated is not None:
            return self._stated
        tokenizer, stated = Tokenizer(self.folder), read_object(self.folder / _PREPROCESSING).get("length")
        length = stated if isinstance(stated, int) else min(tokenizer.positions or _USUAL_LENGTH, _USUAL_LENGTH)
        if not self._classifies:
            return language_modelling(length, tokenizer.vocabulary)
        outputs = len(self._network.config.id2label)
        if outputs == 1:
            return text_regression(length, tokenizer.vocabulary)
        return text_classification(length, tokenizer.vocabulary, outputs)

    def build(self, arch: Arch) -> nn.Module:
        """Return its network, which takes tokens, and of texts their mask."""
        if self._classifies:
            return ClassLogitsOf(self._network, ("input_ids", "attention_mask"), by_name=True)
        return LogitsOf(self._network, use_cache=False)

    def price(self, arch: Arch) -> Price:
        """Return its multiply-accumulates, counted on a text of the whole length, and its parameters."""
        module = self.build(arch)
        macs = traced_macs(module, *example_inputs(self.task, torch.device("cpu"), 1))
        return Price(round(macs), parameter_count(module))

    @property
    def _classifies(self) -> bool:
        return self._name.endswith("ForSequenceClassification")

    @cached_property
    def _network(self) -> Any:
        auto = next(opener for end, opener in _AUTO.items() if self._name.endswith(end))
        return load_transformer(auto, self.folder.name, self.folder.absolute().parent).network.eval()
