"""Students that learn from what they write themselves: on-policy distillation.

Agarwal et al., "On-policy distillation of language models: learning from self-generated mistakes" (GKD, ICLR 2024). In
a share of the batches the student goes on by itself from the beginning of every block, no gradient passing through what
it draws, and the teacher predicts what should have followed at each place. What is learnt there follows from the losses
of the places that the student wrote; labels there are none.

Shapes: B blocks, T tokens, P tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from kdnas.core.seeds import derive_seed
from kdnas.nn.decoding import continued
from kdnas.training.ensemble import OutputsByTeacher
from kdnas.training.recipe import OnPolicy


class Asked(Protocol):
    """The teachers of a training, asked about samples that are none of the data's."""

    def live(self, inputs: tuple[Tensor, ...]) -> OutputsByTeacher:
        """Return their outputs for the plain `inputs`, without gradients."""


@dataclass(frozen=True)
class Written:
    """A batch that a student has written: `inputs` one tensor int64 [B, T], the next tokens [B, T], and the teachers.

    `counted` float [B, T] is 1 where the next token is the student's own.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    counted: Tensor
    theirs: OutputsByTeacher


class Writer:
    """Decides by the number of the step, and `seed`, whether a student writes the batch, and has it do so."""

    def __init__(self, settings: OnPolicy, teachers: Asked, *, seed: int, device: torch.device, bfloat16: bool):
        self._settings = settings
        self._teachers = teachers
        self._seed = seed
        self._device = device
        self._bfloat16 = bfloat16

    def __call__(self, step: int, student: nn.Module, inputs: tuple[Tensor, ...]) -> Written | None:
        """Return what `student` makes of the blocks `inputs`; None where it learns from them as they are."""
        drawn = derive_seed(self._seed, "on policy", step)
        if random.Random(drawn).random() >= self._settings.share:
            return None
        (tokens,) = inputs
        length = tokens.shape[1]
        prompt = self._settings.prompt_of(length)
        generator = torch.Generator(self._device).manual_seed(drawn)

        def choose(logits: Tensor) -> Tensor:
            shares = (logits.float() / self._settings.temperature).softmax(dim=1)
            return torch.multinomial(shares, 1, generator=generator)

        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            whole = continued(student, tokens[:, :prompt], length + 1 - prompt, choose)
        counted = torch.zeros(tokens.shape, device=tokens.device)
        counted[:, prompt - 1 :] = 1.0
        given = (whole[:, :-1].contiguous(),)
        return Written(given, whole[:, 1:].contiguous(), counted, self._teachers.live(given))
