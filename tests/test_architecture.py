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

BAGS_OF_KEYS = {
    "a study, a run's or a training's file as YAML or JSON has it, before it is read or once it is written": """
        api.py audit/recipes.py cli/_options.py cli/init.py controller/queue.py plan/plan_file.py
        plan/train_file.py plan/training.py plan/training_folder.py plugins.py record/lock.py study/config.py
        study/earlier.py study/loading.py study/losses.py study/members.py study/secrets.py study/spaces.py
        study/yaml_lines.py training/recipe.py trust.py workshop/teacher_training.py exporters/__init__.py
    """,
    "the plain form of a record in JSON: a trial's attribute, a job's message, a file, what --json prints": """
        checksums.py cli/_search_view.py cli/spaces.py controller/events.py controller/workers.py core/arch.py
        core/block_library.py core/card.py core/fidelity.py core/measurement.py core/preprocessing.py core/shrinking.py
        executors/__init__.py executors/_nni_experiment.py executors/_nni_trial.py executors/_ray_cluster.py
        executors/_ray_head.py executors/nni.py exporters/huggingface.py exporters/student_json.py exporters/timm.py
        record/damage.py record/products.py record/records.py record/rows.py record/storage.py record/trials.py
        report/comparison.py report/study_file.py samplers/hvi/encoding.py testing/_jobs.py tokenizing.py
        training/checkpoint.py workshop/jobs.py workshop/elsewhere.py workshop/measuring.py
        teachers/_adapting.py teachers/_own_inputs.py
    """,
    "what identifies data, as it is hashed": """
        datasets/_cache.py datasets/_corpus_cache.py datasets/_entries.py datasets/_generated.py datasets/_inputs.py
        datasets/_pictures.py datasets/_text_files.py datasets/_token_cache.py datasets/text_corpus.py
    """,
    "a row of a table, whose columns are the user's": """
        datasets/_tables.py report/tables.py training/completions.py workshop/evaluators/table.py
    """,
    "the options of a member, which its own signature checks": """
        cli/_own_files.py controller/site.py core/space.py registry.py students/__init__.py targets/__init__.py
        targets/cuda.py testing/_member.py testing/datasets.py testing/policies.py testing/teachers.py
        teachers/label_rules.py training/supernet/policies/__init__.py
    """,
    "the choices of a student once its family has checked them": """
        students/_staged.py students/_transformer.py
    """,
    "arguments and content of the user's own code": """
        datasets/_own_function.py datasets/module.py datasets/text_module.py teachers/__init__.py teachers/module.py
        teachers/parties.py teachers/student.py user_code/_imports.py workshop/evaluators/module.py
    """,
    "what another library takes or gives: its arguments, its settings, its files": """
        datasets/cifar_archive.py executors/ray.py
        nn/anatomy/_following.py nn/block_distillation.py nn/decoding.py nn/importance.py nn/memory.py
        nn/origin.py nn/scaling_norms.py report/figures.py report/parallel.py samplers/_nni_tuners.py samplers/nni.py
        nn/tracing.py teachers/_image_processor.py teachers/_loading.py teachers/_transformers.py teachers/timm.py
        store.py teachers/torchvision.py user_code/_surroundings.py
    """,
}
"""Where mappings of names to anything stand, and why: all else that passes between functions is a record."""


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


def test_bags_of_keys_stand_where_documents_enter_and_leave():
    reasons = {name: reason for reason, names in BAGS_OF_KEYS.items() for name in names.split()}
    assert len(reasons) == sum(len(names.split()) for names in BAGS_OF_KEYS.values()), "a file has two reasons"
    bags = ("Mapping[str, Any]", "dict[str, Any]")
    found = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Subscript) and ast.unparse(node) in bags
    }
    assert not found - reasons.keys(), "a record with fields, or a reason above"
    assert not reasons.keys() - found, "these have none any more: take them off the list"


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
