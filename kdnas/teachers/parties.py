"""Networks that several parties train on samples of their own, asked together: by their mean, or by a private vote."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.core.parts import Part
from kdnas.core.words import counted
from kdnas.errors import Problem, TeacherError
from kdnas.plugins import short_name
from kdnas.regular import regular
from kdnas.tasks import task_of
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import fingerprint

_SURE = 20.0
"""The logit of the class that a vote names: the others have 0."""
_KEY_BYTES = 32


@TEACHERS.register
def parties(
    context: TeacherContext,
    *,
    family: str,
    choices: dict[str, Any],
    training: dict[str, Any] | None = None,
    count: Annotated[int, Field(ge=2, le=1000)] = 10,
    skew: Annotated[float, Field(gt=0, le=1000)] | None = None,
    combine: Literal["mean", "votes"] = "mean",
    noise: Annotated[float, Field(gt=0, le=10_000)] | None = None,
    key: str | None = None,
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5,
) -> Teacher:
    """Networks of parties that share no samples, simulated here: each is trained on its own part of the samples.

    `mean` answers with the mean of their logits: a student that learns of it on other samples is the server's of FedDF
    (Lin et al., NeurIPS 2020), one round of it, from its own start. `votes` answers with the class that has most votes
    after normal noise was added to their counts (PATE with GNMax, Papernot et al., ICLR 2018), the same one whenever it
    is asked about a sample. Whoever sees students, scores and answers then learns little of any one private sample: the
    note on the teacher states epsilon, for every public sample asked about once. That holds where the parties' samples
    are theirs alone, `data: {..., pair: none}`, and as long as nobody has their networks, which the cache and the run
    folder keep, or the file `key`. Raises TeacherError.

    Args:
        context: What the study hands over.
        family: A student family: see `kdnas list students`.
        choices: The architecture of every network: a value for each choice of the family.
        training: As a study's training section; its defaults where not given.
        count: How many parties there are.
        skew: None deals samples out at random; else the concentration of the Dirichlet distribution by which each class
            is: at 0.1 most parties lack most classes, at 100 they are alike.
        combine: What is answered.
        noise: Of `votes`: the standard deviation of the noise, in votes.
        key: Of `votes`: a file of 32 random bytes or more, relative to the data root, that draws the noise: for other
            networks, and for other `noise`, anew, and what their answers cost adds up.
        delta: Of `votes`: the probability with which epsilon may fail; below one over the number of private samples.
    """
    voting = combine == "votes"
    if voting != (noise is not None) or voting != (key is not None):
        what = "are of votes, and of nothing else"
        raise TeacherError(Problem("teacher.noise, teacher.key", what, "combine: votes, noise: 40, key: noise.key"))
    secret = b"" if key is None else _read(key, context.data_root)
    note = "" if noise is None else _spent(context, noise, delta)
    networks = []
    for number in range(count):
        network, _ = context.train_student(family, choices, training or {}, context.notify, Part(number, count, skew))
        networks.append(network)
    name = f"{count} {short_name(family)} networks of as many parties"
    task = task_of(context.data.task)
    entered = [task.entrance(network, context.learnt) for network in networks]
    facts: dict[str, Any] = {"combine": combine, "noise": noise, "statistics": context.learnt.statistics}
    module: nn.Module = Mean(entered)
    if noise is not None:  # other networks' votes have noise of their own: what two have in common could be taken out
        drawn = hashlib.blake2b(fingerprint(module, facts).encode(), key=hashlib.sha256(secret).digest()).digest()
        module, facts["key"] = Voting(entered, noise, drawn), hashlib.sha256(drawn).hexdigest()
    module.eval().requires_grad_(False).to(context.device)
    notes = (note,) if note else ()
    return Teacher(name, module, (), None, fingerprint(module, facts), notes)


class Mean(nn.Module):
    """The mean of several networks' logits [B, K], or [B, T, V]."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the mean logits of `inputs`."""
        return torch.stack([network(*inputs) for network in self.networks]).mean(dim=0)


class Voting(nn.Module):
    """The class that most of several networks name, after normal noise is added to the counts, as sure logits [B, K].

    The noise is drawn anew for each sample, by `key` and the sample: the same one whenever it is asked about.
    """

    def __init__(self, networks: Sequence[nn.Module], noise: float, key: bytes):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._noise, self._key = noise, key

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits [B, K] of `inputs`: 20 for the class that is named, 0 for the others."""
        answers = [network(*inputs) for network in self.networks]
        counts = torch.stack([nn.functional.one_hot(each.argmax(dim=1), each.shape[1]) for each in answers]).sum(dim=0)
        noisy = counts.double() + self._noise * self._draw(inputs, answers[0].shape[1]).to(counts.device)
        return _SURE * nn.functional.one_hot(noisy.argmax(dim=1), noisy.shape[1]).to(answers[0].dtype)

    def _draw(self, inputs: Sequence[Tensor], classes: int) -> Tensor:
        """Return standard normal numbers [B, K], float64 on the CPU."""
        rows = []
        for sample in zip(*(taken.detach().float().cpu() for taken in inputs), strict=True):
            digest = hashlib.blake2b(key=hashlib.sha256(self._key).digest())
            for part in sample:
                digest.update(part.contiguous().numpy().tobytes())
            seed = np.frombuffer(digest.digest(), dtype=np.uint32)
            rows.append(np.random.default_rng(seed).standard_normal(classes))
        return torch.from_numpy(np.stack(rows))


def _read(key: str, root: Path) -> bytes:
    """Return the bytes of the file that draws the noise. Raises TeacherError."""
    path = root / Path(key).expanduser()
    try:
        secret = regular(path).read_bytes()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        raise TeacherError(Problem("teacher.key", what, f"head -c {_KEY_BYTES} /dev/urandom > {path}")) from error
    if len(secret) < _KEY_BYTES:
        what = f"{path} has {len(secret)} bytes"
        raise TeacherError(Problem("teacher.key", what, f"{_KEY_BYTES} random ones or more"))
    return secret


def _spent(context: TeacherContext, noise: float, delta: float) -> str:
    """Return, in words, what privacy the answers about all samples of the study's data cost. Raises TeacherError."""
    data = context.data
    if data.task.rows > 1 or data.task.heads or not data.class_names:
        raise TeacherError(Problem("teacher.combine", "votes name one class a sample", "mean"))
    if not context.asks_once:
        what = "each view of a sample, and each sample of a proxy, is a further answer that tells of private ones"
        allowed = "training without augmentation and proxy"
        raise TeacherError(Problem("teacher.combine: votes", what, allowed))
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        what = "votes need the package dp-accounting, which tells what they cost"
        raise TeacherError(Problem("teacher.combine", what, "pip install 'kdnas[private]'")) from None
    answers = len(data.train) + len(data.test)
    # One private sample moves one vote from a class to another: by the square root of 2.
    one = dp_accounting.GaussianDpEvent(noise / math.sqrt(2))
    epsilon = RdpAccountant().compose(one, answers).get_epsilon(delta)
    told = f"epsilon {epsilon:.3g} at delta {delta:g} for {counted(answers, 'answer')}, with noise of {noise:g} votes"
    return f"its votes are private: {told}: every sample of {data.name} once"
