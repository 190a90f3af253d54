"""Accuracy, and which precision a device computes natively."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData, Samples
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.recipe import Training

CPU = torch.device("cpu")
FLOAT32 = Training(precision="float32")


class Brightest(nn.Module):
    """Says which of four columns is brightest, from raw images [B, 1, 1, 4]; batch statistics would spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        assert images.dtype == torch.float32
        return self.norm(images).flatten(1)


def batches(labels: list[int], indices: list[int] | None = None, split: Literal["train", "test"] = "train") -> Batches:
    images = np.zeros((10, 1, 1, 4), dtype=np.uint8)
    images[np.arange(10), 0, 0, np.arange(10) % 4] = 200
    chosen = np.arange(10) if indices is None else np.array(indices, dtype=np.int64)
    samples = Samples({"pixels": images}, np.array(labels, dtype=np.int64))
    return Batches(
        ImageData("some", tuple("abcd"), samples, samples, "f", (0.0,), (1.0,)), chosen, device=CPU, split=split
    )


def test_accuracy_counts_every_sample_once_also_in_a_last_small_batch() -> None:
    # Column of sample i is i % 4: 0 1 2 3 0 1 2 3 0 1. The labels agree in 7 of 10 places.
    labels = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    network = Brightest()
    assert evaluate(network, batches(labels), FLOAT32, batch_size=3) == pytest.approx(0.7)
    assert network.seen == [3, 3, 3, 1]
    assert evaluate(network, batches(labels, [6, 7, 8, 9]), FLOAT32, batch_size=512) == pytest.approx(0.25)


def test_accuracy_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(Brightest(), nn.Dropout(0.5))
    network[1].eval()
    network[0].train()
    network.training = True
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, batches([0] * 10), FLOAT32)
    assert network.training
    assert network[0].norm.training
    assert not network[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_scores_are_in_the_trainings_precision_and_on_the_test_split_in_float32() -> None:
    class Linear(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images.flatten(1))
            dtypes.append(logits.dtype)
            return logits

    dtypes: list[torch.dtype] = []
    network = Linear(4, 4, bias=False)
    nn.init.eye_(network.weight)
    labels = [i % 4 for i in range(10)]
    assert evaluate(network, batches(labels), Training(precision="bfloat16")) == 1.0
    assert evaluate(network, batches(labels), FLOAT32) == 1.0
    assert evaluate(network, batches(labels, split="test"), Training(precision="bfloat16")) == 1.0
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Brightest(), batches([0] * 10, []), FLOAT32)
