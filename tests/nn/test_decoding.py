"""A step of writing gives what the whole text gives at its last place, and costs what one token costs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdnas.core.measurement import Calibration
from kdnas.core.task import image_classification
from kdnas.core.text import language_modelling
from kdnas.costs import COSTS
from kdnas.errors import ConfigError
from kdnas.nn.decoding import CachedStep, WholeStep, decoding_step
from kdnas.nn.pieces import LogitsOf

transformers = pytest.importorskip("transformers")
LENGTH, VOCABULARY = 24, 50
CPU = torch.device("cpu")


def model(kind: str, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=layers, n_head=2, vocab_size=VOCABULARY, n_positions=32)
        return LogitsOf(transformers.GPT2LMHeadModel(config), use_cache=False)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        vocab_size=VOCABULARY, max_position_embeddings=32,
    )  # fmt: skip
    return LogitsOf(transformers.LlamaForCausalLM(config), use_cache=False)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_step_is_the_last_place_of_the_whole_text_again_and_again(kind: str) -> None:
    network, tokens = model(kind).train(), torch.randint(0, VOCABULARY, (3, LENGTH))
    step = decoding_step(network, tokens[:, :-1])
    assert isinstance(step, CachedStep)
    assert network.training
    with torch.no_grad():
        whole = network.eval()(tokens)[:, -1]
        for _ in range(2):
            torch.testing.assert_close(step(tokens[:, -1:])[:, -1], whole, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(copy.deepcopy(step)(tokens[:, -1:])[:, -1], whole, atol=1e-5, rtol=1e-4)


def test_what_keeps_no_cache_reads_the_text_again() -> None:
    network, tokens = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)), torch.arange(6)[None]
    step = decoding_step(network, tokens[:, :-1])
    assert isinstance(step, WholeStep)
    assert torch.equal(step(tokens[:, -1:]), network(tokens))


def test_costs_are_those_of_one_token() -> None:
    task, network = language_modelling(LENGTH, VOCABULARY), model("llama", layers=4)
    by_token = COSTS.build("latency_ms", CPU, per="token", repeats=9)
    calibration = by_token.calibrate(task)
    measured = by_token.measure(network, task, calibration)
    assert f"one token after {LENGTH - 1}" in measured.context
    memory = {per: COSTS.build("peak_memory_bytes", CPU, per=per) for per in ("pass", "token")}
    parameters = sum(4 * one.numel() for one in network.parameters())
    cache = 4 * 2 * 2 * 4 * LENGTH * 4  # layers, keys and values, their heads, width, tokens, bytes
    spent = {per: cost.measure(network, task, Calibration()).value for per, cost in memory.items()}
    assert parameters + cache < spent["token"] < parameters + cache + 8000
    assert spent["token"] < spent["pass"]


def test_images_are_not_written() -> None:
    with pytest.raises(ConfigError, match="is for language models, and the samples are images"):
        COSTS.build("peak_memory_bytes", CPU, per="token").measure(
            nn.Flatten(), image_classification((3, 4, 4), 2), Calibration()
        )
    with pytest.raises(ConfigError, match="a token's latency is measured"):
        COSTS.build("latency_ms", CPU, per="token", table="auto")
