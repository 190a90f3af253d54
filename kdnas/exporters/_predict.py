"""What travels with every network that is exported: preprocessing.json, and predict.py, which labels picture files.

predict.py reads pictures as training did (it holds the text of `kdnas.picture`), runs the network that lies next to it,
and is run and compared in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.exporters._labelling import SCRIPT, Loader, check_printed, loaders_of, printed_alone
from kdnas.exporters._predict_text import check_text_predict, write_text_predict
from kdnas.exporters._probe import probe_pictures, reference_logits
from kdnas.picture import reading_source

PREPROCESSING = "preprocessing.json"

_HEAD = '''"""Labels pictures with the network next to this script. It needs Pillow, NumPy and {packages}.

    python predict.py photo.jpg          label a picture, or several, or a folder; see --help
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
PREPROCESSING = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))


'''

_READ = '''

def read_picture(path):
    """Return a picture file as the network saw its training images: uint8 [C, H, W]. Needs Pillow.

    Raises OSError or ValueError where it cannot be read.
    """
    from PIL import Image

    channels = 1 if PREPROCESSING["colour"] == "greyscale" else 3
    with Image.open(path) as picture:
        kind = picture.format
        picture.load()
        seen = opaque(eight_bits(upright(picture), kind), PREPROCESSING["background"])
        return fitted(seen, PREPROCESSING["size"], channels)
'''

NORMALISED = '''

def normalised(pixels):
    """Return what the network takes, float32 [B, C, H, W], from pixels in 0..255, float32 [B, C, H, W]."""
    pixels = pixels.repeat(PREPROCESSING["repeat"], axis=1)
    if PREPROCESSING["network_size"]:
        import torch
        import torch.nn.functional as F

        given, size = torch.from_numpy(pixels), PREPROCESSING["network_size"]
        pixels = F.interpolate(given, size, mode="bilinear", antialias=True).numpy()
    mean, std = (np.float32(PREPROCESSING[name]).reshape(1, -1, 1, 1) for name in ("channel_mean", "channel_std"))
    pixels = (pixels - mean) / std
    return pixels[:, PREPROCESSING["channel_order"]] if PREPROCESSING["channel_order"] else pixels
'''
"""For networks that have no normalisation inside."""

_MAIN = '''

def picture_files(paths):
    """Return the files at `paths`, those of a folder in order; hidden ones are passed over."""
    files = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        files += [file for file in inside if file == path or not file.name.startswith(".")]
    return files


def likeliest(logits, names, top):
    """Return the (probability, class) of the likeliest classes, the first first."""
    raised = np.exp(logits - logits.max())
    named = zip((raised / raised.sum()).tolist(), names, strict=True)
    return sorted(named, key=lambda pair: -pair[0])[:top]


def label(file, logits_of, top, as_json):
    """Print the likeliest classes of one picture, of several tasks those of each."""
    logits = logits_of({"pixels": read_picture(file)[np.newaxis].astype(np.float32, order="C")})[0]
    names, start, ranked = PREPROCESSING["class_names"], 0, []
    for count in PREPROCESSING.get("tasks", {"": len(names)}).values():
        ranked += likeliest(logits[start : start + count], names[start : start + count], top)
        start += count
    if as_json:
        classes = [{"class": name, "probability": probability} for probability, name in ranked]
        print(json.dumps({"file": str(file), "classes": classes}), flush=True)
    else:
        print(f"{file}: {', '.join(f'{name} {100 * probability:.1f} %' for probability, name in ranked)}", flush=True)


def main():
    """Label the pictures that are named. Exit code 1: one of them could not be read."""
    networks = [name for name in NETWORKS if (FOLDER / name).exists()]
    parser = argparse.ArgumentParser(
        description=f"Labels pictures with one of {len(PREPROCESSING['class_names'])} classes. {PREPARATION}",
        epilog="Exit code 1: a picture could not be read.",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="a picture file, or a folder of them")
    parser.add_argument("--network", choices=networks, default=networks[0], help="the file that is run (%(default)s)")
    parser.add_argument("--top", type=int, metavar="N", default=3, help="classes a picture, the likeliest first (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error("--top: one class or more")
    logits_of = NETWORKS[arguments.network]()
    unreadable = 0
    for file in picture_files(arguments.pictures):
        try:
            label(file, logits_of, arguments.top, arguments.json)
        except Exception as error:  # Pillow's decoders raise whatever they stumble over, and refuse huge pictures
            print(f"{file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            unreadable += 1
    sys.exit(unreadable > 0)


if __name__ == "__main__":
    main()
'''


def write_preprocessing(student: TrainedStudent, folder: Path) -> str:
    """Write preprocessing.json into `folder` and return its name. Raises ExportError where it does not read back."""
    plain = student.preprocessing.as_dict()
    path = folder / PREPROCESSING
    path.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if json.loads(path.read_text(encoding="utf-8")) != plain:
        raise ExportError(f"{PREPROCESSING}: it did not read back as written")
    return PREPROCESSING


def write_predict(student: TrainedStudent, folder: Path, *loaders: Loader) -> tuple[str, ...]:
    """Write preprocessing.json, and predict.py for the networks of `loaders`, and return their names.

    Without loaders it is for every network that lies in `folder`.
    """
    names = (write_preprocessing(student, folder),)
    if not isinstance(student.preprocessing, Preprocessing):
        return *names, *write_text_predict(student, folder)
    there = loaders or loaders_of(folder)
    (folder / SCRIPT).write_text(predict_script(student.preprocessing, there), encoding="utf-8")
    return *names, SCRIPT


def predict_script(preprocessing: Preprocessing, loaders: Sequence[Loader]) -> str:
    """Return the text of predict.py for the networks that `loaders` load."""
    networks = ", ".join(f'"{loader.file}": {loader.function}' for loader in loaders)
    words = preprocessing.words
    as_trained = ", as in training." if preprocessing.from_pictures else "."
    head = _HEAD.format(packages=" or ".join(loader.needs for loader in loaders))
    reading = f"PREPARATION = {f'Each is {words}{as_trained}'!r}\n\n\n{reading_source().rstrip()}\n{_READ}"
    texts = "".join(loader.text for loader in loaders)
    return f"{head.rstrip()}\n{reading}{texts}\n\nNETWORKS = {{{networks}}}\n{_MAIN}"


def check_predict(student: TrainedStudent, folder: Path, loader: Loader) -> None:
    """Raise ExportError unless predict.py, run alone with the loader's network, labels pictures as the student does."""
    if not isinstance(student.preprocessing, Preprocessing):
        check_text_predict(student, folder, loader)
        return
    script, names = folder / SCRIPT, student.preprocessing.class_names
    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        pictures = probe_pictures(student, Path(scratch))
        files = [path for path, _ in pictures]
        printed = printed_alone(script, loader, *files, folder=Path(scratch), classes=len(names))
    pixels = torch.stack([torch.from_numpy(seen.copy()) for _, seen in pictures])
    logits = reference_logits(student, pixels).split([head.outputs for head in student.spec.heads] or len(names), dim=1)
    check_printed(printed, loader, names, torch.cat([own.softmax(1) for own in logits], dim=1).tolist())
