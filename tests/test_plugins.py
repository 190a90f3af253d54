"""Members of a user's own: a file beside the study takes part in a whole search, and what is wrong with it is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kdnas import plugins, registry
from kdnas.cli.main import main
from kdnas.core.arch import Arch
from kdnas.costs import COSTS
from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.plugins import adopted, code_fingerprints, plugins_named, resolved, resolved_name, short_name
from kdnas.record.run_folder import LOCK_FILE
from kdnas.students import STUDENTS

_RUNS = """
from dataclasses import dataclass
from pathlib import Path

import optuna

from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.measurement import Calibration
from kdnas.costs import CheapCost, MeasuredCost
from kdnas.executors.local import Local
from kdnas.record.lock import DataDescription, Findings
from kdnas.trackers import Tracker
from kdnas.workshop.evaluators import Evaluator
from kdnas.record.records import Result
from parts.helpers import HALF

(Path(__file__).parent / "ran").touch()


@dataclass(frozen=True)
class Warmth(Calibration):
    kelvin: float


class Heat(MeasuredCost):
    '''Measured, and calibrated once a run.'''

    quantity = Quantity("heat", "K", "minimize", "measured")
    calibration = Warmth

    def measure(self, module, task, calibration):
        raise AssertionError("no student is built here")


class Joules(CheapCost):
    '''Energy by a rule of thumb.'''

    quantity = Quantity("joules", "J", "minimize", "cheap")

    def __init__(self, *, each: float = 1.0):
        self.each = each

    def value(self, price):
        return price.macs * self.each


class Invented(Evaluator):
    '''Scores that grow with a and b.'''

    def __init__(self, context, *, best: float = 1.0):
        super().__init__(context)
        self._best = best

    quantities = {"accuracy": ACCURACY, "joules": Joules.quantity}
    fingerprints = {}
    description = {}

    def price(self, arch):
        return {"joules": HALF * (arch.choices["a"] + arch.choices["b"])}

    def facts(self):
        return Findings(0.0, DataDescription("none"), calibrations={"heat": Warmth(300.0)})

    def __call__(self, job):
        return Result({**self.price(job.arch), "accuracy": self._best - 1 / (1 + self.price(job.arch)["joules"])})


def draws(context, *, shift: int = 0):
    '''Uniform draws.'''
    return optuna.samplers.RandomSampler(seed=context.seed + shift)


class Mine(Local):
    '''Local, of my own.'''


class Follows(Tracker):
    '''The kinds of events, in a file of the run.'''

    def take(self, event):
        with (self.run.folder / "followed").open("a") as lines:
            print(type(event).__name__, file=lines)
"""

STUDY = {
    "name": "own",
    "evaluator": {"type": "parts/runs.py:Invented", "best": 0.9},
    "space": "space.yaml",
    "objectives": ["accuracy", "joules"],
    "costs": {"joules": {"type": "parts.runs:Joules", "each": 2.0}, "heat": {"type": "parts/runs.py:Heat"}},
    "sampler": {"type": "parts/runs.py:draws", "shift": 1},
    "executor": {"type": "parts/runs.py:Mine", "workers": 1},
    "trackers": ["parts/runs.py:Follows"],
    "budget": {"trials": 3},
    "final": {"seeds": 1, "max_students": 2},
    "export": {"formats": []},
}


@pytest.fixture(autouse=True)
def _nobody_vouches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process that has read nothing, and leave no plug-in behind."""
    monkeypatch.setenv(plugins._VOUCHED, "[]")


