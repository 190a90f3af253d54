"""What is said of a teacher's anatomy."""

import torch

from kdnas.core.measurement import Price
from kdnas.nn.cutting import Anatomy, Axis, Depth, Tie, Uncut
from kdnas.workshop.teacher_anatomy import TeacherAnatomy, in_words


def axis(name, role, size):
    return Axis(name, role, size, (Tie(f"{name}.weight", 0, torch.arange(size)[:, None]),))


def found(*, uncut):
    axes = (axis("a", "inner", 8), axis("b", "inner", 8), axis("c", "width", 16))
    anatomy = Anatomy("convnet", axes, (Depth("stages.0.depth", ("x", "y"), (0, 1)),), uncut)
    return TeacherAnatomy("t", "Net", anatomy, Price(1000, 200), Price(100, 50))


def test_what_is_cut_and_what_stays_whole_is_told_in_plain_words():
    printed = in_words(found(uncut=(Uncut("stem", "nobody reads it"),)))
    assert printed["cut_along"] == [
        "read as convnet; the least that works has 10.0% of the MACs and 25.0% of the parameters",
        "1 to 2 blocks of stages.0.depth",
        "2 x inner of 8",
        "width of 16",
    ]
    assert printed["left_whole"] == ["stem: nobody reads it"]
    assert "left_whole" not in in_words(found(uncut=()))


def test_of_many_parts_the_first_are_told_and_the_rest_counted():
    printed = in_words(found(uncut=tuple(Uncut(f"part{index}", f"so{index}") for index in range(9))))["left_whole"]
    assert printed[5:] == ["part5: so5", "3 more: `kdnas spaces show` lists them"]


def test_a_reason_is_told_once():
    printed = in_words(found(uncut=tuple(Uncut(f"part{index}", "so") for index in range(9))))["left_whole"]
    assert printed == ["part0 and 8 more: so"]
