"""What of a student is run once to measure it: a pass over a sample, or the step that writes one more token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.nn.decoding import decoding_step
from kdnas.targets import given


def step_of(
    module: nn.Module, task: TaskSpec, batch_size: int, per: Literal["pass", "token"]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return what is run, and what it is given. Raises ConfigError where tokens are asked of what writes none."""
    inputs = given(task, batch_size)
    if per == "pass":
        return module, inputs
    if len(inputs) != 1 or task.inputs[0].kind != "tokens" or task.size < 2:
        what = f"is for language models, and the samples are {task.samples}"
        raise ConfigError(Problem("costs: per: token", what, "per: pass"))
    (tokens,) = inputs
    return decoding_step(module, tokens[:, :-1]), (tokens[:, -1:],)
