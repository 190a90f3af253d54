import json

import pytest

from kdnas.core.arch import Arch, normalise_scalar


def test_order_and_number_spelling_do_not_matter():
    one = Arch.of("resnet", {"b": 2.0, "a": "plain", "c": True})
    two = Arch.of("resnet", {"c": True, "a": "plain", "b": 2})
    assert one == two
    assert one.arch_id == two.arch_id
    assert one.canonical_json == '{"choices":{"a":"plain","b":2,"c":true},"family":"resnet"}'


def test_arch_id_is_the_start_of_the_sha256_of_the_json():
    # printf '%s' '{"choices":{"w":1},"family":"f"}' | sha256sum
    assert Arch.of("f", {"w": 1}).arch_id == "977d5307312e"


@pytest.mark.parametrize("other", [("g", {"w": 1}), ("f", {"w": 2}), ("f", {"v": 1}), ("f", {"w": "1"})])
def test_different_content_has_another_id(other):
    assert Arch.of(*other).arch_id != Arch.of("f", {"w": 1}).arch_id


def test_json_round_trip_from_text_and_from_a_record():
    arch = Arch.of("mobilenet", {"a": 0.25, "b": False, "c": "none"})
    assert Arch.from_json(arch.canonical_json) == arch
    assert Arch.from_json(json.loads(arch.canonical_json)) == arch


@pytest.mark.parametrize("text", ['{"family": "f"}', "{}", "[]", "no json"])
def test_what_is_no_arch_is_refused(text):
    with pytest.raises(ValueError, match=r"not an arch|Expecting"):
        Arch.from_json(text)


def test_booleans_stay_booleans():
    assert normalise_scalar(True) is True
    assert type(normalise_scalar(3.0)) is int
    assert normalise_scalar(0.5) == 0.5
