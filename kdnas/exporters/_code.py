"""student.py: the network as one readable file, run and compared in a process of its own, and its files."""

from __future__ import annotations

import ast
import runpy
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import Input
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent, Written
from kdnas.exporters._alone import run_alone
from kdnas.exporters._labelling import LOADERS
from kdnas.exporters._predict import check_predict, write_predict, write_preprocessing
from kdnas.exporters._probe import probe_inputs, reference_logits
from kdnas.exporters._weights import WEIGHTS, write_weights
from kdnas.nn.origin import CODE_FOLDER, cut_source
from kdnas.nn.tracing import parameter_count

FILE = "student.py"
_PROBES = 8
_LIBRARIES = ("torchvision", "timm", "transformers")

_DOCSTRING = '''\
"""The network {arch_id}, whole. It needs {packages} and the weights file next to it.

    python student.py                    load the weights and print what it is{labels}

Or use it:

    network = load_student("student.safetensors")
    logits = logits_of(network, {inputs}){described}
"""
'''
_INSTEAD = "; python predict.py photo.jpg labels a picture"
_LABELS = "\n    python predict.py photo.jpg          label a picture, or several, or a folder; see --help"

_LOADER = '''

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_safetensors(path):
    """Return the tensors of a safetensors file by name. Nothing in such a file is ever executed."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError(f"{path} is not a whole safetensors file")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
        if begin < 0 or end - begin != size or start + end > len(content):
            raise ValueError(f"{path}: {name} is damaged or cut short")
        data = bytearray(content[start + begin : start + end])
        tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return tensors


def load_student(path):
    """Return the trained network, in eval mode."""
    network = build_student()
    network.load_state_dict(read_safetensors(path))
    return network.eval()
'''

_PIXELS = '''

CLASS_NAMES = {class_names}
CHANNEL_MEAN = {mean!r}  # of the training images, pixels 0..255
CHANNEL_STD = {std!r}


def preprocess(pixels):
    """Return what the network takes, from uint8 images [B, C, H, W] (0..255)."""
    {steps}


def logits_of(network, pixels):
    """Return the logits [B, K] of uint8 images [B, C, H, W] (0..255)."""
    return {call}preprocess(pixels))
'''
_PLAIN = '''

def logits_of(network, {inputs}):
    """Return the logits of raw samples."""
    return {call}{inputs})
'''

_MAIN = '''

def main():
    """Load the weights and print what the network is."""
    if sys.argv[1:]:
        sys.exit("student.py takes no arguments: it prints what the network is{instead}")
    network = load_student(Path(__file__).resolve().with_name("{weights}"))
    with torch.no_grad():
        logits = logits_of(network, {example})
    print(f"output: {{list(logits.shape)}} {{str(logits.dtype).removeprefix('torch.')}} logits")
    print(f"parameters: {{sum(parameter.numel() for parameter in network.parameters())}}"){more}


if __name__ == "__main__":
    main()
'''
_MORE = """
    print(f"classes: {', '.join(CLASS_NAMES)}")
    print("python predict.py photo.jpg labels a picture (see --help)")"""

# The file's own main is run, then its functions.
_CHECKER = """\
import runpy, sys, torch
script, probes, answers = sys.argv[1:]
sys.argv = [script]
student = runpy.run_path(script, run_name="__main__")
network = student["load_student"](script[: -len(".py")] + ".safetensors")
with torch.no_grad():
    logits = student["logits_of"](network, *torch.load(probes, weights_only=True))
torch.save(logits.clone(), answers)
"""


def write_code(student: TrainedStudent, folder: Path) -> Written:
    """Write student.py, its weights, preprocessing.json and predict.py into `folder`.

    Raises ExportError where the source is no Python of a network, or does not give the student's outputs when run
    alone, bit for bit.
    """
    weights, path = write_weights(student, folder), folder / FILE
    path.write_text(script(student), encoding="utf-8")
    users = _write_users_files(student, folder)
    _check_alone(student, path)
    names = write_predict(student, folder)
    check_predict(student, folder, LOADERS[FILE])
    return Written((FILE, weights.name, *users, *names))


