"""The weights file of a network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdnas.errors import RunFolderError
from kdnas.nn.weights import save_weights


def test_weights_read_back_and_may_be_read_by_whoever_may_read_new_files(tmp_path):
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())


def test_a_folder_that_is_not_there_is_bad_input(tmp_path):
    with pytest.raises(RunFolderError, match=r"a\.safetensors cannot be written"):
        save_weights(nn.Linear(1, 1), tmp_path / "nowhere" / "a.safetensors")
