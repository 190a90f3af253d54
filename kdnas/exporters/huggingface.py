"""A folder that Hugging Face transformers opens by itself, with its image processor or tokenizer, and a card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, check_packages
from kdnas.exporters._labelling import Loader
from kdnas.exporters._own_kind import (
    ROUNDING,
    check_opened,
    foreign,
    in_own_order,
    normalised_probes,
    other_shape,
    write_card,
)
from kdnas.exporters._predict import NORMALISED, check_predict, write_predict
from kdnas.exporters._probe import plain_copy, probe_inputs
from kdnas.nn.cutting import Example, in_order, outputs
from kdnas.nn.exact import apart
from kdnas.nn.origin import Cut, Origin

REQUIRES = ("transformers",)
EXTRA = "hf"
FOLDER = "huggingface"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "generation_config.json"),
)
_AUTO = {
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
}
"""By what the name of a class has in it: what opens it, and what model hubs call its work."""

_WORD_SCALES = ("scalar_embed_scale", "embed_scale")
"""The attributes of an embedding that hold the factor of its rows."""

_LOADER = Loader(
    "model.safetensors",
    "load_network",
    "transformers",
    NORMALISED
    + '''

def load_network():
    """Return the network, a function: its inputs by name to logits [B, K]. Needs transformers."""
    import torch
    from transformers import AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(FOLDER).eval()

    @torch.no_grad()
    def logits_of(inputs):
        return network(pixel_values=torch.from_numpy(normalised(inputs["pixels"]))).logits.numpy()

    return logits_of
''',
)

_TEXT_SCRIPT = '''"""{what} with the network next to this script. It needs transformers.

    python predict.py {example}
"""

import sys
from pathlib import Path

import torch
from transformers import {auto}, AutoTokenizer

FOLDER = Path(__file__).resolve().parent


@torch.no_grad()
def main():
    """{what}: the texts that the command line names."""
    if len(sys.argv) < {least}:
        sys.exit(__doc__)
    tokenizer, network = AutoTokenizer.from_pretrained(FOLDER), {auto}.from_pretrained(FOLDER).eval()
{before}    for text in sys.argv[{first}:]:
        tokens = tokenizer({read}, return_tensors="pt", truncation=True, max_length={length})
        {body}


main()
'''
_LABEL = """shares = network(**tokens).logits.softmax(1)[0].tolist()
        ranked = sorted(zip(shares, network.config.id2label.values()), reverse=True)[:3]
        print(f"{text}: {', '.join(f'{name} {100 * share:.1f} %' for share, name in ranked)}")"""
_PREDICT = """print(f"{text}: {network(**tokens).logits[0, 0].item():.4g}")"""
_SCORE = """scores.append((network(**tokens).logits[0, 0].item(), text))
    for score, text in sorted(scores, reverse=True):
        print(f"{score:.4g}  {text}")"""
_CONTINUE = """made = network.generate(**tokens, max_new_tokens=32, do_sample=False)
        print(tokenizer.decode(made[0], skip_special_tokens=True))"""


@EXPORTERS.register
def huggingface(student: TrainedStudent, folder: Path) -> Written:
    """A folder that AutoModel...from_pretrained opens, where one size holds for all layers of the student."""
    check_packages("huggingface")
    reason = why_not(student.cut, student.network)
    if reason or student.cut is None:
        raise ExportError(f"{FOLDER}: {reason}")
    origin = student.cut.origin
    own, out = in_own_order(student, origin), folder / FOLDER
    out.mkdir()
    network = described(student.network, student.cut.example)[0]
    names = own.preprocessing.class_names
    if names:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: index for index, name in enumerate(names)}
    elif student.spec.outputs == 1 and not student.spec.candidates:
        network.config.problem_type = "regression"
    with quiet_loading():
        network.save_pretrained(out)
    if isinstance(own.preprocessing, Preprocessing):
        _write_processor(own.preprocessing, origin, out)
        write_predict(own, out, _LOADER)
    else:
        for source in (origin.folder, student.tokenizer):  # what the texts were read by stands in the end
            _copy_tokenizer(source, out)
        write_predict(own, out)
        _write_text_script(own, origin, out)
    auto, pipeline = _auto(origin)
    pipeline = "text-ranking" if student.spec.candidates else pipeline
    write_card(own, out, "transformers", pipeline)
    opener = f"import transformers\nnetwork = transformers.{auto}.from_pretrained(folder)"
    check_opened(student, out, opener, _probes(own, origin))
    if isinstance(own.preprocessing, Preprocessing):
        check_predict(student, out, _LOADER)
    return Written(tuple(f"{FOLDER}/{path.name}" for path in sorted(out.iterdir())))


def why_not(cut: Cut | None, network: nn.Module) -> str:
    """Return why no stock configuration expresses the student's network; empty where one does."""
    reason = foreign(cut, "transformers")
    if reason or cut is None:
        return reason
    if not _auto(cut.origin)[0]:
        return f"{cut.origin.model} is no classifier and no language model"
    _, other = described(network, cut.example)
    return f"a {type(network).__name__}'s configuration has one size for all layers: {other}" if other else ""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within it, transformers draws no progress bars and logs nothing but errors."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _auto(origin: Origin) -> tuple[str, str]:
    return next((auto for part, auto in _AUTO.items() if part in origin.model), ("", ""))


