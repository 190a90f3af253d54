"""A folder that timm opens by itself: arguments of `timm.create_model`, weights, and what pictures go through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, check_packages
from kdnas.exporters._labelling import Loader
from kdnas.exporters._own_kind import (
    ROUNDING,
    check_opened,
    foreign,
    in_own_order,
    normalised_probes,
    other_shape,
    write_card,
)
from kdnas.exporters._predict import NORMALISED, check_predict, write_predict
from kdnas.exporters._probe import plain_copy
from kdnas.nn.cutting import in_order, outputs
from kdnas.nn.exact import apart
from kdnas.nn.origin import Cut

REQUIRES = ("timm",)
EXTRA = "vision"
FOLDER = "timm"

_LOADER = Loader(
    "model.safetensors",
    "load_network",
    "timm",
    NORMALISED
    + '''

def load_network():
    """Return the network, a function: its inputs by name to logits [B, K]. Needs timm."""
    import timm
    import torch

    network = timm.create_model(f"local-dir:{FOLDER}", pretrained=True).eval()

    @torch.no_grad()
    def logits_of(inputs):
        return network(torch.from_numpy(normalised(inputs["pixels"]))).numpy()

    return logits_of
''',
)


@EXPORTERS.register
def timm(student: TrainedStudent, folder: Path) -> Written:
    """A folder for timm.create_model("local-dir:...", pretrained=True), where its arguments can express the student."""
    check_packages("timm")
    reason = why_not(student.cut, student.network)
    if reason or student.cut is None:
        raise ExportError(f"{FOLDER}: {reason}")
    own, out = in_own_order(student, student.cut.origin), folder / FOLDER
    out.mkdir()
    (out / "config.json").write_text(json.dumps(_config(own, student.cut), indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.clone() for name, tensor in plain_copy(student.network).state_dict().items()}
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    names = ["config.json", "model.safetensors", *write_predict(own, out, _LOADER)]
    names.append(write_card(own, out, "timm", "image-classification"))
    opener = 'import timm\nnetwork = timm.create_model(f"local-dir:{folder}", pretrained=True)'
    check_opened(student, out, opener, {"": normalised_probes(_given(own))})
    check_predict(student, out, _LOADER)
    return Written(tuple(f"{FOLDER}/{name}" for name in names))


def why_not(cut: Cut | None, network: nn.Module) -> str:
    """Return why no arguments of `timm.create_model` make the student's network; empty where some do."""
    reason = foreign(cut, "timm")
    if reason or cut is None:
        return reason
    import timm as library

    arguments = {**cut.origin.arguments, **_arguments(network)}
    try:
        with torch.device("meta"):
            stock = library.create_model(cut.origin.model, **arguments)
    except Exception as error:  # arguments that the model does not take
        return f"create_model does not take its sizes: {str(error).partition(chr(10))[0]}"
    other = other_shape(stock, network)
    if not other and cut.example is not None:
        stock = library.create_model(cut.origin.model, **arguments).eval()
        own = plain_copy(network)
        stock.load_state_dict(own.state_dict())
        given = tuple(part.cpu() for part in in_order(cut.example))
        other = "" if apart(outputs(stock, given), outputs(own, given)) <= ROUNDING else "it gives other outputs"
    if not other:
        return ""
    kind = type(network).__name__
    tellable = _TELLABLE.get(kind, "no size")
    return f"the arguments of a {kind} express {tellable}: {other}"


_TELLABLE = {
    "VisionTransformer": "depth, width, heads and one MLP ratio for all blocks",
    "VisionTransformerDistilled": "depth, width, heads and one MLP ratio for all blocks",
    "ResNet": "how many blocks and how wide a stage is",
    "ConvNeXt": "how many blocks and how wide a stage is",
}


def _arguments(network: nn.Module) -> dict[str, Any]:
    """Return the sizes of `network` as its class is given them: those of its first blocks, where they should agree."""
    parts: Any = network
    kind = type(network).__name__
    if kind.startswith("VisionTransformer"):
        block, width = parts.blocks[0], parts.patch_embed.proj.out_channels
        return {
            "embed_dim": width,
            "depth": len(parts.blocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / width,
        }
    if kind == "ResNet":
        stages = [parts.layer1, parts.layer2, parts.layer3, parts.layer4]
        expansion = type(parts.layer1[0]).expansion
        widths = [_last_convolution(stage[0]).out_channels // expansion for stage in stages]
        return {"layers": tuple(map(len, stages)), "channels": tuple(widths)}
    if kind == "ConvNeXt":
        return {
            "depths": tuple(len(stage.blocks) for stage in parts.stages),
            "dims": tuple(stage.blocks[0].conv_dw.out_channels for stage in parts.stages),
        }
    return {}


def _last_convolution(block: nn.Module) -> nn.Conv2d:
    main = [part for name, part in block.named_modules() if isinstance(part, nn.Conv2d) and "downsample" not in name]
    return main[-1]


def _given(student: TrainedStudent) -> Preprocessing:
    assert isinstance(student.preprocessing, Preprocessing)
    return student.preprocessing


def _config(student: TrainedStudent, cut: Cut) -> dict[str, Any]:
    given, network = _given(student), student.network
    arguments = {**cut.origin.arguments, **_arguments(network)}
    classes = int(arguments.pop("num_classes", student.spec.outputs))
    declared: dict[str, Any] = dict(getattr(network, "pretrained_cfg", {}))
    kept = ("first_conv", "classifier", "fixed_input_size", "license")
    return {
        "architecture": cut.origin.model,
        "num_classes": classes,
        "num_features": getattr(network, "num_features", None),
        "model_args": arguments,
        "label_names": list(given.class_names),
        "pretrained_cfg": {
            **{name: declared[name] for name in kept if declared.get(name) is not None},
            "num_classes": classes,
            "input_size": list(given.network_shape),
            "interpolation": given.resize,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [value / 255 for value in given.channel_mean],
            "std": [value / 255 for value in given.channel_std],
        },
    }
