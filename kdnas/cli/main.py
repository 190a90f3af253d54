"""The command line: finds the verbs, runs one, and turns what went wrong into messages and an exit status.

A verb is a file of this package (`search.py` is `kdnas search`). It defines `command`, a typer-annotated function whose
docstring is the help, or `app`, a `typer.Typer` of sub-commands. Verb files import torch, optuna, pandas, plotly and
nni inside their functions only, so that `kdnas --help` answers at once.

Exit statuses: 0 done, 1 a run failed, 2 bad input, 130 interrupted, 143 and 129 stopped by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import kdnas.cli
from kdnas.cli._options import colour
from kdnas.cli._stopping import stopped_by_signals
from kdnas.core.words import printable
from kdnas.errors import InputError, KdnasError
from kdnas.outlets import lost_output, open_outlets, quiet_libraries
from kdnas.version import __version__

_HELP = """\
Search for the student networks that knowledge distillation trains best.

Bring a teacher, a data set and limits; get the students on the Pareto front of quality and cost, trained and exported.

\b
Start here:
  kdnas search studies/digits        a first search: 8x8 digits, no download, a minute or two
  kdnas init my-study                a commented study.yaml for your own teacher and data
  kdnas validate my-study            every problem of a study at once, with line numbers
  kdnas doctor                       what works on this machine, and why not

\b
Exit status: 0 done, 1 a run failed, 2 bad input, 130 interrupted (run it again to resume).
Environment: KDNAS_DATA (data root), KDNAS_CACHE (decoded data and teachers),
  KDNAS_CONFIG (which code you trust), KDNAS_STORAGE (a database that runs which are not yours may ask),
  KDNAS_DEBUG=1 (tracebacks), NO_COLOR.
Shell completion: kdnas --install-completion (or --show-completion, to look at it first).
"""


def verbs() -> list[str]:
    """Return the name of every verb, sorted: the files of this package that are not this one and not private."""
    names = {module.name for module in pkgutil.iter_modules(kdnas.cli.__path__)}
    return sorted(name for name in names if name != "main" and not name.startswith("_"))


def build_app() -> typer.Typer:
    """Return the whole command line. Raises TypeError where a verb file defines neither `command` nor `app`."""
    app = typer.Typer(
        name="kdnas",
        no_args_is_help=True,
        add_completion=True,
        context_settings={"max_content_width": 100},
        rich_markup_mode=None,  # plain help: quick, and the same in a terminal and in a file
        pretty_exceptions_enable=False,
    )
    app.callback(help=_HELP)(_program_options)
    for name in verbs():
        module = importlib.import_module(f"kdnas.cli.{name}")
        sub_commands: typer.Typer | None = getattr(module, "app", None)
        command: Callable[..., Any] | None = getattr(module, "command", None)
        if sub_commands is not None:
            app.add_typer(sub_commands, name=name, no_args_is_help=True)
        elif command is not None:
            app.command(name, help=help_text(inspect.getdoc(command) or ""), no_args_is_help=_needs_argument(command))(
                command
            )
        else:
            raise TypeError(f"kdnas/cli/{name}.py defines neither `command` nor `app`")
    return app


def help_text(docstring: str) -> str:
    """Return `docstring` as help: indented paragraphs (examples) keep their lines, others wrap to the terminal."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        f"\b\n{text}" if any(line.startswith(" ") for line in text.split("\n")) and not text.startswith("\b") else text
        for text in paragraphs
    )


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. `arguments` are those of the process unless given.

    A reader that leaves early, as in `kdnas search ... | head -1`, ends nothing.
    """
    open_outlets()
    quiet_libraries()
    code = main(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if lost := lost_output():
        _complain(f"standard output could not be written: {lost}")
        code = code or 1
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; every error has been printed on stderr."""
    with stopped_by_signals() as stops:
        return stops.status(_answer(arguments))


def _answer(arguments: Sequence[str]) -> int:
    try:
        build_app()(list(arguments), prog_name="kdnas")
    except SystemExit as finished:
        if blame := _blamed(finished):
            _complain(blame)
            return 2
        if isinstance(getattr(finished.__context__, "__cause__", None), KeyboardInterrupt):
            _print_interrupted()  # typer ends quietly; a verb that has printed it raises its own Exit
        return finished.code if isinstance(finished.code, int) else int(finished.code is not None)
    except KeyboardInterrupt:
        _print_interrupted()
        return 130
    except KdnasError as error:
        _show_traceback()
        problems = error.problems if isinstance(error, InputError) else (error,)
        for problem in problems:
            _complain(str(problem))
        return error.exit_code
    except OSError as error:
        _show_traceback()
        _complain(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        return 1
    except MemoryError:
        _show_traceback()
        _complain("out of memory")
        return 1
    except RecursionError as error:
        if not _show_traceback():
            _complain(_blamed(error) or "what was read is nested too deeply: a file of this study or run is damaged")
        return 2
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib before Python 3.13
            _show_traceback()
            _complain(f"links lead in a circle: {error}")
            return 2
        shown, blame = _show_traceback(), _blamed(error)
        if blame:
            _complain(blame)
            return 2
        if not shown:
            _complain(f"internal error: {type(error).__name__}: {error} (set KDNAS_DEBUG=1 for the traceback)")
        return 1
    return 0


def _print_interrupted() -> None:
    typer.echo("interrupted; the same command begins again, or goes on where it can", err=True)


def _blamed(error: BaseException) -> str:
    """Return that code of the user's own fails, and in which line; empty where it has no part in `error`."""
    if "kdnas.user_code" not in sys.modules:  # then none has run
        return ""
    from kdnas.user_code import blamed

    blame = blamed(error)
    return f"code of your own fails: {blame}" if blame else ""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdnas {__version__}")
        raise typer.Exit


def _program_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Take the options that stand before the verb."""


def _needs_argument(command: Callable[..., Any]) -> bool:
    parameters = inspect.signature(command).parameters.values()
    return any(parameter.default is inspect.Parameter.empty for parameter in parameters)


def _show_traceback() -> bool:
    if os.environ.get("KDNAS_DEBUG") != "1":
        return False
    traceback.print_exc()
    return True


def _complain(message: str) -> None:
    """Print one `error:` line on stderr."""
    typer.echo(
        f"{typer.style('error:', fg=typer.colors.RED, bold=True)} {printable(message)}", err=True, color=colour()
    )
