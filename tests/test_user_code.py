"""Code that the user named: found with what stands beside it, kept apart from everything else, or refused in words."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnas.errors import ConfigError
from kdnas.user_code import UserCodeFailed, load_user_function


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_file_and_a_module_give_their_function(tmp_path):
    _write(tmp_path, {"mine.py": "def build():\n    return 7\n", "my.nets-2.py": "def build():\n    return 8\n"})
    assert load_user_function("mine.py:build", tmp_path)() == 7
    assert load_user_function("my.nets-2.py:build", tmp_path)() == 8
    assert load_user_function("json:dumps", tmp_path)([1]) == "[1]"


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        (
            "import sys\nsys.exit('usage: train.py')\n",
            "mine.py:build",
            r"imported: SystemExit: usage.*mine.py, line 2\)",
        ),
        ("\n1 / 0\n", "mine.py:build", r"cannot be imported: ZeroDivisionError: .*\(mine.py, line 2\)"),
        ("def build(): pass\n", "mine.py:other", "has no 'other'.*build"),
        ("build = 3\n", "mine.py:build", "not a function but of type int"),
        ("import gone.deep\n", "mine.py:build", r"No module named 'gone' \(mine.py, line 1\)"),
        ("from .gone import x\n", "mine.py:build", r"No module named 'gone' \(mine.py, line 1\)"),
        ("", "absent.py:build", "there is no file"),
        ("", "absent.module:build", "No module named 'absent'"),
        ("", "mine.py", "is not module:function"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, text, spec, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_user_function(spec, tmp_path)


V = "value = 7\n"
B = "def build():\n    return value\n"
USE = "from utils import value\n" + B
APART = "import sys, os\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'lib'))\n"
LATE = "def build():\n    from utils import value\n    return value\n"
NAMED = f"import importlib\nvalue = importlib.import_module('utils').value\n{B}"
LAYOUTS = {
    "a sibling": ("nets/teacher.py:build", {"nets/teacher.py": USE, "nets/utils.py": V}),
    "a module of the data root": ("nets/teacher.py:build", {"nets/teacher.py": USE, "utils.py": V}),
    "a relative import": (
        "nets/teacher.py:build",
        {"nets/teacher.py": "from .utils import value\n" + B, "nets/utils.py": V},
    ),
    "a package beside it": (
        "teacher.py:build",
        {
            "teacher.py": "import models.deep.net as net\nvalue = net.value\n" + B,
            "models/__init__.py": "",
            "models/deep/net.py": "from ..low import value\n",
            "models/low.py": V,
        },
    ),
    "a file inside a package": (
        "pkg/sub/teacher.py:build",
        {
            "pkg/__init__.py": "",
            "pkg/sub/__init__.py": "",
            "pkg/sub/teacher.py": "from ..low import value\n" + B,
            "pkg/low.py": "from pkg.lower import value\n",
            "pkg/lower.py": V,
        },
    ),
    "a dotted module": (
        "models.resnet:build",
        {"models/resnet.py": "from models.low import value\n" + B, "models/low.py": V},
    ),
    "a dotted module of a package": (
        "models.resnet:build",
        {
            "models/__init__.py": "from . import low\n",
            "models/resnet.py": "from .low import value\n" + B,
            "models/low.py": V,
        },
    ),
    "a package": ("models:build", {"models/__init__.py": "from .low import value\n" + B, "models/low.py": V}),
    "a name of an installed package": (
        "teacher.py:build",
        {"teacher.py": "from timm import value\n" + B, "timm.py": V},
    ),
    "a name of the standard library": (
        "teacher.py:build",
        {"teacher.py": "from test import value\n" + B, "test.py": V},
    ),
    "a folder named like an installed package": (
        "timm.nets:build",
        {"timm/nets.py": "import timm\nvalue = 7 if hasattr(timm, 'create_model') else 8\n" + B},
    ),
    "an import when it runs": ("teacher.py:build", {"teacher.py": LATE, "utils.py": V}),
    "importlib": ("teacher.py:build", {"teacher.py": NAMED, "utils.py": V}),
    "a path of its own": ("nets/teacher.py:build", {"nets/teacher.py": APART + USE, "lib/utils.py": V}),
    "a path of its own, used when it runs": (
        "nets/teacher.py:build",
        {"nets/teacher.py": APART + LATE, "lib/utils.py": V},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stands_beside_the_code_is_importable_and_nobody_else_sees_it(tmp_path, layout):
    spec, files = LAYOUTS[layout]
    path, modules = list(sys.path), dict(sys.modules)
    assert load_user_function(spec, _write(tmp_path, files))() == 7
    assert sys.path == path
    new = {name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))}
    assert all(name.startswith("kdnas.user_code.of_") for name in new)
    assert all(sys.modules[name] is module for name, module in modules.items())


def test_two_studies_have_modules_of_their_own(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        _write(tmp_path / name, {"teacher.py": USE, "utils.py": f"value = {value}\n"})
    first, second = (load_user_function("teacher.py:build", tmp_path / name) for name in "ab")
    assert (first(), second(), first()) == (1, 2, 1)


def test_a_users_file_shadows_neither_the_standard_library_nor_kdnas(tmp_path):
    shadows = ("random", "statistics", "colorsys", "kdnas", "datasets", "utils")
    _write(tmp_path, {f"{name}.py": "raise RuntimeError('shadowed')\n" for name in shadows})
    text = "import random, colorsys\nimport kdnas\ndef build():\n    import statistics\n    return random, kdnas\n"
    (tmp_path / "teacher.py").write_text(text)
    sys.modules.pop("colorsys", None)
    found = load_user_function("teacher.py:build", tmp_path)()
    assert found[0] is random
    assert found[1] is sys.modules["kdnas"]
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)


def test_an_import_long_after_the_call_still_finds_the_sibling(tmp_path):
    net = "class Net:\n    def forward(self):\n        from utils import value\n        return value\n"
    _write(tmp_path, {"teacher.py": net + "def build(): return Net()\n", "utils.py": V})
    assert load_user_function("teacher.py:build", tmp_path)().forward() == 7


def test_a_changed_file_is_read_again(tmp_path):
    _write(tmp_path, {"teacher.py": "import utils\ndef build(): return utils.value\n", "utils.py": "value = 1\n"})
    assert load_user_function("teacher.py:build", tmp_path)() == 1
    (tmp_path / "utils.py").write_text("value = 2 # mended\n")
    assert load_user_function("teacher.py:build", tmp_path)() == 2


def test_an_object_of_the_users_reaches_a_process_started_anew(tmp_path):
    _write(tmp_path, {"data.py": "class Data:\n    value = 7\ndef build(): return Data()\n"})
    made = load_user_function("data.py:build", tmp_path)()
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).value)"
    process = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(made), capture_output=True, check=True)
    assert process.stdout == b"7\n"


CHANGES = {
    "gradients on or off": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "inference mode": ("held.append(torch.inference_mode()); held[-1].__enter__()", torch.is_inference_mode_enabled),
    "the default dtype": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "the default device": ("torch.set_default_device('meta')", lambda: torch.zeros(1).device),
    "the number of threads": ("torch.set_num_threads(3)", torch.get_num_threads),
    "deterministic algorithms": (
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
    ),
    "anomaly detection": ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled),
    "flushing of subnormal numbers": ("torch.set_flush_denormal(True)", lambda: (torch.full((1,), 1e-40) * 1).item()),
    "cudnn.benchmark": ("torch.backends.cudnn.benchmark = True", lambda: torch.backends.cudnn.benchmark),
    "cudnn.deterministic": ("torch.backends.cudnn.deterministic = True", lambda: torch.backends.cudnn.deterministic),
    "cudnn.enabled": ("torch.backends.cudnn.enabled = False", lambda: torch.backends.cudnn.enabled),
    "float32's precision": ("torch.set_float32_matmul_precision('medium')", torch.get_float32_matmul_precision),
    "autocast on cpu": ("torch.autocast('cpu').__enter__()", lambda: torch.is_autocast_enabled("cpu")),
    "torch's random seed": ("torch.manual_seed(5); random.seed(5); np.random.seed(5)", torch.initial_seed),
    "warning filters": ("warnings.simplefilter('error')", lambda: list(warnings.filters)),
    "the handler of SIGTERM": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "the working folder": ("os.chdir('/')", Path.cwd),
    "environment variables": (
        "os.environ['CUDA_VISIBLE_DEVICES'] = '3'",
        lambda: os.environ.get("CUDA_VISIBLE_DEVICES"),
    ),
    "NumPy's error handling": ("np.seterr(all='raise')", np.geterr),
    "garbage collection": ("import gc; gc.disable()", lambda: importlib.import_module("gc").isenabled()),
    "logging": ("import logging; logging.disable(50)", lambda: importlib.import_module("logging").root.manager.disable),
}


@pytest.mark.parametrize("when", ["imported", "called", "called, then it raises"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_code_sets_for_the_process_is_put_back_and_said(tmp_path, change, when):
    line, read = CHANGES[change]
    imports = "import os, random, signal, warnings\nimport numpy as np\nimport torch; held = []\n"
    body = {"imported": f"{line}\ndef build(): pass\n", "called": f"def build():\n    {line}\n"}
    body["called, then it raises"] = f"def build():\n    {line}\n    raise ValueError('late')\n"
    (tmp_path / "mine.py").write_text(imports + body[when])
    before = read()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    function = load_user_function("mine.py:build", tmp_path)
    if when.endswith("raises"):
        with pytest.raises(UserCodeFailed, match=r"fails: ValueError: late \(mine.py, line 6, in build\)"):
            function()
    else:
        function()
    assert read() == before
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    (note,) = function.notes
    assert change in note


@pytest.mark.parametrize("when", ["imported", "called"])
def test_an_autocast_left_open_keeps_no_old_weights_for_the_trainings_that_follow(tmp_path, when):
    line = "torch.autocast('cpu').__enter__()"
    body = f"{line}\ndef build(): pass\n" if when == "imported" else f"def build():\n    {line}\n"
    (tmp_path / "mine.py").write_text(f"import torch\n{body}")
    load_user_function("mine.py:build", tmp_path)()
    layer, ones = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    seen = []
    for value in (1.0, 2.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen.append(float(layer(ones).detach()))
    assert seen == [1.0, 2.0]


def test_code_that_changes_nothing_has_no_notes(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef build():\n    print('built')\n    return torch.rand(3)\n")
    function = load_user_function("mine.py:build", tmp_path)
    function()
    assert function.notes == ()


def test_what_the_module_set_holds_when_its_function_runs(tmp_path):
    """A seed at the top of the file decides what its function draws, whoever draws in between."""
    text = "import os, random, numpy as np, torch\nrandom.seed(1); np.random.seed(1); torch.manual_seed(1)\n"
    text += "torch.set_default_dtype(torch.float64)\nos.chdir('/')\n"
    text += "def build(): return random.random(), np.random.rand(), torch.rand(()).item(), os.getcwd()\n"
    (tmp_path / "mine.py").write_text(text)
    drawn = []
    for _ in range(2):
        function = load_user_function("mine.py:build", tmp_path)
        torch.rand(3)
        random.random()
        drawn += [function(), function()]
    assert drawn[0] == drawn[2]  # asked for again, it begins again
    assert drawn[1] == drawn[3] != drawn[0]  # its next call draws on
    expected = (
        np.random.RandomState(1).rand(),
        torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    assert drawn[0] == (random.Random(1).random(), expected[0], expected[1].item(), "/")


def test_prints_of_the_code_are_not_results(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("print('loading')\ndef build(): print('built')\n")
    load_user_function("mine.py:build", tmp_path)()
    assert capsys.readouterr() == ("", "loading\nbuilt\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", r"'mine.py:build' fails: KeyError: 'x' \(mine.py, line 3, in build\)"),
        ("import sys; sys.exit(2)", r"fails: SystemExit: 2: it ends the program .*\(mine.py, line 3, in build\)"),
        ("exit()", r"fails: SystemExit: it ends the program"),
        ("json.loads('{')", r"fails: JSONDecodeError: .*\(mine.py, line 3, in build\)"),
        ("raise ValueError", r"ValueError: without a message \(mine.py, line 3"),
    ],
)
def test_what_a_call_raises_names_the_function_and_the_line(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"import json\ndef build():\n    {body}\n")
    with pytest.raises(UserCodeFailed, match=message):
        load_user_function("mine.py:build", tmp_path)()


def test_ctrl_c_is_not_the_functions_failure(tmp_path):
    text = "import torch\ndef build():\n    torch.set_grad_enabled(False)\n    raise KeyboardInterrupt\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(KeyboardInterrupt):
        load_user_function("mine.py:build", tmp_path)()
    assert torch.is_grad_enabled()
