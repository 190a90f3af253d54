"""Several parties' networks as one teacher: their mean, and a private vote that costs what it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.parts import Part
from kdnas.errors import TeacherError
from kdnas.teachers import TEACHERS
from kdnas.teachers.parties import Mean, Voting

VOTES = {"combine": "votes", "noise": 40.0, "key": "noise.key"}


class Says(nn.Module):
    """Answers every sample with one class."""

    def __init__(self, answer: int, classes: int = 4):
        super().__init__()
        self.register_buffer("logits", torch.eye(classes)[answer] * 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def ballot(counts: list[int], noise: float, key: bytes = b"k" * 32) -> Voting:
    return Voting([Says(answer) for answer, count in enumerate(counts) for _ in range(count)], noise, key)


def test_the_mean_is_that_of_the_logits() -> None:
    answers = Mean([Says(0), Says(0), Says(2)])(torch.zeros(5, 1))
    torch.testing.assert_close(answers, torch.tensor([[2.0, 0.0, 1.0, 0.0]]).expand(5, -1))


def test_a_vote_is_the_same_whenever_it_is_asked_for() -> None:
    samples, votes = torch.rand(40, 1, 3, 3) * 255, ballot([3, 2, 2, 2], 5.0)
    first = votes(samples)
    assert set(first.unique().tolist()) == {0.0, 20.0}
    assert len(first.argmax(dim=1).unique()) > 1
    order = torch.randperm(40)
    assert torch.equal(votes(samples[order]), first[order])
    assert torch.equal(torch.cat([votes(samples[:7]), votes(samples[7:])]), first)
    assert not torch.equal(ballot([3, 2, 2, 2], 5.0, b"other" * 8)(samples), first)


def test_the_noise_is_as_large_as_is_said() -> None:
    """Of two classes d votes apart the lesser wins with probability Phi(-d / (noise * sqrt(2)))."""
    samples = torch.arange(4000.0).reshape(-1, 1, 1, 1)
    lost = (ballot([12, 8], 5.0)(samples)[:, :2].argmax(dim=1) == 1).double().mean().item()
    chance = 0.5 * math.erfc(4 / (5 * math.sqrt(2)) / math.sqrt(2))
    # Two further classes, of 0 votes, take a share that is small.
    assert lost == pytest.approx(chance, abs=0.05)
    assert (ballot([12, 8], 1e-6)(samples).argmax(dim=1) == 0).all()


@pytest.fixture
def context(open_context, tmp_path):
    """A context whose networks are drawn, and that tells which parts were asked for."""
    (tmp_path / "noise.key").write_bytes(bytes(range(32)))
    asked: list[Part] = []

    def train(family, choices, training, notify, part=None):
        asked.append(part)
        torch.manual_seed(part.number)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10)), Arch.of(family, choices)

    return dataclasses.replace(open_context(train_student=train), asks_once=True), asked


def build(context, **options):
    return TEACHERS.build("parties", context, **{"family": "resnet", "choices": {"width": 8}, "count": 3, **options})


def test_each_party_has_a_part_of_its_own(context, raw_images) -> None:
    opened, asked = context
    teacher = build(opened, skew=0.5)
    assert asked == [Part(number, 3, 0.5) for number in range(3)]
    assert teacher.notes == ()
    answers = torch.stack([network(raw_images(opened)) for network in teacher.module.networks])
    torch.testing.assert_close(teacher.module(raw_images(opened)), answers.mean(dim=0))


def test_what_votes_cost_is_stated(context) -> None:
    """Of GNMax (Papernot et al., ICLR 2018): RDP of order a is a / noise^2 an answer, here for 40 of them."""
    teacher = build(context[0], **VOTES)
    (note,) = teacher.notes
    assert "40 answers" in note
    stated = float(note.split("epsilon ")[1].split()[0])
    bound = min(40 * order / 40**2 + math.log(1e5) / (order - 1) for order in np.arange(1.5, 400, 0.1))
    assert 0.6 * bound < stated <= bound * 1.001  # the library turns RDP into epsilon by a tighter bound
    assert teacher.classifier is None, "what is inside a party's network is private"
    assert teacher.stages == ()
    (context[0].data_root / "noise.key").write_bytes(bytes(32))
    assert build(context[0], **VOTES).fingerprint != teacher.fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"combine": "votes"}, "noise: 40"),
        ({"noise": 3.0}, "combine: votes"),
        ({**VOTES, "key": "none.key"}, "/dev/urandom"),
        ({**VOTES, "key": "short.key"}, "has 4 bytes"),
    ],
)
def test_half_a_vote_is_refused_before_anything_is_trained(context, options, told) -> None:
    opened, asked = context
    (opened.data_root / "short.key").write_bytes(b"1234")
    with pytest.raises(TeacherError, match=told):
        build(opened, **options)
    assert asked == []


def test_votes_are_asked_about_each_sample_once(context) -> None:
    opened, asked = context
    with pytest.raises(TeacherError, match="further answer"):
        build(dataclasses.replace(opened, asks_once=False), **VOTES)
    assert asked == []


def test_noise_is_of_the_networks_and_of_its_size(context) -> None:
    """Were it the same for others, it could be taken out of two teachers' votes, which would tell single ones."""
    opened, images = context[0], torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    few, more, larger = (build(opened, **{**VOTES, **options}) for options in ({}, {"count": 4}, {"noise": 80.0}))
    loud = few.module(images)
    assert torch.equal(build(opened, **VOTES).module(images), loud)
    # With noise that drowns the votes, the same draws would nearly always name the same class.
    assert (more.module(images) == loud).all(dim=1).float().mean() < 0.5
    assert (larger.module(images) == loud).all(dim=1).float().mean() < 0.5


def test_networks_normalise_by_what_they_learnt_from(context, raw_images) -> None:
    opened, images = context[0], raw_images(context[0])
    theirs = dataclasses.replace(opened.data, channel_mean=(10.0, 20.0, 30.0), channel_std=(5.0, 6.0, 7.0))
    teacher = build(dataclasses.replace(opened, others=theirs))
    assert torch.equal(teacher.module(images), build(dataclasses.replace(opened, data=theirs)).module(images))
    assert teacher.fingerprint != build(opened).fingerprint
