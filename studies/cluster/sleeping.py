"""Students that take seconds to score, and no CPU."""

import itertools
import math
import time


def score(choices, epochs, data_fraction, seed, seconds):
    """Sleep, and return an accuracy that grows with every layer's width, with less and less gain."""
    time.sleep(seconds)
    layers = [choices[f"layer{place}"] for place in range(1, 9)]
    gain = sum(width * (1.0 - 0.05 * place) for place, width in enumerate(layers))
    return {"accuracy": 0.5 + 0.45 * (1.0 - math.exp(-gain / 12.0))}


def price(choices, seconds):
    """Return the MACs: a product of neighbouring widths."""
    layers = [1, *(choices[f"layer{place}"] for place in range(1, 9))]
    return {"macs": sum(1000.0 * before * after for before, after in itertools.pairwise(layers))}
