"""Short signals of one channel: a kind of work that kdnas has not, in one file of the user's."""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import Data, Samples, stratified_split
from kdnas.core.objective import ACCURACY
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.core.task import Input, TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.nn.rows import Batch
from kdnas.registry import Section
from kdnas.students import StudentFamily
from kdnas.tasks import Task
from kdnas.teachers import Teacher

LENGTH, CLASSES = 24, 3


@dataclass(frozen=True)
class SignalData(Data):
    """Signals [N, T] of floats with a class each."""

    score = ACCURACY

    @property
    def task(self):
        spec = TaskSpec("signals", (Input("signal", (LENGTH,), "floats"),), CLASSES, 1, ACCURACY, "signals")
        return dataclasses.replace(spec, kind=self.kind or spec.kind)


def waves(data_root, cache, *, count: int = 360, noise: float = 0.3) -> SignalData:
    """Sines, saws and squares of random phase in noise.

    Args:
        count: Training signals.
        noise: Its standard deviation.
    """
    rng = np.random.default_rng(3)

    def part(count):
        labels = np.arange(count) % CLASSES
        phase = 2 * np.pi * (np.arange(LENGTH) / 8 + rng.random((count, 1)))
        forms = np.stack([np.sin(phase), (phase / np.pi) % 2 - 1, np.sign(np.sin(phase))])
        signals = forms[labels, np.arange(count)] + noise * rng.normal(size=(count, LENGTH))
        return Samples({"signal": signals.astype(np.float32)}, labels.astype(np.int64))

    return SignalData("waves", ("sine", "saw", "square"), part(count), part(120), f"waves-{count}-{noise}")


class Shift(Section):
    """How signals are varied."""

    roll: bool = False


class Signals(Task):
    """Naming what a short signal is."""

    Views = Shift
    views_in_words = "signals rolled by some places"

    def split(self, targets, share, seed):
        return stratified_split(targets, share, seed)

    def plain(self, batch):
        return batch

    def view(self, batch, views, data, *, seed, number, samples, count, others):
        if not views.roll:
            return batch
        shifts = [int(np.random.default_rng([seed, number, int(sample)]).integers(LENGTH)) for sample in samples]
        rolled = torch.stack([row.roll(shift) for row, shift in zip(batch.inputs[0], shifts, strict=True)])
        return Batch((rolled,), batch.targets, batch.samples)

    def varies(self, views):
        return views is not None and views.roll

    def entrance(self, network, data, size=None):
        return Raw(network)

    def tally(self, rows):
        right = (rows.logits.argmax(dim=1) == rows.targets).sum()
        return torch.stack([right, torch.full_like(right, len(rows.targets))]).double()

    def score(self, tally):
        return float(tally[0] / tally[1])

    def worst(self, targets):
        return float(np.bincount(targets).max() / len(targets))


class Raw(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, signal):
        return self.network(signal)


class Perceptron(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        widths = [LENGTH, *[width] * depth]
        self.stages = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths))
        self.classifier = nn.Linear(widths[-1], CLASSES)

    def forward(self, signal):
        for stage in self.stages:
            signal = stage(signal)
        return self.classifier(signal)


class Perceptrons(StudentFamily):
    """Fully connected students."""

    @classmethod
    def stated_choices(cls):
        return {"width": ("whole numbers", None), "depth": ("whole numbers", "1")}

    @classmethod
    def canonical(cls, choices):
        known = cls.stated_choices()
        if unknown := [Problem(name, "is no choice", ", ".join(known)) for name in choices if name not in known]:
            raise ConfigError(unknown)
        return Arch.of(cls.name, {"width": choices["width"], "depth": choices.get("depth", 1)})

    def groups(self, arch):
        width, depth = arch.choices["width"], arch.choices["depth"]
        sizes = [LENGTH, *[width] * depth, CLASSES]
        return [OperatorGroup(tuple(Operator("linear", a, b, 1, 1) for a, b in itertools.pairwise(sizes)))]

    def build(self, arch):
        return Perceptron(arch.choices["width"], arch.choices["depth"])


def teacher(context, *, width: int = 64) -> Teacher:
    """A perceptron fitted on the spot."""
    torch.manual_seed(0)
    network = Perceptron(width, 2)
    signals = torch.from_numpy(context.data.train.inputs["signal"])
    labels = torch.from_numpy(context.data.train.targets)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        loss = nn.functional.cross_entropy(network(signals), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole = Raw(network).eval().requires_grad_(False)
    return Teacher("fitted", whole, ("network.stages.0", "network.stages.1"), "network.classifier", f"fitted-{width}")
