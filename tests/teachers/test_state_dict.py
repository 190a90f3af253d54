"""One network's weights, saved in the ways that training scripts save: the place that fits loads, no other."""

from __future__ import annotations

import argparse
import copy
import datetime
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdnas.errors import TeacherError
from kdnas.teachers._loading import Checkpoint, read_weights
from kdnas.teachers._state_dict import load_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


class Holder(nn.Module):
    """A network whose own child has a name that wrappers use."""

    def __init__(self, child: str) -> None:
        super().__init__()
        self.child = child
        self.add_module(child, Net())

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self, self.child)(images)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)
        self.aux = self.fc
        self.other = nn.Linear(4, 5)
        self.other.weight = self.fc.weight


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _loads(target: nn.Module, content: object, path: Path, place: str | None = None) -> list[str]:
    """Save `content`, load it into a copy of `target` that was emptied, and check every value."""
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    fresh = copy.deepcopy(target)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
    notes = load_weights(fresh, read_weights(path), place)
    for name, value in target.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, atol=2e-2, rtol=0)
        assert name.endswith("tracked") or value.abs().sum() == 0 or fresh.state_dict()[name].abs().sum() > 0
    return notes


NET = Net()
S = _state(NET)
ZERO = {name: torch.zeros_like(value) for name, value in S.items()}


@pytest.mark.parametrize(
    "content",
    [
        S,
        OrderedDict(S),
        {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in S.items()},
        {name: value.numpy() for name, value in S.items()},
        {name: value.half() if value.is_floating_point() else value for name, value in S.items()},
        {name: value.double() if value.is_floating_point() else value for name, value in S.items()},
        {name: value for name, value in S.items() if not name.endswith("num_batches_tracked")},
        {"epoch": 3, **S},
        {"ema": {name: value.float() for name, value in S.items()}},  # averaged, the counters too
        {"epoch": 3, "state_dict": _under("module.", S)},
        {"net": _under("module.", S), "acc": 95.1},
        {"network": S},
        {"model_state_dict": S, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(5)}}}},
        {"ema": S},
        {"state_dict_ema": _under("module.", S), "args": argparse.Namespace(lr=0.1)},
        {"checkpoint": {"model": {"weights": S}}},
        {"model": _under("module._orig_mod.", S)},
        {"model": _under("_orig_mod.module.", S)},
        _under("_orig_mod.", S),
        _under("module.module._orig_mod.", S),
        {"module": _under("_forward_module.", S)},
        {"state_dict": _under("model.", S), "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2.0"},
        {"state_dict": _under("backbone.", S), "meta": {"time": datetime.datetime(2020, 1, 1)}},
        {name.replace("features.", "features._orig_mod.module."): value for name, value in S.items()},
        {"state_dict": S, "best": np.float64(93.2), "folder": Path("x"), "curve": np.arange(3.0)},
        {"model": S, "model_ema": {name: value.clone() for name, value in S.items()}},  # the same twice
    ],
)
def test_every_layout_of_training_scripts_loads(content: dict, tmp_path: Path) -> None:
    assert [note for note in _loads(NET, content, tmp_path / "w.pth") if "computes in float32" not in note] == []


@pytest.mark.parametrize("child", ["module", "model", "net", "_orig_mod"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_a_child_named_like_a_wrapper_is_the_networks_own(child: str, prefix: str, tmp_path: Path) -> None:
    network = Holder(child)
    _loads(network, {"state_dict": _under(prefix, _state(network))}, tmp_path / "w.pth")
    _loads(network, {"state_dict": _state(getattr(network, child))}, tmp_path / "w.pth")  # saved from inside


def test_averaged_weights_load_with_a_note(tmp_path: Path) -> None:
    averaged = AveragedModel(Net())
    averaged.update_parameters(NET)
    state = averaged.state_dict()
    path = tmp_path / "w.pth"
    for content in (state, {"swa": state, "epoch": 3}, {"ema": _under("module.", state)}):
        torch.save(content, path)
        network = Net()
        (note,) = load_weights(network, read_weights(path))
        assert "n_averaged" in note
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), averaged.module.parameters(), strict=True))


def test_what_stands_beside_the_network_is_left_out_with_a_note(tmp_path: Path) -> None:
    content = {"state_dict": {**_under("net.", S), "criterion.weight": torch.ones(5)}}
    assert "criterion.weight outside state_dict.net" in _loads(NET, content, tmp_path / "w.ckpt")[0]


