import pytest

from kdnas.core.objective import ACCURACY, PERPLEXITY, Constraint, Quantity
from kdnas.core.pick import Candidate, Near, PickError, Standard, against, choose, parse_bound, parse_pick

MACS = Quantity("macs", "MACs", "minimize", "cheap")
LATENCY = Quantity("latency_ms", "ms", "minimize", "measured")
TEACHER = Standard({"accuracy": 0.97, "macs": 1000.0})


def front(*points: tuple[float, float], half_widths: tuple[float, ...] = ()) -> list[Candidate]:
    """Students of (accuracy, MACs)."""
    return [
        Candidate(f"student{place}", {"accuracy": accuracy, "macs": macs}, half)
        for place, ((accuracy, macs), half) in enumerate(zip(points, half_widths or [None] * len(points), strict=True))
    ]


def chosen(text: str, students: list[Candidate], objectives=(ACCURACY, MACS), teacher=TEACHER) -> int:
    return choose(parse_pick(text, ACCURACY), students, objectives, ACCURACY, teacher)


FOUR = front((0.5, 10), (0.90, 18), (0.955, 50), (0.96, 90))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("BEST", 3), ("Knee", 1),
        ("near-best", 2), ("best", 3), ("knee", 1), ("best-0", 3), ("best-0.4", 3), ("best-0.5", 2), ("best-6", 1),
        ("best - 50", 0), ("teacher-1", 3), ("teacher-1.5", 2), ("teacher-7", 1), ("accuracy>=0.95", 2),
        ("accuracy>=95%", 2), ("accuracy>=0.2", 0), ("macs<=60", 2), ("macs<=5%", 2), ("macs<=2%", 1),
        ("macs<=0.06k", 2), ("macs<=60,accuracy>=0.9", 2), ("best,macs<=20", 1), ("near-best,macs<=60", 2),
        ("best-6,macs<=60", 1),
    ],
)  # fmt: skip
def test_every_spelling_means_one_student(text, place):
    assert chosen(text, FOUR) == place


def test_near_the_best_is_a_point_or_the_intervals_width_up_to_three_points():
    assert chosen("near-best", front((0.508, 10), (0.827, 20), half_widths=(0.05, 0.67))) == 1  # two seeds' interval
    assert chosen("near-best", front((0.759, 10), (0.761, 20), (0.79, 30), half_widths=(0.1, 0.1, 0.1))) == 1
    bad_and_good = front((0.49, 10), (0.79, 20), half_widths=(0.202, 0.093))
    assert chosen("near-best", bad_and_good) == 1  # 49 % is not within 9.3 points of 79 %
    assert chosen("near-best", front((0.78, 10), (0.79, 20))) == 0  # rounding of 0.79 - 0.01 decides nothing
    assert chosen("near-best", front((0.77, 10), (0.79, 20), half_widths=(0.001, 0.03))) == 0
    assert chosen("near-best", front((0.77, 10), (0.79, 20), half_widths=(0.03, 0.001))) == 1  # the best one's counts
    assert chosen("near-best", front((0.4, 5))) == 0


def test_two_students_have_no_knee_and_one_is_whatever_is_picked():
    two = front((0.49, 10), (0.79, 20))
    with pytest.raises(PickError, match="2 students have no knee"):
        chosen("knee", two)
    with pytest.raises(PickError, match="2 students have no knee"):
        chosen("knee,macs<=20", FOUR)
    assert chosen("knee", two[:1]) == 0


def test_a_score_may_be_any_trained_objective_in_either_direction():
    students = [Candidate(str(p), {"perplexity": p, "latency_ms": cost}) for p, cost in ((30, 1), (21, 2), (20.5, 4))]
    teacher = Standard({"perplexity": 20.0})

    def place(text: str) -> int:
        return choose(parse_pick(text, PERPLEXITY), students, (LATENCY, PERPLEXITY), PERPLEXITY, teacher)

    assert [place(text) for text in ("near-best", "best-0.4", "best", "teacher-1")] == [1, 2, 2, 1]
    assert [place(text) for text in ("perplexity<=22", "perplexity<=20.7", "perplexity<=110%")] == [1, 2, 1]
    assert place("latency_ms<=2") == 1
    assert place("knee") == 1
    with pytest.raises(PickError, match="meets perplexity<=20; the nearest is 20.5 with perplexity 20.5"):
        place("perplexity<=20")


def test_the_cheapest_is_by_the_first_cost_named_then_by_the_score():
    students = [
        Candidate("a", {"accuracy": 0.95, "macs": 5, "latency_ms": 2}),
        Candidate("b", {"accuracy": 0.955, "macs": 9, "latency_ms": 1}),
        Candidate("c", {"accuracy": 0.956, "macs": 5, "latency_ms": 2}),
    ]
    assert chosen("near-best", students, (ACCURACY, MACS, LATENCY)) == 2
    assert chosen("near-best", students, (ACCURACY, LATENCY, MACS)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy>=0.99", "no student of the front meets accuracy>=0.99; the nearest is student3 with accuracy 0.96"),
        ("teacher-0.5", "meets teacher-0.5 .accuracy>=0.965.; the nearest is student3 with accuracy 0.96"),
        ("macs<=0.1%", "meets macs<=0.1% .macs<=1.; the nearest is student0 with macs 10"),
        ("latency_ms<=3", "no student's 'latency_ms' is known"),
        ("params<=5%", "the teacher's 'params' is not known"),
        ("accuracy>=95", "accuracy is a fraction"),
        ("macs<10", "is not a bound"), ("best,knee", "two picks"), ("best-1,teacher-1", "two picks"),
        ("zzz", "picks nothing"), ("0a1", "picks nothing"), ("best-", "picks nothing"), ("", "picks nothing"),
    ],
)  # fmt: skip
def test_what_nobody_meets_or_nobody_understands_is_told(text, message):
    with pytest.raises(PickError, match=message):
        chosen(text, FOUR)


def test_without_a_teacher_nothing_is_compared_with_one():
    for text in ("teacher-1", "macs<=5%"):
        with pytest.raises(PickError, match="speaks of the teacher, and there is none"):
            chosen(text, FOUR, teacher=None)


def test_an_arch_id_is_told_by_its_spelling():
    assert parse_pick(" 0A1B2C ", ACCURACY).arch_id == "0a1b2c"
    assert parse_pick("0a1b2c3d4e5f", ACCURACY).arch_id == "0a1b2c3d4e5f"
    assert parse_pick("best", ACCURACY).arch_id == ""


def test_constraints_that_speak_of_the_teacher_become_numbers():
    assert parse_bound("teacher-1", ACCURACY) == Near("teacher", 1.0)
    assert against(parse_bound("macs<=5%", ACCURACY), TEACHER, ACCURACY) == Constraint("macs", "<=", 50.0)
    bound = against(parse_bound("teacher-1", ACCURACY), TEACHER, ACCURACY)
    assert (bound.name, bound.operator, bound.bound) == ("accuracy", ">=", pytest.approx(0.96))
    with pytest.raises(ValueError, match="is not a bound"):
        parse_bound("best-1", ACCURACY)
    with pytest.raises(ValueError, match="not put in its place"):
        Constraint("macs", "<=", 5.0, percent=True).violation(3.0)
