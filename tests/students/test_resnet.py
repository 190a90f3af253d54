import pytest
import torch

from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.students import family_for

RESNET = family_for("resnet", image_classification((1, 8, 8), 2))


def stage(index, depth=1, width=16, bottleneck="plain", skip="identity", **more):
    values = {"depth": depth, "width": width, "bottleneck": bottleneck, "skip": skip, **more}
    return {f"stage{index}.{key}": value for key, value in values.items()}


def test_resnet20_has_the_published_size():
    """He et al. (CVPR 2016): 0.27 M parameters, 41 M multiply-adds, option A shortcuts."""
    choices = {"stem_width": 16} | stage(1, 3, 16) | stage(2, 3, 32) | stage(3, 3, 64)
    price = family_for("resnet", image_classification((3, 32, 32), 10)).price(RESNET.canonical(choices))
    assert price.params == 269_722
    assert price.macs == 40_551_040


def test_224_pixels_with_strides_of_ones_own():
    choices = {"stem_width": 8, "stem_stride": 4} | stage(1, width=8, stride=2) | stage(2)
    module = family_for("resnet", image_classification((3, 224, 224), 1000)).build(RESNET.canonical(choices)).eval()
    features = module.stages[0](module.stem(torch.zeros(1, 3, 224, 224)))
    assert features.shape == (1, 8, 28, 28)
    assert module.stages[1](features).shape == (1, 16, 14, 14)


def same(one, two):
    return RESNET.canonical({"stem_width": 16} | one) == RESNET.canonical({"stem_width": 16} | two)


def test_redundant_spellings_are_merged():
    assert same(stage(1, skip="projection"), stage(1, skip="identity"))  # nothing to project
    assert not same(stage(1, skip="projection", width=24), stage(1, skip="identity", width=24))
    assert not same(stage(1, skip="projection", stride=2), stage(1, skip="identity", stride=2))
    assert same(stage(1, bottleneck=0.25), stage(1, bottleneck=0.26))  # both have 4 middle channels
    assert not same(stage(1, bottleneck=0.25), stage(1, bottleneck=0.5))
    assert not same(stage(1, bottleneck=1.0), stage(1, bottleneck="plain"))
    assert same(stage(1, bottleneck=1.0, width=16.0), stage(1, bottleneck=1))
    assert same(stage(1, stride=1) | stage(2, stride=2) | {"stem_stride": 1}, stage(1) | stage(2))


def test_a_removed_stage_takes_its_choices_and_its_downsampling_along():
    gone = {"stage2.depth": 0, "stage2.width": 64, "stage2.skip": "none"}
    assert same(stage(1) | gone, stage(1))
    # which of two equal stages was removed is not visible in the network
    assert same(
        stage(1) | stage(2, width=32) | {"stage3.depth": 0}, stage(1) | {"stage2.depth": 0} | stage(3, width=32)
    )
    # without stage 1 the first stage that remains keeps its own stride
    arch = RESNET.canonical({"stem_width": 16, "stage1.depth": 0} | stage(2))
    assert arch.choices == {"stem_width": 16} | stage(1, stride=2)


def test_the_middle_of_a_bottleneck_is_rounded_and_at_least_one():
    def middles(width, ratio):
        arch = RESNET.canonical({"stem_width": 8} | stage(1, width=width, bottleneck=ratio))
        return [block.middle for block in RESNET.plan(arch).stages[0]]

    assert middles(3, 0.01) == [1]
    assert middles(10, 0.25) == [3]  # halves up
    assert middles(16, 4) == [64]


BAD = [
    ({"stem_width": 8}, "stage1.depth", "is required"),
    ({"stem_width": 8, "stage1.depth": 0}, "stage1.depth", "at least one stage must remain"),
    (stage(1), "stem_width", "is required"),
    ({"stem_width": 0} | stage(1), "stem_width", "cannot be 0"),
    ({"stem_width": True} | stage(1), "stem_width", "cannot be True"),
    ({"stem_width": 8.5} | stage(1), "stem_width", "cannot be 8.5"),
    ({"stem_width": 8} | stage(1, depth=-1), "stage1.depth", "cannot be -1"),
    ({"stem_width": 8} | stage(1, bottleneck=0), "stage1.bottleneck", "cannot be 0"),
    ({"stem_width": 8} | stage(1, bottleneck=float("nan")), "stage1.bottleneck", "cannot be nan"),
    ({"stem_width": 8} | stage(1, bottleneck="wide"), "stage1.bottleneck", "cannot be 'wide'"),
    ({"stem_width": 8} | stage(1, skip=None), "stage1.skip", "cannot be None"),
    ({"stem_width": 8} | stage(1) | stage(3), "stage2.depth", "is required"),
    (
        {"stem_width": 8, "stage1.depth": 1, "stage1.width": 4, "stage1.skip": "none"},
        "stage1.bottleneck",
        "is required",
    ),
    ({"stem_width": 8, "head_width": 8} | stage(1), "head_width", "is no choice of resnet"),
]


@pytest.mark.parametrize(("choices", "where", "what"), BAD)
def test_bad_choices_are_refused(choices, where, what):
    with pytest.raises(ConfigError) as caught:
        RESNET.canonical(choices)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert what in problem.what


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as caught:
        RESNET.canonical({"stage1.depth": 99, "wings": 1, "stage2.skip": "maybe"})
    where = [problem.where for problem in caught.value.problems]
    assert where == ["stage1.depth", "wings", "stage2.skip", "stem_width"] + [
        f"stage1.{part}" for part in ("width", "bottleneck", "skip")
    ] + ["stage2.depth"]
