"""Blocks replaced one at a time, in small random networks of several kinds."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.block_distillation import BlockBench, divergence, held_from
from kdnas.nn.cutting import outputs

sys.path.insert(0, str(Path(__file__).parent / "anatomy"))
from test_convnets import randomised
from test_transformers import NETWORKS

SAMPLES = 24


def resnet():
    import torchvision

    network = torchvision.models.resnet18(num_classes=5)
    return randomised(network), torch.randn(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def transformer(name):
    kind, make = NETWORKS[name]
    torch.manual_seed(0)
    network, generator = make(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if kind == "vit":
        return network, torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    network.config.use_cache = False  # as a language model that teaches is called
    return network, torch.randint(3, 100, (SAMPLES, 10), generator=generator)


@pytest.fixture(scope="module", params=["resnet18", "timm_vit", "bert", "gpt2", "llama"])
def bench(request):
    """(bench, network, anatomy, inputs, a removable block, an axis inside it)."""
    network, inputs = resnet() if request.param == "resnet18" else transformer(request.param)
    network.eval().requires_grad_(False)
    anatomy = read_anatomy(network, inputs[:2])
    depth = anatomy.depths[0]
    block = depth.blocks[-1]
    axis = next(axis for axis in anatomy.axes if axis.block == block)
    return BlockBench(network, network, anatomy, (inputs,), network), network, anatomy, inputs, block, axis


def test_a_whole_block_loses_nothing_and_a_smaller_one_more(bench):
    bench, network, _, inputs, block, axis = bench
    before = outputs(network, inputs[:4])
    sizes = [axis.size, max(axis.size // 2, 1), axis.least]
    whole, half, least = bench.replaced(block, [{axis.name: size} for size in sizes], epochs=0, seed=0)
    assert bench.whole() == pytest.approx(0.0, abs=1e-6)
    assert whole.answers == pytest.approx(0.0, abs=1e-5)
    assert whole.local == pytest.approx(0.0, abs=1e-6)
    assert 1e-6 < half.local < least.local + 1e-9
    assert torch.equal(outputs(network, inputs[:4]), before)  # it is left as it was


def test_without_a_block_it_loses_what_the_cut_network_does(bench):
    bench, network, anatomy, inputs, block, _ = bench
    depth = anatomy.depths[0]
    cut = anatomy.cut(network, {depth.name: range(len(depth.blocks) - 1)})
    held = inputs[held_from(SAMPLES) :]
    lost = divergence(outputs(cut, held), outputs(network, held))
    assert bench.without(block).answers == pytest.approx(lost, rel=1e-3, abs=1e-6)


def test_training_brings_a_block_closer_and_its_neighbours_in_the_pack_do_not_matter(bench):
    bench, _, _, _, block, axis = bench
    forms = [{axis.name: axis.least}, {axis.name: max(axis.size // 2, 1)}]
    fitted = bench.replaced(block, forms, epochs=0, seed=0)
    trained = bench.replaced(block, forms, epochs=3, seed=0)
    assert all(after.local <= before.local for after, before in zip(trained, fitted, strict=True))
    assert trained[0].local < fitted[0].local
    (alone,) = bench.replaced(block, forms[:1], epochs=3, seed=0)
    assert alone.local == pytest.approx(trained[0].local, rel=1e-4)


def test_divergence_is_torchs_and_an_error_in_variances_of_single_numbers():
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(2, 30, 7, generator=generator)
    mean = sum(
        float(torch.distributions.kl_divergence(torch.distributions.Categorical(logits=w), q))
        for w, q in ((w, torch.distributions.Categorical(logits=g)) for g, w in zip(given, wanted, strict=True))
    )
    assert divergence(given, wanted) == pytest.approx(mean / 30, rel=1e-5)
    numbers = wanted[:, :1]
    assert divergence(numbers.mean().expand_as(numbers), numbers) == pytest.approx(1.0)


def test_few_samples_and_blocks_that_run_twice_are_told():
    with pytest.raises(ValueError, match="3 samples are too few"):
        held_from(3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x):
            return self.block(self.block(x))

    network, anatomy = Twice().eval(), read_anatomy(resnet()[0], torch.zeros(2, 3, 32, 32))
    bench = BlockBench(network, network, anatomy, (torch.randn(16, 4),), network)
    with pytest.raises(ValueError, match="block runs 2 times a pass"):
        bench.replaced("block", [], epochs=0, seed=0)
