"""A network as an ONNX model: what its axes are called."""

import pytest
import torch
from torch import Tensor, nn

from kdnas.nn.onnx_program import onnx_model

pytest.importorskip("onnxscript")


class Shifted(nn.Module):
    """Tokens [B, T] and a mask [B, T] to logits [B, T + 1, 3], whose length is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedded = self.embedding(tokens) * mask[..., None]
        return torch.cat([torch.zeros_like(embedded[:, :1]), embedded], dim=1)


def test_axes_of_texts_are_called_batch_and_length():
    examples = {name: torch.ones(2, 16, dtype=torch.long) for name in ("tokens", "mask")}
    graph = onnx_model(Shifted().eval(), examples, dynamic_length=True).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes["tokens"] == axes["mask"] == ["batch", "length"]
    assert axes["logits"] == ["batch", "length + 1", 3]
