import sys
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field

from kdnas import registry
from kdnas.errors import ConfigError, Problem
from kdnas.registry import Registry

Side = Annotated[int, Field(ge=1)]


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A registry over a package of its own: members `one` and `two` (which fails to import), and a shared file."""
    package = tmp_path / "shapes_family"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from kdnas.registry import Registry\nSHAPES = Registry('shape', __name__)\n", encoding="utf-8"
    )
    (package / "_shared.py").write_text("", encoding="utf-8")
    (package / "one.py").write_text(
        "from shapes_family import SHAPES\n"
        "@SHAPES.register\n"
        "class One:\n"
        "    '''The first.\n\n    More.'''\n"
        "    def __init__(self, device, *, size: int = 3, name: str = 'x'):\n"
        "        self.all = (device, size, name)\n",
        encoding="utf-8",
    )
    (package / "two.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._entry_points.cache_clear()
    import shapes_family

    yield shapes_family.SHAPES
    registry._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith("shapes_family")]:
        del sys.modules[name]


def test_names_are_the_files_and_nothing_is_imported(family):
    assert family.names() == ["one", "two"]
    assert "shapes_family.one" not in sys.modules


def test_a_member_is_imported_when_asked_for_and_named_after_its_file(family):
    assert family.get("one").__name__ == "One"
    assert family.summary("one") == "The first."
    assert "shapes_family.two" not in sys.modules


def test_build_hands_over_objects_and_options_and_keeps_the_members_own_defaults(family):
    assert family.build("one", "cpu", size=5).all == ("cpu", 5, "x")
    assert family.build("one", "cpu").all == ("cpu", 3, "x")


def test_an_unknown_name_is_told_the_nearest_and_all(family):
    with pytest.raises(ConfigError) as caught:
        family.get("onee")
    allowed = "one, two, or path/to/file.py:Name of your own"
    assert str(caught.value) == f"no shape is called 'onee'; did you mean 'one'? (allowed: {allowed})"
    assert family.problems("zzz", {}) == [Problem("type", "no shape is called 'zzz'", allowed)]


def test_every_problem_of_the_options_comes_at_once(family):
    with pytest.raises(ConfigError) as caught:
        family.build("one", "cpu", size="big", nmae="y")
    printed = {problem.where: problem for problem in caught.value.problems}
    assert set(printed) == {"shape one: size", "shape one: nmae"}
    assert "got 'big'" in printed["shape one: size"].what
    assert printed["shape one: nmae"].what == "unknown key; did you mean 'name'?"
    assert printed["shape one: nmae"].allowed == "name, size"


def test_positional_parameters_are_no_options(family):
    assert set(family.options("one").model_fields) == {"size", "name"}
    assert [problem.what for problem in family.problems("one", {"device": "cpu"})] == ["unknown key"]


def test_constraints_and_required_options_are_checked():
    local: Registry = Registry("thing", "kdnas")

    def member(*, rate: Annotated[float, Field(gt=0, le=1)], mode: Literal["a", "b"] = "a") -> tuple:
        """A function is a member as well."""
        return rate, mode

    local.add("member", member)
    assert local.build("member", rate=0.5) == (0.5, "a")
    assert [(p.where, p.what) for p in local.problems("member", {})] == [("rate", "is required")]
    wrong = local.problems("member", {"rate": 2, "mode": "c"})
    assert [problem.where for problem in wrong] == ["rate", "mode"]
    assert "got 2" in wrong[0].what


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"rate": 2}, "rate: must be at most 1, got 2"),
        ({"rate": 0}, "rate: must be above 0, got 0"),
        ({"rate": "fast"}, "rate: must be a number, got 'fast'"),
        ({"mode": "c"}, "mode: must be 'a' or 'b', got 'c'"),
        ({"flag": "maybe"}, "flag: must be true or false, got 'maybe'"),
        ({"text": 3}, "text: must be text, got 3"),
        ({"more": 3}, "more: must be a mapping (`key: value` lines), got 3"),
        ({"pair": [1]}, "pair: must be a list of at least 2 values, got [1]"),
        ({"size": 1.5}, "size: must be a whole number or a list, got 1.5"),
        ({"size": 0}, "size: must be at least 1 or a list, got 0"),
        ({"size": [1, 0]}, "size: must be at least 1, got 0"),
        ({"size": [1, 2, 3]}, "size: must be a whole number or a list of at most 2 values, got [1, 2, 3]"),
        ({"own": 1}, "own: is odd, got 1"),
    ],
)
def test_what_is_allowed_is_said_in_plain_words(wrong, expected):
    local: Registry = Registry("thing", "kdnas")

    def even(value: int) -> int:
        if value % 2:
            raise ValueError("Is odd")
        return value

    def member(
        *,
        rate: Annotated[float, Field(gt=0, le=1)] = 1.0,
        mode: Literal["a", "b"] = "a",
        flag: bool = False,
        text: str = "",
        more: dict | None = None,
        pair: Annotated[tuple[int, ...], Field(min_length=2)] = (1, 2),
        size: Side | tuple[Side, Side] | None = None,
        own: Annotated[int, AfterValidator(even)] = 0,
    ) -> None:
        """A member with options of every kind."""

    local.add("member", member)
    assert [str(problem) for problem in local.problems("member", wrong)] == [expected]


def test_a_taken_name_is_refused_but_registering_twice_is_not():
    local: Registry = Registry("thing", "kdnas")

    def one() -> None: ...
    def two() -> None: ...

    local.add("name", one)
    local.add("name", one)
    with pytest.raises(ValueError, match="already registered"):
        local.add("name", two)


def test_entry_points_of_other_distributions_are_members(family, monkeypatch):
    loaded = []

    class Entry:
        name = "foreign"

        def load(self):
            loaded.append(self.name)
            return lambda *, size=1: ("foreign", size)

    monkeypatch.setattr(registry, "entry_points", lambda *, group: [Entry()] if group == "kdnas.shapes_family" else [])
    registry._entry_points.cache_clear()
    assert family.names() == ["foreign", "one", "two"]
    assert not loaded
    assert family.build("foreign", size=4) == ("foreign", 4)
    assert loaded == ["foreign"]


def test_the_entry_point_group_is_read_from_installed_metadata(family, monkeypatch):
    groups = []
    monkeypatch.setattr(registry, "entry_points", lambda *, group: groups.append(group) or [])
    registry._entry_points.cache_clear()
    family.names()
    assert groups == ["kdnas.shapes_family"]
