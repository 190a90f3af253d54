"""What exported scripts share: reading pictures as training did, and a command line that labels them.

A script defines INPUT_SHAPE, CLASS_NAMES, BACKGROUND and `probabilities_of(pixels)`; the rest of its text is here.
"""

from __future__ import annotations

from kdnas.exporters import TrainedStudent
from kdnas.picture import reading_source

ARRAYS = "The training images came as arrays: how their pictures were made so small is not known."
IMPORTS = ("import argparse", "import json", "import sys", "from pathlib import Path")

_READ = '''

def read_picture(path):
    """Return a picture file as the network saw its training images: uint8 [C, H, W], a numpy array. Needs Pillow.

    Raises OSError or ValueError where it cannot be read.
    """
    try:
        from PIL import Image
    except ImportError:
        sys.exit("pictures need Pillow and numpy: pip install pillow numpy")
    channels, height, width = INPUT_SHAPE
    with Image.open(path) as picture:
        kind = picture.format
        picture.load()
        return fitted(opaque(eight_bits(upright(picture), kind), BACKGROUND), (height, width), channels)
'''

_MAIN = '''

def picture_files(paths):
    """Return the files at `paths`, those of a folder in order; hidden ones are passed over."""
    files = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        files += [file for file in inside if file == path or not file.name.startswith(".")]
    return files


def label(files, top, as_json, probabilities_of):
    """Print the likeliest classes of each picture and return how many could not be read."""
    unreadable = 0
    for file in files:
        try:
            pixels = read_picture(file)
        except Exception as error:  # Pillow's decoders raise whatever they stumble over, and refuse huge pictures
            print(f"{file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            unreadable += 1
            continue
        ranked = sorted(zip(probabilities_of(pixels), CLASS_NAMES, strict=True), key=lambda pair: -pair[0])[:top]
        if as_json:
            classes = [{"class": name, "probability": probability} for probability, name in ranked]
            print(json.dumps({"file": str(file), "classes": classes}), flush=True)
        else:
            told = ", ".join(f"{name} {100 * probability:.1f} %" for probability, name in ranked)
            print(f"{file}: {told}", flush=True)
    return unreadable


def command_line(weights):
    """Return the command line's parser; `weights` is the file that is read by default."""
    channels, height, width = INPUT_SHAPE
    parser = argparse.ArgumentParser(
        description=f"Labels pictures with one of {len(CLASS_NAMES)} classes. {PREPARATION}",
        epilog="Without pictures it says what the network is. Exit code 1: a picture could not be read.",
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="a picture file, or a folder of them")
    beside = f"default: {Path(weights).name} beside this script"
    parser.add_argument("--weights", metavar="FILE", default=weights, help=beside)
    parser.add_argument("--top", type=int, metavar="N", default=3, help="classes a picture, the likeliest first (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    return parser
'''


def preparation(student: TrainedStudent) -> str:
    """Return in words what a script does to pictures, and whether that is what training did."""
    done = student.preprocessing
    if done.from_pictures:
        return f"Each is {done.words}, as in training."
    return f"Each is {done.words}. {ARRAYS}"


def picture_source() -> str:
    """Return the Python text that reads pictures and labels them."""
    return "\n\n" + reading_source().rstrip("\n") + "\n" + _READ + _MAIN