def described(network: Any, example: Example | None) -> tuple[Any, str]:
    """Return a copy of `network` with the configuration that describes it, and what none states, empty where nothing.

    Heads of another width than the stream's share are stated by `head_dim`, which not every class reads or takes. Where
    there is an `example`, what the library makes of the configuration and the weights must answer it as `network` does.
    """
    others = []
    network = plain_copy(network)
    for head_dim in (None, _head_dim(network)):
        told = copy.copy(network)
        told.config = copy.deepcopy(network.config)
        told.config.dtype = torch.float32  # as the copy is, whatever the teacher's folder holds
        try:
            if head_dim is not None:
                told.config.head_dim = head_dim
            config = type(told.config).from_dict(told.config.to_dict())  # as it is read from a folder
            with torch.device("meta"):
                stock = type(network)(config)
        except Exception as error:  # its classes check what they are given, or have such a number as they compute it
            others.append(str(error).partition("\n")[0])
            continue
        other = other_shape(stock, network) or _other_shift(stock, network)
        if not other:
            told = _scaled_as(stock, told)
            other = "" if example is None else _other_answers(told, config, example)
        if not other:
            return told, ""
        others.append(other)
    return network, others[0]


def _scaled_as(stock: nn.Module, network: Any) -> Any:
    """Return `network`, or a copy whose words are scaled as `stock` scales them, which answers the same.

    Gemma multiplies its words by the root of the width, and a student goes on as its teacher did. Where words are
    answered by the same table, the last norm takes back what that is scaled by.
    """
    theirs = dict(stock.named_modules())
    for name, module in network.named_modules():
        ours, asked = (_word_scale(part) for part in (module, theirs.get(name)))
        if ours == asked or not ours or not asked:
            continue
        network, share = copy.deepcopy(network), ours / asked
        words, answers = network.get_submodule(name), network.get_output_embeddings()
        norms = [part for part in network.modules() if "Norm" in type(part).__name__ and hasattr(part, "weight")]
        with torch.no_grad():
            if answers is not None and answers.weight is words.weight:
                _divide(norms[-1], share)
            words.weight.mul_(share)
        for scale in (scale for scale in _WORD_SCALES if hasattr(words, scale)):
            held = getattr(words, scale)
            setattr(words, scale, torch.full_like(held, asked) if isinstance(held, Tensor) else asked)
    return network


def _word_scale(embedding: nn.Module | None) -> float | None:
    """Return by what an embedding multiplies its rows, None where it is not told."""
    scales = (getattr(embedding, name, None) for name in _WORD_SCALES)
    return next((scale for scale in scales if isinstance(scale, int | float)), None)


def _divide(norm: Any, share: float) -> None:
    """Make a norm give what it gave by `share`."""
    if isinstance(norm, nn.LayerNorm):
        norm.weight.div_(share)
        if norm.bias is not None:
            norm.bias.div_(share)
    else:
        norm.weight.add_(1).div_(share).sub_(1)  # Gemma's factors are 1 + weight


