"""Accuracy, and which precision a device computes natively."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageArrays
from kdnas.training.batches import Batches
from kdnas.training.evaluation import accuracy, bfloat16_is_native, bfloat16_pays, bfloat16_speed

CPU = torch.device("cpu")


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


def batches(labels: list[int], indices: list[int] | None = None) -> Batches:
    images = np.zeros((10, 1, 1, 4), dtype=np.uint8)
    images[np.arange(10), 0, 0, np.arange(10) % 4] = 200
    chosen = np.arange(10) if indices is None else np.array(indices, dtype=np.int64)
    return Batches(ImageArrays(images, np.array(labels, dtype=np.int64)), chosen, num_classes=4, device=CPU)


def test_accuracy_counts_every_sample_once_also_in_a_last_small_batch() -> None:
    # Column of sample i is i % 4: 0 1 2 3 0 1 2 3 0 1. The labels agree in 7 of 10 places.
    labels = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    network = Brightest()
    assert accuracy(network, batches(labels), batch_size=3) == pytest.approx(0.7)
    assert network.seen == [3, 3, 3, 1]
    assert accuracy(network, batches(labels, [6, 7, 8, 9]), batch_size=512) == pytest.approx(0.25)


def test_accuracy_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(Brightest(), nn.Dropout(0.5))
    network[1].eval()
    network[0].train()
    network.training = True
    before = {name: value.clone() for name, value in network.state_dict().items()}
    accuracy(network, batches([0] * 10))
    assert network.training
    assert network[0].norm.training
    assert not network[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_accuracy_in_bfloat16_runs_the_network_in_it() -> None:
    class Linear(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images.flatten(1))
            dtypes.append(logits.dtype)
            return logits

    dtypes: list[torch.dtype] = []
    network = Linear(4, 4, bias=False)
    nn.init.eye_(network.weight)
    labels = [i % 4 for i in range(10)]
    assert accuracy(network, batches(labels), bfloat16=True) == 1.0
    assert accuracy(network, batches(labels)) == 1.0
    assert dtypes == [torch.bfloat16, torch.float32]


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(Brightest(), batches([0] * 10, []))


def test_bfloat16_on_this_processor_is_what_the_kernel_says() -> None:
    information = Path("/proc/cpuinfo")
    if not information.exists() or "avx" not in information.read_text():
        pytest.skip("no x86 /proc/cpuinfo")
    words = set(information.read_text().split())
    assert bfloat16_is_native(CPU) == bool(words & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_on_cuda_follows_the_compute_capability(monkeypatch, capability, native) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_is_native(torch.device("cuda")) is native


def test_bfloat16_is_not_assumed_elsewhere(monkeypatch) -> None:
    assert not bfloat16_is_native(torch.device("meta"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert not bfloat16_is_native(CPU)


@pytest.mark.parametrize(("bfloat16_s", "float32_s", "pays"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_bfloat16_is_taken_where_it_measures_faster(monkeypatch, bfloat16_s, float32_s, pays):
    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            for seconds in (bfloat16_s, float32_s):
                yield now
                now += seconds
                yield now

    ticks = clock()
    monkeypatch.setattr("kdnas.training.evaluation.bfloat16_is_native", lambda device: True)
    monkeypatch.setattr("kdnas.training.evaluation.time.perf_counter", lambda: next(ticks))
    bfloat16_speed.cache_clear()
    before = torch.get_rng_state()
    try:
        assert bfloat16_pays(CPU) is pays
        monkeypatch.setattr("kdnas.training.evaluation.time.perf_counter", None)  # it is not measured again
        assert bfloat16_pays(CPU) is pays
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        bfloat16_speed.cache_clear()


def test_bfloat16_is_not_tried_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr("kdnas.training.evaluation.bfloat16_is_native", lambda device: False)
    monkeypatch.setattr("kdnas.training.evaluation.time.perf_counter", None)
    bfloat16_speed.cache_clear()
    try:
        assert not bfloat16_pays(CPU)
    finally:
        bfloat16_speed.cache_clear()
