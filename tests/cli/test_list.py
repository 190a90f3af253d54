"""`kdnas list`: every member of every family, even those that cannot be imported here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from kdnas.cli._members import describe, type_text
from kdnas.cli.main import main
from kdnas.registry import Registry
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
    told = {option.name: (option.type, option.default, option.help) for option in entry.options}
    assert told == {
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
