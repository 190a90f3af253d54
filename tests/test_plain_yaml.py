"""Written YAML read back by PyYAML's 1.1 reader and by kdnas's 1.2 reader: both must give what was written."""

from __future__ import annotations

import pytest
import yaml

from kdnas.plain_yaml import dump_yaml
from kdnas.study.yaml_lines import parse_yaml

TEXTS = [
    "5e7", "123e45678901", "12_3", "0x1f", "0o17", "1e-3", ".5", ".inf", "true", "no", "null", "~", "", "on", "1:30",
    "2024-01-01", "plain", "a: b", "- x", "ü", "0.10", "+1", "1.",
]  # fmt: skip


@pytest.mark.parametrize("compact", [True, False])
def test_both_readers_give_what_was_written(compact):
    data = {
        "texts": TEXTS,
        "by key": {text: 1 for text in TEXTS if text},
        "numbers": [1, -2, 0.1, 1e-05, 1e22, 123456789012345678, 3.0, float("inf")],
        "others": [True, False, None, [], {}, [[1, 2], {"a": [3]}]],
    }
    text = dump_yaml(data, compact=compact)
    assert yaml.safe_load(text) == data
    assert parse_yaml(text, "x").data == data


def test_order_is_kept():
    assert list(yaml.safe_load(dump_yaml({"b": 1, "a": 2}))) == ["b", "a"]
