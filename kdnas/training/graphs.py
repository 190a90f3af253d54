"""Whole training steps as CUDA graphs: one launch for the hundreds of kernels of a small student's step.

A step is any function of a batch that trains in place and returns the loss: forward, loss, backward, clipping and
optimizer. What it reads and writes in addition to its arguments must stay where it is (parameters, statistics,
optimizer state, a learning rate held as a tensor), and it must not wait for the device, nor decide anything on the host
that should change from step to step.

A captured network repeats the host's decisions of the captured step: a module that draws from Python's or NumPy's
generators would repeat its draw. Torch's own generators are advanced by a replay as by an eager step.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from kdnas.core.task import TaskSpec
from kdnas.nn.rows import Batch
from kdnas.nn.taps import Outputs
from kdnas.registry import Section
from kdnas.training.batches import Batches
from kdnas.training.ensemble import OutputsByTeacher

Step = Callable[[tuple[Tensor, ...], Tensor, OutputsByTeacher | None], Tensor]
"""Trains on inputs [B, ...], their targets and the teachers' outputs; returns the loss, detached."""

WARM_UP_STEPS = 3
"""Eager steps before the capture: libraries choose their kernels and the optimizer makes its state in them."""

_VIEWS_BYTES = 64 << 20
_MOST_BATCHES_TOGETHER = 16


class Recorder(Protocol):
    """What runs and captures steps on a device."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Return `work()`, done now."""
        ...

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what repeats the kernels that `work` launches; nothing has been done yet. Raises RuntimeError."""
        ...


class CudaRecorder:
    """Runs and captures on one side stream, so that a capture finds handles, workspaces and gradients of that stream.

    The current stream waits for the side stream and the other way round, hence memory passes safely between the two.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._side = torch.cuda.Stream(device)

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Return `work()`, done on the side stream, in its turn among the work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        current.wait_stream(self._side)
        return result

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return the replay of `work`, which goes to whatever stream is current. Raises RuntimeError."""
        graph = torch.cuda.CUDAGraph()
        # The outer context gives the current stream back where a capture fails and its own exit raises; other threads
        # may go on using the device meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"),
        ):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what captures steps on `device`, None where steps are not captured."""
    return CudaRecorder(device) if device.type == "cuda" else None


class GraphedStep:
    """`step`, captured after a few eager steps and replayed from then on; every call trains exactly once.

    The warm-up steps are steps of the training, so the result is that of the eager loop. Batches of another shape than
    the first (the last of an epoch) run eagerly; so does everything after a capture that failed: `failure` is the
    reason.
    """

    def __init__(self, step: Step, recorder: Recorder):
        self._step = step
        self._recorder = recorder
        self._shapes: list[tuple[torch.Size, torch.dtype]] | None = None
        self._warmed = 0
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None
        self.failure: str | None = None

    @property
    def captured(self) -> bool:
        """Whether batches of the first one's shape are replayed now."""
        return self._replay is not None

    def __call__(self, inputs: tuple[Tensor, ...], targets: Tensor, theirs: OutputsByTeacher | None) -> Tensor:
        """Train on one batch and return its loss, a scalar that the next call may overwrite."""
        batch = _flat(inputs, targets, theirs)
        shapes = [(tensor.shape, tensor.dtype) for tensor in batch]
        if self._shapes is None:
            self._shapes = shapes
        if shapes == self._shapes and self._ready(batch, len(inputs), theirs):
            assert self._replay is not None
            for static, tensor in zip(self._inputs, batch, strict=True):
                static.copy_(tensor, non_blocking=True)
            return self._replay()
        return self._recorder.run(lambda: self._step(inputs, targets, theirs))

    def _ready(self, batch: Sequence[Tensor], count: int, theirs: OutputsByTeacher | None) -> bool:
        """Return whether there is a graph to replay; makes it when the warm-up is over.

        `count` is how many inputs a network takes.
        """
        if self._replay is not None or self.failure is not None:
            return self._replay is not None
        if self._warmed < WARM_UP_STEPS:
            self._warmed += 1
            return False
        # Copies, not the batch itself: a graph reads from where its inputs were.
        self._inputs = [tensor.clone() for tensor in batch]
        inputs, (targets, *rest) = tuple(self._inputs[:count]), self._inputs[count:]
        static = None if theirs is None else theirs.of(rest)
        try:
            self._replay = self._recorder.capture(lambda: self._step(inputs, targets, static))
        except RuntimeError as error:
            self.failure = str(error).partition("\n")[0] or type(error).__name__
            self._inputs = []
        return self._replay is not None


def _flat(inputs: tuple[Tensor, ...], targets: Tensor, theirs: OutputsByTeacher | None) -> list[Tensor]:
    """Return the tensors of a batch. The teacher's are float32, as the losses read them, cached or not."""
    if theirs is None:
        return [*inputs, targets]
    return [*inputs, targets, *theirs.map(Outputs.float).tensors]


def batches_together(batch_size: int, spec: TaskSpec, device: torch.device) -> int:
    """Return how many batches are made at once: on a CUDA device up to 16 that fit in 64 MiB."""
    if device.type != "cuda":
        return 1
    return max(1, min(_VIEWS_BYTES // (batch_size * spec.numbers * 4), _MOST_BATCHES_TOGETHER))


def epoch_of_views(
    train: Batches, epoch: int, *, batch_size: int, views: Section | None, seed: int, together: int
) -> Iterator[Batch]:
    """Yield the very batches of `train.epoch`, cut from batches `together` times as large.

    A view depends on its sample alone, so nothing changes but that the many small kernels of a view are
    launched once for several steps.
    """
    if batch_size == 1:
        together = 1  # an epoch's last sample is a batch of its own then, and would be left out of a larger one
    for large in train.epoch(epoch, batch_size=batch_size * together, views=views, seed=seed):
        count = len(large)
        for start in range(0, count, batch_size):
            if count - start > 1 or count == 1:  # as in `Batches.steps`, a last batch of one sample is left out
                yield large[start : start + batch_size]
