"""The YAML reader: plain data, lines, and everything it refuses."""

from __future__ import annotations

import math

import pytest

from kdnas.errors import ConfigError, Problem
from kdnas.study.yaml_lines import MAX_BYTES, parse_value, parse_yaml, read_yaml


def test_scalars_follow_the_core_schema_of_yaml_1_2():
    text = """
a: [10e6, 1e-3, -.5, 3., 0x10, 0o17, 1_000, 010, .inf, -.inf]
b: [no, on, 2024-01-01, 1:30, 1.2.3]
c: [~, null, true, False, '5']
"""
    data = parse_yaml(text, "f").data
    assert data["a"] == [1e7, 1e-3, -0.5, 3.0, 16, 15, 1000, 10, math.inf, -math.inf]
    assert [type(value) for value in data["a"][:7]] == [float, float, float, float, int, int, int]
    assert data["b"] == ["no", "on", "2024-01-01", "1:30", "1.2.3"]
    assert data["c"] == [None, None, True, False, "5"]
    assert math.isnan(parse_yaml("a: .nan", "f").data["a"])


def test_every_key_and_item_has_its_line():
    document = parse_yaml(
        "name: x\n\ntraining:\n  epochs: 3\nlosses:\n  - type: kd\n    weight: 1\n  - hint\n", "study.yaml"
    )
    assert document.lines[("training", "epochs")] == 4
    assert document.lines[("losses", 0, "weight")] == 7
    assert document.lines[("losses", 1)] == 8
    assert document.line_of("losses.0.weight") == 7
    assert document.line_of("training.absent.deeper") == 3, "the nearest section around it"
    assert document.line_of("absent") == 1


def test_keys_that_hold_dots_are_found():
    document = parse_yaml("tune:\n  training.learning_rate:\n    low: 1\n", "study.yaml")
    assert str(document.problem("tune.training.learning_rate.low", "bad")) == (
        "study.yaml:3: tune.training.learning_rate.low: bad"
    )


def test_problems_are_sorted_by_line_and_told_once():
    document = parse_yaml("a: 1\nb: 2\nc: 3\n", "s.yaml")
    found = document.in_order([Problem("c", "third"), Problem("a", "first"), Problem("c", "third")])
    assert [str(problem) for problem in found] == ["s.yaml:1: a: first", "s.yaml:3: c: third"]


def test_anchors_are_written_out():
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}


def _bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "s.yaml:3: a: stands twice (first on line 1)"),
        ("a:\n\tb: 1\n", "s.yaml:2: a tab: YAML is indented with spaces"),
        ("- 1\n- 2\n", "s.yaml:1: the top level must be a mapping"),
        ("just text\n", "s.yaml:1: the top level must be a mapping"),
        ("", "s.yaml: is empty"),
        ("# only a comment\n", "s.yaml: is empty"),
        ("a: 1\nb: [1, 2\nc: 3\n", "s.yaml:3: "),
        ("a: b: c\n", "s.yaml:1: mapping values are not allowed here"),
        ("a: *b\n", "s.yaml:1: found undefined alias 'b'"),
        ("a: &a [*a]\n", "s.yaml:1: a.0: an alias that contains itself"),
        ("a: 1\n<<: {b: 1}\n", "s.yaml:2: <<: merge keys are not read"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: !!python/object/apply:os.system [x]\n", "tag !!python/object/apply:os.system is not read"),
        ("a: !mine x\n", "tag !mine is not read"),
        ("a: !!int x\n", "'x' is not a number"),
        ("? [a]\n: 1\n", "s.yaml:1: a key must be plain text"),
        ("a: \x07\n", "special characters are not allowed"),
        ("a: " + "[" * 1100, "s.yaml: nested too deeply"),
        (_bomb(), "more than 50,000 values"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "s.yaml")
    assert message in str(caught.value)


def test_all_duplicates_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\n", "s.yaml")
    assert [problem.where for problem in caught.value.problems] == ["s.yaml:2: a", "s.yaml:3: b.c"]


def test_files_that_are_no_text_or_far_too_large_are_refused(tmp_path):
    binary, large = tmp_path / "b.yaml", tmp_path / "l.yaml"
    binary.write_bytes(b"a: \xff\xfe\n")
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"b\.yaml: not UTF-8 text"):
        read_yaml(binary)
    with pytest.raises(ConfigError, match=r"l\.yaml: larger than"):
        read_yaml(large)
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_with_value_replaces_makes_sections_and_marks_the_command_line():
    document = parse_yaml("a:\n  b: [1, 2]\n", "s.yaml")
    changed = document.with_value(("a", "b", 1), 5).with_value(("c", "d"), "x")
    assert changed.data == {"a": {"b": [1, 5]}, "c": {"d": "x"}}
    assert document.data == {"a": {"b": [1, 2]}}, "the document itself is unchanged"
    assert changed.problem("a.b.1", "bad").where == "--set: a.b.1"
    assert changed.problem("a.b.0", "bad").where == "s.yaml:2: a.b.0"
    for path in (("a", "b", 2), ("a", "b", "x"), ("a", "b", 0, "y")):
        with pytest.raises(LookupError):
            document.with_value(path, 1)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("[1, a]", [1, "a"]), ("{b: 2}", {"b": 2}), ("", None), ("x", "x")]
)
def test_parse_value(text, value):
    assert parse_value(text) == value


def test_parse_value_refuses_what_is_no_yaml():
    with pytest.raises(ConfigError):
        parse_value("[1, 2")
