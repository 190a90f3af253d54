import pytest
import torch

from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.students import family_for

TASK = image_classification((3, 16, 16), 10)
MOBILENET = family_for("mobilenet", TASK)


def stage(index, depth=1, width=16, expand=3, kernel=3, squeeze_excite=False, skip="identity"):
    return {
        f"stage{index}.depth": depth,
        f"stage{index}.width": width,
        f"stage{index}.expand": expand,
        f"stage{index}.kernel": kernel,
        f"stage{index}.squeeze_excite": squeeze_excite,
        f"stage{index}.skip": skip,
    }


def canonical(*stages, **more):
    choices = {"stem_width": 16, **more}
    for one in stages:
        choices |= one
    return MOBILENET.canonical(choices)


def test_price_of_one_block_by_hand():
    arch = canonical(stage(1, width=8, expand=2, kernel=5, squeeze_excite=True), stem_width=4)
    stem = 3 * 4 * 9
    expand, depthwise, project = 4 * 8, 8 * 25, 8 * 8
    gate, gate_biases = 2 * 8 * 2, 2 + 8
    norms = 2 * (4 + 8 + 8 + 8)
    price = MOBILENET.price(arch)
    assert price.macs == (stem + expand + depthwise + project) * 256 + gate + 8 * 10
    assert price.params == stem + expand + depthwise + project + gate + gate_biases + norms + 8 * 10 + 10


def test_skips_only_where_shapes_allow():
    plan = MOBILENET.plan(canonical(stage(1, depth=2), stage(2, depth=3)))
    assert [[block.skip for block in blocks] for blocks in plan.stages] == [[True, True], [False, True, True]]


def test_redundant_spellings_are_merged():
    changing = stage(2, width=24)
    assert canonical(stage(1), changing) == canonical(stage(1), changing | {"stage2.skip": "none"})
    assert canonical(stage(1)) != canonical(stage(1, skip="none"))
    assert canonical(stage(1), head_width=0) == canonical(stage(1))
    assert canonical(stage(1)) == canonical(stage(1), {"stage2.depth": 0, "stage2.kernel": 7})


def test_head_is_a_convolution_before_pooling():
    module = MOBILENET.build(canonical(stage(1), head_width=40))
    assert module.classifier.in_features == 40
    assert module.head(torch.zeros(2, 16, 4, 4)).shape == (2, 40, 4, 4)


@pytest.mark.parametrize(
    ("part", "value"), [("expand", 1.5), ("expand", 0), ("kernel", 4), ("squeeze_excite", 1), ("skip", "projection")]
)
def test_bad_values_are_refused(part, value):
    with pytest.raises(ConfigError, match=rf"stage1\.{part}: cannot be "):
        canonical(stage(1) | {f"stage1.{part}": value})
