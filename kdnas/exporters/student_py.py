"""student.py: the network as one readable file that needs only torch, run and compared in a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.exporters._picture_script import IMPORTS, picture_source, preparation
from kdnas.exporters._probe import probe_images, probe_pictures, reference_logits
from kdnas.exporters._weights import write_weights
from kdnas.nn.tracing import parameter_count

FILE = "student.py"
_PROBES = 8
_TIME_LIMIT_S = 300

_DOCSTRING = '''\
"""Image classifier {arch_id}, whole. It needs PyTorch and the weights file beside it, and for pictures Pillow.

    python student.py photo.jpg          label a picture, or several, or a folder; --help says more
    python student.py                    load the weights and say what it is

Or use it:

    network = load_student("student.safetensors")
    pixels = torch.from_numpy(read_picture("photo.jpg").copy())[None]
    logits = network(preprocess(pixels))          # pixels: uint8 [B, {channels}, {height}, {width}]
"""
'''

_IMPORTS = (*IMPORTS, "import torch")

_LOADER = '''

INPUT_SHAPE = {input_shape!r}  # channels, height, width
CLASS_NAMES = {class_names}
CHANNEL_MEAN = {channel_mean!r}  # of the training images, pixels 0..255
CHANNEL_STD = {channel_std!r}
BACKGROUND = {background!r}  # behind what is transparent in a picture
PREPARATION = {preparation!r}

_DTYPES = {{
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}}  # fmt: skip


def preprocess(pixels):
    """Return what the network takes, from uint8 images [B, C, H, W] (0..255)."""
    mean = torch.tensor(CHANNEL_MEAN, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(CHANNEL_STD, device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() - mean) / std


def read_safetensors(path):
    """Return the tensors of a safetensors file by name. Nothing in such a file is ever executed."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise ValueError(f"{{path}} is not a whole safetensors file")
    tensors = {{}}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
        if begin < 0 or end - begin != size or start + end > len(content):
            raise ValueError(f"{{path}}: {{name}} is damaged or cut short")
        data = bytearray(content[start + begin : start + end])
        tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return tensors


def load_student(path):
    """Return the trained network, in eval mode: it takes `preprocess`ed images and gives logits [B, K]."""
    network = build_student()
    network.load_state_dict(read_safetensors(path))
    return network.eval()


'''

_MAIN = '''

def main():
    """Label the pictures that are named, or else say what the network is."""
    arguments = command_line(Path(__file__).resolve().with_name("student.safetensors")).parse_args()
    network = load_student(arguments.weights)

    @torch.no_grad()
    def probabilities_of(picture):
        pixels = torch.from_numpy(picture.copy())[None]
        return network(preprocess(pixels)).softmax(1)[0].tolist()

    if arguments.pictures:
        files = picture_files(arguments.pictures)
        sys.exit(label(files, arguments.top, arguments.json, probabilities_of) > 0)
    pixels = torch.randint(0, 256, (4, *INPUT_SHAPE), dtype=torch.uint8)
    with torch.no_grad():
        logits = network(preprocess(pixels))
    print(f"input: {{list(pixels.shape)}} uint8")
    print(f"output: {{list(logits.shape)}} {{str(logits.dtype).removeprefix('torch.')}} logits")
    print(f"parameters: {{sum(parameter.numel() for parameter in network.parameters())}}")
    print(f"classes: {{', '.join(CLASS_NAMES)}}")
    print("give it pictures to label them: python student.py photo.jpg (--help says more)")


if __name__ == "__main__":
    main()
