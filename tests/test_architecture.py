"""Rules of the house that import-linter does not hold: cold imports, sizes, names, and files that must load."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from kdnas import errors
from kdnas.study.loading import load_study
from kdnas.study.members import FAMILIES, registry_of
from kdnas.study.spaces import read_space, space_names

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "kdnas"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "nni", "optuna", "pandas", "plotly", "sklearn", "transformers", "timm")

MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 75
"""The house asks for about 60; the test leaves room for a docstring."""


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def modules_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has imported after running `code`."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    loaded = modules_after("from kdnas.cli.main import main; assert main(['--help']) == 0")
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_core_imports_no_framework():
    imports = "\n".join(f"import kdnas.core.{path.stem}" for path in (PACKAGE / "core").glob("[a-z]*.py"))
    loaded = modules_after(imports)
    assert "numpy" in loaded
    assert not loaded & {*HEAVY, "pydantic", "yaml", "typer"}


def test_listing_names_imports_no_member():
    code = (
        "import sys; from kdnas.study.members import FAMILIES, registry_of\n"
        "before = set(sys.modules)\n"
        "for family in FAMILIES:\n"
        "    registry_of(family).names()\n"
        "members = {f'kdnas.{f}.{n}' for f in FAMILIES for n in registry_of(f).names()}\n"
        "assert members and not members & set(sys.modules), members & set(sys.modules)\n"
    )
    modules_after(code)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split it"
    assert path.stem not in ("utils", "helpers", "util", "misc", "common"), "say what it holds"
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not long, f"functions too long: {long}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE or p.stem != "__main__"], ids=relative)
def test_every_file_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no module docstring"


def test_a_member_is_registered_under_its_files_name():
    for family in FAMILIES:
        registry = registry_of(family)
        for name in registry.names():
            assert callable(registry.get(name)), f"{family} {name}"
            assert registry.summary(name).strip(), f"{family} {name} has no summary"


def test_the_error_tree_is_the_one_that_is_drawn():
    words = [line.lstrip(" │├└─").partition(" ")[0] for line in (errors.__doc__ or "").splitlines()]
    drawn = [word for word in words if word.endswith("Error")]
    defined = [name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)]
    assert sorted(drawn) == sorted(defined)
    for name in defined:
        error = getattr(errors, name)
        assert issubclass(error, errors.KdnasError)
        assert error.exit_code == (2 if issubclass(error, errors.InputError) else 1)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "search_spaces").glob("*")), ids=relative)
def test_every_committed_space_loads(path):
    assert path.suffix == ".yaml"
    assert read_space(path).count() > 1
    assert path.stem in space_names()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "studies").rglob("*.yaml")), ids=relative)
def test_every_committed_study_loads(path):
    if path.name == "study.yaml":
        assert load_study(path.parent).config.name
    elif "results" not in path.parts:
        read_space(path)


def test_the_top_level_holds_what_it_should():
    allowed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "kdnas", "search_spaces", "studies", "tests"}
    ignored = {"runs", "data", "build", "dist"}
    found = {entry.name for entry in REPOSITORY.iterdir() if not entry.name.startswith(".")}
    assert found - ignored <= allowed
