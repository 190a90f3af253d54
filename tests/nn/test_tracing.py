"""MACs of built networks against closed forms and against fvcore."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdnas.nn.tracing import fvcore_macs, parameter_count, traced_macs


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
    assert traced_macs(_Attention(width, fused).eval(), torch.zeros(1, 1, length, width)) == expected


def test_a_hand_counted_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    assert traced_macs(network, torch.zeros(1, 3, 10, 12)) == 3 * 8 * 9 * 5 * 6 + 8 * 5
    assert parameter_count(network) == 3 * 8 * 9 + 8 + 2 * 8 + 8 * 5 + 5


class _Rows(nn.Module):
    """Does `function` with `parts` on the image's first channel, [B, H, W]."""

    def __init__(self, function: Callable[..., torch.Tensor], *parts: nn.Module):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images[:, 0], *self.parts)


def _first(rows: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return layer(rows)[0]


L, W = 6, 8  # rows of eight values


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # Hochreiter & Schmidhuber 1997: four gates, each of the input and of the state; a GRU has three, an RNN one.
        (_Rows(_first, nn.LSTM(W, 16, batch_first=True)), L * 4 * 16 * (W + 16)),
        (_Rows(_first, nn.LSTM(W, 16, 2, bidirectional=True, batch_first=True)), L * 2 * 4 * 16 * (W + 16 + 32 + 16)),
        (_Rows(_first, nn.LSTM(W, 16, proj_size=4, batch_first=True)), L * (4 * 16 * (W + 4) + 16 * 4)),
        (_Rows(_first, nn.GRU(W, 16, batch_first=True)), L * 3 * 16 * (W + 16)),
        (_Rows(_first, nn.RNN(W, 16, batch_first=True)), L * 16 * (W + 16)),
        (_Rows(lambda x, cell: cell(x[:, 0])[0], nn.LSTMCell(W, 16)), 4 * 16 * (W + 16)),
        (_Rows(lambda x: torch.baddbmm(x.new_zeros(1, L, L), x, x.mT)), L * L * W),
        (_Rows(lambda x: torch.addbmm(x.new_zeros(L, L), x, x.mT)), L * L * W),
        (_Rows(lambda x: torch.addmm(x.new_zeros(L, L), x[0], x[0].T)), L * L * W),
        (_Rows(lambda x: torch.bmm(x, x.mT)), L * L * W),
        (_Rows(lambda x: x @ x[0, 0]), L * W),
        (_Rows(lambda x: torch.addmv(x.new_zeros(L), x[0], x[0, 0])), L * W),
        (_Rows(lambda x: x[0, 0].dot(x[0, 0])), W),
        (_Rows(lambda x: torch.einsum("bhw,bvw->bhv", x, x)), L * L * W),
        (_Rows(lambda x: torch.einsum("bhw,hw->b", x, x[0])), L * W),
        (_Rows(lambda x: torch.tensordot(x, x[0], ([2], [1]))), L * L * W),
        (_Rows(lambda x, layer: layer(x, x), nn.Bilinear(W, W, 5)), L * W * W * 5),
        (_Rows(lambda x, layer: layer(x), nn.Conv1d(L, 4, 3, groups=2)), (W - 2) * 4 * 3 * L // 2),
        (_Rows(lambda x, layer: layer(x), nn.ConvTranspose1d(L, 4, 3, stride=2, groups=2)), W * L * 3 * 4 // 2),
        (
            _Rows(lambda x, layer: layer(x), nn.TransformerEncoderLayer(W, 2, 16, batch_first=True)),
            4 * L * W * W + 2 * L * L * W + 2 * L * W * 16,
        ),
    ],
)
def test_every_matrix_product_counts_by_its_closed_form(network: nn.Module, expected: int) -> None:
    assert traced_macs(network.eval(), torch.zeros(1, 1, L, W)) == expected


def test_an_attention_kernel_that_the_network_insists_on_counts() -> None:
    def forced(rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            heads = rows[:, None]
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)

    assert traced_macs(_Rows(forced).eval(), torch.zeros(1, 1, L, W)) == 2 * L * L * W


def test_counting_leaves_torchs_switches_as_they_were() -> None:
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled()
    traced_macs(_Rows(_first, nn.LSTM(W, 16, batch_first=True)).eval(), torch.zeros(1, 1, L, W))
    after = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled()
    assert after == before


def test_a_layer_that_is_given_a_parameter_of_its_parent_counts() -> None:
    class Asking(nn.Module):  # as a CaiT's last layers are given its class token
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(1, W)), nn.Linear(W, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(self.token.expand(len(images), -1))

    assert traced_macs(Asking().eval(), torch.zeros(1, 1, L, W)) == 3 * W


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_traced_network_counts_as_the_network_itself() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6, 5)).eval()
    traced = torch.jit.trace(network, torch.zeros(1, 1, L, W))
    assert (
        traced_macs(traced, torch.zeros(1, 1, L, W))
        == traced_macs(network, torch.zeros(1, 1, L, W))
        == 4 * 9 * 24 + 96 * 5
    )


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_library_models_count_as_fvcore_counts_them(name: str) -> None:
    network = timm.create_model(name, num_classes=7).eval()
    shape = (3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(network, torch.zeros(1, *shape)).unsupported_ops_warnings(False)
        counts = analysis.tracer_warnings("none").by_operator()
    expected = sum(counts[operator] for operator in ("conv", "linear", "matmul", "addmm") if operator in counts)
    if name.startswith("vit"):  # 12 layers of 197 tokens, 192 wide: fvcore does not see the fused attention
        expected += 12 * 2 * 197 * 197 * 192
    assert traced_macs(network, torch.zeros(1, *shape)) == fvcore_macs(network, torch.zeros(1, *shape)) == expected


class _Recurrent(nn.Module):
    """Two kinds of recurrent layers, and sums that einsum spells, of which the last contracts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(33, 6, 2, batch_first=True, bidirectional=True)
        self.second = nn.GRU(12, 5)
        self.weight = nn.Parameter(torch.randn(5, 12, 17))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x)[0])[0]
        return torch.einsum("bnd,dhk->bnhk", x, self.weight).sum() + torch.einsum("i,j->ij", x[0, 0], x[0, 1]).sum()


def test_recurrent_layers_and_einsum_count_as_fvcore_counts_them() -> None:
    network, given = _Recurrent().eval(), torch.randn(1, 7, 33)
    first = 7 * 2 * (24 * (33 + 6) + 24 * (12 + 6))
    expected = first + 7 * 15 * (12 + 5) + 7 * 5 * 12 * 17
    assert traced_macs(network, given) == fvcore_macs(network, given) == expected
