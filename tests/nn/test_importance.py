import dataclasses
import itertools

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import outputs
from kdnas.nn.importance import passes, rank, ranked

SETTINGS = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 32,
    "num_labels": 3,
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(transformers.BertConfig(**SETTINGS)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 99, (5, 9), generator=generator), torch.randint(0, 3, (5,), generator=generator))
        for _ in range(3)
    ]


def test_activation_is_the_root_of_squared_means_of_what_the_next_layer_reads(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    scores = rank(network, anatomy, batches).scores
    read = []
    down = network.bert.encoder.layer[1].output.dense
    handle = down.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    for inputs, _ in batches:
        outputs(network, inputs)
    handle.remove()
    means = torch.cat(read).abs().mean(dim=1)  # over the sequence
    assert scores["bert.encoder.layer.1.inner"] == pytest.approx(means.square().sum(0).sqrt().tolist(), rel=1e-5)


def test_taylor_is_the_square_of_the_derivative_by_a_gate_on_each_unit(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    scores = rank(network, anatomy, batches, method="taylor").scores["bert.encoder.layer.2.inner"]
    expected = torch.zeros(48)
    down = network.bert.encoder.layer[2].output.dense
    for inputs, labels in batches:
        gate = torch.ones(48, requires_grad=True)
        handle = down.register_forward_pre_hook(lambda module, fed, gate=gate: (fed[0] * gate,))
        loss = F.cross_entropy(network(inputs).logits, labels)
        expected += torch.autograd.grad(loss, gate)[0].square()
        handle.remove()
    assert scores == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-12)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_l1_sums_the_weights_that_read_a_head(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    scores = rank(network, anatomy, [], method="l1").scores["bert.encoder.layer.0.heads"]
    weight = network.bert.encoder.layer[0].attention.output.dense.weight.detach().abs()
    assert scores == pytest.approx(weight.sum(0).reshape(4, 8).sum(1).tolist(), rel=1e-6)


@pytest.mark.parametrize("method", ["activation", "taylor", "l1"])
def test_units_that_nothing_reads_come_last(network, batches, method):
    dead = [3, 17, 40]
    with torch.no_grad():
        layer = network.bert.encoder.layer[1]
        layer.output.dense.weight[:, dead] = 0.0
        layer.intermediate.dense.weight[dead] = 0.0
        layer.intermediate.dense.bias[dead] = 0.0
    anatomy = read_anatomy(network, batches[0][0])
    order = rank(network, anatomy, batches, method=method).orders["bert.encoder.layer.1.inner"]
    assert sorted(order[-3:]) == dead


def test_a_block_that_changes_nothing_goes_first_and_a_prefix_without_it_computes_the_same(network, batches):
    class Idle(nn.Module):
        def forward(self, hidden, *others, **more):
            return hidden

    anatomy = read_anatomy(network, batches[0][0])
    network.bert.encoder.layer[2].forward = Idle().forward
    ordered = ranked(anatomy, rank(network, anatomy, batches))
    (depth,) = ordered.depths
    assert depth.order[-1] == 2
    cut = ordered.cut(network, ordered.prefix({depth.name: 3}))
    assert torch.equal(outputs(cut, batches[0][0]), outputs(network, batches[0][0]))


def test_blocks_go_one_by_one_where_the_answers_change_least(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    (depth,) = anatomy.depths
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = torch.cat([inputs for inputs, _ in batches])[:12]
    whole = F.log_softmax(outputs(network, inputs), dim=1)

    def lost(kept):
        cut = F.log_softmax(outputs(anatomy.cut(network, {depth.name: kept}), inputs), dim=1)
        return float(F.kl_div(cut, whole, log_target=True, reduction="batchmean"))

    left, gone = list(range(4)), []
    while len(left) > 1:
        left = min((sorted({*left} - {block}) for block in left), key=lost)
        gone += {*range(4)} - {*left, *gone}
    found = ranked(anatomy, rank(network, anatomy, batches, compared=12)).depths[0].order
    assert found == (*left, *reversed(gone))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_block_without_which_the_network_fails_stays_longest(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    network.bert.encoder.layer[3].is_needed = True
    handle = network.bert.encoder.register_forward_pre_hook(
        lambda encoder, given: None if any(hasattr(one, "is_needed") for one in encoder.layer) else 1 / 0
    )
    order = ranked(anatomy, rank(network, anatomy, batches)).depths[0].order
    handle.remove()
    assert order[0] == 3


def test_many_blocks_go_several_at_once():
    anatomy = read_anatomy(transformers.BertModel(transformers.BertConfig(**SETTINGS)), torch.zeros(1, 3, dtype=int))
    deep = dataclasses.replace(anatomy.depths[0], blocks=tuple(str(number) for number in range(30)))
    assert passes(anatomy) == 1 + 4 + 3 + 2
    assert passes(dataclasses.replace(anatomy, depths=(deep,))) == 258  # 466 one by one


def test_answers_that_are_numbers_differ_by_their_square():
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SETTINGS, "num_labels": 1})
    network = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        network.bert.encoder.layer[1].output.LayerNorm.bias.add_(2 * torch.randn(32))
    tokens = torch.randint(0, 99, (6, 9), generator=torch.Generator().manual_seed(1))
    anatomy = read_anatomy(network, tokens)
    order = ranked(anatomy, rank(network, anatomy, [(tokens, torch.zeros(6))])).depths[0].order
    whole, changes = outputs(network, tokens), []
    for block in range(4):
        cut = anatomy.cut(network, {anatomy.depths[0].name: sorted({0, 1, 2, 3} - {block})})
        changes.append(float((outputs(cut, tokens) - whole).square().mean()))
    assert order[-1] == changes.index(min(changes))


def test_what_ranks_first_loses_less_than_what_ranks_last(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    ordered = ranked(anatomy, rank(network, anatomy, batches, method="taylor"))
    inputs = torch.cat([inputs for inputs, _ in batches])
    whole = outputs(network, inputs)
    inner = [axis for axis in ordered.axes if axis.role == "inner"]
    best = ordered.cut(network, ordered.prefix({axis.name: axis.size // 2 for axis in inner}))
    worst = ordered.cut(network, {axis.name: sorted(axis.order[axis.size // 2 :]) for axis in inner})
    assert (outputs(best, inputs) - whole).norm() < (outputs(worst, inputs) - whole).norm()


def test_a_smaller_size_keeps_a_part_of_what_a_larger_one_keeps(network, batches):
    anatomy = read_anatomy(network, batches[0][0])
    ordered = ranked(anatomy, rank(network, anatomy, batches))
    for name, size in ordered.sizes.items():
        sizes = range(ordered.by_name[name].least, size + 1)
        kept = [set(ordered.prefix({name: size})[name]) for size in sizes]
        assert all(fewer < more for fewer, more in itertools.pairwise(kept))
        assert ordered.prefix({name: size})[name] == tuple(range(size))


def test_a_ranking_through_a_module_around_the_network_is_that_of_what_it_passes_on(network, batches):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, words):
            return self.network(words + 1).logits.flip(-1)

    anatomy = read_anatomy(network, batches[0][0])
    around = rank(network, anatomy, batches, method="taylor", through=Around())
    shifted = rank(network, anatomy, [(words + 1, 2 - labels) for words, labels in batches], method="taylor")
    for name, scores in shifted.scores.items():
        assert around.scores[name] == pytest.approx(scores, rel=1e-4, abs=1e-12)


def test_grouped_convolutions_are_measured_within_their_groups():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    ).eval()
    images = torch.randn(4, 3, 8, 8)
    anatomy = read_anatomy(network, images)
    axis = next(axis for axis in anatomy.axes if axis.name == "0.channels")
    assert axis.size == 4  # channel u of both groups
    scores = rank(network, anatomy, [(images, torch.zeros(4, dtype=torch.int64))]).scores["0.channels"]
    maps = network[1](network[0](images)).mean((2, 3)).square().sum(0)
    assert scores == pytest.approx((maps[:4] + maps[4:]).sqrt().tolist(), rel=1e-5)


@pytest.mark.parametrize("method", ["activation", "taylor"])
def test_padding_does_not_count(network, method):
    generator = torch.Generator().manual_seed(2)
    tokens, labels = torch.randint(1, 99, (6, 9), generator=generator), torch.arange(6) % 3
    lengths = torch.tensor([9, 4, 6, 2, 9, 3])[:, None]
    found = []
    for width in (9, 14):
        mask = (torch.arange(width) < lengths).long()
        padded = F.pad(tokens, (0, width - 9)) * mask
        anatomy = read_anatomy(network, (padded, mask))
        found.append(rank(network, anatomy, [((padded, mask), labels)], method=method, mask=1).scores)
    for name, scores in found[0].items():
        assert found[1][name] == pytest.approx(scores, rel=1e-4, abs=1e-7), name
    counted = rank(network, anatomy, [((padded, mask), labels)], method=method).scores
    assert method == "taylor" or any(
        counted[name] != pytest.approx(found[1][name], rel=1e-2) for name in found[1]
    )  # padding would have counted


def test_taylor_reads_every_next_token_of_a_language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    network = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    anatomy = read_anatomy(network, tokens[:, :-1])
    scores = rank(network, anatomy, [((tokens[:, :-1],), tokens[:, 1:])], method="taylor").scores
    assert all(any(value > 0 for value in scores[axis.name]) for axis in anatomy.axes)
