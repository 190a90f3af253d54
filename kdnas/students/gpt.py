"""Decoders of texts with elastic depth, width, heads and MLPs (Radford et al., "GPT-2", 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kdnas.core.arch import Scalar
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.nn import transformers
from kdnas.students import STUDENTS
from kdnas.students._settings import Setting, one_of
from kdnas.students._text_transformer import EMBEDDING_WIDTH, TextSettings, TextTransformer
from kdnas.students._transformer import Network, group


@STUDENTS.register
class GPT(TextTransformer):
    """Decoders of texts: width, depth, heads and MLP ratio, layer by layer where asked for.

    Words are looked up, and logits read off, `embedding_width` wide (0: as wide as the layers), by one table where
    weights are `tied`.
    """

    name = "gpt"
    tasks = ("language_modelling",)
    settings: ClassVar[Mapping[str, Setting]] = {"embedding_width": EMBEDDING_WIDTH, "tied": one_of(False, True)}
    defaults: ClassVar[Mapping[str, Scalar]] = {"embedding_width": 0, "tied": True}
    causal = True
    network_class = transformers.TextDecoder

    def ending(self, network: Network[TextSettings]) -> OperatorGroup:
        """Return the last norm, and the logits of every token."""
        width, table, tokens, words = network.width, self.table_width(network), self.tokens(network), self.task.outputs
        parts = [Operator("norm", width, width, tokens, 1)]
        if table != width:
            parts.append(Operator("linear", width, table, tokens, 1))
        parts.append(Operator("vocabulary", table, words, tokens, 1))
        return group(*parts, *([] if network.own.tied else [Operator("embedding", words, table, tokens, 1)]))
