"""Losses again, by their papers' definitions in float64, row by row and pair by pair: values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.attention import AttentionShape, Projections
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes, example_inputs, output_shapes

B, K = 6, 5
torch.manual_seed(0)
HEADS = 2
_ATTENDING = [(AttentionShape(7, HEADS, width, width, width),) for width in (8, 12)]
STUDENT = OutputShapes(K, ((4, 8, 8), (6, 4, 4)), 6, _ATTENDING[0], nn.Linear(6, K).double(), pooled=True)
TEACHER = OutputShapes(K, ((8, 8, 8), (10, 8, 8)), 10, _ATTENDING[1], nn.Linear(10, K).double(), pooled=True)
REUSING = replace(TEACHER, stages=((4, 8, 8), (10, 4, 4)))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3], dtype=torch.float64)

Written = Callable[[DistillationLoss, Outputs, Outputs, Tensor], Tensor]


def outputs(shapes: OutputShapes, seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(B, *shape, generator=generator, dtype=torch.float64).requires_grad_()

    logits, stages = leaf(K), tuple(leaf(*shape) for shape in shapes.stages)
    attending = (Projections(*(leaf(7, layer.queries) for _ in range(3)), HEADS) for layer in shapes.attention)
    return Outputs(logits, stages, leaf(shapes.embedding), tuple(attending))


def softmax(z: Tensor, t: float = 1.0) -> Tensor:
    raised = (z / t - (z / t).max()).exp()
    return raised / raised.sum()


def over(values: list[Tensor], weights: Tensor) -> Tensor:
    return (torch.stack(values) * weights).sum() / weights.sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


def pearson(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    mean_x, mean_y = ((w * v).sum() / w.sum() for v in (x, y))
    a, b = x - mean_x, y - mean_y
    return (w * a * b).sum() / ((w * a * a).sum() * (w * b * b).sum()).sqrt()


def z_scored(z: Tensor) -> Tensor:
    return (z - z.mean()) / (((z - z.mean()) ** 2).sum() / (len(z) - 1)).sqrt()


def without(z: Tensor, y: int) -> Tensor:
    return torch.cat([z[:y], z[y + 1 :]])


def dist(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    q, p = (torch.stack([softmax(row, 2.0) for row in each.logits]) for each in (s, t))
    rows = over([1 - pearson(q[i], p[i], torch.ones(K)) for i in range(B)], w)
    classes = torch.stack([1 - pearson(q[:, k], p[:, k], w) for k in range(K)]).mean()
    return 4 * (1.5 * rows + 0.5 * classes)


def nkd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for a, b, y in zip(s.logits, t.logits, LABELS.tolist(), strict=True):
        target = -softmax(b)[y] * softmax(a)[y].log()
        rest = -(softmax(without(b, y), 2.0) * softmax(without(a, y), 2.0).log()).sum()
        found.append(target + 1.5 * 4 * rest)
    return over(found, w)


def wsld(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for a, b, y in zip(s.logits, t.logits, LABELS.tolist(), strict=True):
        ratio = softmax(a.detach())[y].log() / (softmax(b)[y].log() - 1e-7)
        found.append((1 - torch.exp(-ratio)) * -(softmax(b, 2.0) * softmax(a, 2.0).log()).sum())
    return 4 * over(found, w)


def ttm(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for a, b in zip(s.logits, t.logits, strict=True):
        powered = softmax(b) ** (1 / 4)
        found.append(powered.sum() * kl(powered / powered.sum(), softmax(a)))
    return over(found, w)


def standard(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    pairs = zip(s.logits, t.logits, strict=True)
    return 4 * over([kl(softmax(z_scored(b), 2.0), softmax(z_scored(a), 2.0)) for a, b in pairs], w)


def dkd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for a, b, y in zip(s.logits, t.logits, LABELS.tolist(), strict=True):
        a, b = (z_scored(each) if loss.standardise else each for each in (a, b))
        q, p = softmax(a, 4.0)[y], softmax(b, 4.0)[y]
        target = kl(torch.stack([p, 1 - p]), torch.stack([q, 1 - q]))
        found.append(16 * (target + 2 * kl(softmax(without(b, y), 4.0), softmax(without(a, y), 4.0))))
    return over(found, w)


def mlld(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    there = w > 0
    for temperature in (2.0, 5.0):
        q, p = (torch.stack([softmax(row, temperature) for row in each.logits]) for each in (s, t))
        total = total + temperature**2 * over([kl(p[i], q[i]) for i in range(B)], w)
        q, p = q[there], p[there]
        for a in range(K):
            for b in range(K):
                total = total + ((q[:, a] * q[:, b]).sum() - (p[:, a] * p[:, b]).sum()) ** 2 / K
        for i in range(len(q)):
            for j in range(len(q)):
                total = total + ((q[i] * q[j]).sum() - (p[i] * p[j]).sum()) ** 2 / len(q)
    return total


def alpha_divergence(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    """Ratios are far below the clip here: D(-1) is half of chi squared of the student, D(1) is KL."""
    found = []
    for a, b in zip(s.logits / 4, t.logits / 4, strict=True):
        q, p = softmax(a), softmax(b)
        left, right = ((q * q / p).sum() - 1) / 2, kl(p, q)
        found.append(left if left > right else right)
    return over(found, w)


def pkt(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    shares = []
    for side in (s, t):
        points = side.embedding[w > 0]
        alike = torch.stack([torch.stack([(1 + F.cosine_similarity(a, b, dim=0)) / 2 for b in points]) for a in points])
        shares.append(torch.stack([row / row.sum() for row in alike]))
    q, p = shares
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def listwise(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for i in range(int((w > 0).sum())):
        lists = []
        for side in (s, t):
            points = side.embedding[w > 0]
            cosines = [F.cosine_similarity(points[i], points[j], dim=0) for j in range(len(points)) if j != i]
            lists.append(softmax(torch.stack(cosines) / 0.2))
        q, p = lists
        found.append((p * (p / q).log()).sum())
    return torch.stack(found).mean()


def contrastive(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    mapped = s.embedding[w > 0] @ loss.adapter.weight.double().T
    theirs = t.embedding[w > 0]
    found = []
    for i in range(len(mapped)):
        scores = torch.stack([F.cosine_similarity(mapped[i], theirs[j], dim=0) / 0.5 for j in range(len(theirs))])
        found.append(-softmax(scores)[i].log())
    return torch.stack(found).mean()


def crd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    """The memory is what stands there before the first batch."""
    memory = loss.before.double()
    sides = [
        F.normalize(side.embedding[w > 0] @ head.weight.double().T + head.bias.double(), dim=1)
        for head, side in zip(loss.heads, (s, t), strict=True)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for side in range(2):
        anchors, same, others = sides[side], sides[1 - side].detach(), memory[1 - side]
        e = [[(a @ b / 0.5).exp() for b in (same[i], *others)] for i, a in enumerate(anchors)]
        mean = torch.stack([x for row in e for x in row]).detach().mean()
        for row in e:
            first, *rest = (x / mean for x in row)
            printed = (first / (first + len(rest))).log() + sum((len(rest) / (x + len(rest))).log() for x in rest)
            total = total - printed / len(anchors)
    return total


def correlation(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    apart = [
        side.embedding[w > 0] @ head.weight.double().T + head.bias.double()
        for head, side in zip(loss.heads, (s, t), strict=True)
    ]
    d = (apart[0] - apart[1]).abs()
    return torch.stack([(d[i] * d[i + 1]).sum() for i in range(len(d) - 1)]).mean()


def normed(x: Tensor, norm: nn.Module, dims: tuple[int, ...]) -> Tensor:
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight.double().view(shape) + norm.bias.double().view(shape)


def srrl(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    mapped = normed(s.embedding[w > 0] @ loss.adapter[0].weight.double().T, loss.adapter[1], (0,)).relu()
    head = TEACHER.classifier
    printed = mapped @ head.weight.detach().T + head.bias.detach()
    return ((mapped - t.embedding[w > 0]) ** 2).mean() + ((printed - t.logits[w > 0]) ** 2).mean()


def vid(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b, net, spread in zip(s.stages, t.stages, loss.means, loss.spreads, strict=True):
        b = F.adaptive_avg_pool2d(b, a.shape[2:])
        x = a
        for layer in net:
            x = x.relu() if isinstance(layer, nn.ReLU) else torch.einsum("oc,bchw->bohw", layer.weight.double(), x)
        variance = (1 + spread.double().exp()).log().view(1, -1, 1, 1) + 1e-5
        total = total + (((x - b) ** 2 / variance + variance.log()) / 2).mean()
    return total


def nst(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(s.stages, t.stages, strict=True):
        b = F.adaptive_avg_pool2d(b, a.shape[2:])
        x, y = (each.flatten(2) / each.flatten(2).norm(dim=2, keepdim=True) for each in (a, b))

        def kernel(u: Tensor, v: Tensor) -> Tensor:
            return ((u[:, :, None] * v[:, None]).sum(-1) ** 2).mean()

        total = total + kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    return total


def run(net: nn.Sequential, x: Tensor) -> Tensor:
    for layer in net:
        if isinstance(layer, nn.LeakyReLU):
            x = torch.where(x > 0, x, 0.1 * x)
        else:
            x = F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1)
    return x


def factor(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    a, b = s.stages[-1], F.adaptive_avg_pool2d(t.stages[-1], 4)
    paraphrased = run(loss.paraphraser, b)
    factors = []
    for features in (run(loss.translator, a), paraphrased.detach()):
        flat = (features**2).mean(1).flatten(1)
        factors.append(flat / flat.norm(dim=1, keepdim=True))
    return (factors[0] - factors[1]).abs().mean() + 0.005 * ((run(loss.decoder, paraphrased) - b) ** 2).mean()


def review(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    deeper, total = None, torch.zeros((), dtype=torch.float64)
    for place, stage in enumerate((1, 0)):
        fusion = loss.fusions[place]
        theirs = F.adaptive_avg_pool2d(t.stages[stage], s.stages[stage].shape[2:])
        conv, norm = fusion.narrow
        own = normed(F.conv2d(s.stages[stage], conv.weight.double()), norm, (0, 2, 3))
        if deeper is not None:
            deeper = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
            attention = fusion.shares[0]
            both = F.conv2d(torch.cat([own, deeper], 1), attention.weight.double(), attention.bias.double())
            shares = 1 / (1 + (-both).exp())
            own = shares[:, :1] * own + shares[:, 1:] * deeper
        deeper = own
        conv, norm = fusion.widen
        mapped = normed(F.conv2d(own, conv.weight.double(), padding=1), norm, (0, 2, 3))
        sizes = [size for size in (mapped.shape[2], 4, 2, 1) if size == mapped.shape[2] or size < mapped.shape[2]]
        sizes = list(dict.fromkeys(sizes))
        parts = [
            0.5**place * ((F.adaptive_avg_pool2d(mapped, z) - F.adaptive_avg_pool2d(theirs, z)) ** 2).mean()
            for place, z in enumerate(sizes)
        ]
        total = total + sum(parts) / sum(0.5**place for place in range(len(sizes)))
    return total


def sem_ckd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    def embedded(net: nn.Sequential, stage: Tensor) -> Tensor:
        flat = stage.flatten(1)
        alike = flat @ flat[:4].T
        x = alike / alike.norm(dim=1, keepdim=True)
        x = (x @ net[0].weight.double().T + net[0].bias.double()).relu()
        x = x @ net[2].weight.double().T + net[2].bias.double()
        return x / x.norm(dim=1, keepdim=True)

    queries = [embedded(net, stage) for net, stage in zip(loss.queries, s.stages, strict=True)]
    keys = [embedded(net, stage) for net, stage in zip(loss.keys, t.stages, strict=True)]
    found = []
    for b in range(B):
        for i in range(2):
            shares = softmax(torch.stack([queries[i][b] @ key[b] for key in keys]))
            for j in range(2):
                adapter = loss.adapters[2 * i + j]
                theirs = F.adaptive_avg_pool2d(t.stages[j], s.stages[i].shape[2:])
                mapped = F.conv2d(s.stages[i], adapter.weight.double(), adapter.bias.double())
                found.append(shares[j] * ((mapped[b] - theirs[b]) ** 2).mean())
    return torch.stack(found).sum() / (2 * B)


def cat_kd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    seen = []
    for side, head in ((s, STUDENT.classifier), (t, TEACHER.classifier)):
        maps = torch.einsum("kc,bchw->bkhw", head.weight.detach(), side.stages[-1])
        flat = F.adaptive_avg_pool2d(maps, 2).flatten(2)
        seen.append(flat / flat.norm(dim=2, keepdim=True))
    return ((seen[0] - seen[1]) ** 2).mean()


def of_rows(apart: Callable[[Tensor, Tensor], Tensor], t: float = 1.0) -> Written:
    """Return the mean over the rows of what `apart` makes of the student's probabilities and its teacher's."""

    def written(loss: DistillationLoss, s: Outputs, teacher: Outputs, w: Tensor) -> Tensor:
        pairs = zip(s.logits, teacher.logits, strict=True)
        return over([apart(softmax(a, t), softmax(b, t)) for a, b in pairs], w)

    return written


def js(q: Tensor, p: Tensor) -> Tensor:
    between = 0.9 * p + 0.1 * q
    return 0.9 * kl(p, between) + 0.1 * kl(q, between)


def mse(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    return over([((a - b) ** 2).mean() for a, b in zip(s.logits, t.logits, strict=True)], w)


def cosine(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    mapped = s.embedding @ loss.adapter.weight.double().T
    return over([1 - F.cosine_similarity(a, b, dim=0) for a, b in zip(mapped, t.embedding, strict=True)], w)


def attention(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(s.stages, t.stages, strict=True):
        b = F.adaptive_avg_pool2d(b, a.shape[2:])
        flat = [(each**2).mean(1).flatten(1) for each in (a, b)]
        units = [each / each.norm(dim=1, keepdim=True) for each in flat]
        total = total + ((units[0] - units[1]) ** 2).mean()
    return total


def similarity(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    flat = [side.stages[-1].flatten(1) for side in (s, t)]
    alike = [each @ each.T for each in flat]
    units = [each / each.norm(dim=1, keepdim=True) for each in alike]
    return ((units[0] - units[1]) ** 2).mean()


def rkd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    pairs, corners = [], []
    for side in (s, t):
        x = side.embedding[w > 0]
        ways = x[None] - x[:, None]
        lengths = ((ways**2).sum(2) + torch.eye(len(x))).sqrt()  # a point and itself: their way is 0
        apart = lengths - torch.eye(len(x))
        pairs.append(apart / (apart.sum() / (len(x) * (len(x) - 1))))
        units = ways / lengths[..., None]
        corners.append(units @ units.transpose(1, 2))
    return 25 * F.smooth_l1_loss(*pairs) + 50 * F.smooth_l1_loss(*corners)


def hint(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    mapped = F.conv2d(s.stages[0], loss.adapter[0].weight.double())
    return ((normed(mapped, loss.adapter[1], (0, 2, 3)).relu() - t.stages[0]) ** 2).mean()


def layers(loss: DistillationLoss, s: Outputs, t: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Return the tokens [B, N, C] of both stages, the student's mapped."""
    found = []
    for a, b in zip(s.stages, t.stages, strict=True):
        b = F.adaptive_avg_pool2d(b, a.shape[2:]).flatten(2).transpose(1, 2)
        weight = loss.layers.adapters[f"{a.shape[1]}-{b.shape[2]}"].weight.double()
        found.append((a.flatten(2).transpose(1, 2) @ weight.T, b))
    return found


