"""`kdnas doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import platform
import shutil
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdnas.cli._options import DataRoot, Json
from kdnas.machine import free_memory_bytes, usable_cores

State = Literal["ok", "warn", "missing", "broken"]

_COLOURS = {
    "ok": typer.colors.GREEN,
    "warn": typer.colors.YELLOW,
    "missing": typer.colors.YELLOW,
    "broken": typer.colors.RED,
}
_LITTLE_DISK_BYTES = 2 * 2**30
_LITTLE_MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One finding. `broken` is required and does not work; `missing` is optional and not there."""

    name: str
    state: State
    found: str
    remedy: str = ""


# Package -> (extra that installs it, what it is for).
_EXTRAS = {
    "torchvision": ("vision", "teacher: torchvision"),
    "timm": ("vision", "teacher: timm"),
    "transformers": ("hf", "teacher: huggingface"),
    "pyarrow": ("parquet", "data: parquet"),
    "onnx": ("onnx", "export to ONNX"),
    "onnxscript": ("onnx", "export to ONNX"),
    "onnxruntime": ("onnx", "the check of an ONNX export"),
    "openvino": ("openvino", "export to OpenVINO"),
    "executorch": ("executorch", "export to ExecuTorch"),
    "optuna_dashboard": ("dashboard", "optuna-dashboard on a study.db"),
    "ray": ("ray", "executor: ray"),
    "psycopg": ("postgres", "trials in a PostgreSQL database"),
    "s3fs": ("s3", "a store on S3"),
}

_CORE = ("optuna", "fvcore", "pandas", "plotly", "pydantic", "yaml", "safetensors", "sklearn", "PIL")


