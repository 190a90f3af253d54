"""`kdnas list`: every member of every family, even those that cannot be imported here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from kdnas.cli._members import describe, type_text
from kdnas.cli.main import main
from kdnas.errors import ConfigError
from kdnas.registry import Registry
from kdnas.students import STUDENTS, stated_arch
from kdnas.study.members import FAMILIES, registry_of
from kdnas.teachers import TEACHERS


def test_every_member_of_every_family_is_listed(capsys):
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {*FAMILIES, "spaces"}
    for family in FAMILIES:
        assert [entry["name"] for entry in listed[family]] == registry_of(family).names()
    for family, entries in listed.items():
        for entry in entries:
            assert entry["summary"] or entry["unusable"], f"{family} {entry['name']} says nothing about itself"
    kd = next(entry for entry in listed["losses"] if entry["name"] == "kd")
    assert {"name": "temperature", "type": "float > 0 and <= 100", "default": "4", "help": ""} in kd["options"]


def test_one_family_shows_its_options(capsys):
    assert main(["list", "datasets"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Data sets  (data.type)\n")
    assert "      path: text (required)" in shown
    assert "Samplers" not in shown


def test_a_family_of_students_shows_every_key_of_its_choices(capsys):
    assert main(["list", "students"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in STUDENTS.names():
        for key, (allowed, default) in STUDENTS.get(name).stated_choices().items():
            assert f"{key}: {allowed} ({'required' if default is None else f'default {default}'})" in shown
    assert "stage<i>.bottleneck: plain, or a ratio above 0 and up to 4 (required)" in shown
    assert "stage<i>.stride: whole numbers 1..4 (default 1 in stage 1, else 2)" in shown
    assert "head_width: whole numbers 0..8192 (default 0)" in shown
    assert "where the shape changes, identity elsewhere) or “none”" in shown.replace('"none"', "“none”")


def test_the_stated_choices_are_those_that_a_family_takes():
    for name, family in ((name, STUDENTS.get(name)) for name in STUDENTS.names() if not STUDENTS.get(name).derived):
        keys = family.stated_choices()
        with pytest.raises(ConfigError) as caught:
            stated_arch(name, {"stage1.nothing": 1})
        known = {key.replace("<i>", "1") for key in keys}
        missing = {problem.where for problem in caught.value.problems} - {"stage1.nothing"}
        assert missing <= known, name


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("datasets", "returns (train_images, train_labels, test_images, test_labels) or the same with class_names"),
        ("datasets", "images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, labels integers [N] from 0"),
        ("evaluators", "called as `function(choices, epochs=..., data_fraction=..., seed=..., **options)`"),
        ("evaluators", "in microseconds. Without it nothing is known before a trial."),
    ],
)
def test_what_a_users_function_takes_and_returns_is_shown_in_full(capsys, family, expected):
    assert main(["list", family]) == 0
    assert expected in " ".join(capsys.readouterr().out.split())


def test_what_is_raised_in_python_is_not_told_to_who_writes_a_study():
    for family in FAMILIES:
        registry = registry_of(family)
        for name in registry.names():
            for paragraph in describe(registry, name).details:
                assert "Raises" not in paragraph, (family, name)
                assert paragraph.endswith((".", ":", "`")), (family, name, paragraph)


def test_in_a_terminal_no_line_is_wider_than_it(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_nothing_that_a_member_says_of_an_option_is_cut(capsys):
    for family in FAMILIES:
        registry = registry_of(family)
        for entry in (describe(registry, name) for name in registry.names()):
            for option in entry.options:
                assert not option.help or option.help.endswith((".", "?", "`")), (family, entry.name, option)


def test_every_option_of_a_teacher_is_explained():
    for name in TEACHERS.names():
        for option in describe(TEACHERS, name).options:
            assert option.help.endswith("."), (name, option)


def test_a_member_that_cannot_be_imported_says_why_and_hides_no_other(monkeypatch, capsys):
    losses = registry_of("losses")
    whole = Registry.get

    def get(self, name):
        if self is losses and name == "kd":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return whole(self, name)

    monkeypatch.setattr(Registry, "get", get)
    assert main(["list", "losses"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be used here: RuntimeError: operator torchvision::nms does not exist\n" in shown
    assert "Decoupled KD" in shown


def test_options_are_told_as_a_user_writes_them():
    registry: Registry[Any] = Registry("thing", "kdnas.losses")

    def thing(
        context,
        *,
        path: str,
        size: Annotated[int, Field(ge=1)] | None = None,
        mode: Literal["a", "b"] = "a",
        names: tuple[str, ...] = (),
        quick: bool = False,
    ) -> None:
        """Do a thing.

        Args:
            path: Where it is.
        """

    registry.add("thing", thing)
    entry = describe(registry, "thing")
    assert entry.summary == "Do a thing."
    printed = {option.name: (option.type, option.default, option.help) for option in entry.options}
    assert printed == {
        "path": ("text", None, "Where it is."),
        "size": ("int >= 1 | none", "none", ""),
        "mode": ("a | b", "a", ""),
        "names": ("list of text", "[]", ""),
        "quick": ("true | false", "false", ""),
    }


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(float, "float"), (dict[str, int], "mapping"), (list[int] | None, "list of int | none"), (Any, "Any")],
)
def test_type_text(annotation, text):
    assert type_text(annotation) == text