def write_with_weights(student: TrainedStudent, folder: Path, *files: str) -> Written:
    """Write next to the weights `files` the code that runs them, or, where there is none, how they are fed alone.

    The code is compared in this process, which takes a hundredth of the time of one of its own; a user's is not.
    """
    path = folder / FILE
    try:
        if student.cut is not None and student.cut.origin.files:
            return Written((*files, *write_code(student, folder).files))
        if not path.exists():  # else another format of this export has written and compared it
            path.write_text(script(student), encoding="utf-8")
            inputs = probe_inputs(student.spec, _PROBES)
            _compare(student, _logits_here(path, folder / WEIGHTS, inputs), inputs)
    except ExportError as error:
        path.unlink(missing_ok=True)
        return Written((*files, write_preprocessing(student, folder)), (f"no {FILE} next to the weights: {error}",))
    return Written((*files, FILE, *write_predict(student, folder)))


def _write_users_files(student: TrainedStudent, folder: Path) -> list[str]:
    """Copy the user's own files that the network's code needs, and return their names."""
    names = []
    for inside, path in (student.cut.origin.files if student.cut is not None else {}).items():
        name = f"{CODE_FOLDER}/{inside}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        names.append(name)
    return names


def script(student: TrainedStudent) -> str:
    """Return the text of student.py: the source of the network, then what loads and runs it.

    Raises ExportError when there is no source, or it is not Python or defines no `build_student`.
    """
    source = _source(student)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ExportError(f"{FILE}: the network's source is not Python: {error}") from error
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "build_student" not in defined:
        raise ExportError(f"{FILE}: the network's source defines no build_student()")
    call = "answer(network, " if "answer" in defined else "network("
    preprocessing, inputs = student.preprocessing, ", ".join(taken.name for taken in student.spec.inputs)
    described = labels = more = instead = ""
    if isinstance(preprocessing, Preprocessing):
        labels, more, instead = _LABELS, _MORE, _INSTEAD
        described = f"          # {inputs}: uint8 [B, {', '.join(map(str, student.spec.image_shape))}]"
        feeding = _PIXELS.format(
            class_names=_tuple_literal(preprocessing.class_names),
            mean=preprocessing.channel_mean,
            std=preprocessing.channel_std,
            steps="\n    ".join(_steps(preprocessing)),
            call=call,
        )
    else:
        feeding = _PLAIN.format(inputs=inputs, call=call)
    imports, body = _split_head(source, tree)
    packages = [line.split()[1].partition(".")[0] for line in imports.splitlines() if line]
    others = [package for package in dict.fromkeys(packages) if package in _LIBRARIES]
    docstring = _DOCSTRING.format(
        arch_id=student.arch.arch_id,
        packages=", ".join(["PyTorch", *others]),
        labels=labels,
        inputs=inputs,
        described=described,
    )
    example = ", ".join(map(_example, student.spec.inputs))
    main = _MAIN.format(weights=WEIGHTS, example=example, more=more, instead=instead)
    return "\n".join([docstring, imports, "", body.rstrip(), _LOADER.rstrip() + "\n" + feeding.rstrip() + "\n" + main])


def _source(student: TrainedStudent) -> str:
    if student.source is not None:
        return student.source
    if student.cut is None:
        raise ExportError(f"{FILE}: the network has no source of its own")
    try:
        return cut_source(student.cut, student.network)
    except ValueError as error:
        raise ExportError(f"{FILE}: {error}") from error


