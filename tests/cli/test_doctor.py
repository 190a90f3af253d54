"""`kdnas doctor`: what works, what does not and why."""

from __future__ import annotations

import json
import sys
import types

import pytest

from kdnas.cli import doctor
from kdnas.cli.main import main


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package on the path whose import runs the given code."""

    def make(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return make


def test_this_machine(capsys, tmp_path):
    code = main(["doctor", "--json", "--data-root", str(tmp_path), "--out", str(tmp_path / "runs" / "deep")])
    printed = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in printed["checks"]}
    assert printed["ok"] == (code == 0) == all(check["state"] != "broken" for check in checks.values())
    for name in ("python", "torch", "cpu", "machine", "optuna", "nni", "sqlite", "cache", "run folder", "data root"):
        assert name in checks
    assert checks["torch"]["state"] == "ok"
    assert "times the speed of float32" in checks["cpu"]["found"]
    assert checks["data root"]["found"].endswith("empty")
    assert not (tmp_path / "runs").exists(), "looking leaves nothing behind"
    for check in checks.values():
        assert check["state"] == "ok" or check["remedy"]


def test_a_package_from_another_build_is_explained(package):
    name = package("torchvision_x", "raise RuntimeError('operator torchvision::nms does not exist')")
    check = doctor.check_import(name, required=False)
    assert check.state == "warn"
    assert "operator torchvision::nms does not exist" in check.found
    assert "different builds" in check.remedy
    assert doctor.check_import(name, required=True).state == "broken"


def test_a_missing_extra_names_its_install(monkeypatch):
    monkeypatch.setitem(doctor._EXTRAS, "no_such_package_x", ("hf", "teacher: huggingface"))
    check = doctor.check_import("no_such_package_x", required=False)
    assert (check.state, check.remedy) == ("missing", "pip install 'kdnas[hf]'")
    assert "teacher: huggingface" in check.found


def test_a_package_whose_own_dependency_is_missing_says_which(package):
    check = doctor.check_import(package("half_x", "import no_such_dependency_x"), required=False)
    assert check.state == "warn"
    assert check.found == "needs no_such_dependency_x, which is not installed"


def test_what_a_package_prints_while_it_is_imported_is_kept_out(package, capsys):
    check = doctor.check_import(package("loud_x", "print('noise'); __version__ = '1.2'"), required=True)
    assert (check.state, check.found) == ("ok", "1.2")
    assert capsys.readouterr().out == ""


def test_the_filelock_that_nni_cannot_use_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nni", types.SimpleNamespace(__version__="3.0"))
    monkeypatch.setattr(doctor, "_version", lambda package: "3.20.1")
    check = doctor.check_nni()
    assert check.state == "warn"
    assert "filelock 3.20.1" in check.found
    monkeypatch.setattr(doctor, "_version", lambda package: "3.11.0")
    assert doctor.check_nni().state == "ok"


def test_folders(tmp_path, monkeypatch):
    assert doctor.check_folder("cache", tmp_path / "a" / "b", "x").state == "ok"
    file = tmp_path / "file"
    file.write_text("")
    broken = doctor.check_folder("cache", file, "set KDNAS_CACHE")
    assert (broken.state, broken.remedy) == ("broken", "set KDNAS_CACHE")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=2**20))
    assert doctor.check_folder("cache", tmp_path, "x").state == "warn"


def test_the_data_root(tmp_path):
    assert doctor.check_data_root(tmp_path / "absent").state == "missing"
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
    assert doctor.check_data_root(tmp_path).found.endswith("a/, b/, c/, d/, e/, f/, g/, h/ and 2 more")


def test_a_machine_that_cannot_run_ends_with_1(monkeypatch, capsys):
    broken = doctor.Check("sqlite", "broken", "3.0: disk I/O error", "set TMPDIR to a local disk")
    monkeypatch.setattr(doctor, "_checks", lambda data_root, out: iter([broken]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "broken  sqlite           3.0: disk I/O error\n        -> set TMPDIR to a local disk\n\n1 broken\n"
    )
