"""Weights from files: what loads, and that nothing which executes code, is damaged or does not fit ever does."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdnas.errors import TeacherError
from kdnas.teachers._loading import Checkpoint, find_file, read_weights, require
from kdnas.teachers._state_dict import load_weights


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))


@pytest.fixture
def network() -> nn.Module:
    made = _network()
    made(torch.zeros(1, 3, 8, 8))
    return made


def _write(path: Path, form: str, state: dict) -> Path:
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    elif form == "legacy":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("file", "form"),
    [("w.safetensors", "safetensors"), ("w.pth", "plain"), ("w.pt", "wrapped"), ("w.bin", "legacy")],
)
def test_reads_every_form_of_a_state_dict(network: nn.Module, tmp_path: Path, file: str, form: str) -> None:
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    path = _write(tmp_path / file, form, expected)
    for parameter in network.parameters():
        parameter.data.zero_()
    load_weights(network, read_weights(path))
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in expected.items())


class _Armed:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch"])
def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(_Armed(str(mark)), protocol=2))
    else:
        torch.save({"a": _Armed(str(mark))}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(TeacherError, match=r"execute code when loaded.*safetensors"):
        read_weights(path)
    assert not mark.exists()


def test_a_whole_module_is_refused_and_named(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"pickled Python objects \(torch\.nn\.modules.*save_model"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt2", ".pth"])
def test_an_exported_program_is_refused_whatever_its_suffix(network: nn.Module, tmp_path: Path, suffix: str) -> None:
    with zipfile.ZipFile(tmp_path / f"w{suffix}", "w") as archive:
        archive.writestr("w/archive_format", "pt2")
        archive.writestr("w/models/model.json", "{}")
    with pytest.raises(TeacherError, match=r"exported program.*executes code when loaded.*safetensors"):
        read_weights(tmp_path / f"w{suffix}")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(TeacherError, match=r"TorchScript archive.*executes code"):
        read_weights(path)


@pytest.mark.parametrize("form", ["safetensors", "plain", "legacy"])
def test_a_truncated_checkpoint_is_refused(network: nn.Module, tmp_path: Path, form: str) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    whole = _write(path, form, network.state_dict()).read_bytes()
    for kept in (len(whole) // 2, len(whole) - 7, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(TeacherError, match=r"w\.\w+: is damaged"):
            read_weights(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("not a checkpoint at all")
    with pytest.raises(TeacherError, match="no torch checkpoint"):
        read_weights(tmp_path / "w.pth")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="holds no state dict; it holds at the top epoch, loss"):
        load_weights(nn.Linear(2, 2), read_weights(tmp_path / "w.pth"))
    with pytest.raises(TeacherError, match="there is no file"):
        find_file("missing.pth", tmp_path)
    with pytest.raises(TeacherError, match=f"The data root is {tmp_path}; set it with --data-root or .*KDNAS_DATA"):
        find_file("missing.pth", tmp_path)


def test_every_difference_is_told_at_once(network: nn.Module) -> None:
    state = dict(network.state_dict())
    del state["0.bias"], state["1.num_batches_tracked"]  # the counter may be missing
    state |= {f"extra{index}": torch.zeros(1) for index in range(7)}
    state["3.weight"] = torch.zeros(5, 144)
    state["1.running_mean"] = torch.full((4,), torch.nan)
    before = network[0].weight.clone()
    with pytest.raises(TeacherError) as caught:
        load_weights(network, Checkpoint("w.pth", state))
    printed = [str(problem) for problem in caught.value.problems]
    assert printed == [
        "w.pth: 1 weights that the network needs are missing: 0.bias",
        "w.pth: 7 weights that the network does not have: extra0, extra1, extra2, extra3, extra4, ...",
        "w.pth: 1 weights of another shape or kind: 3.weight is (5, 144) in the file and (10, 144) in the network",
        "w.pth: 1 weights that are NaN or infinite: 1.running_mean",
    ]
    assert torch.equal(network[0].weight, before)


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(TeacherError, match=r"no_such_package_here.*kdnas\[hf\]"):
        require("no_such_package_here", "hf")
