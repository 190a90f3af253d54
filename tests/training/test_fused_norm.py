"""Fused norms: equal to torch's operators in float64, taken where they pay, and gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdnas.core.task import image_classification
from kdnas.students import family_for
from kdnas.training.fused_norm import LEAST_PIXELS, fused_norm, fused_norms, library

CPU = torch.device("cpu")
TASK = image_classification((3, 8, 8), 5)

needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


def close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert found is not None
    assert expected is not None
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-9)
    assert error < tolerance


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 16, 24, 130])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_skip", [False, True])
def test_values_gradients_and_statistics_equal_torch_in_float64(dtype, channels, relu, with_skip):
    torch.manual_seed(channels)
    x = (3 * torch.randn(5, channels, 7, 3) + 7).to(dtype)  # 105 rows: joined rows leave a rest
    skip = torch.randn(5, channels, 7, 3).to(dtype) if with_skip else None
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    reference = nn.BatchNorm2d(channels).double()
    reference.load_state_dict(norm.state_dict())
    ours = [x.clone().requires_grad_(), None if skip is None else skip.clone().requires_grad_()]
    theirs = [x.double().requires_grad_(), None if skip is None else skip.double().requires_grad_()]
    gradient = torch.randn_like(x)

    found = fused_norm(ours[0], norm, ours[1], relu=relu)
    found.backward(gradient)
    expected = reference(theirs[0]) if theirs[1] is None else reference(theirs[0]) + theirs[1]
    expected = expected.relu() if relu else expected
    # The rounded output decides where the ReLU is cut off: pixels next to zero are compared with their own mask.
    expected.backward(torch.where(found > 0, gradient, 0).double() if relu else gradient.double())

    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    assert found.dtype == dtype
    close(found, expected, tolerance)
    close(ours[0].grad, theirs[0].grad, tolerance)
    if with_skip:
        close(ours[1].grad, theirs[1].grad, tolerance)
    for name in ("weight", "bias"):
        close(getattr(norm, name).grad, getattr(reference, name).grad, tolerance)
    for name in ("running_mean", "running_var"):
        close(getattr(norm, name), getattr(reference, name), 1e-5)
    assert int(norm.num_batches_tracked) == 1


@needs_compiler
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("used", [(True, True), (False, True)])
def test_an_output_that_is_used_twice_gets_both_gradients(relu, with_skip, used):
    torch.manual_seed(1)
    x, skip = 3 * torch.randn(5, 24, 7, 3) + 7, torch.randn(5, 24, 7, 3)
    norm, reference = nn.BatchNorm2d(24), nn.BatchNorm2d(24).double()
    nn.init.normal_(norm.weight)
    reference.load_state_dict(norm.state_dict())
    ours, theirs = [x.clone().requires_grad_(), skip.clone().requires_grad_()], [x.double(), skip.double()]
    theirs = [value.requires_grad_() for value in theirs]

    found = fused_norm(ours[0], norm, ours[1] if with_skip else None, relu=relu)
    branch, shortcut = torch.randn_like(x), torch.randn_like(x)
    uses = [(found * branch).sum(), (found.twin * shortcut).sum()]
    sum(use for use, there in zip(uses, used, strict=True) if there).backward()
    expected = reference(theirs[0]) + (theirs[1] if with_skip else 0)
    expected = expected.relu() if relu else expected
    gradient = used[0] * branch + used[1] * shortcut
    (expected * gradient.double()).sum().backward()

    assert torch.equal(found, found.twin)
    close(ours[0].grad, theirs[0].grad, 2e-5)
    if with_skip:
        close(ours[1].grad, theirs[1].grad, 2e-5)
    for name in ("weight", "bias"):
        close(getattr(norm, name).grad, getattr(reference, name).grad, 2e-5)


@needs_compiler
def test_a_mean_far_from_zero_does_not_cancel_the_variance():
    x = 1e4 + torch.randn(64, 4, 8, 8)
    norm = nn.BatchNorm2d(4)
    y = fused_norm(x, norm, None, relu=False)
    expected = nn.BatchNorm2d(4).double()(x.double())
    assert (y.double() - expected).abs().max() < 0.01


OTHER_NORMS = {
    "no scale and shift": lambda: nn.BatchNorm2d(3, affine=False),
    "no running statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "neither": lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False),
    "float64": lambda: nn.BatchNorm2d(3).double(),
    "bfloat16 parameters": lambda: nn.BatchNorm2d(3).bfloat16(),
    "eval": lambda: nn.BatchNorm2d(3).eval(),
    "another norm": lambda: nn.GroupNorm(1, 3),
}


@needs_compiler
@pytest.mark.parametrize("kind", OTHER_NORMS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_skip", [False, True])
def test_norms_of_other_kinds_are_torchs_own(kind, relu, with_skip):
    torch.manual_seed(2)
    ours, theirs = (OTHER_NORMS[kind]() for _ in range(2))
    dtype = next((value.dtype for value in ours.state_dict().values() if value.is_floating_point()), torch.float32)
    x, skip = torch.randn(4, 3, 5, 2).to(dtype), torch.randn(4, 3, 5, 2).to(dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found = fused_norm(inputs[0], ours, skip if with_skip else None, relu=relu)
    expected = theirs(inputs[1]) + (skip if with_skip else 0)
    expected = expected.relu() if relu else expected
    assert torch.equal(found, expected)
    for value in (found, expected):
        value.float().square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


def network(family: str, **extras: object) -> nn.Module:
    student = family_for(family, image_classification((3, 16, 16), 10))
    choices = {"stem_width": 8}
    for stage, width in ((1, 8), (2, 16)):
        choices |= {f"stage{stage}.depth": 2, f"stage{stage}.width": width}
        choices |= {f"stage{stage}.{name}": value for name, value in extras.items()}
    torch.manual_seed(3)
    return student.build(student.canonical(choices)).to(memory_format=torch.channels_last)


FAMILIES = [
    ("resnet", {"bottleneck": "plain", "skip": "identity"}),
    ("resnet", {"bottleneck": 0.5, "skip": "projection"}),
    ("resnet", {"bottleneck": "plain", "skip": "none"}),
    ("mobilenet", {"expand": 3, "kernel": 3, "squeeze_excite": True, "skip": "identity"}),
]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(4)
    images = torch.randn(16, 3, 8, 8).to(memory_format=torch.channels_last)
    module.train()
    module(images).square().mean().backward()
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


@needs_compiler
@pytest.mark.parametrize(("family", "extras"), FAMILIES)
def test_whole_students_train_alike(family, extras):
    plain = network(family, **extras)
    fused = network(family, **extras)
    expected = gradients(plain)
    with fused_norms(fused, CPU, pixels=LEAST_PIXELS) as active:
        assert active
        found = gradients(fused)
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4 * scale, name
    for (name, value), other in zip(plain.state_dict().items(), fused.state_dict().values(), strict=True):
        assert torch.allclose(value, other, atol=1e-4), name


@needs_compiler
def test_evaluation_is_untouched_and_nothing_stays():
    module = network("resnet", bottleneck="plain", skip="identity").eval()
    images = torch.randn(4, 3, 8, 8)
    expected, names = module(images), list(module.state_dict())
    with fused_norms(module, CPU, pixels=LEAST_PIXELS), torch.no_grad():
        assert torch.equal(module(images), expected)
        assert list(module.state_dict()) == names
    assert all("forward" not in vars(part) for part in module.modules())


def test_small_trainings_and_several_threads_use_torchs_operators(monkeypatch):
    module = network("resnet", bottleneck="plain", skip="identity")
    with fused_norms(module, CPU, pixels=LEAST_PIXELS - 1) as active:
        assert not active
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with fused_norms(module, CPU, pixels=LEAST_PIXELS) as active:
        assert not active


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false"])
def test_without_a_compiler_students_train_as_they_are(monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    library.cache_clear()
    try:
        module = network("resnet", bottleneck="plain", skip="identity")
        with fused_norms(module, CPU, pixels=LEAST_PIXELS) as active:
            assert not active
            assert gradients(module)
    finally:
        library.cache_clear()
