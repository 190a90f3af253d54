"""BoTorch's qLogNEHVI over a table (Ament et al., "Unexpected improvements to expected improvement", NeurIPS 2023).

Needs the package botorch, which kdnas does not: an environment of its own. Both objectives have a Gaussian process with
BoTorch's default kernel and priors; the next student is the best of a random part of the table.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from tables import Table

_FIRST = 8
"""Students drawn at random before the first model."""
_LOOKED_AT = 500
"""Students of the table that the acquisition function is computed of."""


def picked_by_nehvi(table: Table, rows: list[int], rng: np.random.Generator) -> int:
    """Return the row to train next, once `rows` are trained."""
    rest = np.setdiff1d(np.arange(len(table.accuracy)), rows)
    looked_at = rng.permutation(rest)[:_LOOKED_AT]
    if len(rows) < _FIRST:
        return int(looked_at[0])
    return int(looked_at[_best(table, rows, looked_at, int(rng.integers(2**31)))])


def _best(table: Table, rows: list[int], looked_at: np.ndarray, seed: int) -> int:
    import torch
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.sampling.normal import SobolQMCNormalSampler
    from gpytorch.mlls import SumMarginalLogLikelihood

    torch.manual_seed(seed)
    features = torch.tensor(_features(table))
    known, targets = features[rows], torch.tensor(-table.points(rows))
    models = [
        SingleTaskGP(known, column[:, None], outcome_transform=Standardize(1)) for column in targets.unbind(dim=1)
    ]
    model = ModelListGP(*models)
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    gain = qLogNoisyExpectedHypervolumeImprovement(
        model=model,
        ref_point=(-table.reference()).tolist(),
        X_baseline=known,
        sampler=SobolQMCNormalSampler(torch.Size([64]), seed=seed),
        prune_baseline=True,
    )
    with torch.no_grad():
        gains = torch.cat([gain(part[:, None, :]) for part in features[looked_at].split(250)])
    return int(gains.argmax())


@cache
def _features(table: Table) -> np.ndarray:
    """Return the students of a table [N, P]: numbers scaled to [0, 1], names as indicators."""
    columns = []
    for values in zip(*table.keys, strict=True):
        if isinstance(values[0], str):
            columns += [np.array([value == level for value in values], dtype=float) for level in sorted(set(values))]
        else:
            numbers = np.array(values, dtype=float)
            columns.append((numbers - numbers.min()) / (np.ptp(numbers) or 1.0))
    return np.stack(columns, axis=1)
