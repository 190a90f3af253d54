"""What families of transformers on tokens share: what texts are, the embedding, source, and what is inherited."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from kdnas.core.arch import Arch
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.errors import ConfigError, Problem
from kdnas.nn import transformers
from kdnas.nn.transformers import TextPlan
from kdnas.students import FamilyContext
from kdnas.students._settings import whole
from kdnas.students._transformer import Network, TransformerFamily, group

EMBEDDING_WIDTH = whole(0, 8192)
LENGTH = whole(0, 65536)
_INHERITED_BY = 256


class TextSettings(NamedTuple):
    """What such a family adds to the choices of every transformer; one that has no such choice has it as it is here."""

    embedding_width: int
    length: int = 0
    norm: str = "first"
    tied: bool = False


class TextTransformer(TransformerFamily[TextSettings]):
    """A family of transformers on tokens; causal ones have an output for every token, others one for a text."""

    own_class = TextSettings
    embeddings = (transformers.TextEmbeddings,)

    def __init__(self, context: FamilyContext):
        super().__init__(context)
        task = self.task
        words, *others = task.inputs
        if words.kind != "tokens" or any(taken.kind not in ("mask", "tokens") for taken in others):
            given = ", ".join(taken.name for taken in task.inputs)
            raise ConfigError(Problem("space.family", f"students of {self.name} take tokens; {task.kind} has {given}"))
        if (task.rows > 1) != self.causal:
            predicted = "every next token" if self.causal else "a label of each text"
            wanted = "bert" if self.causal else "gpt"
            what = f"students of {self.name} predict {predicted}: they are not for {task.kind}"
            raise ConfigError(Problem("space.family", what, wanted))
        self._words = words
        self._segments = next((taken.levels for taken in others if taken.kind == "tokens"), 0)

    @classmethod
    def simplified(cls, width: int, own: TextSettings) -> TextSettings:
        """Return 0 for tables that are as wide as the layers."""
        return own._replace(embedding_width=0) if own.embedding_width == width else own

    def plan(self, arch: Arch) -> TextPlan:
        """Return every layer's shape for `arch`."""
        network = self.network(arch)
        return TextPlan(
            vocabulary=self._words.levels,
            length=self.tokens(network),
            segments=self._segments,
            embedding_width=self.table_width(network),
            width=network.width,
            layers=self.layer_plans(network, self.tokens(network), norm_first=network.own.norm == "first"),
            outputs=self.task.outputs,
            tied=network.own.tied,
        )

    def tokens(self, network: Network[TextSettings]) -> int:
        """Return how many a text has at most."""
        size = self._words.size
        return min(network.own.length or size, size)

    def table_width(self, network: Network[TextSettings]) -> int:
        """Return how wide words are looked up."""
        return network.own.embedding_width or network.width

    def entry(self, network: Network[TextSettings]) -> OperatorGroup:
        """Return the tables of words, places and segments, and what brings them to the width of the layers."""
        tokens, table, width = self.tokens(network), self.table_width(network), network.width
        rows = [self._words.levels, tokens, *([self._segments] if self._segments else [])]
        parts = [Operator("embedding", count, table, tokens, 1) for count in rows]
        if network.own.norm == "last":
            parts.append(Operator("norm", table, table, tokens, 1))
        return group(*parts, *([Operator("linear", table, width, tokens, 1)] if table != width else []))

    def ancestral(self) -> tuple[nn.Module, Tensor]:
        """Return the network of the ancestor, and tokens that show what of it matters. Raises ConfigError."""
        teacher = self._ancestor()
        network = next(part for part in teacher.module.modules() if isinstance(part, self.network_class))
        return network, self._samples(_INHERITED_BY)[0].long().flatten(0, -2)
