"""Losses on layers against plain numpy in float64, on the outputs of real transformers of two sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.nn.attention import attention_layers
from kdnas.nn.matching import match_by_depth, match_stages, to_tokens
from kdnas.nn.rows import Rows
from kdnas.nn.taps import EVERYTHING, Outputs, OutputShapes, Taps, find_stages, output_shapes

WORDS = {"vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": 0}


class Logits(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, tokens, mask=None):
        return self.network(input_ids=tokens, attention_mask=mask).logits


def bert(width, layers, heads):
    torch.manual_seed(layers)
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=2 * width, **WORDS
    )
    network = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return Logits(network).eval()


TOKENS = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5])


def tapped(network: nn.Module, *inputs: torch.Tensor, mask: int | None = None) -> tuple[OutputShapes, Outputs]:
    stages, classifier = tuple(layer.path for layer in attention_layers(network)), None
    with torch.no_grad(), Taps(network, stages, classifier, needs=EVERYTHING, mask=mask) as tapped:
        return output_shapes(network, stages, classifier, *inputs), tapped(*inputs)


@pytest.fixture(scope="module", params=["all are text", "padded"])
def sides(request):
    """(student's shapes, teacher's, their outputs, the mask as numbers)."""
    masked = request.param == "padded"
    inputs = (TOKENS, MASK) if masked else (TOKENS,)
    pairs = [tapped(network, *inputs, mask=1 if masked else None) for network in (bert(16, 2, 2), bert(32, 4, 4))]
    mask = (MASK if masked else torch.ones_like(MASK)).double().numpy()
    return pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1], mask


def value(name, shapes_s, shapes_t, s, t, **options):
    torch.manual_seed(0)
    loss = LOSSES.build(name, shapes_s, shapes_t, **options)
    return loss, float(loss(s, t, Rows(s.logits, torch.zeros(len(s.logits), dtype=torch.int64))).detach())


def arrays(tensors):
    return [tensor.double().numpy() for tensor in tensors]


def adapted(loss, stage):
    return stage @ next(loss.parameters()).detach().double().numpy().T


def average(values, mask):
    return float((values * mask).sum() / mask.sum())


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def test_taps_give_the_layers_tokens_and_what_they_attend_with():
    network = bert(32, 4, 4)
    shapes, given = tapped(network, TOKENS, MASK, mask=1)
    assert shapes.stages == 4 * ((9, 32),)
    eager = network.network
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        own = eager(input_ids=TOKENS, attention_mask=MASK, output_hidden_states=True, output_attentions=True)
    for layer in range(4):
        assert torch.allclose(given.stages[layer], own.hidden_states[layer + 1], atol=1e-5)
        scores = given.attention[layer].scores().masked_fill(MASK[:, None, None, :] == 0, -math.inf)
        assert torch.allclose(scores.softmax(-1), own.attentions[layer], atol=1e-5)
    assert torch.equal(given.mask, MASK)


@pytest.mark.parametrize("kind", ["gpt2", "timm"])
def test_maps_of_other_makes_are_those_that_they_attend_with(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)
        network = Logits(transformers.GPT2LMHeadModel(config)).eval()
        _, given = tapped(network, TOKENS)
        network.network.set_attn_implementation("eager")
        with torch.no_grad():
            own = network.network(input_ids=TOKENS, output_attentions=True).attentions
        blind = ~torch.ones(9, 9).tril().bool()
        found = [layer.scores().masked_fill(blind, -math.inf).softmax(-1) for layer in given.attention]
    else:
        network = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4
        )
        images = torch.randn(2, 3, 32, 32)
        _, given = tapped(network.eval(), images)
        own = []
        for block in network.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda part, inputs, output: own.append(output))
        with torch.no_grad():
            network(images)
        found = [layer.scores().softmax(-1) for layer in given.attention]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, own, strict=True))


def test_a_transformers_stages_are_its_layers():
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
    names, classifier = find_stages(network.eval(), torch.randn(2, 3, 32, 32))
    assert names == ("blocks.0", "blocks.1")
    assert classifier == "head"


def test_hidden_states_by_hand(sides):
    shapes_s, shapes_t, s, t, mask = sides
    for how, teachers in (("uniform", (1, 3)), ("top", (2, 3)), ("bottom", (0, 1))):
        loss, found = value("hidden", shapes_s, shapes_t, s, t, map=how)
        ours, theirs = arrays(s.stages), arrays(t.stages)
        pairs = zip(ours, (theirs[index] for index in teachers), strict=True)
        expected = sum(average(((adapted(loss, a) - b) ** 2).mean(-1), mask) for a, b in pairs)
        assert found == pytest.approx(expected, rel=1e-5)


def test_patient_by_hand(sides):
    shapes_s, shapes_t, s, t, _ = sides
    loss, found = value("patient", shapes_s, shapes_t, s, t)
    ours, theirs = adapted(loss, arrays(s.stages)[0])[:, 0], arrays(t.stages)[1][:, 0]
    unit = [x / np.sqrt((x**2).sum(-1, keepdims=True)) for x in (ours, theirs)]
    assert found == pytest.approx(((unit[0] - unit[1]) ** 2).mean(), rel=1e-5)


def test_hidden_cosine_by_hand(sides):
    shapes_s, shapes_t, s, t, mask = sides
    loss, found = value("hidden_cosine", shapes_s, shapes_t, s, t)
    ours, theirs = adapted(loss, arrays(s.stages)[-1]), arrays(t.stages)[-1]
    cosine = (ours * theirs).sum(-1) / np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    assert found == pytest.approx(average(1 - cosine, mask), rel=1e-5)


def test_statistics_by_hand(sides):
    shapes_s, shapes_t, s, t, mask = sides
    loss, found = value("statistics", shapes_s, shapes_t, s, t)
    total = 0.0
    for a, b in zip(arrays(s.stages), (arrays(t.stages)[1], arrays(t.stages)[3]), strict=True):
        a = adapted(loss, a)
        normed = [(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) for x in (a, b)]
        tokens = 100 * ((normed[0] - normed[1]) ** 2).mean(-1)
        tokens += 5000 * (a.mean(-1) - b.mean(-1)) ** 2 + 5 * np.abs(a.var(-1) - b.var(-1))
        total += average(tokens, mask) / 2
    assert found == pytest.approx(total, rel=1e-4)


def scores_of(layer, heads):
    q, k, _ = arrays(layer.tensors)
    split = [x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k)]
    return split[0] @ split[1].transpose(0, 1, 3, 2) / math.sqrt(split[0].shape[-1])


def test_attention_maps_by_hand(sides):
    shapes_s, shapes_t, s, t, mask = sides
    total = {"mse": 0.0, "kl": 0.0}
    for a, b in ((0, 1), (1, 3)):
        ours, theirs = scores_of(s.attention[a], 2), scores_of(t.attention[b], 4)
        weights = mask[:, :, None] * mask[:, None, :]
        gap = (ours.mean(1) - theirs.mean(1)) ** 2  # other numbers of heads: their mean is compared
        total["mse"] += float((gap * weights).sum() / weights.sum())
        hidden = np.where(mask[:, None, None, :] > 0, 0.0, -1e30)
        q, p = softmax(ours + hidden).mean(1), softmax(theirs + hidden).mean(1)
        terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))), 0.0).sum(-1)
        total["kl"] += average(terms, mask) / 2
    for compare, expected in total.items():
        _, found = value("attention_maps", shapes_s, shapes_t, s, t, compare=compare)
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("heads", [None, 4])
def test_relations_by_hand(sides, heads):
    shapes_s, shapes_t, s, t, mask = sides
    loss, found = value("relations", shapes_s, shapes_t, s, t, heads=heads)
    assert loss.heads == (heads or 16)  # the largest up to 48 that divides 16 and 32
    total = 0.0
    for ours, theirs in zip(arrays(s.attention[-1].tensors), arrays(t.attention[-1].tensors), strict=True):
        shares = []
        for x in (ours, theirs):
            split = x.reshape(*x.shape[:2], loss.heads, -1).transpose(0, 2, 1, 3)
            alike = split @ split.transpose(0, 1, 3, 2) / math.sqrt(split.shape[-1])
            shares.append(softmax(alike + np.where(mask[:, None, None, :] > 0, 0.0, -1e30)))
        q, p = (np.maximum(share, 1e-300) for share in shares)
        total += average((p * (np.log(p) - np.log(q))).sum(-1).mean(1), mask)
    assert found == pytest.approx(total, rel=1e-4)


def test_rotary_attention_is_refused_and_its_relations_are_not():
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, **WORDS
    )
    torch.manual_seed(0)
    shapes, given = tapped(Logits(transformers.LlamaForCausalLM(config)).eval(), TOKENS)
    with pytest.raises(ConfigError, match="rotary positions"):
        LOSSES.build("attention_maps", shapes, shapes)
    _, found = value("relations", shapes, shapes, given, given)
    assert found == pytest.approx(0.0, abs=1e-6)


def test_layers_match_by_relative_depth():
    assert match_by_depth(3, 12) == ((0, 3), (1, 7), (2, 11))
    assert match_by_depth(4, 2) == ((1, 0), (3, 1))
    assert match_by_depth(2, 5, "top") == ((0, 3), (1, 4))
    assert match_by_depth(2, 5, "bottom") == ((0, 0), (1, 1))
    assert match_stages(((9, 8), (9, 8)), ((9, 16),) * 4) == ((0, 1), (1, 3))


def test_tokens_meet_maps_as_the_grid_of_their_patches():
    patches = torch.randn(2, 6, 4, 4)
    tokens = torch.cat([torch.zeros(2, 1, 6), patches.flatten(2).transpose(1, 2)], dim=1)  # a class token before them
    ours, theirs = to_tokens(tokens, patches)
    assert torch.equal(ours, theirs)
    ours, theirs = to_tokens(tokens, torch.nn.functional.interpolate(patches, scale_factor=2))
    assert torch.allclose(ours, theirs)


def test_tokens_take_the_proportions_of_the_map_beside_them():
    patches = torch.randn(2, 6, 5, 3)  # of tall images
    tokens = torch.cat([torch.zeros(2, 2, 6), patches.flatten(2).transpose(1, 2)], dim=1)  # two tokens before them
    for map_ in (patches, torch.nn.functional.interpolate(patches, scale_factor=2)):
        ours, theirs = to_tokens(tokens, map_)
        torch.testing.assert_close(ours, theirs)
    assert to_tokens(torch.zeros(1, 1, 6), patches)[0].shape == (1, 1, 6)
