"""NNI 3.0's tuners, each given a seed and the means to take up a past trial. Importing this file imports nni.

Every choice reaches them as `randint` over its indices, which all of them take, strings or not; every range as
`uniform` or `loguniform`. They minimise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nni.algorithms.hpo.evolution_tuner import EvolutionTuner, Individual
from nni.algorithms.hpo.gp_tuner import GPTuner
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.common.hpo_utils import format_parameters

Space = Mapping[str, Mapping[str, Any]]
"""NNI's search space: `{name: {"_type": ..., "_value": [...]}}`."""


class SeededTuner(Protocol):
    """What `kdnas.samplers.nni` asks of a tuner: NNI's own methods, and `adopt`."""

    asks: int
    """How many proposals are worth asking for until one is acceptable."""

    def update_search_space(self, space: Space) -> None:
        """Start on `space`."""

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        """Take `values` up as what this tuner proposed for trial `number`, which runs from now on."""

    def generate_multiple_parameters(self, numbers: list[int], **callbacks: Any) -> list[dict[str, Any]]:
        """Return a proposal for each of the trials `numbers`, fewer where there are no more."""

    def receive_trial_result(self, number: int, values: Mapping[str, Any], loss: float) -> None:
        """Learn the loss of trial `number`."""

    def trial_end(self, number: int, success: bool) -> None:
        """Learn that trial `number` runs no longer."""


def _as_it_is(proposal: Any) -> Any:
    """Stand in for NNI's deduplication, which walks the grid from its first corner: kdnas keeps its own record."""
    return proposal


class _Tpe(TpeTuner):
    asks = 5  # each choice's most promising value out of 24 draws: asked again, it proposes nearly the same

    def __init__(self, seed: int, population_size: int):
        super().__init__("minimize", seed=seed)

    def update_search_space(self, space: Space) -> None:
        super().update_search_space(space)
        self.dedup = _as_it_is

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        self._running_params[number] = format_parameters(dict(values), self.space)


class _Random(RandomTuner):
    asks = 50

    def __init__(self, seed: int, population_size: int):
        super().__init__(seed=seed)

    def update_search_space(self, space: Space) -> None:
        super().update_search_space(space)
        self.dedup = _as_it_is

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        """Nothing to do: this tuner remembers nothing."""


class _GridSearch(GridSearchTuner):
    asks = 500

    def __init__(self, seed: int, population_size: int):
        super().__init__()

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        self.import_data([{"parameter": dict(values)}])


class _Gp(GPTuner):
    """The best of random candidates: NNI's descents from them raise since SciPy 1.11.

    With NNI's own 100,000 candidates and 26 fits of the length scale a proposal takes most of a minute.
    """

    asks = 1

    def __init__(self, seed: int, population_size: int):
        super().__init__("minimize", selection_num_warm_up=1000, selection_num_starting_points=0)
        self._gp.n_restarts_optimizer = 0
        self._random_state.seed(seed)

    def update_search_space(self, space: Space) -> None:
        # Its draw from a `randint` raises with current NumPy; a `choice` of numbers is as ordered.
        super().update_search_space(
            {
                name: {"_type": "choice", "_value": list(range(*known["_value"]))}
                if known["_type"] == "randint"
                else known
                for name, known in space.items()
            }
        )

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        """Nothing to do: this tuner uses finished trials only."""


class _Evolution(EvolutionTuner):
    asks = 50

    def __init__(self, seed: int, population_size: int):
        super().__init__("minimize", population_size=population_size)
        self._seed = seed

    def update_search_space(self, space: Space) -> None:
        super().update_search_space(space)
        self.random_state.seed(self._seed)  # NNI seeds it from the system's entropy, and draws at once
        self.population.clear()
        for _ in range(self.population_size):
            self._random_generate_individual()

    def adopt(self, number: int, values: Mapping[str, Any]) -> None:
        self.generate_multiple_parameters([number], st_callback=lambda *_: None)  # the turn that the trial took
        self.running_trials[number] = Individual(config=dict(values))


_TUNERS: dict[str, type] = {
    "TPE": _Tpe,
    "Evolution": _Evolution,
    "GP": _Gp,
    "Random": _Random,
    "GridSearch": _GridSearch,
}


def seeded_tuner(name: str, seed: int, population_size: int) -> SeededTuner:
    """Return NNI's tuner `name`. `population_size` is Evolution's."""
    tuner: SeededTuner = _TUNERS[name](seed, population_size)
    return tuner
