"""Code that a file names: whose it is, and what a user trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdnas.trust import code_named, config_dir, is_signed, is_trusted, signature_line, strange_code, trust

SETTINGS = {
    "data": {"type": "module", "function": "data.py:load", "options": {"size": 8}},
    "teacher": {"type": "module", "factory": "os:system", "arguments": {"command": "true"}},
    "evaluator": {"type": "distil"},
}


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def test_every_function_that_settings_name_is_found(tmp_path: Path) -> None:
    data, teacher = code_named(SETTINGS)
    assert data.in_words(tmp_path) == f"data.function: data.py:load(size=8) in {tmp_path / 'data.py'}"
    assert teacher.in_words(tmp_path) == "teacher.factory: os:system(command='true')"
    evaluator = {"evaluator": {"type": "module", "function": "a:b", "price": "c:d"}}
    assert [code.where for code in code_named(evaluator)] == ["evaluator.function", "evaluator.price"]
    given = {"type": "module", "function": "heard.py:load"}
    teachers = {
        "teacher": {"data": given},
        "teachers": {"a": {"data": given}},
        "further_teachers": {"b": {"data": given}},
    }
    assert [code.where for code in code_named(teachers)] == [
        "teacher.data.function",
        "teachers.a.data.function",
        "further_teachers.b.data.function",
    ]
    assert code_named({"data": {"type": "digits"}, "teacher": None, "evaluator": {"type": "distil"}}) == []


def test_a_signature_is_this_users_and_of_this_code_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = f"# header\n{signature_line(SETTINGS)}name: x\n"
    assert is_signed(text, code_named(SETTINGS))
    assert signature_line(SETTINGS) == signature_line(dict(SETTINGS))
    for section, key, value in (
        ("teacher", "factory", "os:popen"),
        ("teacher", "arguments", {}),
        ("data", "function", "b:c"),
    ):
        changed = {**SETTINGS, section: {**SETTINGS[section], key: value}}
        assert not is_signed(text, code_named(changed))
    assert not is_signed("# header\nname: x\n", code_named(SETTINGS))
    assert (config_dir() / "signing.key").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "somebody else"))
    assert not is_signed(text, code_named(SETTINGS))  # no key yet
    signature_line(SETTINGS)
    assert not is_signed(text, code_named(SETTINGS))


def test_settings_without_code_make_no_key(own_config: Path) -> None:
    assert signature_line({"data": {"type": "digits"}}) == ""
    assert not own_config.exists()


def test_where_no_key_can_be_kept_nothing_is_signed(own_config: Path) -> None:
    own_config.write_text("a file in the folder's place")
    assert signature_line(SETTINGS) == ""
    trust(own_config, code_named(SETTINGS), own_config)
    assert not is_trusted(own_config, code_named(SETTINGS), own_config)


def test_trust_is_remembered_for_this_place_code_and_data_root(tmp_path: Path) -> None:
    named = code_named(SETTINGS)
    trust(tmp_path / "run", named, tmp_path)
    assert is_trusted(tmp_path / "run", named, tmp_path)
    assert not is_trusted(tmp_path / "other", named, tmp_path)
    assert not is_trusted(tmp_path / "run", named[:1], tmp_path)
    assert not is_trusted(tmp_path / "run", named, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"executor": {"type": "ray", "address": "ray://evil:10001"}}, "executor.address: ray://evil:10001"),
        ({"executor": {"type": "ray", "runtime_env": {"py_executable": "sh -c evil"}}}, "executor.runtime_env: {"),
        ({"store": "s3://evil/bucket"}, "store: s3://evil/bucket"),
    ],
)
def test_machines_that_a_strangers_file_names_are_not_reached(settings, words, tmp_path, monkeypatch):
    source = tmp_path / "study.lock.yaml"
    source.write_text("name: x\n")
    (found,) = strange_code(source, settings, tmp_path)
    assert found.in_words(tmp_path).startswith(words)
    source.write_text(signature_line(settings))
    assert strange_code(source, settings, tmp_path) == []
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "another user"))
    assert strange_code(source, settings, tmp_path) == [found]
    assert strange_code(source, {"executor": {"type": "ray", "address": "local", "workers": 2}}, tmp_path) == []
