"""MACs of built networks against hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdnas.nn.tracing import parameter_count, traced_macs

CPU = torch.device("cpu")


class _Attention(nn.Module):
    """Attention over the rows of an image, by torch's own module or by the fused function."""

    def __init__(self, width: int, fused: bool):
        super().__init__()
        self.fused = fused
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.project = nn.Linear(width, 3 * width, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images[:, 0]
        if not self.fused:
            return self.attention(rows, rows, rows, need_weights=False)[0].mean(1)
        query, key, value = self.project(rows).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value).mean(1)


@pytest.mark.parametrize("fused", [True, False])
def test_macs_count_attention(fused: bool) -> None:
    length, width = 6, 8
    expected = 3 * length * width * width + 2 * length * length * width  # projections, then q k and a v
    expected += 0 if fused else length * width * width  # torch's module projects the result
    assert traced_macs(_Attention(width, fused).eval(), (1, length, width), CPU) == expected


def test_a_hand_counted_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    assert traced_macs(network, (3, 10, 12), CPU) == 3 * 8 * 9 * 5 * 6 + 8 * 5
    assert parameter_count(network) == 3 * 8 * 9 + 8 + 2 * 8 + 8 * 5 + 5
