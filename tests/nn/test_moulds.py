"""Copies of a module that share its tensors."""

import torch
from torch import nn

from kdnas.nn.moulds import Mould


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 4)
        self.register_buffer("gain", torch.ones(4))
        self.register_buffer("kept", torch.ones(4), persistent=False)
        self.alias = [self.first]  # no submodule, and still this one
        self.act = lambda x: x.relu() + 1
        self.second.weight = nn.Parameter(self.first.weight.detach().T.clone())

    def forward(self, x):
        return self.second(self.act(self.alias[0](x))) * self.gain * self.kept


def test_a_cast_computes_the_same_with_the_same_tensors():
    module = Odd()
    mould = Mould(module)
    one, other = mould.cast(), mould.cast()
    x = torch.randn(3, 4)
    assert torch.equal(one(x), module(x))
    assert all(mine is theirs for mine, theirs in zip(one.parameters(), module.parameters(), strict=True))
    assert one.kept is module.kept
    assert one.alias[0] is one.first
    assert one.first is not other.first
    assert one.first is not module.first


def test_what_a_cast_is_given_others_do_not_get():
    mould = Mould(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    one, other = mould.cast(), mould.cast()
    one[0].weight = nn.Parameter(torch.zeros(3, 4))
    one[0].out_features = 3
    del one[1]
    one.eval()
    assert (other[0].out_features, len(other), other.training) == (8, 3, True)
    assert other[0].weight.shape == (8, 4)


def test_what_cannot_be_written_down_is_copied():
    class Local(nn.Linear):
        def __reduce_ex__(self, protocol):
            raise TypeError("not so")

        def __deepcopy__(self, memo):
            made = Local(4, 4)
            made.weight = memo.get(id(self.weight), self.weight)
            return made

    module = nn.Sequential(Local(4, 4))
    one = Mould(module).cast()
    assert one[0] is not module[0]
    assert one[0].weight is module[0].weight