def _steps(preprocessing: Preprocessing) -> list[str]:
    """Return the lines that make of pixels what the network takes."""
    lines = ["pixels = pixels.float()"]
    if preprocessing.repeat > 1:
        lines.append(f"pixels = pixels.repeat(1, {preprocessing.repeat}, 1, 1)")
    if preprocessing.network_size:
        size = f'{tuple(preprocessing.network_size)}, mode="bilinear", antialias=True'
        lines.append(f"pixels = torch.nn.functional.interpolate(pixels, {size})")
    for name in ("mean", "std"):
        values = f"CHANNEL_{name.upper()}"
        lines.append(f"{name} = torch.tensor({values}, device=pixels.device).view(1, -1, 1, 1)")
    order = f"[:, {list(preprocessing.channel_order)}]" if preprocessing.channel_order else ""
    return [*lines, f"return ((pixels - mean) / std){order}" if order else "return (pixels - mean) / std"]


def _example(taken: Input) -> str:
    if taken.kind == "pixels":
        return f"torch.randint(0, 256, (4, *{taken.shape}), dtype=torch.uint8)"
    if taken.kind == "floats":
        return f"torch.randn(4, *{taken.shape})"
    return f"torch.ones(4, *{taken.shape}, dtype=torch.int64)"


def _split_head(source: str, tree: ast.Module) -> tuple[str, str]:
    """Return (the imports of source and loader in their usual order, the rest of the source without its docstring)."""
    imports, dropped = {"import json", "import sys", "from pathlib import Path", "import torch"}, set[int]()
    for position, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.add(ast.unparse(node))
        elif not (position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        dropped.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    groups: list[list[str]] = [[], [], []]
    for line in sorted(imports, key=lambda line: (line.startswith("from "), line)):
        root = line.split()[1].partition(".")[0]
        groups[0 if root == "__future__" else 2 if root in ("torch", *_LIBRARIES) else 1].append(line)
    head = "\n\n".join("\n".join(group) for group in groups if group)
    lines = source.splitlines()
    return head + "\n", "\n".join(line for index, line in enumerate(lines) if index not in dropped).strip("\n") + "\n"


def _tuple_literal(names: tuple[str, ...]) -> str:
    """Return a tuple of strings as Python, on one line where it is short, else one name a line."""
    flat = repr(tuple(names))
    return flat if len(flat) <= 100 else "(\n" + "".join(f"    {name!r},\n" for name in names) + ")"


@torch.no_grad()
def _logits_here(path: Path, weights: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    try:
        student = runpy.run_path(str(path))
        logits: Tensor = student["logits_of"](student["load_student"](weights), *inputs)
    except Exception as error:  # it runs the network's own code
        raise ExportError(f"{FILE}: it fails: {type(error).__name__}: {error}") from error
    return logits


def _check_alone(student: TrainedStudent, path: Path) -> None:
    """Run the file in a process of its own and raise ExportError unless it gives the student's outputs bit for bit."""
    inputs = probe_inputs(student.spec, _PROBES)
    imported = {line.split()[1].partition(".")[0] for line in path.read_text("utf-8").splitlines() if "import " in line}
    absent = () if imported & set(_LIBRARIES) else ("safetensors", *_LIBRARIES)
    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        probes, answers, checker = (Path(scratch) / name for name in ("probes", "answers", FILE))
        torch.save(inputs, probes)
        checker.write_text(_CHECKER, encoding="utf-8")
        printed = run_alone(checker, path, probes, answers, folder=Path(scratch), absent=absent)
        logits = torch.load(answers, weights_only=True)
    if f"parameters: {parameter_count(student.network)}\n" not in printed:
        raise ExportError(f"{FILE}: its network has another number of parameters than the student")
    _compare(student, logits, inputs)


def _compare(student: TrainedStudent, logits: Tensor, inputs: tuple[Tensor, ...]) -> None:
    reference = reference_logits(student, *inputs)
    if not torch.equal(logits, reference):
        same = logits.shape == reference.shape
        gap = f" (largest difference {(logits - reference).abs().max().item():.3g})" if same else ""
        raise ExportError(f"{FILE}: run alone it does not give the student's outputs{gap}")
