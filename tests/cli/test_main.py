"""The frame of the command line: verbs, help, errors as messages, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import kdnas.cli
from kdnas import __version__
from kdnas.cli.main import build_app, help_text, main, verbs
from kdnas.errors import ConfigError, Problem, RunError


@pytest.fixture
def verb(monkeypatch):
    """Add a verb `broken` that does what the test says."""

    def add(action):
        module = types.ModuleType("kdnas.cli.broken")
        module.command = action
        monkeypatch.setitem(sys.modules, "kdnas.cli.broken", module)
        monkeypatch.setattr("kdnas.cli.main.verbs", lambda: ["broken", "list"])

    return add


def raising(error: BaseException):
    def command() -> None:
        """Fail."""
        raise error

    return command


def test_every_file_of_the_package_is_a_verb_with_help(capsys):
    files = {path.stem for path in Path(kdnas.cli.__path__[0]).glob("*.py")}
    assert verbs() == sorted(name for name in files if not name.startswith("_") and name != "main")
    assert {"doctor", "init", "list", "search", "validate"} <= set(verbs())
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in verbs():
        line = next((line for line in shown.splitlines() if line.startswith(f"  {name} ")), "")
        assert len(line.split()) > 3, f"{name} has no line of help"


def test_help_of_every_verb_can_be_shown(capsys):
    for name in verbs():
        assert main([name, "--help"]) == 0
        assert f"kdnas {name}" in capsys.readouterr().out


def test_examples_keep_their_lines():
    text = help_text("Do it.\n\nWrapped\nprose.\n\nExamples:\n  kdnas a\n  kdnas b")
    assert text == "Do it.\n\nWrapped\nprose.\n\n\b\nExamples:\n  kdnas a\n  kdnas b"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdnas {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["nonsense"], ["list", "nonsense"], ["validate"], ["list", "--x"]]
)
def test_a_usage_error_exits_2_and_says_something(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out + captured.err


def test_each_problem_is_one_line_on_stderr(verb, capsys):
    verb(
        raising(ConfigError([Problem("a.yaml:3: b", "is [red]bad[/red]\nreally", "1, 2"), Problem("", "more\x1b[2J")]))
    )
    assert main(["broken"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: a.yaml:3: b: is [red]bad[/red] really (allowed: 1, 2)",
        "error: more",
    ]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunError("every trial failed"), 1, "error: every trial failed\n"),
        (OSError(28, "No space left on device", "/x"), 1, "error: No space left on device: /x\n"),
        (
            ZeroDivisionError("oh"),
            1,
            "error: internal error: ZeroDivisionError: oh (set KDNAS_DEBUG=1 for the traceback)\n",
        ),
        (
            RuntimeError("Symlink loop from '/a'"),
            2,
            "error: links lead in a circle: Symlink loop from '/a'\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command begins again, or goes on where it can\n"),
    ],
)
def test_what_goes_wrong_becomes_one_line_and_a_status(verb, capsys, monkeypatch, error, code, message):
    monkeypatch.delenv("KDNAS_DEBUG", raising=False)
    verb(raising(error))
    assert main(["broken"]) == code
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback(verb, capsys, monkeypatch):
    monkeypatch.setenv("KDNAS_DEBUG", "1")
    verb(raising(ZeroDivisionError("oh")))
    assert main(["broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_verb_file_that_defines_no_verb_is_a_mistake_of_kdnas(monkeypatch):
    monkeypatch.setitem(sys.modules, "kdnas.cli.broken", types.ModuleType("kdnas.cli.broken"))
    monkeypatch.setattr("kdnas.cli.main.verbs", lambda: ["broken"])
    with pytest.raises(TypeError, match="defines neither"):
        build_app()


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "kdnas", "--version"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""


@pytest.mark.parametrize(("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_no_color_is_heeded_on_a_terminal(tmp_path, settings, coloured):
    ours, theirs = os.openpty()
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-m", "kdnas", "validate", str(tmp_path / "absent")],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**plain, "TERM": "xterm", **settings}, check=False,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "error:" in shown
    assert ("\x1b[" in shown) == coloured


def test_completion_knows_verbs_and_members_and_imports_no_framework(tmp_path):
    script = (
        "import sys\nfrom kdnas.cli.main import main\ncode = main([])\n"
        "heavy = {'torch', 'optuna', 'pandas', 'plotly', 'nni', 'rich', 'yaml', 'kdnas.record'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)\n"
    )
    for words, expected in (("kdnas se", "search"), ("kdnas list los", "losses"), ("kdnas search --wor", "--workers")):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, "_KDNAS_COMPLETE": "complete_bash", "COMP_WORDS": words,
                 "COMP_CWORD": str(len(words.split()) - 1)},
        )  # fmt: skip
        assert done.stdout.split() == [expected]
        assert done.stderr == "0 []\n"


def test_the_module_and_its_exit_status_are_those_of_a_process(kdnas, tmp_path):
    code, stdout, stderr = kdnas("validate", tmp_path / "absent")
    assert (code, stdout) == (2, "")
    assert stderr == f"error: {tmp_path / 'absent'}: there is no such folder or file\n"
