"""Which finalist each other one is cut out of."""

from __future__ import annotations

import dataclasses

from kdnas.controller.nesting import Nest
from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.record.records import Repeat, TrialRecord
from kdnas.workshop.jobs import LargerStudent


def trial(number, depth, width):
    arch = Arch.of("toy", {"depth": depth, "width": width})
    values = {"macs": float(depth * width), "params": float(width)}
    return TrialRecord(number, arch, "complete", Fidelity(1), values=values)


def is_part(arch, larger):
    return all(arch.choices[name] <= larger.choices[name] for name in arch.choices)


def key(one, seed=0):
    return one.arch.arch_id, seed


def repeat(one, seed=0):
    return Repeat(seed, 0.5, 0.5, Fidelity(1, start="nested"), 1.0, f"{one.number}-{seed}.safetensors")


LARGE, MIDDLE, SMALL, APART = trial(0, 4, 8), trial(1, 3, 4), trial(2, 2, 4), trial(3, 1, 16)
ALL = [SMALL, APART, LARGE, MIDDLE]


def test_a_student_waits_for_the_smallest_that_holds_it():
    nest = Nest(ALL, is_part, [], [key(one) for one in ALL])
    assert [nest.is_held(one) for one in ALL] == [True, False, False, True]
    assert [nest.is_ready(one, 0) for one in ALL] == [False, True, True, False]
    assert nest.larger(LARGE, 0) is None
    nest.end(LARGE, 0, repeat(LARGE))
    assert [nest.is_ready(MIDDLE, 0), nest.is_ready(SMALL, 0)] == [True, False]
    assert nest.larger(MIDDLE, 0) == LargerStudent(0, LARGE.arch, "checkpoints/0-0.safetensors")
    nest.end(MIDDLE, 0, repeat(MIDDLE))
    assert nest.larger(SMALL, 0) == LargerStudent(1, MIDDLE.arch, "checkpoints/1-0.safetensors")


def test_one_that_fails_for_good_is_passed_over():
    nest = Nest(ALL, is_part, [], [key(one) for one in ALL])
    nest.end(LARGE, 0, repeat(LARGE))
    nest.end(MIDDLE, 0, None)
    assert nest.larger(SMALL, 0).number == 0
    other = Nest(ALL, is_part, [], [key(one) for one in ALL])
    other.end(LARGE, 0, None)
    assert other.is_ready(MIDDLE, 0)
    assert other.larger(MIDDLE, 0) is None


def test_what_an_earlier_call_trained_is_there_and_what_was_lost_is_waited_for():
    trained = dataclasses.replace(LARGE, repeats=(repeat(LARGE), repeat(LARGE, 1)))
    nest = Nest(ALL, is_part, [trained], [key(MIDDLE), key(MIDDLE, 1), key(LARGE, 1)])
    assert nest.larger(MIDDLE, 0).checkpoint == "checkpoints/0-0.safetensors"
    assert not nest.is_ready(MIDDLE, 1)
