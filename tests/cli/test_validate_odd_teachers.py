"""`kdnas validate --open` on studies whose students are to be cut out of a teacher that is odd: one clear line each."""

from __future__ import annotations

import shutil

import odd_networks
import pytest
import torch
from fitted_heads import digits, fit_head
from safetensors.torch import save_file
from torch import nn

from kdnas.cli.main import main

STUDY = """\
name: odd
data: {type: digits}
teacher: {type: module, factory: "odd_networks.py:build", arguments: {kind: plain}, weights: plain.safetensors,
          mean: [77.8], std: [95.9]}
space: {derive: teacher, round_to: 4}
objectives: [accuracy, macs]
costs: {}
training: {epochs: 1, batch_size: 64, learning_rate: 0.01}
budget: {trials: 2}
export: {formats: []}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study, the user's code, and weights for each kind of network."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "study.yaml").write_text(STUDY)
    shutil.copy(odd_networks.__file__, folder)
    images, labels = digits(8, channels=1)

    def made(kind, **arguments):
        torch.manual_seed(0)
        return odd_networks.Odd(kind, **arguments)

    plain = fit_head(made("plain"), "head", [images], labels).state_dict()
    save_file(plain, folder / "plain.safetensors")
    torch.save({f"module.{name}": value for name, value in plain.items()}, folder / "prefixed.pt")
    torch.save({f"_orig_mod.{name}": value for name, value in plain.items()}, folder / "compiled.pt")
    torch.save({name: value.half() for name, value in plain.items()}, folder / "half.pt")
    save_file(fit_head(made("buffer"), "head", [images], labels).state_dict(), folder / "buffer.safetensors")
    small = fit_head(made("plain", width=2), "head", [images], labels)
    save_file(small.state_dict(), folder / "small.safetensors")
    network = made("convolution")
    with torch.no_grad():
        pooled = network.features(images).mean((2, 3))
        linear = fit_head(nn.Sequential(nn.Linear(16, 10)), "0", [pooled], labels)[0]
        network.head.weight.copy_(linear.weight[:, :, None, None])
        network.head.bias.copy_(linear.bias)
    save_file(network.state_dict(), folder / "convolution.safetensors")
    return folder


def validated(folder, capsys, *settings):
    code = main(
        ["validate", str(folder), "--open", "--data-root", str(folder), *(f"--set={each}" for each in settings)]
    )
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["teacher.arguments.kind=mapping"], "it gives several outputs (features, logits), of which the logits are"),
        (["teacher.arguments.kind=record"], "it gives several outputs (features, logits), of which the logits are"),
        (["teacher.arguments.kind=named"], "it gives several outputs (features, logits), of which the logits are"),
        (["teacher.arguments.kind=tuple"], "it gives a tuple of 2, of which the logits are taken"),
        (["teacher.arguments.kind=model_output"], "it gives several outputs (logits), of which the logits are taken"),
        (["teacher.arguments.kind=compiled"], "torch.compile is taken off the network"),
        (["teacher.arguments.kind=half", "teacher.weights=null"], "its weights are float16: it computes in float32"),
        (["teacher.weights=half.pt"], "are float16: the network computes in float32"),
        (["teacher.weights=prefixed.pt"], "ok"),
        (["teacher.weights=compiled.pt"], "ok"),
        (["teacher.arguments.kind=control"], "ok"),
        (["teacher.arguments.kind=numpy", "training.precision=float32"], "ok"),
        (["teacher.arguments.kind=buffer", "teacher.weights=buffer.safetensors"], "ok"),
        (["teacher.arguments.kind=convolution", "teacher.weights=convolution.safetensors"], "ok"),
    ],
)
def test_what_can_be_cut_is_and_what_was_adapted_is_said(folder, capsys, settings, expected):
    code, printed = validated(folder, capsys, *settings)
    assert code == 0, printed
    assert "cut out of the teacher" in printed
    assert expected in " ".join(printed.split())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["teacher.arguments.kind=several"],
            "the network's forward asks for lengths and the images, and the data have",
        ),
        (["teacher.arguments.kind=quantised"], "the network is quantised (head, head._packed_params)"),
        (
            ["teacher.arguments={width: 2}", "teacher.weights=small.safetensors"],
            "the teacher is too small to cut: stage1.width 2, in steps of 4",
        ),
        (
            ["costs={latency_ms: {table: auto}}", "objectives=[accuracy, latency_ms]"],
            "costs.latency_ms.table: a latency table adds up operators",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(folder, capsys, settings, expected):
    code, printed = validated(folder, capsys, *settings)
    assert code == 2
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