def command(
    data_root: DataRoot = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that run folders are made in.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """Check what works on this machine.

    Prints one line a check, with a remedy where something is wrong. Ends with status 1 only when something that every
    search needs is broken.

    Examples:
      kdnas doctor
      kdnas doctor --data-root /data --json
    """
    checks = []
    for check in _checks(data_root, out):
        checks.append(check)
        if not as_json:
            typer.echo(_line(check))
    broken = sum(check.state == "broken" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        typer.echo(f"\n{broken} broken" if broken else "\nkdnas can run here.")
    if broken:
        raise typer.Exit(1)


def _checks(data_root: Path | None, out: Path) -> Iterator[Check]:
    yield check_python()
    torch_works = False
    for check in _torch_checks():
        torch_works |= check.name == "torch" and check.state == "ok"
        yield check
    yield check_memory()
    for package in _CORE:
        yield check_import(package, required=True)
    yield check_nni()
    for package in _EXTRAS:
        yield check_import(package, required=False)
    yield check_sqlite()
    if not torch_works:
        return  # what opens data and folders needs torch
    from kdnas.workshop.opening import cache_dir
    from kdnas.workshop.opening import data_root as resolved_data_root

    yield check_folder("cache", cache_dir(), "set KDNAS_CACHE to a folder you may write to")
    yield check_folder("run folder", out, "give `kdnas search` another --out")
    yield check_data_root(resolved_data_root(data_root))


def check_python() -> Check:
    """Return which Python runs."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_import(package: str, *, required: bool) -> Check:
    """Return whether `package` really imports: an installed one can still be unusable."""
    extra, purpose = _EXTRAS.get(package, ("", ""))
    install = f"pip install 'kdnas[{extra}]'" if extra else "pip install --force-reinstall kdnas"
    try:
        with _quiet():
            module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            found = f"not installed (for {purpose})" if purpose else "not installed"
            return Check(package, "broken" if required else "missing", found, install)
        return Check(package, "broken" if required else "warn", f"needs {error.name}, which is not installed", install)
    except Exception as error:
        message = str(error).partition("\n")[0]
        return Check(
            package,
            "broken" if required else "warn",
            f"{type(error).__name__}: {message}",
            _remedy(str(error), install),
        )
    return Check(package, "ok", getattr(module, "__version__", "imports"))


def _remedy(message: str, install: str) -> str:
    if "torchvision::nms" in message:
        return (
            "torch and torchvision come from different builds (a CPU-only torch with the default torchvision, or the "
            "reverse): reinstall both from one index, such as pip install --force-reinstall torch torchvision"
        )
    return f"reinstall it: {install}"


def check_nni() -> Check:
    """Return whether NNI imports, and the filelock release it pins."""
    check = check_import("nni", required=False)
    if check.state != "ok":
        return Check("nni", "warn", check.found, "only samplers and executors of NNI need it: pip install 'nni>=3.0'")
    filelock = _version("filelock")
    if filelock and tuple(int(part) for part in filelock.split(".")[:2]) >= (3, 12):
        remedy = "pip install 'filelock<3.12' where you use executor: nni"
        return Check("nni", "warn", f"{check.found} with filelock {filelock}; NNI asks for filelock<3.12", remedy)
    return Check("nni", "ok", f"{check.found}, which holds filelock at {filelock} (<3.12)")


def check_memory() -> Check:
    """Return the cores this process may use and the free memory."""
    cores, free = usable_cores(), free_memory_bytes()
    if free is None:
        return Check("machine", "ok", f"{cores} cores")
    found = f"{cores} cores, {free / 2**30:.1f} GiB memory free"
    if free < _LITTLE_MEMORY_BYTES:
        return Check("machine", "warn", found, "each worker takes about 1 GiB: search with --workers 1")
    return Check("machine", "ok", found)


def _torch_checks() -> Iterator[Check]:
    check = check_import("torch", required=True)
    yield check
    if check.state != "ok":
        return
    import torch

    from kdnas.training.numerics import bfloat16_is_native

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            precision = _auto_precision(bfloat16_is_native(torch.device("cuda", index)))
            found = f"{device.name}, {device.total_memory / 2**30:.0f} GiB; {precision}"
            yield Check(f"cuda:{index}", "ok", found)
    elif torch.version.cuda:
        yield Check(
            "cuda", "missing", "no CUDA device is seen", "students train on the CPU; a GPU needs NVIDIA's driver"
        )
    else:
        yield Check(
            "cuda", "missing", "this torch is built for the CPU only", "pip install torch, the default build, for a GPU"
        )
    yield check_bfloat16()


def check_bfloat16() -> Check:
    """Return how much faster a small convolution trains in bfloat16 on this CPU, measured in a tenth of a second."""
    import torch

    from kdnas.training.numerics import bfloat16_is_native, bfloat16_speed

    speed = f"bfloat16 trains at {bfloat16_speed():.1f} times the speed of float32"
    precision = _auto_precision(bfloat16_is_native(torch.device("cpu")))
    return Check("cpu", "ok", f"{torch.backends.cpu.get_cpu_capability()}; {speed}; {precision}")


def _auto_precision(bfloat16: bool) -> str:
    return f"`precision: auto` is {'bfloat16' if bfloat16 else 'float32'}"


def check_sqlite() -> Check:
    """Return whether SQLite can hold a study here: a write-ahead log in a temporary folder, written and read back."""
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.closing(sqlite3.connect(Path(folder) / "t.db")) as database,
        ):
            mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            database.execute("CREATE TABLE t (x)")
            database.execute("INSERT INTO t VALUES (1)")
            database.commit()
            rows = database.execute("SELECT x FROM t").fetchall()
    except sqlite3.Error as error:
        return Check("sqlite", "broken", f"{sqlite3.sqlite_version}: {error}", "set TMPDIR to a local disk")
    if rows != [(1,)]:
        return Check("sqlite", "broken", f"{sqlite3.sqlite_version}: a row written was not read back", "check the disk")
    if mode != "wal":
        return Check(
            "sqlite",
            "warn",
            f"{sqlite3.sqlite_version}, no write-ahead log in {tempfile.gettempdir()}",
            "use a local disk",
        )
    return Check("sqlite", "ok", f"{sqlite3.sqlite_version}, write-ahead log works")


def check_folder(name: str, folder: Path, remedy: str) -> Check:
    """Return whether files can be made in `folder` (or the nearest existing one above it), and the space left."""
    folder = folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"kdnas")
    except OSError as error:
        return Check(name, "broken", f"{folder}: {error.strerror or error}", remedy)
    free = shutil.disk_usage(place).free
    found = f"{folder}, {free / 2**30:.0f} GiB free"
    if free < _LITTLE_DISK_BYTES:
        return Check(name, "warn", found, f"little space: {remedy}")
    return Check(name, "ok", found)


def check_data_root(root: Path) -> Check:
    """Return what lies in the data root."""
    remedy = "needed by data sets with files: use --data-root or KDNAS_DATA; `digits` needs none"
    try:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in root.iterdir())
    except FileNotFoundError:
        return Check("data root", "missing", f"there is no {root.absolute()}", remedy)
    except OSError as error:
        return Check("data root", "warn", f"{root.absolute()}: {error.strerror}", remedy)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return Check("data root", "ok", f"{root.absolute()}: {shown or 'empty'}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a package prints or warns while it is imported out of the output."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(check: Check) -> str:
    state = typer.style(f"{check.state:<7}", fg=_COLOURS[check.state], bold=True)
    remedy = f"\n{'':8}-> {check.remedy}" if check.remedy else ""
    return f"{state} {check.name:<16} {check.found}{remedy}"
