"""Fixtures of the tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from kdnas.core.data import ImageData


@pytest.fixture(scope="session")
def data(digits: ImageData) -> ImageData:
    """The real digits."""
    return digits


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The CUDA device, idle again at the end."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield torch.device("cuda")
    torch.cuda.synchronize()
