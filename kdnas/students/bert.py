"""Encoders of texts with elastic depth, width, heads and MLPs (Devlin et al., "BERT", NAACL 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kdnas.core.arch import Scalar
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.nn import transformers
from kdnas.students import STUDENTS
from kdnas.students._settings import Setting, one_of
from kdnas.students._text_transformer import EMBEDDING_WIDTH, LENGTH, TextSettings, TextTransformer
from kdnas.students._transformer import Network, group


@STUDENTS.register
class Bert(TextTransformer):
    """Encoders of texts: width, depth, heads, MLP ratio, how long a text they read, layer by layer where asked for.

    A text's class, or its score, is told by the mean of its tokens. Of texts longer than `length` the beginning is
    read. Words are looked up `embedding_width` wide (as ALBERT has it, Lan et al., ICLR 2020), 0: as wide as the
    layers. `norm` states where the norms stand: after the sums, as BERT has them, or before attention and MLP, which
    trains more easily.
    """

    name = "bert"
    tasks = ("text_classification", "text_regression", "text_ranking")
    settings: ClassVar[Mapping[str, Setting]] = {
        "embedding_width": EMBEDDING_WIDTH,
        "length": LENGTH,
        "norm": one_of("first", "last"),
    }
    defaults: ClassVar[Mapping[str, Scalar]] = {"embedding_width": 0, "length": 0, "norm": "last"}
    network_class = transformers.TextEncoder

    def ending(self, network: Network[TextSettings]) -> OperatorGroup:
        """Return the classifier, and the last norm where norms come first."""
        width = network.width
        norms = [Operator("norm", width, width, self.tokens(network), 1)] if network.own.norm == "first" else []
        return group(*norms, Operator("classifier", width, self.task.outputs, self.tokens(network), 1))