def _other_answers(network: Any, config: Any, example: Example) -> str:
    """Return what the library makes otherwise of the weights of `network` and `config`; empty: it answers alike."""
    with quiet_loading():
        stock = type(network).from_pretrained(None, config=config, state_dict=network.state_dict()).eval()
    given = tuple(part.cpu() for part in in_order(example))
    found, expected = outputs(stock, given), outputs(network, given)
    if apart(found, expected) <= ROUNDING:
        return ""
    for path, module in network.named_modules():
        for name, ours in vars(module).items():
            theirs = getattr(stock.get_submodule(path), name, None)
            if isinstance(ours, int | float) and theirs is not None and theirs != ours and name != "training":
                return f"{path}.{name} of the student is {ours:g}, and {theirs} in it"
    return "opened by its library with these sizes it gives other outputs"


def _other_shift(stock: nn.Module, network: nn.Module) -> str:
    """Return the first layer of `network`, of `stock`'s shapes, whose windows `stock` shifts otherwise, in words.

    A Swin's configuration shifts every second layer of a stage, and a student may keep two of a kind in a row. A layer
    whose one window holds the whole map sets its shift to zero, and its window to the map, when it is run.
    """
    for name, ours in network.named_modules():
        theirs: Any = dict(stock.named_modules()).get(name)
        shift, window = getattr(ours, "shift_size", None), getattr(ours, "window_size", None)
        resolution = getattr(ours, "input_resolution", None)
        if theirs is None or shift is None or window is None or resolution is None:
            continue
        if window == theirs.window_size < min(resolution) and shift != theirs.shift_size:
            return f"{name} of the student shifts its windows by {int(shift)}, and by {theirs.shift_size} in it"
    return ""


def _head_dim(network: nn.Module) -> int | None:
    sizes = {
        getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
        for module in network.modules()
    }
    return next((size for size in sizes if isinstance(size, int)), None)


def _probes(student: TrainedStudent, origin: Origin) -> dict[str, Tensor]:
    """Return inputs of the network by the names of its arguments."""
    given = student.preprocessing
    if not isinstance(given, Preprocessing):
        return dict(zip(origin.inputs, probe_inputs(student.spec, 3), strict=False))  # some take no segments
    return {"pixel_values": normalised_probes(given)}


def _write_processor(given: Preprocessing, origin: Origin, folder: Path) -> None:
    """Write what AutoImageProcessor reads: pictures are resized whole, as in training."""
    _, height, width = given.network_shape
    settings: dict[str, Any] = {"image_processor_type": "ViTImageProcessor"}
    theirs = origin.folder / "preprocessor_config.json" if origin.folder is not None else None
    if given.channel_order and theirs is not None and theirs.is_file():  # a class that puts channels in another order
        settings = json.loads(theirs.read_text(encoding="utf-8"))
    settings |= {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in given.channel_mean],
        "image_std": [value / 255 for value in given.channel_std],
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def _copy_tokenizer(source: Path | None, folder: Path) -> None:
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_text_script(student: TrainedStudent, origin: Origin, folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return
    auto, _ = _auto(origin)
    what, example, body = "Labels texts", '"a fine piece of work"', _LABEL
    pairs = len(student.spec.inputs) > 2  # a tab stands between two texts in a row
    read, before, first = r'*text.split("\t", 1)' if pairs else "text", "", 1
    if student.spec.candidates:
        what, example, body = "Ranks candidates for a query", '"a query" "a candidate" "another one"', _SCORE
        read, before, first = "sys.argv[1], text", "    scores = []\n", 2
    elif student.spec.outputs == 1:
        what, body = "Tells the number of texts", _PREDICT
    elif student.spec.rows > 1:
        what, example, body = "Continues texts", '"Once upon a time"', _CONTINUE
    filled = {"what": what, "example": example, "auto": auto, "read": read, "before": before, "first": first}
    text = _TEXT_SCRIPT.format(**filled, least=first + 1, length=student.spec.size, body=body)
    (folder / "predict.py").write_text(text, encoding="utf-8")
