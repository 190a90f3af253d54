"""What a configuration lists layer by layer, such as which layers attend within a window, once some layers are gone.

Models read these lists by a layer's place, when they run and when they are made anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

STACKS = ("encoder_", "decoder_")
"""What the sizes of an encoder and of a decoder begin with in a configuration of both."""
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configurations call the number of their layers."""
_OF_STACKS = {"encoder_": ("encoder_layers", *_COUNTS), "decoder_": ("decoder_layers", "num_decoder_layers", *_COUNTS)}
_STAGES = "depths"
"""What only configurations of stages have, whose lists have an entry a stage."""
_TOKENS = "token"
"""In the names of lists whose entries are token ids, of which there may happen to be as many."""
_RUNS = "attention_types"
"""GPT-Neo's runs of kinds of layers, which its `attention_layers` spell out one by one."""


def stack_of(path: str) -> str:
    """Return which of STACKS the part called `path` lies in by its name, empty where in none."""
    return next((stack for stack in STACKS if stack[:-1] in path.split(".")), "")


def leave_out_of_lists(network: nn.Module, containers: Mapping[str, tuple[int, Collection[int]]]) -> None:
    """Bring the lists of the configurations in `network` that have an entry a layer to the layers that are left.

    `containers` are lists of layers by dotted name: how many they held, and the places of those that are gone. A
    configuration whose number of layers is another does not describe them, and none of stages has an entry for every
    layer of one.
    """
    if len(set(map(stack_of, containers))) < len(containers):
        return
    seen: set[tuple[int, str]] = set()
    for path, (layers, gone) in containers.items():
        for module_path, module in network.named_modules():
            if module_path and not path.startswith(f"{module_path}."):
                continue
            config: Any = getattr(module, "config", None)
            if config is None or hasattr(config, _STAGES):
                continue
            count = next(
                (n for n in _OF_STACKS.get(stack_of(path), _COUNTS) if isinstance(getattr(config, n, None), int)), ""
            )
            if getattr(config, count, None) != layers or (id(config), count) in seen:
                continue
            seen.add((id(config), count))
            left = [place for place in range(layers) if place not in gone]
            for name, value in list(vars(config).items()):
                if isinstance(value, list) and len(value) == layers and _TOKENS not in name:
                    setattr(config, name, [value[place] for place in left])
            setattr(config, count, len(left))
            if hasattr(config, _RUNS):
                config.attention_types = [[list(config.attention_layers), 1]]