def _write(folder: Path) -> Path:
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "runs.py").write_text(_RUNS)
    (folder / "parts" / "helpers.py").write_text("HALF = 0.5\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "space.yaml").write_text("choices:\n  a: {low: 1, high: 8}\n  b: {low: 1, high: 8}\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of plug-ins, searched in worker processes; its run is `run`."""
    folder = _write(tmp_path_factory.mktemp("made") / "own")
    assert main(["search", str(folder), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` elsewhere, in which nothing has run yet."""
    shutil.copytree(made, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__", "ran"))
    return tmp_path / "copy"


def test_a_search_runs_on_members_of_the_users_own(made: Path) -> None:
    trials = (made / "run" / "trials.csv").read_text().splitlines()
    assert trials[0].startswith("trial,arch_id,state,fidelity_epochs,accuracy,accuracy_ci95,macs,params,joules,")
    assert len(trials) == 4
    assert all("complete" in line for line in trials[1:])
    lock = yaml.safe_load((made / "run" / LOCK_FILE).read_text())
    assert set(lock["fingerprints"]) == {"runs.py", "helpers.py"}
    assert "scored by the evaluator parts/runs.py:Invented" in (made / "run" / "report.html").read_text()


def test_a_run_goes_on_unless_its_code_has_changed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = ["search", str(folder), "--out", str(folder / "run"), "--trials", "4"]
    assert main(search) == 0  # at another place: the folder has no part in what the run is
    capfd.readouterr()
    (folder / "parts" / "helpers.py").write_text("HALF = 0.25\n")
    assert main(search) == 2
    assert "helpers.py: its content is not what it was" in capfd.readouterr().err


def test_reading_and_validating_names_them_as_the_user_does(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "evaluator    parts/runs.py:Invented" in out
    assert str(folder / "parts") not in out
    assert main(["front", str(folder / "run")]) == 0
    assert main(["report", str(folder / "run")]) == 0


def test_plugins_of_somebody_elses_run_do_not_run_until_it_is_trusted(folder: Path, capfd) -> None:
    lock = folder / "run" / LOCK_FILE
    text = "".join(line for line in lock.read_text().splitlines(keepends=True) if "signed it" not in line)
    lock.write_text(text.replace(str(folder.parent), "x"))
    made = text[text.index("type: /") + len("type: ") : text.index("/./")]
    lock.write_text(text.replace(made, str(folder)))
    run, ran = str(folder / "run"), folder / "parts" / "ran"
    for command in ("front", "report"):
        assert main([command, run]) == 0  # nothing has to run for that, not what a measured cost of its own found out
    assert main(["validate", run]) == 2
    assert "no study of yours on this machine named it" in capfd.readouterr().err
    assert main(["search", run]) == 2
    assert f"in {folder / 'parts' / 'runs.py'}" in capfd.readouterr().err
    assert not ran.exists()
    assert main(["search", run, "--trust-code", "--set", "budget.trials=4"]) == 0
    assert ran.exists()
    os.environ[plugins._VOUCHED] = "[]"
    assert main(["validate", run]) == 0  # remembered, whatever the data root


def test_what_a_plugin_raises_while_it_works_is_told_by_its_line(folder: Path, tmp_path: Path, capfd) -> None:
    code = folder / "parts" / "runs.py"
    sound = code.read_text()
    fails = (
        "class Fails(optuna.samplers.RandomSampler):\n    def sample_relative(self, *rest): return {}[1]\n\n\ndef draws"
    )
    code.write_text(sound.replace("def draws", fails).replace("return optuna.samplers.RandomSampler", "return Fails"))
    assert main(["search", str(folder), "--out", str(tmp_path / "sampler")]) == 2
    line = code.read_text().splitlines().index("    def sample_relative(self, *rest): return {}[1]") + 1
    printed = [text for text in capfd.readouterr().err.splitlines() if "error" in text]
    assert printed == [f"error: code of your own fails: KeyError: 1 (runs.py, line {line}, in sample_relative)"]
    code.write_text(sound.replace("def __call__(self, job):", "def __call__(self, job):\n        {}['x']"))
    assert main(["search", str(folder), "--out", str(tmp_path / "evaluator")]) == 1  # every trial failed
    line = code.read_text().splitlines().index("        {}['x']") + 1
    assert f"for this reason (3 of 3): KeyError: 'x' (runs.py, line {line}, in __call__)" in capfd.readouterr().err


def test_a_studys_own_members_are_listed_with_their_options(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "costs", "--study", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "parts/runs.py:Joules  Energy by a rule of thumb." in out
    assert "each: float (default 1)" in out
    assert "latency_ms" in out
    assert main(["list", "losses", "--study", str(folder)]) == 0
    assert "parts/" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("evaluator", "parts/no.py:Invented", "there is no file {folder}/parts/no.py"),
        ("evaluator", "parts/runs.py:Absent", "the module has no 'Absent' (allowed: ACCURACY,"),
        (
            "evaluator",
            "parts/runs.py:Joules",
            "Joules is no evaluator: it has to derive from Evaluator (",
        ),
        ("evaluator", "parts/runs.py:draws", "draws is no class, and every evaluator derives from Evaluator"),
        ("evaluator", "parts/half.py:Half", "Half leaves abstract: __call__, description, facts, fingerprints, price"),
        ("evaluator", "parts/broken.py:Half", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("evaluator", "parts/typo.py:Half", "SyntaxError: invalid syntax (typo.py, line 1)"),
        ("evaluator", "parts.nowhere:Half", "ModuleNotFoundError: No module named 'parts'"),
        ("sampler", "parts/half.py:two", "two has to take 1 positional objects: context"),
        ("sampler", "parts/half.py:three", "3 is of type int, and every sampler is a function"),
        ("sampler", "parts/half.py:odd", "its options cannot be read: NameError: name 'Nowhere' is not defined"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_told(folder: Path, key: str, name: str, expected: str) -> None:
    (folder / "parts" / "half.py").write_text(
        "from __future__ import annotations\n"
        "from kdnas.workshop.evaluators import Evaluator\n"
        "class Half(Evaluator):\n    quantities = {}\n"
        "def two(one, other): ...\n"
        "three = 3\n"
        "def odd(context, *, setting: Nowhere = 1): ...\n"
    )
    (folder / "parts" / "broken.py").write_text("one = 1\ntwo = one / 0\n")
    (folder / "parts" / "typo.py").write_text("class = 3\n")
    registries = {"evaluator": "evaluators", "sampler": "samplers"}
    from kdnas.study.members import registry_of

    (plugin,) = plugins_named(adopted({key: name}, folder))
    (problem,) = registry_of(registries[key]).problems(plugin.spec, {})
    assert expected.format(folder=folder) in f"{problem.what} (allowed: {problem.allowed})"


def test_all_problems_of_a_study_are_told_at_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "study.yaml").write_text(
        yaml.safe_dump(
            {
                **STUDY,
                "evaluator": {"type": "parts/runs.py:Invented", "bets": 1},
                "costs": {"joule": {"type": "parts/runs.py:Joules"}},
                "sampler": "parts/none.py:draws",
                "distillation": {"losses": [{"type": "parts/runs.py:Joules"}]},
                "export": {"formats": ["parts/runs.py:missing", "safetenors"]},
            }
        )
    )
    assert main(["validate", str(folder)]) == 2
    printed = capfd.readouterr().err
    for line in (
        "evaluator.bets: unknown key; did you mean 'best'?",
        "costs.joule: parts/runs.py:Joules is the cost joules: state it under that name",
        f"there is no file {folder}/parts/none.py",
        "distillation.losses.0.type: parts/runs.py:Joules: Joules is no loss: it has to derive from DistillationLoss",
        "export.formats.0: 'parts/runs.py:missing': the module has no 'missing'",
        "export.formats.1: no export format is called 'safetenors'; did you mean 'safetensors'?",
        "objectives.1: no quantity is called 'joules'",
    ):
        assert line in printed, (line, printed)


def test_names_are_resolved_beside_what_names_them(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "mod.py").write_text("")
    assert resolved_name("kd", tmp_path) == "kd"
    assert resolved_name("nni:TPE", tmp_path) == "nni:TPE"
    assert resolved_name("a/b.py:C", tmp_path) == f"{tmp_path}/./a/b.py:C"
    assert resolved_name("../b.py:C", tmp_path) == f"{tmp_path.parent}/./b.py:C"
    assert resolved_name(f"{tmp_path}/b.py:C", Path("/nowhere")) == f"{tmp_path}/./b.py:C"
    assert resolved_name("pack.mod:C", tmp_path) == f"{tmp_path}/./pack/mod.py:C"
    assert resolved_name("pack:C", tmp_path) == f"{tmp_path}/./pack/__init__.py:C"
    assert resolved_name("optuna.samplers:RandomSampler", tmp_path) == "optuna.samplers:RandomSampler"
    again = resolved_name("a/b.py:C", tmp_path)
    assert resolved_name(again, Path("/elsewhere")) == again
    assert short_name(again) == "a/b.py:C"
    assert Arch.of(again, {"x": 1}).arch_id == Arch.of("a/b.py:C", {"x": 1}).arch_id


def test_every_place_that_names_a_member_is_known(tmp_path: Path) -> None:
    settings = {
        "evaluator": "f.py:a",
        "data": {"type": "f.py:b", "size": 3},
        "teacher": {"type": "student", "family": "f.py:c"},
        "distillation": {"losses": [{"type": "kd"}, {"type": "f.py:d", "weight": 2}]},
        "costs": {"joules": {"type": "f.py:g"}, "latency_ms": {"target": "f.py:h"}},
        "sampler": {"type": "nni:TPE"},
        "executor": {"type": "f.py:i"},
        "export": {"formats": ["safetensors", "f.py:j"]},
        "family": "f.py:k",
        "trackers": ["jsonl", {"type": "f.py:l"}],
    }
    found = plugins_named(resolved(settings, tmp_path))
    assert sorted(short_name(plugin.spec) for plugin in found) == [f"f.py:{letter}" for letter in "abcdghijkl"]
    options = {plugin.where: plugin.options for plugin in found}
    assert options["data.type"] == {"size": 3}
    assert options["distillation.losses.1.type"] == {"weight": 2}
    assert resolved({"data": "digits", "rungs": []}, tmp_path) == {"data": "digits", "rungs": []}


def test_a_registry_runs_no_code_that_nobody_vouches_for(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("raise SystemExit('ran')")
    spec = resolved_name("f.py:Loss", tmp_path)
    (problem,) = LOSSES.problems(spec, {})
    assert "no study of yours" in problem.what
    plugins.vouch([spec])
    (problem,) = LOSSES.problems(spec, {})
    assert "it ends the program" in problem.what


def test_a_changed_file_is_imported_anew_and_hashed_anew(tmp_path: Path) -> None:
    body = (
        "from kdnas.costs import CheapCost\n"
        "class Mine(CheapCost):\n    quantity = {}\n    def value(self, price): return {}\n"
    )
    file = tmp_path / "f.py"
    file.write_text(body.format(1, 1))
    settings = adopted({"costs": {"x": {"type": "f.py:Mine"}}}, tmp_path)
    (plugin,) = plugins_named(settings)
    before = code_fingerprints(settings)
    assert COSTS.build(plugin.spec).value(None) == 1
    file.write_text(body.format(1, 22))
    assert COSTS.build(plugin.spec).value(None) == 22
    assert code_fingerprints(settings).keys() == before.keys() == {"f.py"}
    assert code_fingerprints(settings) != before


def test_what_a_constructor_raises_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "from kdnas.costs import CheapCost\n"
        "class Mine(CheapCost):\n"
        "    quantity = None\n"
        "    def __init__(self): {}['x']\n"
        "    def value(self, price): return 1\n"
    )
    (plugin,) = plugins_named(adopted({"costs": {"x": {"type": "f.py:Mine"}}}, tmp_path))
    with pytest.raises(ConfigError, match=r"cost f.py:Mine: fails: KeyError: 'x' \(f.py, line 4, in __init__\)"):
        COSTS.build(plugin.spec)


def test_a_family_is_told_its_name(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("from kdnas.students.resnet import ResNet\nclass Mine(ResNet):\n    '''Mine.'''\n")
    (plugin,) = plugins_named(adopted({"family": "f.py:Mine"}, tmp_path))
    family = STUDENTS.get(plugin.spec)
    stage = {"depth": 1, "width": 4, "bottleneck": "plain", "skip": "none"}
    choices = {"stem_width": 4, **{f"stage1.{name}": value for name, value in stage.items()}}
    assert family.canonical(choices).family == plugin.spec
    assert STUDENTS.get("resnet").name == "resnet"


def test_entry_points_are_held_to_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [SimpleNamespace(name="foreign", load=lambda: dict)]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: entries if group == "kdnas.losses" else [])
    registry._entry_points.cache_clear()
    (problem,) = LOSSES.problems("foreign", {})
    assert problem.what.startswith("foreign: dict is no loss: it has to derive from DistillationLoss")
    monkeypatch.undo()
    registry._entry_points.cache_clear()
