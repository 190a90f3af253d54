import moocore
import numpy as np
import pytest

from kdnas.core.pareto import knee, non_dominated


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [4, 1000])
def test_non_dominated_agrees_with_moocore(objectives, levels):
    rng = np.random.default_rng(objectives * levels)
    for _ in range(20):
        values = rng.integers(0, levels, size=(60, objectives)).astype(float)  # few levels: ties and twins
        ours = values[non_dominated(values)]
        theirs = values[moocore.is_nondominated(values, keep_weakly=False)]
        assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


@pytest.mark.parametrize("objectives", [1, 2, 4])
def test_non_dominated_is_what_its_definition_says_row_by_row(objectives):
    values = np.random.default_rng(objectives).integers(6, size=(200, objectives)).astype(float)
    values[:3, 0] = np.inf, -np.inf, np.inf
    for index, row in enumerate(values):
        dominated = any(np.all(other <= row) and np.any(other < row) for other in values)
        twin_before = any(np.array_equal(other, row) for other in values[:index])
        assert non_dominated(values)[index] == (not dominated and not twin_before)


def test_twins_are_listed_once_and_the_first_is_kept():
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])).tolist() == [True, False, True]


def test_empty_and_single():
    assert non_dominated(np.empty((0, 2))).tolist() == []
    assert non_dominated(np.array([[3.0, 3.0]])).tolist() == [True]


def test_knee_is_farthest_below_the_chord():
    front = np.array([[0.0, 10.0], [1.0, 4.0], [2.0, 1.0], [6.0, 0.5], [10.0, 0.0]])
    start, end = front[0], front[-1]
    chord = end - start
    distances = [abs(chord[0] * (p - start)[1] - chord[1] * (p - start)[0]) for p in front]
    assert knee(front) == int(np.argmax(distances)) == 2


def test_knee_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    front = np.stack([np.sort(rng.random(20)), np.sort(rng.random(20))[::-1]], axis=1)
    assert knee(front) == knee(front * [1e9, 1e-3] + [5.0, -2.0])


def test_knee_of_a_constant_objective_and_of_nothing():
    assert knee(np.array([[2.0, 1.0], [1.0, 1.0]])) == 1
    with pytest.raises(ValueError, match="no knee"):
        knee(np.empty((0, 2)))


def test_a_row_that_is_not_known_is_on_no_front():
    values = np.array([[1.0, np.nan], [2.0, 2.0], [np.nan, 0.0], [3.0, 3.0]])
    assert non_dominated(values).tolist() == [False, True, False, False]
