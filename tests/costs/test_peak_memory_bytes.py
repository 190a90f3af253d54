import torch
from torch import nn

from kdnas.core.measurement import Calibration
from kdnas.core.task import image_classification
from kdnas.costs import COSTS

TASK = image_classification((3, 8, 8), 10)


def peak(module: nn.Module, batch_size: int = 1) -> float:
    return (
        COSTS.build("peak_memory_bytes", torch.device("cpu"), batch_size=batch_size)
        .measure(module, TASK, Calibration())
        .value
    )


def chain(inplace: bool) -> nn.Module:
    convolutions = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 2, 3, padding=1, bias=False)]
    return nn.Sequential(convolutions[0], nn.ReLU(inplace=inplace), convolutions[1])


def test_a_chain_by_hand():
    weights, image, first, second = (3 * 4 * 9 + 4 * 2 * 9) * 4, 3 * 64 * 4, 4 * 64 * 4, 2 * 64 * 4
    # at the ReLU: the image (held by the caller), its input and its output
    assert peak(chain(inplace=False)) == weights + image + first + first
    # in place: at the second convolution, the image, its input and its output
    assert peak(chain(inplace=True)) == weights + image + first + second


def test_activations_scale_with_the_batch_and_weights_do_not():
    weights = (3 * 4 * 9 + 4 * 2 * 9) * 4
    assert peak(chain(False), batch_size=6) - weights == 6 * (peak(chain(False)) - weights)


def test_buffers_count_and_shared_weights_count_once():
    linear = nn.Linear(8, 8, bias=False)
    image = 3 * 64 * 4  # [1, 3, 8, 8] is 24 rows of 8
    # weights once, image, hidden, output
    assert peak(nn.Sequential(linear, linear)) == 8 * 8 * 4 + 3 * image
    norm = nn.BatchNorm2d(3)
    held = 4 * 3 * 4 + 8  # scale, shift, mean and variance, and the int64 batch counter
    assert peak(norm) == held + 2 * image


def test_views_are_not_counted_twice_and_what_is_held_stays():
    class Residual(nn.Module):
        def forward(self, x):
            held = x * 2  # lives until the sum
            y = held.view(-1).reshape(x.shape).transpose(2, 3)  # views
            return (y * 3) + held

    # image, held, product, sum
    assert peak(Residual()) == 4 * 3 * 64 * 4


def test_is_deterministic_and_says_what_it_is():
    cost = COSTS.build("peak_memory_bytes", torch.device("cpu"))
    first, second = (cost.measure(chain(False), TASK, Calibration()) for _ in range(2))
    assert first == second
    assert first.spread == 0.0
    assert first.context.startswith("cpu, batch 1, float32; tensor storages")
