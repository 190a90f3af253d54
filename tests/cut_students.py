"""Students cut out of small random networks of other libraries, as exporters are given them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.card import StudentCard
from kdnas.core.objective import ACCURACY
from kdnas.core.preprocessing import Preprocessing, TextPreprocessing
from kdnas.core.task import Input, TaskSpec, image_classification
from kdnas.exporters import TrainedStudent
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import sound_part
from kdnas.nn.normalise import Normalised
from kdnas.nn.origin import Cut, Entrance, Origin

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 65.0)
CLASSES = ("cardboard", "glass", "metal", "paper", "trash")
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
WORDS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**WORDS, "num_key_value_heads": 2}
DISTILBERT = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100, "pad_token_id": 0}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 128,
    "vocab_size": 100,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}


class Answers(nn.Module):
    """A network of transformers that gives its logits alone."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...]):
        super().__init__()
        self.network = network
        self.inputs = inputs

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.network(**dict(zip(self.inputs, given, strict=True)), return_dict=True).logits


def randomised(network: nn.Module) -> nn.Module:
    """Return the network with weights of some size and norms that are not the identity, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.8 + 0.4 * torch.rand(module.running_var.shape, generator=generator))
    return network.eval()


def _sizes(anatomy, roles: tuple[str, ...]) -> dict[str, int]:
    """Return half of every axis of these roles, and two blocks of three."""
    sizes = {axis.name: max(axis.size // 2, 1) for axis in anatomy.axes if axis.role in roles}
    if "depth" in roles:
        sizes |= {depth.name: max(depth.least, 2 * len(depth.blocks) // 3) for depth in anatomy.depths}
    return sizes


def image_student(network: nn.Module, origin: Origin, *roles: str, side: int = 32) -> TrainedStudent:
    """Return a student cut to half of the axes of `roles` ("depth": of the layers), or of them all."""
    network = randomised(network)
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    anatomy = sound_part(read_anatomy(network, example), network, example)
    chosen = roles or ("width", "inner", "heads", "depth")
    kept = anatomy.prefix(_sizes(anatomy, chosen))
    own = anatomy.cut(network, kept).eval()
    entered = Answers(own, origin.inputs) if origin.inputs else own
    return TrainedStudent(
        arch=Arch.of("derived", {"sizes": "half"}),
        spec=image_classification((3, side, side), len(CLASSES)),
        module=Normalised(entered, MEAN, STD).eval(),
        network=own,
        source=None,
        preprocessing=Preprocessing((side, side), "RGB", MEAN, STD, CLASSES),
        recipe={},
        card=StudentCard(),
        cut=Cut(origin, network, anatomy, kept, example),
    )


def text_student(network: nn.Module, origin: Origin, *roles: str, length: int = 12) -> TrainedStudent:
    """Return the same of a network that reads tokens: a classifier, or a language model."""
    network = randomised(network)
    example = torch.randint(3, 100, (2, length), generator=torch.Generator().manual_seed(2))
    anatomy = sound_part(read_anatomy(network, example), network, example)
    chosen = roles or ("width", "inner", "heads", "depth")
    kept = anatomy.prefix(_sizes(anatomy, chosen))
    own = anatomy.cut(network, kept).eval()
    classifies = "Classification" in origin.model
    inputs = (Input("tokens", (length,), "tokens", 100),)
    if len(origin.inputs) > 1:
        inputs = (*inputs, Input("mask", (length,), "mask", 2))
    outputs = len(CLASSES) if classifies else 100
    return TrainedStudent(
        arch=Arch.of("derived", {"sizes": "half"}),
        spec=TaskSpec("text", inputs, outputs, 1 if classifies else length, ACCURACY),
        module=Answers(own, origin.inputs).eval(),
        network=own,
        source=None,
        preprocessing=TextPreprocessing(length, CLASSES if classifies else ()),
        recipe={},
        card=StudentCard(),
        cut=Cut(origin, network, anatomy, kept, example),
    )


def hugging_face(model: str, config: str, settings: dict, *inputs: str) -> tuple[nn.Module, Origin]:
    """Return a random network of transformers and its origin."""
    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings, **(LABELS if "Classification" in model else {}))
    network = getattr(transformers, model)(made)
    return network, Origin("transformers", model, made.to_diff_dict(), config=config, inputs=inputs)


def of_timm(model: str, **arguments: object) -> tuple[nn.Module, Origin]:
    """Return a random network of timm and its origin."""
    torch.manual_seed(0)
    return timm.create_model(model, **arguments), Origin("timm", model, arguments, Entrance(MEAN, STD))


def of_torchvision(model: str, **arguments: object) -> tuple[nn.Module, Origin]:
    """Return a random network of torchvision and its origin."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(model, weights=None, **arguments)
    return network, Origin("torchvision", model, arguments, Entrance(MEAN, STD))


TEXT = ("input_ids", "attention_mask")
IMAGES: dict[str, Callable[[], tuple[nn.Module, Origin]]] = {
    "hf_vit": lambda: hugging_face("ViTForImageClassification", "ViTConfig", PATCHES, "pixel_values"),
    "timm_vit": lambda: of_timm("vit_tiny_patch16_224", **VIT),
    "resnet18": lambda: of_timm("resnet18", num_classes=5),
    "mobilenetv3": lambda: of_timm("mobilenetv3_small_050", num_classes=5),
    "convnext_atto": lambda: of_timm("convnext_atto", num_classes=5),
    "mobilenet_v2": lambda: of_torchvision("mobilenet_v2", num_classes=5, width_mult=0.35),
}
TEXTS: dict[str, Callable[[], tuple[nn.Module, Origin]]] = {
    "bert": lambda: hugging_face("BertForSequenceClassification", "BertConfig", WORDS, *TEXT),
    "distilbert": lambda: hugging_face("DistilBertForSequenceClassification", "DistilBertConfig", DISTILBERT, *TEXT),
    "gpt2": lambda: hugging_face("GPT2LMHeadModel", "GPT2Config", GPT2, "input_ids"),
    "llama": lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", GROUPED, "input_ids"),
    "qwen": lambda: hugging_face("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}, "input_ids"),
}


def student(name: str, *roles: str) -> TrainedStudent:
    """Return the student of that name, cut to half of the axes of `roles`, or of them all."""
    return image_student(*IMAGES[name](), *roles) if name in IMAGES else text_student(*TEXTS[name](), *roles)


def run_without_kdnas(code: str, *arguments: object) -> object:
    """Run Python in a process that has no kdnas, and return the JSON that it prints last."""
    blocked = f"import sys\nsys.modules['kdnas'] = None\n{code}"
    command = [sys.executable, "-I", "-c", blocked, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
