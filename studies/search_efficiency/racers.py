"""Who races: kdnas's own sampler, with one fidelity and with two, against Optuna's, BoTorch's and NNI's."""

from __future__ import annotations

import optuna
from nehvi import picked_by_nehvi
from racing import Racer


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _nsga2(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)


RACERS = (
    Racer("hvi", "kdnas hvi", 120, 20, member="hvi"),
    Racer("hvi_rungs", "kdnas hvi, two fidelities", 20, 20, member="hvi", rule="rank"),
    Racer("random", "random", 300, 20, member="random"),
    Racer("tpe", "Optuna TPE", 300, 20, raw=_tpe),
    Racer("nsga2", "Optuna NSGA-II", 300, 20, raw=_nsga2),
    Racer("kdnas_nsga2", "kdnas nsga2 (no repeats)", 300, 20, member="nsga2"),
    Racer("kdnas_tpe", "kdnas tpe (no repeats)", 300, 5, member="tpe"),
    Racer("gp", "Optuna GPSampler", 40, 5, raw=_gp, asks=120),
    Racer("nehvi", "BoTorch qLogNEHVI", 40, 5, picks=picked_by_nehvi),
    Racer("nni_tpe", "NNI TPE", 200, 5, member="nni", options={"tuner": "TPE"}),
    Racer("nni_evolution", "NNI Evolution", 200, 5, member="nni", options={"tuner": "Evolution"}),
    Racer("hvi_model", "kdnas hvi, two fidelities, chosen by its model", 20, 20, member="hvi", rule="model"),
    Racer("hvi_moasha", "kdnas hvi, promoted by MO-ASHA", 30, 5, member="hvi", rule="moasha"),
    Racer("hvi_halving", "kdnas hvi, plain halving", 30, 5, member="hvi", rule="halving"),
)
BY_NAME = {racer.name: racer for racer in RACERS}
SLOW = ("gp", "nehvi", "nni_tpe", "nni_evolution", "kdnas_tpe", "hvi_model", "hvi_moasha", "hvi_halving")
"""Left out of a quick run."""