'''

# The file's own main is run, then its functions; whatever else is installed is out of its reach.
_CHECKER = """\
import pathlib, runpy, sys
for name in ("kdnas", "safetensors", "torchvision", "timm"):
    sys.modules[name] = None
import torch
script, probes, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
sys.argv = [script]
student = runpy.run_path(script, run_name="__main__")
network = student["load_student"](script[: -len(".py")] + ".safetensors")
with torch.no_grad():
    logits = network(student["preprocess"](torch.load(probes + "/pixels", weights_only=True)))
torch.save(logits, probes + "/logits")
for picture in pathlib.Path(probes).glob("*.png"):
    torch.save(torch.from_numpy(student["read_picture"](picture).copy()), picture.with_suffix(".pixels"))
"""


@EXPORTERS.register
def student_py(student: TrainedStudent, folder: Path) -> list[str]:
    """The network as one readable Python file that needs only torch, with its weights beside it."""
    weights = write_weights(student, folder)
    path = folder / FILE
    path.write_text(script(student), encoding="utf-8")
    _check(student, path)
    return [FILE, weights.name]


def script(student: TrainedStudent) -> str:
    """Return the text of student.py: the family's source of the network, then what loads and runs it.

    Raises ExportError when the source is not Python or defines no `build_student`.
    """
    try:
        tree = ast.parse(student.source)
    except SyntaxError as error:
        raise ExportError(f"{FILE}: the network's source is not Python: {error}") from error
    if not any(isinstance(node, ast.FunctionDef) and node.name == "build_student" for node in tree.body):
        raise ExportError(f"{FILE}: the network's source defines no build_student()")
    channels, height, width = student.task.image_shape
    values = {"arch_id": student.arch.arch_id, "channels": channels, "height": height, "width": width}
    imports, body = _split_head(student.source, tree)
    loader = _LOADER.format(
        input_shape=student.task.image_shape,
        class_names=_tuple_literal(student.class_names),
        channel_mean=tuple(student.channel_mean),
        channel_std=tuple(student.channel_std),
        background=student.background,
        preparation=preparation(student),
    )
    loader = loader.rstrip() + picture_source() + _MAIN.format()
    return "\n".join([_DOCSTRING.format(**values), imports, "", body.rstrip(), loader])


def _split_head(source: str, tree: ast.Module) -> tuple[str, str]:
    """Return (the imports of source and loader in their usual order, the rest of the source without its docstring)."""
    imports, dropped = set(_IMPORTS), set[int]()
    for position, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.add(ast.unparse(node))
        elif not (position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        dropped.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    groups: list[list[str]] = [[], [], []]
    for line in sorted(imports, key=lambda line: (line.startswith("from "), line)):
        root = line.split()[1].partition(".")[0]
        groups[0 if root == "__future__" else 2 if root == "torch" else 1].append(line)
    head = "\n\n".join("\n".join(group) for group in groups if group)
    lines = source.splitlines()
    return head + "\n", "\n".join(line for index, line in enumerate(lines) if index not in dropped).strip("\n") + "\n"


def _tuple_literal(names: tuple[str, ...]) -> str:
    """Return a tuple of strings as Python, on one line where it is short, else one name a line."""
    flat = repr(tuple(names))
    return flat if len(flat) <= 100 else "(\n" + "".join(f"    {name!r},\n" for name in names) + ")"


def _check(student: TrainedStudent, path: Path) -> None:
    """Run the file in a process of its own and raise ExportError unless it gives the student's outputs bit for bit."""
    pixels = probe_images(student.task, _PROBES)
    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        torch.save(pixels, Path(scratch) / "pixels")
        pictures = probe_pictures(student, Path(scratch))
        command = [sys.executable, "-I", "-c", _CHECKER, str(path), scratch, str(torch.get_num_threads())]
        try:
            ran = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"{FILE}: it did not finish within {_TIME_LIMIT_S} seconds") from None
        if ran.returncode != 0:
            raise ExportError(
                f"{FILE}: it fails when run alone: {(ran.stderr.strip().splitlines() or ['no output'])[-1]}"
            )
        logits = torch.load(Path(scratch) / "logits", weights_only=True)
        for picture, expected in pictures:
            found = torch.load(picture.with_suffix(".pixels"), weights_only=True)
            if not torch.equal(found, torch.from_numpy(expected.copy())):
                raise ExportError(f"{FILE}: run alone it reads a picture otherwise than the training did")
    if f"parameters: {parameter_count(student.module)}\n" not in ran.stdout:
        raise ExportError(f"{FILE}: its network has another number of parameters than the student")
    reference = reference_logits(student, pixels)
    if not torch.equal(logits, reference):
        same = logits.shape == reference.shape
        gap = f" (largest difference {(logits - reference).abs().max().item():.3g})" if same else ""
        raise ExportError(f"{FILE}: run alone it does not give the student's outputs{gap}")
