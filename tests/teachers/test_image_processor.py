"""Hugging Face image processors, configured in the ways that processors have been written over the years."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdnas.errors import TeacherError
from kdnas.teachers import TEACHERS
from kdnas.teachers._image_processor import read_processing

transformers = pytest.importorskip("transformers")

BASE = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}
PLAIN = {**BASE, "do_normalize": False}
MOBILE = {**BASE, "image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 32}}
UNIT = (0.0,) * 3, (255.0,) * 3
HALF = (127.5,) * 3, (127.5,) * 3
RGB, BGR = (0, 1, 2), (2, 1, 0)

STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CROPPED = {**PLAIN, "image_processor_type": "CLIPImageProcessor", "do_center_crop": True}
MOBILE = {**MOBILE, "do_center_crop": False}
OFFSET = {"rescale_factor": 1 / 127.5, "rescale_offset": True}
OLD = {
    "feature_extractor_type": "ViTFeatureExtractor",
    "do_resize": True,
    "do_normalize": True,
    "size": 32,
    "resample": 2,
}
WHOLE = (32, 32)
CASES = {
    "lists": ({**BASE, **STATISTICS}, ((25.5, 51, 76.5), (102, 127.5, 153)), RGB, WHOLE),
    "integers": ({**BASE, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, UNIT, RGB, WHOLE),
    "one integer": ({**BASE, "image_mean": 0, "image_std": 1}, UNIT, RGB, WHOLE),
    "one float": ({**BASE, "image_mean": 0.5, "image_std": 0.5}, HALF, RGB, WHOLE),
    "no normalisation": (PLAIN, UNIT, RGB, WHOLE),
    "do_normalize null": ({**BASE, "do_normalize": None}, UNIT, RGB, WHOLE),
    "the class's own default": (BASE, HALF, RGB, WHOLE),
    "no rescaling": (
        {**BASE, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
        HALF,
        RGB,
        WHOLE,
    ),
    "neither": ({**PLAIN, "do_rescale": False}, ((0.0,) * 3, (1.0,) * 3), RGB, WHOLE),
    "a size list": ({**PLAIN, "size": [32, 24]}, UNIT, RGB, (32, 24)),
    "one size": ({**PLAIN, "size": 24}, UNIT, RGB, (24, 24)),
    "no resizing": ({**PLAIN, "do_resize": False, "size": 224}, UNIT, RGB, (32, 48)),
    "the shortest edge": ({**PLAIN, "size": {"shortest_edge": 16}}, UNIT, RGB, (16, 24)),
    "the longest edge": ({**PLAIN, "size": {"longest_edge": 24}}, UNIT, RGB, (16, 24)),
    "a crop list": ({**CROPPED, "size": {"shortest_edge": 18}, "crop_size": [16, 16]}, UNIT, RGB, (16, 16)),
    "one crop": ({**CROPPED, "size": 18, "crop_size": 16}, UNIT, RGB, (16, 16)),
    "crop_pct": (
        {
            **PLAIN,
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 28},
            "crop_pct": 0.875,
        },
        UNIT,
        RGB,
        (28, 28),
    ),
    "an old extractor": ({**OLD, **HALVES}, HALF, RGB, WHOLE),
    "a flip by default": (MOBILE, UNIT, BGR, (32, 48)),
    "a stated flip": ({**MOBILE, "do_flip_channel_order": True}, UNIT, BGR, (32, 48)),
    "no flip": ({**MOBILE, "do_flip_channel_order": False}, UNIT, RGB, (32, 48)),
    "a flip that the class does not have": ({**PLAIN, "do_flip_channel_order": True}, UNIT, BGR, WHOLE),
    "a flip with statistics, which the class does not have": (
        {**BASE, "do_flip_channel_order": True, **STATISTICS},
        ((76.5, 51, 25.5), (153, 127.5, 102)),
        BGR,
        WHOLE,
    ),
    "an offset": (
        {**PLAIN, "image_processor_type": "EfficientNetImageProcessor", "include_top": False, **OFFSET},
        HALF,
        RGB,
        WHOLE,
    ),
    "an offset that the class does not have": (
        {**BASE, **OFFSET, "image_mean": [-1.0] * 3, "image_std": [2.0] * 3},
        UNIT,
        RGB,
        WHOLE,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_processor_is_read_as_it_processes(case: str, tmp_path: Path) -> None:
    config, (mean, std), order, size = CASES[case]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    options = {"local_files_only": True, "trust_remote_code": False}
    found = read_processing(transformers, str(tmp_path), options, channels=3, height=32, width=48)
    assert found.mean == pytest.approx(mean, abs=1e-3)
    assert found.std == pytest.approx(std, rel=1e-4)
    assert (found.order, found.size) == (order, size)
    assert any("not have" in note for note in found.notes) == ("does not have" in case)
    assert any("cuts out the middle" in note for note in found.notes) == ("crop" in case and case != "crop_pct")


@pytest.mark.parametrize("flip", [False, True])
def test_the_teacher_sees_what_the_processor_makes(flip: bool, tmp_path: Path, open_context, raw_images) -> None:
    torch.manual_seed(0)
    labels = {index: f"class{index}" for index in range(10)}
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10, id2label=labels
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "net")
    declared = {**MOBILE, "do_flip_channel_order": flip}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(declared))
    context = open_context()
    images = raw_images(context)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "net")
    pixels = processor(images=list(images.byte()), return_tensors="pt", input_data_format="channels_first")
    with torch.no_grad():
        expected = network(**pixels).logits
    teacher = TEACHERS.build("huggingface", context, model="net")
    torch.testing.assert_close(teacher.module(images), expected, rtol=1e-4, atol=1e-4)
    assert any("(BGR)" in note for note in teacher.notes) == flip


def test_a_processor_that_fails_says_what_to_state(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**BASE, "size": {"side": 3}}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(TeacherError, match="state mean, std and input_size"):
        read_processing(transformers, str(tmp_path), {}, channels=3, height=32, width=32)
