"""How many optimiser updates the trainings of a study are: on small data they decide, not epochs."""

from __future__ import annotations

from kdnas.core.fidelity import Fidelity
from kdnas.study.config import StudyConfig
from kdnas.training.batches import batches_in

FEW_UPDATES = 500


def updates_in_words(config: StudyConfig, samples: int) -> str:
    """Return how many updates a score and a final training on `samples` training samples are, and whether too few."""
    training = config.training

    def count(fidelity: Fidelity) -> int:
        return fidelity.epochs * batches_in(round(samples * fidelity.data_fraction), training.batch_size)

    scores = [count(fidelity) for fidelity in config.fidelities if fidelity.epochs]
    final = count(config.final_fidelity)
    text = f"a final training is {final:,} updates of batches of {training.batch_size:,}"
    if scores:
        text = f"a score is {' or '.join(f'{number:,}' for number in scores)} updates, {text}"
    stages = [("score", max(scores, default=FEW_UPDATES)), ("final training", final)]
    few = [name for name, number in stages if number < FEW_UPDATES]
    if few:
        text += (
            f". Below about {FEW_UPDATES} updates a {' or a '.join(few)} means little, whatever the number of epochs: "
            "raise the epochs, or lower training.batch_size"
        )
    return text