def test_tied_weights_that_were_saved_once_load(tmp_path: Path) -> None:
    network, path = Tied(), tmp_path / "w.safetensors"
    save_model(network, str(path))
    fresh = Tied()
    assert load_weights(fresh, read_weights(path)) == []
    assert torch.equal(fresh.aux.bias, network.aux.bias)
    assert fresh.other.weight is fresh.fc.weight
    apart = Tied()  # the same names, not tied: the file says which are one tensor
    apart.aux = nn.Linear(4, 5)
    apart.other = nn.Linear(4, 5)
    load_weights(
        apart, Checkpoint("w", {**read_weights(path).content, "other.bias": torch.zeros(5)}, read_weights(path).tied)
    )
    assert torch.equal(apart.aux.weight, network.fc.weight)
    state = _state(network)
    state["aux.weight"] = state["aux.weight"] + 1
    with pytest.raises(TeacherError, match=r"are one tensor in the network and two in the file"):
        load_weights(fresh, Checkpoint("w", state))


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"model": S, "model_ema": ZERO}, ["model", "model_ema"]),
        (
            {"state_dict": {**_under("teacher.", S), **_under("student.", ZERO)}},
            ["state_dict.teacher", "state_dict.student"],
        ),
        ({**S, "ema": ZERO}, [".", "ema"]),
    ],
)
def test_several_places_are_refused_and_one_can_be_named(content: dict, places: list[str], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(TeacherError, match=f"several places.*{', '.join(map(str, places))}; name one, as weights_key"):
        load_weights(Net(), read_weights(path))
    _loads(NET, content, path, places[0])
    with pytest.raises(TeacherError, match=rf"no weights at 'elsewhere' \(allowed: .*{places[1]}"):
        load_weights(Net(), read_weights(path), "elsewhere")


def test_a_small_part_of_a_large_file_is_not_taken_for_the_network(tmp_path: Path) -> None:
    content = {**_under("head.", _state(nn.Linear(4, 5))), "body.weight": torch.ones(50, 50)}
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(TeacherError, match=r"head fits the network, but most of the tensors.*weights_key: head"):
        load_weights(nn.Linear(4, 5), read_weights(path))
    assert load_weights(nn.Linear(4, 5), read_weights(path), "head")


def test_a_refusal_names_what_the_file_holds_and_every_difference(tmp_path: Path) -> None:
    state = {**S, "fc.weight": torch.zeros(7, 4), "fc.scale": torch.ones(1)}
    del state["features.0.bias"]
    with pytest.raises(TeacherError) as caught:
        load_weights(NET, Checkpoint("w.pth", {"net": _under("module.", state), "acc": 3, "optimizer": {"lr": 1}}))
    assert [str(problem) for problem in caught.value.problems] == [
        "w.pth: no place in it fits the network; it holds at the top net (9 tensors), acc, optimizer (no tensors); "
        "below, what stands at 'net.module'",
        "w.pth: 1 weights that the network needs are missing: features.0.bias",
        "w.pth: 1 weights that the network does not have: module.fc.scale",
        "w.pth: 1 weights of another shape or kind: fc.weight is (7, 4) in the file and (5, 4) in the network",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "fc.weight": (s["fc.weight"] * 100).to(torch.int8)},
            "fc.weight is int8 in the file and float32",
        ),
        (lambda s: {**s, "fc.weight": torch.quantize_per_tensor(s["fc.weight"], 0.1, 0, torch.qint8)}, "is qint8 in"),
        (lambda s: {**s, "features.0.weight_g": torch.ones(4)}, "does not have: features.0.weight_g"),
        (lambda s: {name: value for name, value in s.items() if "running" not in name}, "missing: .*running_mean"),
        (lambda s: {"fc.weight": s["fc.weight"]}, "missing: features.0.weight"),
        (lambda s: {"other": torch.ones(3)}, "missing: features.0.weight"),
    ],
)
def test_what_does_not_fit_exactly_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    network = Net()
    before = _state(network)
    torch.save(change(S), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=message):
        load_weights(network, read_weights(tmp_path / "w.pth"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    names = list(S)
    shards = {"w-00001-of-00002.safetensors": names[:3], "w-00002-of-00002.safetensors": names[3:]}
    for shard, inside in shards.items():
        save_file({name: S[name] for name in inside}, tmp_path / shard)
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}))
    network = Net()
    assert load_weights(network, read_weights(index)) == []
    assert all(torch.equal(value, S[name]) for name, value in network.state_dict().items())
    with pytest.raises(TeacherError, match=r"is one shard of several \(allowed: the index"):
        load_weights(Net(), read_weights(tmp_path / "w-00001-of-00002.safetensors"))
    (tmp_path / "w-00002-of-00002.safetensors").unlink()
    with pytest.raises(TeacherError, match="do not lie next to it: w-00002-of-00002"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../w.safetensors"}}))
    with pytest.raises(TeacherError, match="do not lie next to it"):
        read_weights(index)


def test_a_network_in_half_or_without_memory_takes_the_files_precision(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(S, path)
    with torch.device("meta"):
        bare = Net()
    for network in (Net().half(), bare):
        load_weights(network, read_weights(path))
        assert torch.equal(network.fc.weight, S["fc.weight"])
        assert network.fc.weight.dtype == torch.float32


def test_a_lazy_network_takes_its_shapes_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(S, path)
    lazy = Net()
    lazy.fc = nn.LazyLinear(5)
    load_weights(lazy, read_weights(path))
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(lazy.eval()(images), NET.eval()(images))


def test_buffers_that_the_network_computes_itself_may_stand_in_the_file() -> None:
    network = Net()
    network.register_buffer("index", torch.arange(4), persistent=False)
    state = {**S, "index": torch.arange(4)}
    load_weights(network, Checkpoint("w", state))
    with pytest.raises(TeacherError, match="does not have: index"):
        load_weights(network, Checkpoint("w", {**state, "index": torch.arange(4) + 1}))