def hidden(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    return torch.stack([((a - b) ** 2).mean() for a, b in layers(loss, s, t)]).sum()


def hidden_cosine(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    b = F.adaptive_avg_pool2d(t.stages[-1], 4).flatten(2).transpose(1, 2)
    (weight,) = (parameter.double() for parameter in loss.parameters())
    return (1 - F.cosine_similarity(s.stages[-1].flatten(2).transpose(1, 2) @ weight.T, b, dim=2)).mean()


def patient(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    (weight,) = (parameter.double() for parameter in loss.parameters())
    ours, theirs = s.stages[0].mean((2, 3)) @ weight.T, t.stages[0].mean((2, 3))
    unit = [each / each.norm(dim=1, keepdim=True) for each in (ours, theirs)]
    return ((unit[0] - unit[1]) ** 2).mean()


def statistics(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    found = []
    for a, b in layers(loss, s, t):
        means, spreads = ([each.mean(2) for each in (a, b)], [each.var(2, correction=0) for each in (a, b)])
        even = [
            (each - mean[..., None]) / (spread[..., None] + 1e-5).sqrt()
            for each, mean, spread in zip((a, b), means, spreads, strict=True)
        ]
        apart = 100 * ((even[0] - even[1]) ** 2).mean(2) + 5000 * (means[0] - means[1]) ** 2
        found.append((apart + 5 * (spreads[0] - spreads[1]).abs()).mean())
    return torch.stack(found).mean()


def heads_of(tensor: Tensor, heads: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2)


def scores(side: Outputs) -> Tensor:
    (layer,) = side.attention
    queries, keys = (heads_of(each, HEADS) for each in (layer.queries, layer.keys))
    return torch.einsum("bhnd,bhmd->bhnm", queries, keys) / queries.shape[-1] ** 0.5


def attention_scores(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    return ((scores(s) - scores(t)) ** 2).mean()


def attention_shares(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    q, p = (scores(each).softmax(3) for each in (s, t))
    return (p * (p / q).log()).sum(3).mean()


def relations(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in zip(s.attention[0].tensors, t.attention[0].tensors, strict=True):
        split = [heads_of(each, 4) for each in pair]
        q, p = ((x @ x.transpose(2, 3) / x.shape[-1] ** 0.5).softmax(3) for x in split)
        total = total + (p * (p / q).log()).sum(3).mean()
    return total


def exits(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    norm, first, _, second = loss.exits[0]
    x = s.stages[0].mean((2, 3))
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    logits = (x @ first.weight.double().T + first.bias).relu() @ second.weight.double().T + second.bias
    found = []
    for a, b, y in zip(logits, t.logits, LABELS.tolist(), strict=True):
        found.append(0.7 * -softmax(a)[y].log() + 0.3 * 4 * kl(softmax(b, 2.0), softmax(a, 2.0)))
    return over(found, w)


def sim_kd(loss: DistillationLoss, s: Outputs, t: Outputs, w: Tensor) -> Tensor:
    return ((s.stages[-1] - F.adaptive_avg_pool2d(t.stages[-1], 4)) ** 2).mean()


CASES: list[tuple[str, dict[str, object], Written]] = [
    ("reverse_kl", {"temperature": 3.0}, of_rows(lambda q, p: 9 * kl(q, p), 3.0)),
    ("jensen_shannon", {"beta": 0.9}, of_rows(js)),
    ("skew_kl", {}, of_rows(lambda q, p: kl(p, 0.1 * p + 0.9 * q))),
    ("skew_kl", {"skew": 0.3, "reverse": True}, of_rows(lambda q, p: kl(q, 0.3 * q + 0.7 * p))),
    ("hard", {}, of_rows(lambda q, p: -q[p.argmax()].log())),
    ("semantic", {"least": 0.2}, of_rows(lambda q, p: -q[p >= 0.2 * p.max()].sum().log())),
    ("mse", {}, mse),
    ("cosine", {}, cosine),
    ("kd", {}, of_rows(lambda q, p: 16 * kl(p, q), 4.0)),
    ("attention", {}, attention),
    ("similarity", {}, similarity),
    ("rkd", {}, rkd),
    ("hint", {"stage": 0}, hint),
    ("hidden", {}, hidden),
    ("hidden_cosine", {}, hidden_cosine),
    ("patient", {}, patient),
    ("statistics", {}, statistics),
    ("attention_maps", {}, attention_scores),
    ("attention_maps", {"compare": "kl"}, attention_shares),
    ("relations", {"heads": 4}, relations),
    ("exits", {"share": 0.3, "temperature": 2.0}, exits),
    ("dist", {"between": 1.5, "within": 0.5, "temperature": 2.0}, dist),
    ("nkd", {"temperature": 2.0}, nkd),
    ("wsld", {}, wsld),
    ("ttm", {}, ttm),
    ("kd", {"temperature": 2.0, "standardise": True}, standard),
    ("dkd", {}, dkd),
    ("dkd", {"standardise": True}, dkd),
    ("mlld", {"temperatures": (2.0, 5.0)}, mlld),
    ("alpha_divergence", {"clip": 1e6}, alpha_divergence),
    ("pkt", {}, pkt),
    ("listwise", {"temperature": 0.2}, listwise),
    ("contrastive", {"temperature": 0.5}, contrastive),
    ("crd", {"temperature": 0.5, "width": 7, "memory": 9}, crd),
    ("correlation", {"width": 7}, correlation),
    ("srrl", {}, srrl),
    ("vid", {}, vid),
    ("nst", {}, nst),
    ("factor", {}, factor),
    ("review", {}, review),
    ("sem_ckd", {"anchors": 4, "width": 3}, sem_ckd),
    ("cat_kd", {}, cat_kd),
    ("sim_kd", {}, sim_kd),
]


WEIGHTED = [(*case, weighted) for case in CASES for weighted in (False, True)]
WEIGHTED = [case for case in WEIGHTED if not (case[3] and "stages" in LOSSES.get(case[0]).needs)]  # maps: no padding


@pytest.mark.parametrize(("name", "options", "written", "weighted"), WEIGHTED)
def test_a_loss_and_its_gradient_are_the_papers(
    name: str, options: dict[str, object], written: Written, weighted: bool
) -> None:
    torch.manual_seed(1)
    student = REUSING if name == "sim_kd" else STUDENT
    loss = LOSSES.build(name, student, TEACHER, **options).double()
    if name == "crd":
        loss.before = loss.memory.clone()
    s, t = outputs(student, 1), outputs(TEACHER, 2)
    t = t.detach()
    given = (Outputs(s.logits / 4), Outputs(t.logits / 4)) if name == "alpha_divergence" else (s, t)
    value = whole(loss)(*given, rows(s.logits, weighted))
    expected = written(loss, s, t, WEIGHTS if weighted else torch.ones(B, dtype=torch.float64))
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    ours, theirs = (torch.autograd.grad(each, read(s), allow_unused=True) for each in (value, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-10 * float(other.abs().max()) + 1e-14)


def whole(loss: DistillationLoss) -> Callable[[Outputs, Outputs, Rows], Tensor]:
    """Return the loss as it is in float64, without its rounding to float32."""
    return functools.partial(type(loss).forward.__wrapped__, loss)  # type: ignore[attr-defined]


def rows(logits: Tensor, weighted: bool) -> Rows:
    return Rows(logits, LABELS, WEIGHTS if weighted else None)


def read(given: Outputs) -> list[Tensor]:
    return given.tensors


def test_every_loss_is_compared_with_its_papers_definition() -> None:
    assert {name for name, *_ in CASES} == set(LOSSES.names())


def test_alpha_divergence_is_clipped_and_takes_the_larger_of_two() -> None:
    """A row where the student finds likely what its teacher does not, and one the other way round."""
    ours = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    theirs = torch.tensor([[0.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    shapes = OutputShapes(3)
    given = Rows(ours, torch.zeros(2).long())
    q, p = ours.detach().double().softmax(1), theirs.double().softmax(1)
    ratio = p / q
    low = (q * ((1 / ratio).clamp(max=5.0) - 1) / 2).sum(1)
    high = (p * ratio.log()).sum(1)
    value = LOSSES.build("alpha_divergence", shapes, shapes)(Outputs(ours), Outputs(theirs), given)
    assert float(value.detach()) == pytest.approx(float(torch.maximum(low, high).mean()), rel=1e-5)
    slope = torch.where((low > high)[:, None], -(1 / ratio).clamp(max=5.0) + 0.5, ratio)
    expected = torch.autograd.grad(-(q * slope * ours.double().log_softmax(1)).sum(1).mean(), ours)[0]
    torch.testing.assert_close(torch.autograd.grad(value, ours)[0], expected, rtol=1e-5, atol=1e-6)


def test_crd_remembers_batches_in_training_and_nothing_else() -> None:
    torch.manual_seed(0)
    loss = LOSSES.build("crd", STUDENT, TEACHER, memory=10, width=4)
    before = loss.memory.clone()
    s, t = outputs(STUDENT, 1), outputs(TEACHER, 2)
    loss.eval()(s, t, rows(s.logits, False))
    assert torch.equal(loss.memory, before)
    loss.train()(s, t, rows(s.logits, False))
    assert torch.equal(loss.memory[:, :4], before[:, 6:])
    new = F.normalize(loss.heads[1](t.embedding.float()), dim=1)
    torch.testing.assert_close(loss.memory[1, 4:], new.detach())
    mean = loss.means.clone()
    loss(s, outputs(TEACHER, 5), rows(s.logits, False))
    assert torch.equal(loss.means, mean)  # that of the first batch
    assert {"memory", "means"} <= set(loss.state_dict())  # a training that goes on has them


def test_a_matrix_of_all_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="mlld: the agreement of 50,257 outputs"):
        LOSSES.build("mlld", OutputShapes(50257), OutputShapes(50257))


def test_the_classifier_is_known_only_where_the_logits_are_what_it_says() -> None:
    class Network(nn.Module):
        def __init__(self, scale: float):
            super().__init__()
            self.features, self.classifier, self.scale = nn.Flatten(), nn.Linear(12, 3), scale

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.classifier(self.features(x))

    example = example_inputs(image_classification((3, 2, 2), 3), torch.device("cpu"))
    plain, scaled = (output_shapes(Network(scale), (), "classifier", *example) for scale in (1.0, 2.0))
    assert plain.classifier is not None
    assert plain.classifier.weight.shape == (3, 12)
    assert scaled.classifier is None
    assert scaled.embedding == 12
